"""What is drafted and checked beside what the network writes alone."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.evaluate.language import generate, speculate
from jaxsim.models.llama import with_layers
from tests.support import llama_files

MODEL = llama_files.tiny(layers=3)
PROMPT = np.random.default_rng(3).integers(0, 96, (2, 4))


@functools.cache
def net():
    return js.trace(MODEL, {"params": llama_files.params(MODEL)}, PROMPT)


@functools.cache
def draft(*keep):
    small, params = with_layers(MODEL, llama_files.params(MODEL), keep)
    return small, js.trace(small, {"params": params}, PROMPT)


def run(net, which, rows=slice(None), *, count=20, ahead=3, **more):
    small, other = which
    B = len(PROMPT[rows])
    caches = MODEL.cache(B, 4 + count + ahead), small.cache(B, 4 + count + ahead)
    return speculate(net, other, PROMPT[rows], *caches, count=count, ahead=ahead, **more)


@functools.cache
def alone(count=20, end=None):
    return generate(net(), PROMPT, MODEL.cache(2, 4 + count), count=count, end=end)


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("keep", [(0,), (0, 1), (0, 1, 2)])
def test_tokens_are_those_of_the_network_alone(keep, ahead):
    found = run(net(), draft(*keep), ahead=ahead)
    np.testing.assert_array_equal(found.tokens, alone())
    if len(keep) == 3:  # all drafts are right
        assert found.checks == -(-19 // (ahead + 1))
    else:
        assert found.checks <= 19
        assert (19 - found.checks) / found.checks <= found.accepted <= ahead


def test_a_draft_that_is_always_wrong_costs_and_changes_nothing():
    params = llama_files.params(MODEL)
    params = {**params, "norm": {"scale": -params["norm"]["scale"]}}  # the least probable token
    other = js.trace(MODEL, {"params": params}, PROMPT)
    found = run(net(), (MODEL, other))
    np.testing.assert_array_equal(found.tokens, alone())
    assert (found.checks, found.accepted) == (19, 0)


def test_some_drafts_stand_and_checks_are_fewer_than_tokens():
    found = run(net(), draft(0, 1), slice(0, 1))
    np.testing.assert_array_equal(found.tokens, alone()[:1])
    agree = calls = at = 0
    choices = jax.jit(lambda net, ids: jnp.argmax(net(ids), -1))
    longer = np.concatenate([PROMPT[:1], alone(count=24)[:1]], 1)
    while at < 19:  # by hand, without a cache: what lies behind a place is not seen there
        guesses, stand = longer.copy(), 0
        for place in range(5 + at, 8 + at):
            guesses[0, place] = choices(draft(0, 1)[1], guesses)[0, place - 1]
            if guesses[0, place] != longer[0, place]:
                break
            stand += 1
        at, calls, agree = at + stand + 1, calls + 1, agree + stand
    assert calls == found.checks
    assert found.accepted == pytest.approx(agree / calls)


def test_rows_end_with_their_end():
    for end in (int(alone()[0, 5]), int(alone()[1, 9])):
        found = run(net(), draft(0), end=end)
        np.testing.assert_array_equal(found.tokens, alone(end=end))


def test_a_chip_checks_what_another_drafts():
    coded = js.deploy(js.quantize(weights=8, inputs=None)(net()))
    expected = generate(coded, PROMPT, MODEL.cache(2, 24), count=20)
    np.testing.assert_array_equal(run(coded, draft(0)).tokens, expected)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: run(net(), draft(0), count=0), "count=0"),
        (lambda: run(net(), draft(0), ahead=0), "ahead=0"),
        (lambda: run(net(), draft(0), end=96), "end=96"),
        (
            lambda: speculate(
                net(), draft(0)[1], PROMPT, MODEL.cache(2, 20), draft(0)[0].cache(2, 64), count=20
            ),
            "must have room for 28 tokens",
        ),
        (
            lambda: run(net(), (llama_files.tiny(vocabulary=9), other_words())),
            "draft: logits of 9 tokens; must be of the network's 96",
        ),
        (
            lambda: run(js.code_cache(4, latest=2)(net()), draft(0)),
            "cache: has 3 whole numbers; must have one, its length",
        ),
        (
            lambda: run(net(), (draft(0)[0], js.code_cache(4, latest=2)(draft(0)[1]))),
            "draft_cache: has 3 whole numbers",
        ),
        (lambda: with_layers(MODEL, llama_files.params(MODEL), []), "keep=[]"),
        (lambda: with_layers(MODEL, llama_files.params(MODEL), [0, 0]), "keep=[0, 0]"),
        (lambda: with_layers(MODEL, llama_files.params(MODEL), [3]), "keep=3"),
    ],
)
def test_what_cannot_be_drafted_is_refused(call, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        call()


def other_words():
    model = llama_files.tiny(vocabulary=9)
    ids = PROMPT % 9
    return js.trace(model, model.init(jax.random.key(0), ids), ids)


def test_layers_that_stay_run_in_their_order():
    params = llama_files.params(MODEL)
    small, some = with_layers(MODEL, params, [2, 0])
    by_hand = js.trace(
        llama_files.tiny(layers=2),
        {
            "params": {
                **params,
                "layers": jax.tree.map(lambda a: a[np.array([2, 0])], params["layers"]),
            }
        },
        PROMPT,
    )
    call = jax.jit(lambda net: net(PROMPT))
    found = call(js.trace(small, {"params": some}, PROMPT))
    np.testing.assert_array_equal(found, call(by_hand))
    assert some["embedding"] is params["embedding"]
    assert np.abs(found - call(net())).max() > 0.1
