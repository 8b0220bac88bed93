"""Where classifiers stand and what they are told, on layers small enough to count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.models import normal

PARAMS = {"a": normal(6, 8), "b": normal(8, 30), "c": normal(30, 8), "d": normal(8, 3)}
X = normal(4, 6)


def layers(p, x):
    for name in "abcd":
        x = jnp.tanh(x @ p[name])
    return x


def net(fn=layers):
    return js.trace(fn, PARAMS, X)


def test_exits_divide_the_work_as_evenly_as_they_can():
    """288 products in front of the third layer and 264 behind it; or three, of 48, 240 and 264."""
    assert js.exit_early(2)(net()).exits == ("c",)
    assert js.exit_early(3)(net()).exits == ("b", "c")
    with pytest.raises(ValueError, match="exits=5: the network has 3 places for one, so at most 4"):
        js.exit_early(5)(net())


def test_classifiers_begin_with_nothing_and_the_rule_is_held():
    made = js.exit_early(["b", "d"], js.Rule(0.25, 1, 2))(net())
    shapes = [{name: w.shape for name, w in head.items()} for head in made.heads]
    assert shapes == [{"kernel": (8, 3), "bias": (3,)}] * 2
    assert not any(np.any(w) for head in made.heads for w in head.values())
    assert (float(made.threshold), made.patience, made.first) == (0.25, 1, 2)
    assert made.threshold.dtype == jnp.float32


def test_logits_are_a_part_of_what_a_network_returns():
    whole = net(lambda p, x: {"logits": layers(p, x), "other": x})
    made = js.exit_early(["d"], output=lambda y: y["logits"])(whole)
    assert made.heads[0]["kernel"].shape == (8, 3)
    np.testing.assert_allclose(jax.jit(lambda n: n(X))(made), layers(PARAMS, X), atol=1e-6)


def test_what_has_no_exits_cannot_be_taught():
    for given in (net(), js.quantize(8, 8)(net())):
        with pytest.raises(ValueError, match=r"net: has no exits; js.exit_early\(…\)\(net\) makes"):
            js.distill_exits(given, X, key=jax.random.key(0))
    made = js.exit_early(["d"])(net())
    with pytest.raises(ValueError, match="batch_size=0: must be an int of at least 1"):
        js.distill_exits(made, X, key=jax.random.key(0), batch_size=0)
    with pytest.raises(ValueError, match="exit_early cannot follow exit_early: it has exits"):
        js.exit_early(["c"])(made)
    with pytest.raises(ValueError, match="exit_early takes a Network, not int"):
        js.exit_early(["c"])(3)
