import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.evaluate.sweep import _programs
from jaxsim.search.options import apply_options, fit_options, named_options
from jaxsim.search.switchboard import Switchboard, flat_outputs
from tests.support.networks import X, cnn

OPTIONS = {
    "float": None,
    "4": js.quantize(4, 8),
    "pruned": js.compose(js.prune(0.5, distribution=js.sparsity.uniform()), js.quantize(8, 8)),
    "analog": js.compose(
        js.quantize(8, 8), js.analog(adc=6, cells=js.cells.proportional(0.1, noise=0.02))
    ),
}
KEY = jax.random.key(3)


def board_of(net, options, inputs):
    named = named_options(options)
    fit = fit_options(net, named)
    return Switchboard(net, named, fit, inputs), named, fit


@pytest.fixture(scope="module")
def board():
    return board_of(cnn(), OPTIONS, X)


def real(net, named, fit, choice, inputs, key):
    """The network of a choice, deployed in the ordinary way."""
    names = [list(named)[o] for o in choice]
    made = apply_options(net, named, dict(zip(fit.places, names, strict=True)))
    return js.deploy(made, calibrate=inputs, key=key) if made.cores else made


@jax.jit
def outputs(net, key):
    return net(X, key=key)


@pytest.mark.parametrize("choice", [(3, 2), (1, 3), (0, 1), (0, 0)])
def test_a_choice_computes_what_its_network_does(board, choice):
    """Ranges of later sites too are those of what reaches them under the choice."""
    switchboard, named, fit = board
    chip = switchboard.deploy(choice, KEY)
    expected = outputs(real(cnn(), named, fit, choice, X, KEY), KEY)
    np.testing.assert_allclose(outputs(chip, KEY), expected, rtol=0, atol=2e-6)
    if any(choice):
        assert not np.allclose(expected, cnn()(X), atol=1e-4)  # another choice is told from it


def test_an_error_is_that_of_one_place_alone(board):
    switchboard, named, fit = board
    y = np.asarray(cnn()(X))
    alone = [(o, None) for o in (1, 2, 3)] + [(None, 3)]
    found = switchboard.errors(alone, KEY)
    for choice, error in zip(alone, found, strict=True):
        chip = real(cnn(), named, fit, [0 if o is None else o for o in choice], X, KEY)
        off = np.asarray(outputs(chip, KEY)) - y
        assert error == pytest.approx((off**2).sum() / (y**2).sum(), rel=1e-3)
    assert switchboard.errors([(0, None), (None, None)], KEY).tolist() == [0, 0]


def test_choices_share_one_program(board):
    switchboard, _, _ = board
    switchboard.errors([(1, None)], KEY)
    outputs(switchboard.deploy((1, 1), KEY), KEY)
    program = _programs(switchboard._distance, None).compiled

    def compiled():
        return outputs._cache_size(), flat_outputs._cache_size(), program._cache_size()

    before = compiled()
    assert before[2] == 1
    switchboard.errors([(3, None), (None, 2), (2, 1)], KEY)
    for choice in ((3, 3), (0, 2)):
        outputs(switchboard.deploy(choice, jax.random.key(9)), KEY)
    assert compiled() == before


def test_tables_that_are_also_heads_are_one_place():
    """Rows of the table and products with it take the same format; with a stack in a scan."""
    rng = np.random.default_rng(0)
    params = {
        "table": jnp.asarray(rng.normal(size=(11, 6)), jnp.float32),
        "layers": jnp.asarray(rng.normal(size=(2, 6, 6)), jnp.float32),
    }
    ids = rng.integers(0, 11, (3, 4))

    def model(p, ids):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), p["table"][ids], p["layers"])
        return x @ p["table"].T

    net = js.trace(model, params, ids)
    options = {"8": js.quantize(8, 8), "3": js.quantize(3, 8)}
    switchboard, named, fit = board_of(net, options, (ids,))
    assert [place.sites for place in fit.places] == [("table:lookup", "table"), ("layers",)]
    for choice in ((0, 1), (1, 0)):
        expected = real(net, named, fit, choice, (ids,), None)(ids)
        chip = switchboard.deploy(choice, None)
        np.testing.assert_allclose(chip(ids), expected, rtol=0, atol=2e-5)
    worse, better = switchboard.errors([(1, None), (0, None)], None)
    assert worse > 10 * better
