import dataclasses

import numpy as np
import pytest

import jaxsim as js
from tests.support.models import normal
from tests.support.networks import SITES, attention, cnn, deep_cnn, run, stack

X = normal(64, 6, 6, 3, seed=12)


def share(net):
    return {name: 1 - float(m.mean()) for name, m in net.masks.items()}


def test_every_layer_loses_its_share_and_the_outputs_less_than_by_magnitude():
    exact = run(cnn(), X)
    surgeon = js.prune_layers(X, 0.5)(cnn())
    plain = js.prune(0.5, distribution=js.sparsity.uniform())(cnn())
    assert set(surgeon.masks) == set(SITES)
    for mask in surgeon.masks.values():
        assert int((~mask).sum()) == round(0.5 * mask.size)
    found = run(surgeon, X)
    assert np.square(found - exact).mean() < np.square(run(plain, X) - exact).mean()
    # what is pruned is zero in the parameters too
    np.testing.assert_array_equal(run(dataclasses.replace(surgeon, masks={}), X), found)


def test_n_of_m_holds_along_the_inputs_of_a_site():
    net = js.prune_layers(X, keep=(2, 4), sites="Dense_1*")(deep_cnn())
    mask = net.masks["Dense_1/kernel"]
    np.testing.assert_array_equal(mask.reshape(2, 4, 3).sum(1), 2)


def test_each_layer_of_a_stack_is_pruned_by_itself():
    net = js.prune_layers(normal(32, 4), 0.25, sites="w")(stack())
    np.testing.assert_array_equal((~net.masks["w"]).sum((1, 2)), 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: js.prune_layers(X), "sparsity=None"),
        (lambda: js.prune_layers(X, 0.5, keep=(2, 4)), "keep="),
        (lambda: js.prune_layers(X, keep=(4, 4)), "keep=4"),
        (lambda: js.prune_layers(X, 0.5, damping=0.0), "damping=0.0"),
        (lambda: js.prune_layers(X, keep=(1, 5))(cnn()), "has 27 inputs"),
        (lambda: js.prune_layers(X, 0.5)(js.quantize()(cnn())), "before any transform"),
        (
            lambda: js.prune_layers(normal(2, 5, 4), 0.5, sites="dynamic*")(attention()),
            "before any transform",
        ),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
