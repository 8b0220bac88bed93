"""Scores beside NumPy's, errors beside known variances, writing beside calls without a cache."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.console import timing
from jaxsim.evaluate.language import (
    Scores,
    Speed,
    agreement,
    compare,
    early,
    generate,
    perplexity,
    score,
    speculate,
    speculation,
    speed,
    throughput,
    windows,
    write_early,
    writing,
)
from tests.support import llama_files

MODEL = llama_files.MODEL
TEXT = np.random.default_rng(3).integers(0, 96, 50)
PROMPT = TEXT[:8].reshape(2, 4)


@functools.cache
def net():
    return js.trace(MODEL, {"params": llama_files.params()}, np.zeros((1, 4), np.int32))


@functools.cache
def quantized():
    return js.quantize(weights=js.Grid(4, per="channel"), inputs=None)(net())


@functools.cache
def scores_of(which):
    return score({"float": net, "quantized": quantized}[which](), windows(TEXT, 12), batch_size=3)


def test_windows_follow_one_another_or_are_spread():
    assert windows(range(7), 3).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert windows(range(40), 4, 3).tolist() == [[0, 1, 2, 3], [12, 13, 14, 15], [24, 25, 26, 27]]


def test_scores_are_those_of_the_logits():
    cut = windows(TEXT, 12)
    logits = np.float64(jax.jit(lambda net: net(cut))(net()))[:, :-1]
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    own = np.take_along_axis(shares, cut[:, 1:, None], -1)[..., 0]
    found = scores_of("float")
    np.testing.assert_allclose(found.losses, -np.log(own), atol=1e-4)
    np.testing.assert_array_equal(found.choices, logits.argmax(-1))
    assert perplexity(found).value == pytest.approx(np.exp(-np.log(own).mean()), rel=1e-5)


def test_a_network_agrees_with_itself_without_error():
    found = scores_of("float")
    assert perplexity(found, found) == (1.0, 0.0, 1.0, 1.0)
    assert agreement(found, found) == (1.0, 0.0, 1.0, 1.0)
    other = scores_of("quantized")
    assert perplexity(other, found).value == pytest.approx(
        perplexity(other).value / perplexity(found).value
    )
    assert agreement(other, found).value == (other.choices == found.choices).mean() < 1


def test_errors_are_those_of_the_mean_and_pairs_are_closer():
    draws = np.random.default_rng(0)
    common = draws.normal(3, 0.5, (400, 1)) * np.ones((1, 5))
    a, b = (Scores(common + draws.normal(0, 0.01, (400, 5)), np.zeros((400, 5), int)) for _ in "ab")
    alone, pair = perplexity(a), perplexity(a, b)
    expected = a.losses.mean(1).std() / 20  # of the logarithm
    assert alone.error == pytest.approx(alone.value * expected, rel=0.1)
    assert alone.low < alone.value < alone.high
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * alone.error, rel=0.1)
    two = perplexity(a, draws=2)  # the interval's ends lie 95 % of the way between them
    assert two.error == pytest.approx((two.high - two.low) / 0.95 / 2**0.5)
    paired = (a.losses - b.losses).mean(1).std() / 20
    assert pair.error == pytest.approx(paired, rel=0.1)
    assert pair.error < alone.error / alone.value / 20


def test_one_window_says_nothing_of_errors():
    value, *rest = perplexity(Scores(np.ones((1, 3)), np.ones((1, 3), int)))
    assert value == pytest.approx(np.e)
    assert np.isnan(rest).all()


def test_greedy_writing_is_the_argmax_of_calls_without_a_cache():
    found = generate(net(), PROMPT, MODEL.cache(2, 9), count=6)
    whole = np.concatenate([PROMPT, found], 1)
    logits = jax.jit(lambda net: net(whole))(net())
    np.testing.assert_array_equal(found, np.argmax(logits, -1)[:, 3:-1])
    # A cold draw is the most probable token, too.
    cold = generate(
        net(), PROMPT, MODEL.cache(2, 9), count=6, temperature=1e-4, key=jax.random.key(0)
    )
    np.testing.assert_array_equal(cold, found)


def test_a_row_ends_with_its_end():
    free = generate(net(), PROMPT, MODEL.cache(2, 9), count=6)
    end = int(free[0, 2])
    found = generate(net(), PROMPT, MODEL.cache(2, 9), count=6, end=end)
    for row, written in zip(found, free, strict=True):
        stops = np.flatnonzero(written == end)
        until = stops[0] + 1 if len(stops) else 6
        np.testing.assert_array_equal(row[:until], written[:until])
        assert (row[until:] == end).all()


def test_tokens_are_drawn_with_the_probabilities_of_the_logits():
    table = jnp.log(jnp.array([[0.7, 0.2, 0.1]] * 3))
    chain = js.trace(
        lambda p, ids, cache: (p["w"][ids], cache), {"w": table}, PROMPT % 3, jnp.zeros(())
    )
    prompt = np.zeros((2000, 1), int)

    def draw(temperature):
        key, start = jax.random.key(1), jnp.zeros(())
        return generate(chain, prompt, start, count=5, temperature=temperature, key=key)

    def shares(drawn):
        return np.bincount(drawn.ravel(), minlength=3) / drawn.size

    one = draw(1.0)
    np.testing.assert_allclose(shares(one), [0.7, 0.2, 0.1], atol=0.02)
    # Each step draws anew: neighbors are equal as often as chance has it.
    assert (one[:, 1:] == one[:, :-1]).mean() == pytest.approx(0.54, abs=0.02)
    expected = np.sqrt([0.7, 0.2, 0.1])
    np.testing.assert_allclose(shares(draw(2.0)), expected / expected.sum(), atol=0.02)


def test_a_row_of_a_comparison_is_what_its_parts_say():
    cut, chip = windows(TEXT, 12), js.deploy(quantized(), keep_floats=False)
    table = compare(net(), {"chip": chip}, cut, batch_size=3)
    reference, row = table.rows
    found = score(chip, cut, batch_size=3)
    assert row.perplexity == perplexity(found)
    assert row.ratio == perplexity(found, scores_of("float"))
    assert row.agreement == agreement(found, scores_of("float"))
    assert (reference.ratio.value, reference.agreement.value) == (1.0, 1.0)
    assert (reference.transformed, row.transformed) == (0, chip.coverage().share("transformed"))
    # Four products of a layer's attention, three of its perceptron, the head, scores and values.
    d, h, n = MODEL.width, MODEL.hidden, 12
    heads, width = MODEL.heads, MODEL.width // MODEL.heads
    of_layer = 2 * d * d + 2 * d * MODEL.groups * width + 3 * d * h + 2 * n * heads * width
    assert reference.macs == MODEL.layers * of_layer + d * 96
    assert reference.held == 4 * sum(leaf.size for leaf in jax.tree.leaves(net().params))
    assert row.held < reference.held / 4
    assert "chip" in str(table)
    assert "1.000±0.000" not in str(table)
    with pytest.raises(ValueError, match="without the name 'reference'"):
        compare(net(), {"reference": chip}, cut)


def test_speed_is_tokens_over_seconds(monkeypatch):
    seconds = {1: 0.5, 4: 2.0}

    def taken(calls, runs):
        assert runs == 5
        counts = [call.keywords["count"] for call in calls.values()]
        return {
            name: timing.Timing(10 * seconds[count], seconds[count], 0.0, runs)
            for name, count in zip(calls, counts, strict=True)
        }

    monkeypatch.setattr(throughput, "alternate", taken)
    found = speed({"a": net(), "b": quantized()}, PROMPT, MODEL.cache(2, 8), count=4)
    # Eight tokens in half a second; three more of each of two rows in another 1.5.
    assert found == {name: Speed(16.0, 4.0, 20.0) for name in "ab"}


def test_windows_through_a_cache_lose_what_it_loses():
    cut = windows(TEXT, 12)
    through = score(net(), cut, batch_size=3, cache=MODEL.cache)
    np.testing.assert_allclose(through.losses, scores_of("float").losses, atol=1e-4)
    np.testing.assert_array_equal(through.choices, scores_of("float").choices)
    chip = js.code_cache(2, first=1, latest=2)(net())
    rounded = score(chip, cut, batch_size=3, cache=MODEL.cache)
    # Until tokens are codes nothing is lost: the fifth is the first to read one.
    np.testing.assert_allclose(rounded.losses[:, :4], through.losses[:, :4], rtol=1e-6)
    assert (np.abs(rounded.losses - through.losses)[:, 4:] > 1e-3).mean() > 0.9
    call, cache = jax.jit(lambda *a: a[0](*a[1:])), MODEL.cache(1, 12)
    for i in range(11):
        logits, cache = call(chip, cut[:1, i : i + 1], cache)
        found = jax.nn.logsumexp(logits[0, 0]) - logits[0, 0, cut[0, i + 1]]
        assert found == pytest.approx(rounded.losses[0, i], rel=1e-4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: score(
                js.trace(lambda p, x, c: p[x], jnp.eye(96), PROMPT, 0), PROMPT, cache=print
            ),
            "must return logits and the next cache",
        ),
        (lambda: speed({"a": net()}, PROMPT, MODEL.cache(2, 8), count=1), "count=1"),
        (lambda: speed({"a": net()}, PROMPT, MODEL.cache(2, 8), count=2, runs=4), "runs=4"),
        (lambda: windows(TEXT, 51), "tokens[50]: 1 windows of size=51 take 51"),
        (lambda: windows(TEXT, 10, 6), "6 windows of size=10 take 60"),
        (lambda: windows(TEXT, 1), "size=1"),
        (lambda: windows(TEXT / 2, 4), "must be one row of whole numbers"),
        (lambda: score(net(), TEXT), "windows[50] of int64: must be rows of at least 2"),
        (lambda: score(net(), TEXT[:, None]), "windows[50, 1]"),
        (
            lambda: score(net(), [[1, 2**33]]),
            "windows[0, 1]=8589934592: must be a token from 0 to 95",
        ),
        (lambda: score(net(), [[1, -1]]), "windows[0, 1]=-1"),
        (lambda: score(net(), np.zeros((1, 65), int)), "must hold at most context=64 tokens"),
        (lambda: score(net(), PROMPT, batch_size=0), "batch_size=0"),
        (lambda: score(net(), PROMPT, output=lambda y: y[0]), "outputs must be logits [1, 4, 'V']"),
        (
            lambda: perplexity(scores_of("float"), Scores(np.ones((1, 2)), np.ones((1, 2)))),
            "same windows",
        ),
        (lambda: perplexity(scores_of("float"), draws=1), "draws=1"),
        (lambda: perplexity(scores_of("float"), seed=-1), "seed=-1"),
        (
            lambda: generate(net(), PROMPT, MODEL.cache(2, 8), count=6),
            "must have room for 9 tokens",
        ),
        (
            lambda: generate(net(), PROMPT, MODEL.cache(1, 8), count=2),
            "make one with model.cache(2)",
        ),
        (lambda: generate(net(), PROMPT, None, count=2), "must return logits and the next cache"),
        (lambda: generate(net(), PROMPT + 96, MODEL.cache(2), count=2), "prompt[0, 0]="),
        (lambda: generate(net(), PROMPT[:, :0], MODEL.cache(2), count=2), "prompt[2, 0]"),
        (lambda: generate(net(), PROMPT, MODEL.cache(2), count=0), "count=0"),
        (lambda: generate(net(), PROMPT, MODEL.cache(2), count=2, end=96), "end=96"),
        (
            lambda: generate(net(), PROMPT, MODEL.cache(2), count=2, temperature=-1),
            "temperature=-1",
        ),
        (lambda: generate(net(), PROMPT, MODEL.cache(2), count=2, temperature=0.5), "takes a key"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(call, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_transformed_network_writes_as_its_calls_say():
    chip = js.deploy(quantized())
    found = generate(chip, PROMPT, MODEL.cache(2, 8), count=5)
    whole = np.concatenate([PROMPT, found], 1)
    np.testing.assert_array_equal(found, np.argmax(jax.jit(lambda n: n(whole))(chip), -1)[:, 3:-1])


def given(call, monkeypatch, module, name):
    """Bytes that a compiled program is given: of what it does not read JAX gives it nothing."""
    compiled, seen = getattr(module, name), []

    def measured(*args, **settings):
        memory = compiled.lower(*args, **settings).compile().memory_analysis()
        seen.append(memory.argument_size_in_bytes)
        return compiled(*args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(module, name, measured)
        call()
    (found,) = seen
    return found


def test_programs_that_write_are_not_given_what_is_not_held(monkeypatch):
    """A loop of JAX's keeps all that it names; a control names what is not read."""
    lean = js.deploy(quantized(), keep_floats=False)
    cache = MODEL.cache(2, 10)

    def written(count=3):
        return generate(lean, PROMPT, cache, count=count)

    writers = {
        (writing, "_generate"): written,
        (speculation, "_speculate"): lambda: speculate(
            lean, lean, PROMPT, cache, cache, count=3, ahead=2
        ),
        (early, "_write"): lambda: write_early(
            lean, PROMPT, cache, count=3, after=(1,), threshold=0.5
        ),
    }
    held = 2 * lean.nbytes + 3 * sum(a.nbytes for a in jax.tree.leaves(cache))
    floats = sum(a.nbytes for a in jax.tree.leaves(lean.params)) - lean.nbytes
    assert floats > held
    for (module, name), call in writers.items():
        assert given(call, monkeypatch, module, name) < held, name
    monkeypatch.setattr("jaxsim.network.network.as_constants", lambda params, unheld: params)
    assert given(lambda: written(count=4), monkeypatch, writing, "_generate") > floats
