"""Tables count what they say they count."""

import jax
import numpy as np
import pytest

import jaxsim as js
from tests.support.networks import X, cnn

LABELS = np.arange(8) % 3


def test_rows_are_what_numpy_counts():
    net = cnn()
    chip = js.deploy(
        js.compose(js.prune(0.5), js.quantize(3, 3), js.slice_bits(1), js.analog(adc=4))(net),
        calibrate=X,
    )
    reference, row = js.compare(net, {"chip": chip}, (X, LABELS), batch_size=3).rows
    expected, answers = (np.argmax(jax.jit(n)(X), -1) for n in (net, chip))
    assert reference.accuracy == np.mean(expected == LABELS)
    assert reference.agreement == 1
    assert row.accuracy == pytest.approx(np.mean(answers == LABELS))
    assert row.agreement == pytest.approx(np.mean(answers == expected))
    cost = chip.cost(X[:1])
    assert (row.params, row.nonzero) == (cost.params, cost.nonzero)
    assert (row.macs, row.conversions) == (cost.total("macs"), cost.total("conversions"))


def test_one_network_needs_no_name_and_the_table_prints():
    table = str(js.compare(cnn(), js.quantize(8, 8)(cnn()), (X, LABELS)))
    assert "reference" in table
    assert "transformed" in table


def test_batches_do_not_change_the_answers():
    net = js.deploy(js.quantize(8, 8)(cnn()), calibrate=X)
    whole = js.classify(net, X)
    assert np.array_equal(whole, js.classify(net, X, batch_size=3))


def test_networks_that_differ_in_numbers_compile_once():
    from jaxsim.evaluate.comparison import _classes

    before = _classes._cache_size()
    for sigma in (0.01, 0.02, 0.05):
        chip = js.compose(js.quantize(8, 8), js.analog(cells=js.cells.proportional(sigma)))(cnn())
        js.classify(js.deploy(chip, key=jax.random.key(0), calibrate=X), X)
    assert _classes._cache_size() == before + 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: js.compare(cnn(), cnn(), (X, LABELS[:5])), r"8 inputs and labels \[5\]"),
        (lambda: js.compare(cnn(), cnn(), (X[:0], LABELS[:0])), "expected at least one row"),
        (lambda: js.compare(cnn(), cnn(), (X, LABELS[:, None])), r"labels \[8, 1\]"),
        (lambda: js.compare(cnn(), cnn(), X), "data.*must be a tuple"),
        (lambda: js.compare(cnn(), [cnn()], (X, LABELS)), "networks: must be"),
        (lambda: js.compare(cnn(), {"reference": cnn()}, (X, LABELS)), "the name 'reference'"),
        (lambda: js.classify(cnn(), X, batch_size=0), "batch_size=0"),
    ],
)
def test_bad_data_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_outputs_that_are_not_logits_are_refused():
    net = js.trace(lambda p, x: {"y": x @ p}, np.ones((3, 2), np.float32), np.ones((4, 3)))
    with pytest.raises(ValueError, match="outputs must be one array of logits"):
        js.classify(net, np.ones((4, 3), np.float32))
