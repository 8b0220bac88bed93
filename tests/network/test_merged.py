"""A weight that is computed of several parameters is one site, of the largest's name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.models import normal

X = normal(5, 8, seed=1)
PARAMS = {"base": normal(8, 6), "down": normal(8, 2, seed=2), "up": normal(2, 6, seed=3)}


def low_rank(p, x):
    return x @ (p["base"] + 0.5 * p["down"] @ p["up"])


@pytest.fixture(scope="module")
def net():
    return js.trace(low_rank, PARAMS, X)


def merged(p):
    return np.asarray(p["base"]) + 0.5 * np.asarray(p["down"]) @ np.asarray(p["up"])


def test_the_site_has_the_largest_one_s_name_and_reads_all(net):
    (site,) = net.sites
    assert (site.name, site.param, site.macs) == ("base", "base", 5 * 8 * 6)
    assert site.sources == ("base", "down", "up")
    assert site.parts == ()  # zeros of the base are none of the sum


def test_codes_are_those_of_the_sum_and_so_are_gradients(net):
    """As a model that holds the sum: each part's derivative is the sum's, by the chain rule."""
    quantized = js.quantize(4, 8)(net)
    whole = js.quantize(4, 8)(js.trace(lambda p, x: x @ p["w"], {"w": merged(PARAMS)}, X))
    chips = [js.deploy(n, calibrate=X) for n in (quantized, whole)]
    (codes,), (expected,) = (c.states.values() for c in chips)
    np.testing.assert_array_equal(codes.inner, expected.inner)

    def slope(n):
        return jax.jit(jax.grad(lambda p: jnp.sum(n.with_params(p)(X) ** 2)))(n.params)

    found, d = slope(quantized), np.asarray(slope(whole)["w"])
    chain = {
        "base": d,
        "down": 0.5 * d @ np.asarray(PARAMS["up"]).T,
        "up": 0.5 * np.asarray(PARAMS["down"]).T @ d,
    }
    for name, value in chain.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * np.abs(value).max())
    assert quantized.coverage().share("transformed") == 1


def test_masks_are_refused_with_what_the_weight_is_computed_from(net):
    with pytest.raises(
        ValueError, match="prune at base: its weight is computed from base, down, up"
    ):
        js.prune(0.5)(net)
