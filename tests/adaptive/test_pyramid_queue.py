"""Which layers of a pyramid are one program, and after which the host has to look."""

import types

import numpy as np
import pytest

from jaxsim.adaptive import pyramid_queue
from jaxsim.adaptive.pyramid_queue import _ends, _waits, precompile, run_in_batches
from jaxsim.adaptive.pyramid_step import LayerOutputs
from jaxsim.adaptive.rule import Buckets


def net(levels, threshold=0.0, patience=0, first=1):
    return types.SimpleNamespace(
        level=np.asarray(levels, np.float32),
        threshold=threshold,
        patience=patience,
        first=first,
        encoder=types.SimpleNamespace(attention=(None,) * len(levels)),
    )


@pytest.mark.parametrize(
    ("rule", "waits"),
    [
        ({}, []),
        ({"threshold": 0.1}, [0, 1, 2]),
        ({"patience": 1}, [0, 1, 2]),
        ({"threshold": 0.1, "first": 2}, [1, 2]),
        ({"threshold": 0.1, "first": 3}, [2]),
        ({"threshold": 0.1, "first": 4}, []),
    ],
)
def test_the_host_looks_after_each_exit_that_a_row_may_take_but_the_last(rule, waits):
    made = net([0, 0, 0, 0], **rule)
    assert [i for i in range(4) if _waits(made, i)] == waits


@pytest.mark.parametrize(
    ("levels", "rule", "ends"),
    [
        ([0, 0, 0, 0], {}, [4, 4, 4, 4]),
        ([0.1, 0, 0, 0], {}, [0, 4, 4, 4]),
        ([0, 0, 0.1, 0], {}, [2, 2, 2, 4]),
        ([0, 0, 0, 0.1], {}, [3, 3, 3, 3]),
        ([0, 0, 0, 0], {"threshold": 0.5}, [1, 2, 3, 4]),
        ([0, 0, 0, 0], {"threshold": 0.5, "first": 3}, [3, 3, 3, 4]),
        ([0, 0.1, 0, 0], {"threshold": 0.5, "first": 3}, [1, 1, 3, 4]),
    ],
)
def test_layers_that_decide_nothing_are_one_program(levels, rule, ends):
    """Up to a layer that leaves out tokens, and up to and with one after which rows may leave."""
    assert _ends(net(levels, **rule)) == ends


class Stubs:
    """Stands for what is compiled: every second token stays, and a row leaves where its id says.

    Attributes:
      calls: What was called, with the shape of the tokens and the counts of the rows.
    """

    def __init__(self, monkeypatch):
        self.calls = []
        names = ("embed_ids", "jitted_attend", "jitted_decide", "jitted_layers")
        for name in (*names, "take_rows", "take_tokens"):
            monkeypatch.setattr(pyramid_queue, name, getattr(self, name))

    def embed_ids(self, embed, ids):
        return np.asarray(ids, float)[..., None]

    def jitted_attend(self, attention, level, x, count, keeps, protect):
        self.calls.append(("attend", attention, x.shape[:2], count.tolist()))
        place = np.arange(x.shape[1])
        return x, (place % 2 == 0) & (place < count[:, None])

    def answer(self, x, layer):
        first = x[:, 0, 0]
        return LayerOutputs(np.stack([first, first * 0 + layer], 1), first <= layer, first / 10)

    def jitted_decide(self, feed_forward, head, y, count, streak, threshold, layer, **rule):
        self.calls.append(("decide", feed_forward, y.shape[:2], count.tolist()))
        return y, streak, self.answer(y, layer)

    def jitted_layers(self, layers, x, count, streak, threshold, layer, **rule):
        self.calls.append(("layers", len(layers), x.shape[:2], count.tolist()))
        return x, streak, [self.answer(x, layer + i) for i in range(len(layers))]

    def take_rows(self, x, rows):
        return x[rows]

    def take_tokens(self, x, tokens):
        return np.take_along_axis(x, tokens[..., None], 1)


def whole(levels, **rule):
    made = net(levels, **rule)
    made.encoder = types.SimpleNamespace(
        embed=None,
        attention=("a1", "a2", "a3"),
        feed_forward=("f1", "f2", "f3"),
        head={"bias": np.zeros(2, np.float32)},
        positions=12,
        width=2,
        hidden=3,
        pool=None,
    )
    made.all_heads, made.keeps, made.protect = (None,) * 3, None, 1
    return made


LENGTHS = np.array([9, 2, 5, 3, 1, 7])
IDS = np.tile(np.array([3, 1, 2, 1, 3, 2])[:, None], (1, 9))  # the exit of each row
BUCKETS = Buckets(batch=2, token=4, max_batch=4)


