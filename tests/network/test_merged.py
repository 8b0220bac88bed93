"""A weight that is computed of several parameters is one site, of the largest's name."""

import functools

import flax.linen as nn
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


def deep(base, p, x):
    return jnp.tanh(x @ base(p)) @ p["head"]


HEAD = {"head": normal(6, 4, seed=4)}
SUM = {"base": jnp.asarray(merged(PARAMS))}


@functools.cache
def pair():
    """A network with a merged weight, and one that holds the sum."""
    one = js.trace(
        lambda p, x: deep(lambda p: p["base"] + 0.5 * p["down"] @ p["up"], p, x), PARAMS | HEAD, X
    )
    return one, js.trace(lambda p, x: deep(lambda p: p["base"], p, x), SUM | HEAD, X)


def mask_of(net, name="base"):
    (mask,) = (w.settings["mask"] for w in net.cores[name] if w.role == "mask")
    return np.asarray(mask)


def loss(net):
    return jnp.sum(net(X) ** 2)


CRITERIA = {
    "magnitude": {"sparsity": 0.5},
    "inputs": {"sparsity": 0.5, "criterion": js.sparsity.activation_variance(X)},
    "gradient": {"sparsity": 0.5, "criterion": js.sparsity.taylor(loss)},
    "rounds": {"sparsity": 0.5, "criterion": js.sparsity.synflow(X), "rounds": 2},
    "1 of 2": {"pattern": js.sparsity.n_of_m(1, 2)},
    "blocks": {"sparsity": 0.5, "pattern": js.sparsity.block(2, 2)},
}


@pytest.mark.parametrize("how", CRITERIA)
def test_masks_are_those_of_the_sum_and_stand_at_the_site(how):
    net, whole = (js.prune(**CRITERIA[how])(n) for n in pair())
    np.testing.assert_array_equal(mask_of(net), whole.masks["base"])
    np.testing.assert_array_equal(net.masks["head"], whole.masks["head"])
    assert list(net.masks) == ["head"]  # the parameters themselves are whole


def test_what_follows_a_mask_of_a_merged_weight(tmp_path):
    """Codes, gradients, counts, files and another round are those of the sum."""
    net, whole = (js.prune(0.5)(n) for n in pair())
    site = net.sites[0]
    assert net.density(site) == whole.density(whole.sites[0]) == mask_of(net).mean()
    assert net.coverage().share("transformed") == 1
    assert net.cost().sites[0].nonzero == 8 * 6 + 8 * 2 + 2 * 6 - (~mask_of(net)).sum()
    chips = [js.deploy(js.quantize(4, 8)(n), calibrate=X) for n in (net, whole)]
    codes, expected = (c.states["base"].inner for c in chips)
    np.testing.assert_array_equal(codes, expected)
    assert (np.asarray(codes)[~mask_of(net)] == 0).all()

    def slope(n):
        return jax.jit(jax.grad(lambda p: loss(n.with_params(p))))(n.params)

    found, d = slope(net), np.asarray(slope(whole)["base"])
    assert (d[~mask_of(net)] == 0).all()
    expected = 0.5 * d @ np.asarray(PARAMS["up"]).T
    np.testing.assert_allclose(found["down"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    js.save(tmp_path / "net", net)
    np.testing.assert_array_equal(mask_of(js.load(tmp_path / "net", net)), mask_of(net))
    more = js.prune(0.75, criterion=js.sparsity.random(jax.random.key(1)))(net)
    assert (mask_of(net) >= mask_of(more)).all()
    assert len(more.cores["base"]) == 1
    later = js.prune(0.5)(js.quantize(4, 8)(pair()[0]))
    assert [w.role for w in later.cores["base"]] == ["mask", "codes"]
    np.testing.assert_array_equal(mask_of(later), mask_of(net))
    with pytest.raises(ValueError, match="run_sparse at base: its mask stands at the site, as its"):
        js.run_sparse("rows", sites="base")(net)


def test_scores_from_elsewhere_must_hold_the_merged_weight():
    net, _ = pair()
    with pytest.raises(ValueError, match="criterion: no scores of base:merged, the weight of base"):
        js.prune(0.5, criterion=js.sparsity.given(net.params))(net)


def test_each_layer_of_a_stack_has_a_mask_of_its_own_sum():
    """A low rank that is scanned: as the same layers with their sums."""
    n = 3
    p = {"w": normal(n, 6, 6), "a": normal(n, 6, 1, seed=2), "b": normal(n, 1, 6, seed=3)}
    x = normal(4, 6, seed=5)

    def run(weight):
        def step(h, layer):
            return jnp.tanh(h @ weight(layer)), None

        return lambda p, x: jax.lax.scan(step, x, p)[0]

    net = js.trace(run(lambda layer: layer["w"] + layer["a"] @ layer["b"]), p, x)
    sums = {"w": p["w"] + jnp.einsum("lij,ljk->lik", p["a"], p["b"])}
    whole = js.trace(run(lambda layer: layer["w"]), sums, x)
    for how in ({"sparsity": 0.5}, {"pattern": js.sparsity.n_of_m(2, 3)}):
        found, expected = (js.prune(**how)(m) for m in (net, whole))
        np.testing.assert_array_equal(mask_of(found, "w"), expected.masks["w"])
    y, z = (jax.jit(m)(x) for m in (found, expected))
    np.testing.assert_allclose(y, z, rtol=0, atol=1e-5 * np.abs(z).max())


def test_a_frozen_weight_is_pruned_at_its_site():
    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, x):
            base = self.variable("kept", "base", lambda: PARAMS["base"]).value
            down = self.param("down", lambda _: PARAMS["down"])
            return x @ base + x @ down @ PARAMS["up"]

    variables = Frozen().init(jax.random.key(0), X)
    net = js.trace(Frozen(), variables, X, weights=["kept"])
    (site,) = (s for s in net.sites if s.param == "kept/base")
    pruned = js.prune(0.5, sites=site.name)(net)
    mask = mask_of(pruned, site.name)
    base = np.abs(np.asarray(PARAMS["base"]))
    assert mask.mean() == 0.5
    assert base[mask].min() > base[~mask].max()
    plain = np.asarray(X) @ np.asarray(PARAMS["down"]) @ np.asarray(PARAMS["up"])
    expected = np.asarray(X) @ (np.asarray(PARAMS["base"]) * mask) + plain
    np.testing.assert_allclose(pruned(X), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
