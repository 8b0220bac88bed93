"""Rows of like lengths pass together and come back in their order."""

import types

import numpy as np
import pytest

from jaxsim.adaptive import passes
from jaxsim.adaptive.passes import bucket_length, class_count, padded_ids, pass_all
from jaxsim.adaptive.pyramid import ExitOutputs
from jaxsim.adaptive.rule import Buckets

NET = types.SimpleNamespace(
    encoder=types.SimpleNamespace(
        positions=20, head={"bias": np.zeros(3), "kernel": np.zeros((2, 3))}
    )
)


def test_rows_are_sorted_by_length_batched_and_put_back(monkeypatch):
    """Five rows of 9, 2, 5, 3 and 1 tokens, two at a time: widths of 4, 8 and 12."""
    calls = []

    def forward(net, ids, lengths):
        calls.append((ids.shape, lengths.tolist(), ids[:, 0].tolist()))
        return ExitOutputs(ids[:, :1] * 10.0, ids[:, :1] * 100.0, lengths)

    monkeypatch.setattr(passes, "_forward", forward)
    ids, lengths = np.tile(np.arange(1, 6)[:, None], (1, 10)), np.array([9, 2, 5, 3, 1])
    found = pass_all(NET, ids, lengths, buckets=Buckets(batch=1, token=4, max_batch=2))
    assert calls == [
        ((2, 4), [1, 2], [5, 2]),
        ((2, 8), [3, 5], [4, 3]),
        ((2, 12), [9, 9], [1, 1]),
    ]
    assert found.features[:, 0].tolist() == [10, 20, 30, 40, 50]
    assert found.logits[:, 0].tolist() == [100, 200, 300, 400, 500]
    assert found.kept.tolist() == [9, 2, 5, 3, 1]


def test_equal_lengths_keep_their_order(monkeypatch):
    seen = []
    monkeypatch.setattr(
        passes,
        "_forward",
        lambda net, ids, lengths: (seen.extend(ids[:, 0].tolist()), ExitOutputs(ids, ids, ids))[1],
    )
    ids = np.arange(1, 41)[:, None]
    pass_all(NET, ids, np.ones(40, int), buckets=Buckets(batch=1, token=1, max_batch=40))
    assert seen == list(range(1, 41))


@pytest.mark.parametrize(("longest", "n"), [(1, 8), (8, 8), (9, 16), (16, 16), (17, 20), (20, 20)])
def test_widths_are_whole_buckets_up_to_the_positions(longest, n):
    assert bucket_length(np.array([1, longest]), Buckets(token=8), NET) == n


@pytest.mark.parametrize(("n", "row"), [(2, [4, 5]), (3, [4, 5, 6]), (5, [4, 5, 6, 0, 0])])
def test_rows_are_cut_or_filled_up_with_zeros(n, row):
    assert padded_ids(np.array([[4, 5, 6]]), n).tolist() == [row]


def test_classes_are_those_of_the_last_layer():
    assert class_count(NET) == 3


def test_buckets_are_checked():
    with pytest.raises(ValueError, match="batch=0"):
        pass_all(NET, np.ones((1, 1), int), np.ones(1, int), buckets=Buckets(batch=0))