def test_rows_that_left_and_tokens_left_out_shrink_the_batch_by_whole_buckets(monkeypatch):
    """By hand: four of 1, 2, 3 and 5 tokens, then two of 7 and 9; half of them stay each time."""
    stubs = Stubs(monkeypatch)
    out = run_in_batches(whole([0.1, 0.1, 0.1], threshold=0.5), IDS, LENGTHS, BUCKETS)
    assert stubs.calls == [
        ("attend", "a1", (4, 8), [1, 2, 3, 5]),
        ("decide", "f1", (4, 4), [1, 1, 2, 3]),
        ("attend", "a2", (2, 4), [1, 3]),
        ("decide", "f2", (2, 4), [1, 2]),
        ("attend", "a3", (2, 4), [1, 2]),
        ("decide", "f3", (2, 4), [1, 1]),
        ("attend", "a1", (2, 12), [7, 9]),
        ("decide", "f1", (2, 8), [4, 5]),
        ("attend", "a2", (2, 8), [4, 5]),
        ("decide", "f2", (2, 4), [2, 3]),
        ("attend", "a3", (2, 4), [2, 3]),
        ("decide", "f3", (2, 4), [1, 2]),
    ]
    assert out.layer.tolist() == [3, 1, 2, 1, 3, 2]
    assert out.kept.tolist() == [
        [5, 3, 2],
        [1, 0, 0],
        [3, 2, 0],
        [2, 0, 0],
        [1, 1, 1],
        [4, 2, 0],
    ]
    assert out.logits.tolist() == [[i, i] for i in [3, 1, 2, 1, 3, 2]]
    np.testing.assert_allclose(out.uncertainty[2], [0.2, 0.2, np.nan], rtol=1e-6)

    def layer(n_in, n_out):
        return 2 * (4 * n_in * 4 + 2 * n_in * n_in * 2 + 2 * n_out * 2 * 3)

    assert float(out.flops[2]) == layer(5, 3) + layer(3, 2)
    assert float(out.flops[1]) == layer(2, 1)


def test_a_batch_that_all_rows_left_goes_no_further(monkeypatch):
    stubs = Stubs(monkeypatch)
    out = run_in_batches(whole([0.1] * 3, threshold=0.5), IDS[1:2], LENGTHS[1:2], BUCKETS)
    assert stubs.calls == [("attend", "a1", (2, 4), [2, 2]), ("decide", "f1", (2, 4), [1, 1])]
    assert out.layer.tolist() == [1]


def test_layers_that_decide_nothing_run_together_up_to_one_that_does(monkeypatch):
    """Of equal lengths rows keep their order; the last of three is filled up with the first."""
    stubs = Stubs(monkeypatch)
    ids, lengths = IDS[:3], np.array([4, 4, 4])
    out = run_in_batches(whole([0, 0, 0.1]), ids, lengths, BUCKETS)
    assert stubs.calls == [
        ("layers", 2, (4, 4), [4, 4, 4, 4]),
        ("attend", "a3", (4, 4), [4, 4, 4, 4]),
        ("decide", "f3", (4, 4), [2, 2, 2, 2]),
    ]
    assert out.layer.tolist() == [3, 3, 3]
    assert out.kept.tolist() == [[4, 4, 2]] * 3
    np.testing.assert_allclose(out.uncertainty, ids[:, :3] / 10, rtol=1e-6)
    assert out.logits.tolist() == [[3, 3], [1, 3], [2, 3]]


class Recorded(Stubs):
    """Stubs that note what is taken of rows and tokens, too."""

    def take_rows(self, x, rows):
        self.calls.append(("rows", len(rows), x.shape[:2]))
        return super().take_rows(x, rows)

    def take_tokens(self, x, tokens):
        self.calls.append(("tokens", tokens.shape[1], x.shape[:2]))
        return super().take_tokens(x, tokens)


def test_what_a_run_can_meet_is_compiled_before(monkeypatch):
    """Sequences of up to 10 tokens in buckets of 5, batches of 2 and 4: each size of either.

    Layers run alone, all three together, and the first two, before the third leaves out tokens.
    """
    stubs = Recorded(monkeypatch)
    made = whole([0, 0, 0.1])
    made.encoder.positions = 9
    precompile(made, 10, Buckets(batch=2, token=5, max_batch=5))
    expected = []
    for rows in (2, 4):
        for n in (5, 9):
            ones = [1] * rows
            expected += [("attend", "a1", (rows, n), ones), ("decide", "f1", (rows, n), ones)]
            expected += [("layers", size, (rows, n), ones) for size in (1, 2, 3)]
            expected += [("rows", 2, (4, n))] if rows == 4 else []
            expected += [("tokens", m, (rows, n)) for m in (5, 9) if m <= n]
    assert sorted(stubs.calls, key=str) == sorted(expected, key=str)
