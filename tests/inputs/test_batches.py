"""One interface for data: whatever takes a batch takes any iterable of batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim import sparsity as sp
from jaxsim.inputs.batches import Batch, batches, join_batches, split_labels, take_rows
from jaxsim.train.loop import fit
from jaxsim.train.losses import cross_entropy

rng = np.random.default_rng(0)
X = rng.normal(size=(8, 6)).astype(np.float32)
M = rng.normal(size=(8, 6)).astype(np.float32)
LABELS = rng.integers(0, 3, 8)
W = {"a": rng.normal(size=(6, 5)).astype(np.float32), "b": rng.normal(size=(5, 3)).astype("f")}


def model(p, x, *, m):
    return jnp.maximum((x + m) @ p["a"], 0) @ p["b"]


NET = js.trace(model, W, X, m=M)
CODED = js.quantize(4, 8)(NET)
FIRST = js.trace(lambda p, x, *, m: (x + m) @ p["a"], {"a": W["a"]}, X, m=M)
FIRST_CODED = js.quantize(4, 8)(FIRST)
HALVES = [slice(0, 4), slice(4, 8)]


class Loader:
    """A data loader: iterable again and again, no list and no iterator."""

    def __iter__(self):
        return ({"x": X[rows], "m": M[rows]} for rows in HALVES)


class Foreign:
    """An array of another library, which could be iterated over by rows."""

    def __init__(self, a):
        self.a = a

    def __array__(self, dtype=None, copy=None):
        return self.a

    def __iter__(self):
        raise AssertionError("its rows are no batches")


BATCHES = [{"x": X[rows], "m": M[rows]} for rows in HALVES]
WHOLE = {"x": X, "m": M}
FORMS = {
    "one dict": lambda: WHOLE,
    "list of dicts": lambda: BATCHES,
    "generator": lambda: (batch for batch in BATCHES),
    "loader": Loader,
    "iterator": lambda: iter(BATCHES),
    "another library's": lambda: [{k: Foreign(v) for k, v in b.items()} for b in BATCHES],
    "big-endian": lambda: [{k: v.astype(">f4") for k, v in b.items()} for b in BATCHES],
}
KEY = jax.random.key(0)
FIT = {"epochs": 2, "optimizer": optax.sgd(0.1), "key": KEY, "batch_size": 4, "quiet": True}
EXITS = js.exit_early(exits=["b"])(NET)

# what each function makes of data: leaves that are to be the same, however the data come
TAKES = {
    "deploy": lambda data: js.deploy(CODED, calibrate=data).states,
    "widen_ranges": lambda data: (
        js.widen_ranges(js.deploy(CODED, calibrate={"x": X / 4, "m": M / 4}), data).states
    ),
    "round_weights": lambda data: js.round_weights(js.rounding.gptq(), data)(FIRST_CODED).params,
    "learn_ranges": lambda data: js.learn_ranges(data)(CODED).cores,
    "smooth": lambda data: js.smooth(data)(FIRST_CODED).cores,
    "correct_bias": lambda data: js.correct_bias(data)(js.quantize(4, None)(NET)).cores,
    "prune_layers": lambda data: js.prune_layers(data, 0.5)(NET).params,
    "equalize": lambda data: js.equalize(data)(NET).params,
    "activity": lambda data: sp.activity(data).score(FIRST, ()),
    "classify": lambda data: js.classify(FIRST, data),
    "compare": lambda data: js.compare(FIRST, FIRST_CODED, (data, LABELS)).rows[1].accuracy,
    "fit": lambda data: fit(FIRST, data, LABELS, **FIT).params,
    "distill_exits": lambda data: js.distill_exits(EXITS, data, key=KEY, steps=3).heads,
}


# a site sees what the sites before it make of a batch with the ranges so far, so these depend on
# how the data are cut
CUT_MATTERS = {"deploy", "widen_ranges", "learn_ranges", "correct_bias"}


@pytest.mark.parametrize("function", TAKES)
def test_one_batch_or_any_iterable_of_batches(function):
    expected = jax.tree.leaves(TAKES[function](WHOLE))
    if function in CUT_MATTERS:
        expected = jax.tree.leaves(TAKES[function](BATCHES))
    assert expected
    for form, make in FORMS.items():
        if function in CUT_MATTERS and form == "one dict":
            continue
        found = jax.tree.leaves(TAKES[function](make()))
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6, err_msg=form)


def test_batches_widen_one_after_the_other():
    chip = js.widen_ranges(js.deploy(CODED, calibrate=BATCHES[0]), BATCHES[1])
    found = js.deploy(CODED, calibrate=BATCHES)
    assert all(map(np.array_equal, *map(jax.tree.leaves, (found.states, chip.states))))


def test_a_batch_is_an_array_a_tuple_or_a_dict():
    two = js.trace(lambda p, x, m: model(p, x, m=m), W, X, M)
    one = js.trace(lambda p, x: model(p, x, m=0), W, X)
    states = [
        js.deploy(js.quantize(4, 8)(net), calibrate=data).states
        for net, data in ((two, (X, M)), (two, {"x": X, "m": M}), (two, [(X, M)]), (NET, WHOLE))
    ]
    states.append(js.deploy(CODED, calibrate=X, m=M).states)
    states.append(js.deploy(CODED, calibrate=[X[:4], X[4:]], m=M[:4]).states)
    first = jax.tree.leaves(states[0])
    for other in states[1:-1]:
        assert all(np.array_equal(a, b) for a, b in zip(first, jax.tree.leaves(other), strict=True))
    assert not np.array_equal(states[-1]["a"].inputs.hi, states[0]["a"].inputs.hi)
    chip = js.deploy(js.quantize(4, 8)(one), calibrate=[X[:4], X[4:]])
    assert chip.states["a"].inputs.hi == np.abs(X).max()
    wider = js.widen_ranges(js.deploy(js.quantize(4, 8)(two), calibrate=(X, M)), 2 * X, M)
    assert wider.states["a"].inputs.hi == np.abs(2 * X + M).max()


def test_ranges_of_batches_are_those_of_the_union_and_compile_once():
    calls = []

    def counted(p, x):
        calls.append(x.shape)
        return x @ p["a"]

    net = js.quantize(4, 8)(js.trace(counted, W, X))
    js.deploy(net, calibrate=X)
    calls.clear()
    parts = [by * X for by in (0.5, 3.0, -4.0, 1.0)]
    chip = js.deploy(net, calibrate=(part for part in parts))
    assert len(calls) <= 1  # the first batch begins from no range
    everything = js.deploy(net, calibrate=np.concatenate(parts))
    for a, b in zip(*map(jax.tree.leaves, (chip.states, everything.states)), strict=True):
        assert np.array_equal(a, b)


def test_a_branch_may_be_taken_in_a_later_batch():
    net = js.trace(
        lambda p, x, on: jax.lax.cond(on, lambda: x @ p["a"], lambda: (2 * x) @ p["c"]),
        {"a": W["a"], "c": W["a"]},
        X,
        jnp.array(True),
    )
    parts = [(X, jnp.array(True)), (X, jnp.array(False))]
    chip = js.deploy(js.quantize(8, 8)(net), calibrate=parts)
    assert chip.states["c"].inputs.hi == 2 * np.abs(X).max()
    with pytest.raises(ValueError, match="c did not run"):
        js.deploy(js.quantize(8, 8)(net), calibrate=parts[:1])


def test_a_generator_is_read_once_and_kept_by_a_transform():
    asked = []

    def read():
        for batch in BATCHES:
            asked.append(batch)
            yield batch

    transform = js.round_weights(js.rounding.gptq(), read())
    first, second = (transform(CODED).params for _ in range(2))
    assert len(asked) == 2
    assert all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))


def test_pairs_of_inputs_and_labels():
    pairs = [({"x": X[rows], "m": M[rows]}, LABELS[rows]) for rows in HALVES]
    expected = js.compare(NET, CODED, (WHOLE, LABELS)).rows
    assert js.compare(NET, CODED, pairs).rows == expected
    assert js.compare(NET, CODED, iter(pairs)).rows == expected
    assert js.compare(NET, CODED, (BATCHES, [y for _, y in pairs])).rows == expected
    trained = jax.tree.leaves(fit(NET, WHOLE, LABELS, **FIT).params)
    for data in (pairs, iter(pairs), (WHOLE, LABELS), [list(pair) for pair in pairs]):
        found = jax.tree.leaves(fit(NET, data, **FIT).params)
        assert all(map(np.array_equal, found, trained))


def test_examples_of_a_criterion():
    net = js.trace(lambda p, x: x @ p["a"], {"a": W["a"]}, X)
    loss = lambda net, e: cross_entropy(net(e[0]), e[1])  # noqa: E731
    for make in (sp.fisher, sp.wood_fisher):
        score = make(loss, (X, LABELS)).score(net, ())["a"]
        parts = ((X[rows], LABELS[rows]) for rows in HALVES)
        np.testing.assert_allclose(make(loss, parts).score(net, ())["a"], score, rtol=1e-5)


def test_batches_are_joined_by_rows():
    table = np.arange(7)
    batch = join_batches([(X[:3], True, table), (X[3:], True, table)])
    assert np.array_equal(batch.args[0], X)
    assert batch.args[1] is True
    assert np.array_equal(batch.args[2], table)
    inputs, labels = split_labels(BATCHES, [LABELS[:4], LABELS[4:]])
    assert np.array_equal(inputs.kwargs["m"], M)
    assert np.array_equal(labels, LABELS)
    assert list(batches([X, (X, M), {"x": X}]))
    assert isinstance(next(batches(X)), Batch)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"calibrate=\[\]: expected at least one batch, got none"),
        (iter(()), "got none; is it a generator that was read"),
        (3, r"calibrate=3: expected one batch \(an array"),
        ("images", "calibrate='images': expected one batch"),
        ([1.0, 2.0], r"calibrate\[0\]=1.0: expected an array, a tuple"),
        ([[1.0, 2.0], [3.0, 4.0]], r"calibrate\[0\]=a list of 2: .*np.asarray"),
        ([X, None], r"calibrate\[1\]=None: expected an array"),
        ((), "calibrate=a tuple of 0: expected an array among the arguments"),
        ((1.0, True), "expected an array among the arguments, got none"),
        ({1: X}, "expected names of keyword arguments, got 1"),
        (np.array(["a"]), "expected numbers, got an array of dtype <U1"),
        (np.array([X, None], object), "expected numbers, got an array of dtype object"),
        (X[:0], r"expected at least one row, got arrays of shape \[0, 6\]"),
        ([X, X[:, :3]], "the model raised"),
        ((X, X), "the model raised"),
        ({"y": X}, "the model raised"),
        ([X, X * np.nan], "NaN or infinite values reach a"),
    ],
)
def test_what_is_no_data_is_refused_by_name(data, message):
    net = js.quantize(4, 8)(js.trace(lambda p, x: x @ p["a"], W, X))
    with pytest.raises(ValueError, match=message):
        js.deploy(net, calibrate=data)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: js.deploy(CODED, m=M), "calibrate=None: expected the inputs that go with m"),
        (lambda: js.smooth([]), r"inputs=\[\]: expected at least one batch"),
        (lambda: js.round_weights(js.rounding.gptq(), 7), "inputs=7: expected one batch"),
        (
            lambda: join_batches([X, X[:, :3]]),
            r"inputs\[1\]: .*float32\[8, 6\].* got \(float32\[8, 3\]",
        ),
        (lambda: join_batches([(X, M), (X,)]), r"inputs\[1\]: expected arguments like"),
        (lambda: js.classify(NET, []), r"inputs=\[\]: expected at least one batch"),
        (lambda: js.compare(NET, NET, X), "data.*must be a tuple of inputs and labels"),
        (lambda: js.compare(NET, NET, []), r"data=\[\]: expected at least one"),
        (lambda: fit(NET, BATCHES, [LABELS], **FIT), "labels: expected those of 2 batches, got 1"),
        (lambda: fit(NET, WHOLE, [[0], [1, 2]], **FIT), "labels: expected an array"),
        (lambda: fit(NET, WHOLE, LABELS[:7], **FIT), "labels: 7 of them for 8"),
    ],
)
def test_data_of_other_forms_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bytes_of_another_order_are_read_as_numbers():
    """jax reads them as its own once a program is compiled."""
    net = js.trace(lambda p, x: x @ p["a"], W, X)
    other = X.astype(X.dtype.newbyteorder())
    swapped = js.trace(
        lambda p, x: x @ p["a"], {"a": W["a"].astype(W["a"].dtype.newbyteorder())}, other
    )
    expected = net(X)
    assert np.array_equal(net(other), expected)
    assert np.array_equal(swapped(X), expected)
    chip = js.deploy(js.quantize(8, 8)(net), calibrate=other)
    y = chip(X)
    assert np.array_equal(chip(other), y)
    assert np.array_equal(js.integer_only(chip)(other), js.integer_only(chip)(X))


def test_what_is_no_pair_is_named_by_the_argument_and_its_place():
    with pytest.raises(ValueError, match="held: expected at least one pair"):
        split_labels(iter([]), name="held")
    with pytest.raises(ValueError, match=r"held\[1\]=a tuple of 3: must be a tuple of inputs"):
        split_labels([(X, LABELS), (X, LABELS, LABELS)], name="held")
    with pytest.raises(ValueError, match="held=a tuple of 3: must be"):
        split_labels((X, LABELS, LABELS), name="held")
    with pytest.raises(ValueError, match=r"held=0\.5: expected one batch"):
        split_labels((0.5, LABELS[0:0].tolist()), name="held")


def test_batches_that_differ_in_a_number_are_shown_with_it():
    said = r"\(float32\[8, 6\], 2.0\) but for the number of rows, got \(float32\[8, 6\], 3.0\)"
    with pytest.raises(ValueError, match=said):
        join_batches([{"x": X, "y": 2.0}, {"x": X, "y": 3.0}])


@pytest.mark.parametrize(("length", "shown"), [(38, "x" * 38), (39, "a str")])
def test_a_value_is_shown_where_it_is_short(length, shown):
    with pytest.raises(ValueError, match=f"inputs='?{shown}'?: expected one batch"):
        list(batches("x" * length))


def test_only_arrays_have_rows():
    taken = take_rows(Batch((X, range(8)), {}), slice(0, 2))
    assert jax.tree.leaves(taken)[1] == range(8)
