"""A reasoner scores choices apart, and learns from matrices what choices alone do not tell."""

import jax
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim.data import rpm
from jaxsim.models.neural_interpreter import NeuralInterpreter
from jaxsim.models.reasoner import PanelPixels, PanelSymbols, Reasoner
from jaxsim.models.transformer import Transformer
from jaxsim.train.loop import fit
from tests.support.networks import run
from tests.support.variables import filled

BODIES = {
    "transformer": Transformer(1, 2, 2),
    "interpreter": NeuralInterpreter(
        functions=2, iterations=1, heads=2, qk_width=4, code_width=8, positions=None
    ),
}
PUZZLES = rpm.generate(16)


@pytest.mark.parametrize("body", list(BODIES))
@pytest.mark.parametrize("context", [True, False])
def test_the_order_of_choices_does_not_matter(body, context):
    model = Reasoner(BODIES[body], PanelSymbols(16), width=16, context=context)
    x = PUZZLES.panels
    found = filled(model, x[:1])
    scores = jax.jit(lambda x: model.apply(found, x))
    order = np.random.default_rng(0).permutation(8)
    moved = np.concatenate([x[:, :8], x[:, 8:][:, order]], 1)
    np.testing.assert_allclose(scores(moved), np.asarray(scores(x))[:, order], rtol=1e-4, atol=1e-5)
    matrix = np.concatenate([x[::-1, :8], x[:, 8:]], 1)
    same = np.allclose(scores(matrix), scores(x), atol=1e-6)
    assert same != context


def test_pictures_are_read_and_quantised():
    x = rpm.draw(PUZZLES.panels, "center", side=24).astype(np.float32) / 255
    model = Reasoner(BODIES["transformer"], PanelPixels(16, (4, 8)), width=16)
    net = js.trace(model, filled(model, x[:1]), x[:2])
    want = np.asarray(run(net, x))
    assert want.shape == (16, 8)
    eight = js.deploy(js.quantize(8, 8)(net), calibrate=x)
    assert np.abs(run(eight, x) - want).max() < 0.1 * np.abs(want).max()


@pytest.mark.slow
def test_rows_that_stay_are_learned():
    """Constant rows: the answer is the choice like the two panels before it."""
    constant = [(a, "constant") for a in ("type", "size", "color")]
    puzzles = rpm.generate(1000, allowed=constant)
    x, y = puzzles.panels.astype(np.int32), puzzles.answers
    model = Reasoner(Transformer(1, 2, 2), PanelSymbols(16), width=16)
    net = js.trace(model, filled(model, x[:1]), x[:2])
    tuned = fit(
        net,
        x[:800],
        y[:800],
        epochs=8,
        batch_size=50,
        optimizer=optax.adam(1e-2),
        key=jax.random.key(1),
        quiet=True,
    )
    right = np.mean(np.argmax(run(tuned, x[800:]), -1) == y[800:])
    assert right > 0.8


def test_bad_arguments():
    model = Reasoner(BODIES["transformer"], PanelSymbols(16), width=16)
    with pytest.raises(ValueError, match="16"):
        model.init(jax.random.key(0), PUZZLES.panels[:, :15])
    with pytest.raises(ValueError, match="width=0"):
        model.clone(width=0).init(jax.random.key(0), PUZZLES.panels)
