"""Tables count what they say they count."""

import jax
import numpy as np
import pytest

import jaxsim as js
from jaxsim.evaluate.comparison import Comparison, ComparisonRow
from tests.support.networks import X, cnn
from tests.support.printed import header, rows

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


def test_accuracy_has_the_standard_error_of_a_share():
    """Three of four right, and two of four agree: sqrt(3/4 · 1/4 / 4)."""
    x = np.eye(4, dtype=np.float32)
    net = js.trace(lambda w, x: x @ w, np.eye(4, dtype=np.float32), x)
    other = js.trace(lambda w, x: x @ w, x[[0, 1, 3, 2]], x)
    reference, row = js.compare(net, other, (x, np.array([0, 1, 2, 2]))).rows
    assert (reference.name, reference.accuracy, reference.agreement) == ("reference", 0.75, 1.0)
    assert reference.error == pytest.approx(np.sqrt(3) / 8)
    assert (row.name, row.accuracy, row.agreement) == ("transformed", 0.75, 0.5)
    assert (row.weight_bits, row.macs, row.conversions) == (16 * 32, 16, 0)


def tokens():
    """Logits of three tokens a row among other outputs: a one where the class is."""

    def fn(w, x):
        return {"hidden": x, "all": (x @ w,)}

    x = np.eye(4, dtype=np.float32)[np.array([[0, 1, 2], [3, 3, 3], [2, 1, 0], [1, 1, 1]])]
    return js.trace(fn, np.eye(4, dtype=np.float32), x), x


def logits(y):
    return y["all"][0]


@pytest.mark.parametrize("batch_size", [1, 3, 500])
def test_logits_may_lie_anywhere_and_have_a_row_a_token(batch_size):
    net, x = tokens()
    found = js.classify(net, x, output=logits, batch_size=batch_size)
    assert found.tolist() == [[0, 1, 2], [3, 3, 3], [2, 1, 0], [1, 1, 1]]


def test_the_error_of_tokens_is_that_of_their_rows():
    """Rows are right by 1, 0, 1/3 and 1: tokens of a row are not drawn apart."""
    net, x = tokens()
    labels = np.array([[0, 1, 2], [0, 0, 0], [2, 0, 1], [1, 1, 1]])
    reference, _ = js.compare(net, net, (x, labels), output=logits).rows
    share = np.array([1, 0, 1 / 3, 1])
    assert reference.accuracy == pytest.approx(share.mean())
    assert reference.error == pytest.approx(np.sqrt(np.mean((share - share.mean()) ** 2) / 4))
    with pytest.raises(ValueError, match=r"labels \[4\] of logits \[4, 3, 4\]; expected \[4, 3\]"):
        js.compare(net, net, (x, labels[:, 0]), output=logits)


def test_outputs_that_hold_no_logits_are_said_to_need_a_reader():
    net, x = tokens()
    with pytest.raises(ValueError, match="got dict; output=lambda"):
        js.classify(net, x)
    with pytest.raises(ValueError, match=r"got \[4\]"):
        js.classify(net, x, output=lambda y: y["hidden"][:, 0, 0])
    with pytest.raises(ValueError, match="1 rows of logits of 4 inputs"):
        js.classify(net, x, output=lambda y: y["hidden"][:1])


def test_each_batch_draws_read_noise_of_its_own():
    """Outputs are noise alone: one batch that drew as another would give its answers again."""
    x = np.ones((64, 8), np.float32)
    net = js.trace(lambda w, x: x @ w, np.ones((8, 5), np.float32), x)
    noisy = js.analog(cells=js.cells.independent(0.0, noise=0.1))(js.quantize(8, None)(net))
    chip = js.deploy(noisy, key=jax.random.key(0), calibrate=x)
    first, again, other = (
        js.classify(chip, x, key=jax.random.key(key), batch_size=32) for key in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[:32], first[32:])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 500])
def test_a_batch_may_be_of_any_size(batch_size):
    x = np.eye(4, dtype=np.float32)
    net = js.trace(lambda w, x: x @ w, np.eye(4, dtype=np.float32), x)
    found = js.classify(net, x[[2, 0, 3, 1]], batch_size=batch_size)
    assert found.tolist() == [2, 0, 3, 1]


def test_the_printed_comparison_says_each_number_in_its_column():
    shown = Comparison(
        (
            ComparisonRow("a", 0.91234, 0.00567, 1.0, 11, 1300, 8192 * 1700, 2.5e6, 0, 0.0),
            ComparisonRow("b", 0.5, 0.25, 0.125, 13, 17, 4096, 19, 23, 0.987),
        )
    )
    columns = ["network", "right %", "agree %", "changed %", "kept", "KiB", "MACs", "ADC reads"]
    assert header(shown) == columns
    assert rows(shown) == [
        ["a", "91.23±0.57", "100.00", "0.0", "1.3 k", "1,700.0", "2.5 M", "–"],
        ["b", "50.00±25.00", "12.50", "98.7", "17", "0.5", "19", "23"],
    ]
