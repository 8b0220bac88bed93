"""What a pyramid is told of its layers."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.adaptive import tokens
from tests.support.transformers import CLASSES, WIDTH, network

HEAD = {"kernel": jnp.full((WIDTH, CLASSES), 7.0), "bias": jnp.full(CLASSES, 5.0)}


def test_a_pyramid_holds_levels_a_rule_and_classifiers_that_say_nothing():
    net = js.magic_pyramid(0.25, js.Rule(0.5, 1, 2), protect=3, protect_last=1)(network("vit"))
    np.testing.assert_array_equal(net.tokens.level, [0.25] * 3)
    assert (float(net.threshold), net.patience, net.first) == (0.5, 1, 2)
    assert (net.tokens.protect, net.tokens.protect_last) == (3, 1)
    assert net.tokens.keeps is tokens.above
    assert net.exits == ("layers/1/q", "layers/2/q")
    for head in net.heads:
        assert {n: w.shape for n, w in head.items()} == {
            "kernel": (WIDTH, CLASSES),
            "bias": (CLASSES,),
        }
        assert not any(np.any(w) for w in head.values())


def test_levels_keeps_and_classifiers_of_ones_own_are_held_as_they_are():
    heads = [HEAD, {name: w + 1 for name, w in HEAD.items()}]
    net = js.magic_pyramid([0, 0.1, 0.2], js.Rule(), heads, keeps=tokens.top)(network("vit"))
    np.testing.assert_allclose(net.tokens.level, [0, 0.1, 0.2])
    assert net.tokens.level.dtype == jnp.float32
    assert net.heads == tuple(heads)
    assert net.tokens.keeps is tokens.top


def test_pruned_tokens_alone_let_no_row_leave():
    net = js.prune_tokens(0.25, keeps=tokens.top, protect=2)(network("vit"))
    assert (float(net.threshold), net.patience, net.first, net.exits) == (0, 0, 1, ())
    np.testing.assert_array_equal(net.tokens.level, [0.25] * 3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: js.magic_pyramid([0.1] * 2, js.Rule()), r"level\[2\]: must hold one number a la"),
        (
            lambda: js.magic_pyramid(-0.01, js.Rule()),
            "level=-0.0.*: must be a number of at least 0",
        ),
        (lambda: js.magic_pyramid(0.1, js.Rule(first=4)), "first=4"),
        (lambda: js.magic_pyramid(0.1, js.Rule(-0.1)), "threshold=-0.1"),
        (
            lambda: js.magic_pyramid(0.1, js.Rule(), [HEAD]),
            "heads: 1 of them; must be 2, of all layers but one",
        ),
        (lambda: js.magic_pyramid(0.1, js.Rule(), [HEAD] * 3), "heads: 3 of them; must be 2"),
    ],
)
def test_what_does_not_fit_the_layers_is_refused_when_it_is_applied(make, said):
    transform = make()
    with pytest.raises(ValueError, match=said):
        transform(network("vit"))


def test_the_last_of_the_exits_may_be_the_first():
    assert js.magic_pyramid(0.1, js.Rule(first=3))(network("vit")).first == 3
