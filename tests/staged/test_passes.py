"""Rows of like lengths pass together and come back in their order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.network.arguments import call_arguments
from jaxsim.staged.lengths import short_rows, token_counts
from jaxsim.staged.passes import pass_all
from tests.support.models import normal


def attending(present=None, level=0.0):
    """One attention over tokens of width 4, whose rows say how many of theirs are there."""

    def model(p, x, lengths):
        there = jnp.arange(x.shape[1]) < lengths[:, None]
        scores = jnp.einsum("bqd,bkd->bqk", x @ p["q"], x)
        scores = jnp.where(there[:, None], scores, -1e9)
        x = x + jax.nn.softmax(scores) @ (x @ p["v"])
        return jnp.sum(jnp.where(there[..., None], x, 0), 1) @ p["o"]

    p = {"q": normal(4, 4, seed=1), "v": normal(4, 4, seed=2), "o": normal(4, 3, seed=3)}
    net = js.trace(model, p, np.ones((2, 10, 4), "f"), np.array([10, 3]))
    return js.prune_tokens(level, present=present)(net)


def present(x, lengths):
    return jnp.arange(x.shape[1]) < lengths[:, None]


X, LENGTHS = np.asarray(normal(5, 10, 4)), np.array([9, 2, 5, 3, 1], np.int32)


def passed(net, buckets, key=None):
    calls = []

    def read(net, arguments, key):
        x, lengths = arguments.arrays
        own = None if key is None else jax.random.key_data(key).tolist()
        calls.append((np.shape(x)[:2], np.asarray(lengths).tolist(), own))
        return {"logits": 10 * lengths, "kept": [lengths]}

    return pass_all(net, call_arguments((X, LENGTHS), {}), read, buckets, key), calls


def test_rows_are_sorted_by_length_batched_and_put_back():
    """Five rows, two at a time: widths of 4, 8 and 10; the last batch begins anew."""
    found, calls = passed(attending(present), js.Buckets(batch=1, token=4, max_batch=2))
    assert [c[:2] for c in calls] == [((2, 4), [2, 3]), ((2, 8), [1, 5]), ((2, 10), [9, 2])]
    assert found["logits"].tolist() == [90, 20, 50, 30, 10]
    assert found["kept"][0].tolist() == [9, 2, 5, 3, 1]


def test_rows_that_say_nothing_of_their_lengths_pass_in_their_order():
    found, calls = passed(attending(), js.Buckets(batch=1, token=4, max_batch=2))
    assert [c[:2] for c in calls] == [((2, 10), [9, 2]), ((2, 10), [5, 3]), ((2, 10), [1, 9])]
    assert found["logits"].tolist() == [90, 20, 50, 30, 10]


def test_each_batch_draws_by_a_key_of_its_own_and_few_rows_are_one_batch():
    buckets = js.Buckets(batch=1, token=4, max_batch=2)
    keys = [own for *_, own in passed(attending(), buckets, jax.random.key(0))[1]]
    assert len({tuple(key) for key in keys}) == 3
    _, calls = passed(attending(), js.Buckets(max_batch=64))
    assert [c[:2] for c in calls] == [((5, 10), [9, 2, 5, 3, 1])]


def test_what_is_computed_at_their_length_is_what_it_was():
    net = attending(present, 0.3)
    whole = net.simulate(X, LENGTHS)
    arguments = call_arguments((X, LENGTHS), {})
    short = short_rows(net, arguments, 4)
    rows = np.array([3, 1])
    few = short.cut(call_arguments((X[rows], LENGTHS[rows]), {}), rows)
    assert [np.shape(a) for a in few.arrays] == [(2, 4, 4), (2,)]
    out = net.simulate(*few.arrays)
    np.testing.assert_allclose(out.logits, whole.logits[rows], atol=1e-5)
    np.testing.assert_array_equal(out.kept, whole.kept[rows])
    np.testing.assert_allclose(out.flops, whole.flops[rows], rtol=1e-6)


@pytest.mark.parametrize(("multiple", "counts"), [(1, [3, 5, 1]), (2, [4, 5, 2]), (4, [4, 5, 4])])
def test_counts_are_rounded_up_as_far_as_there_are_tokens(multiple, counts):
    there = np.arange(5) < np.array([3, 5, 0])[:, None]
    assert token_counts(there, multiple).tolist() == counts


def test_tokens_behind_others_that_are_not_there_keep_all():
    assert token_counts(np.array([[True, False, True]]), 1) is None


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (lambda: dataclasses.replace(attending(), tokens=None), "all tokens of the network stay"),
        (attending, "no rule says which tokens there are"),
        (lambda: attending(lambda x, n: ~present(x, n)), "stand behind some that are not"),
    ],
)
def test_rows_that_cannot_be_short_say_why(net, said):
    arguments = call_arguments((X, LENGTHS), {})
    assert short_rows(net(), arguments, 4) is None
    with pytest.raises(ValueError, match=f"pad_to=4: .*{said}"):
        short_rows(net(), arguments, 4, "pad_to")


def test_buckets_are_checked():
    with pytest.raises(ValueError, match="batch=0"):
        passed(attending(), js.Buckets(batch=0))
