"""Each alternative of an option of the public face answers something else.

What each answers is checked where the option is at home; here none may be without effect, and an
option that is new has to be named.
"""

import functools
import inspect
import itertools
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.staged.pipeline import simulate_schedule

KEY = jax.random.key(0)
CHOICES = (True, False)

# Options that choose how a thing is done and not what comes out, or that describe what a value is.
SAME_ANSWER = {
    ("deploy", "keep_floats"): "what is held: tests/network/test_deployment.py",
    ("measure_break_even", "layout"): "a measurement of time: tests/transforms/test_run_sparse.py",
    ("pipeline_shard", "balance"): "where it cuts: tests/transforms/test_pipeline_shard.py",
    ("pipeline_shard", "engine"): "how stages run: tests/transforms/test_pipeline_shard.py",
    ("pipeline_shard", "remat"): "what is kept: tests/transforms/test_pipeline_shard.py",
    ("prune", "allow_collapse"): "refuses or not: tests/sparsity/test_masks.py",
    ("rotate", "scores"): "floats stay: tests/transforms/test_turned_scores.py",
    ("shrink", "exact"): "refuses or not: tests/transforms/test_shrink.py",
    ("explore", "baselines"): "what it is compared with: tests/search/test_explore.py",
    ("explore", "limits"): "names of what is limited: tests/search/test_explore.py",
    ("explore", "minimize"): "a search each: tests/search/test_explore.py",
    ("explore", "quiet"): "prints or not: tests/cli/test_explore.py",
    ("explore", "traced"): "how draws are computed: tests/search/test_explore.py",
    ("sweep", "way"): "how settings are computed: tests/evaluate/test_sweep.py",
    ("search_blocked", "quiet"): "prints or not: tests/search/test_blocks.py",
}
# Values that a user reads and does not set.
READ = {"Network", "Op", "Site", "Staged", "role"}
# Types that name a class of another module; their options are functions.
UNRESOLVED = {"learn_ranges"}


@functools.cache
def net():
    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(8, 8)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(8, 4)) * np.array([1, 2, 4, 8]), jnp.float32),
    }
    return js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, inputs())


@functools.cache
def layer():
    return js.trace(lambda p, x: x @ p, net().params["b"], inputs())


@functools.cache
def deeper():
    """Two groups of channels; half of one's are worth little beside its mean."""
    few = jnp.where(jnp.arange(8) < 7, 1.0, 100.0)
    params = [jnp.ones((8, 8)) + jnp.arange(8) / 8, jnp.ones((8, 8)) * few, jnp.ones((8, 4))]
    return js.trace(lambda p, x: jnp.tanh(jnp.tanh(x @ p[0]) @ p[1]) @ p[2], params, inputs())


@functools.cache
def inputs():
    x = np.random.default_rng(1).normal(size=(4, 8)) * np.array([[1], [2], [4], [8]])
    return jnp.asarray(x, jnp.float32)


def answer(*transforms):
    """A function to what a composed layer says of inputs, once calibrated on half as many."""

    def run(layer, x):
        made = js.deploy(js.compose(*transforms)(layer), calibrate=x[:2], key=KEY)
        return made(x, key=KEY)

    return run


def said(answers):
    """Answers as they are; those that are functions say theirs in one program."""
    if not any(map(callable, answers)):
        return answers
    return jax.jit(lambda layer, x: [run(layer, x) for run in answers])(layer(), inputs())


def coded(**options):
    return answer(js.quantize(weights=js.Grid(**{"bits": 4, **options})))


def held(**options):
    cells = js.cells.proportional(0.2) if "mapping" in options else None
    return answer(js.quantize(4, 4), js.analog(6, cells, rows=4, input_bits=2, **options))


def aged(**options):
    cells = js.cells.drifting(js.cells.proportional(0.2), 0.1, spread=0.05)
    array = js.analog(cells=cells, rows=4, **options)

    def run(layer, x):
        chip = js.deploy(js.compose(js.quantize(4, 4), array)(layer), calibrate=x, key=KEY)
        return js.age(chip, 1e6)(x)

    return run


def blocked(**options):
    kept = (None, None) if options.get("mode") == "exact" else (2, 2)
    return answer(js.quantize(8, 8), js.block(2, *kept, **{"mode": "static", **options}))


def pipelined(schedule):
    chunks = 2 if schedule == "interleaved" else 1
    timeline = simulate_schedule(piped(schedule=schedule, chunks=chunks))
    return timeline.in_flight, timeline.ticks


def piped(chunks=1, **options):
    devices = jax.devices()[:1] * (2 // chunks)
    return js.pipeline_shard(2, 4, devices=devices, chunks=chunks, **options)(net())


ANSWERS = {
    ("Codebook", "per"): lambda per: answer(
        js.quantize(weights=js.Codebook((-1.0, -0.3, 0.0, 0.4, 1.0), per=per, **group(per)))
    ),
    ("BlockGrid", "kind"): lambda kind: wide(js.quantize(js.BlockGrid(kind), None)),
    ("mx", "element"): lambda element: wide(js.quantize(js.mx(element), None)),
    ("Floating", "dtype"): lambda dtype: answer(js.quantize(weights=js.Floating(dtype))),
    ("Floating", "per"): lambda per: answer(js.quantize(weights=js.Floating("float8_e5m2", per))),
    ("fp4", "per"): lambda per: answer(js.quantize(weights=js.fp4(per=per, **group(per)))),
    ("nf4", "per"): lambda per: answer(js.quantize(weights=js.nf4(per=per, **group(per)))),
    ("Grid", "dynamic"): lambda dynamic: answer(js.quantize(inputs=js.Grid(4, dynamic=dynamic))),
    ("Grid", "per"): lambda per: (
        answer(js.quantize(inputs=js.Grid(4, per=per)))
        if per == "token"
        else coded(per=per, **group(per))
    ),
    ("Grid", "rounding"): lambda rounding: coded(rounding=rounding),
    ("Grid", "spacing"): lambda spacing: coded(spacing=spacing),
    ("Grid", "symmetric"): lambda symmetric: coded(symmetric=symmetric),
    ("analog", "accumulate"): lambda accumulate: held(accumulate=accumulate),
    ("analog", "adc_range"): lambda adc_range: held(adc_range=adc_range),
    ("analog", "mapping"): lambda mapping: held(mapping=mapping),
    ("analog", "compensation"): lambda compensation: aged(compensation=compensation),
    ("block", "mode"): lambda mode: blocked(mode=mode),
    ("block", "rounding"): lambda rounding: blocked(rounding=rounding),
    ("pipeline_shard", "schedule"): pipelined,
    ("pipeline_value_and_grad", "reduction"): lambda reduction: js.pipeline_value_and_grad(
        piped(), lambda y, t: jnp.mean((y - t) ** 2), reduction=reduction
    )(net().params, (inputs(), inputs()[:, :4]))[0],
    ("round_weights", "by_site"): lambda by_site: js.round_weights(
        js.rounding.gptq(), inputs(), by_site=by_site
    )(js.quantize(2, None)(net())).params["b"],
    ("prune_layers", "by_site"): lambda by_site: js.prune_layers(inputs(), 0.5, by_site=by_site)(
        net()
    ).params["b"],
    ("run_sparse", "layout"): lambda layout: str(
        js.compose(js.prune(0.75), js.run_sparse(layout, block=(2, 2), break_even=0.0))(net())
    ),
    ("shrink", "scope"): lambda scope: [
        w.shape for w in jax.tree.leaves(js.shrink(0.5, scope=scope)(deeper()).params)
    ],
    ("slice_bits", "top"): lambda top: answer(
        js.quantize(5, 8), js.slice_bits(3, top=top), js.analog(5, rows=4, adc_range="max")
    ),
}


def wide(transform):
    """An answer of a layer whose products fill a block of 32."""
    w = jnp.asarray(np.random.default_rng(1).normal(size=(32, 4)), jnp.float32)
    return transform(js.trace(lambda p, x: x @ p, w, jnp.eye(32)))(jnp.eye(32))


def group(per):
    return {"rows": 2} if per == "group" else {}


def public_options():
    """Every argument of the public face whose type lists its alternatives."""
    for name in js.__all__:
        thing = getattr(js, name)
        if not callable(thing) or name in READ:
            continue
        try:
            hints = typing.get_type_hints(thing)
            parameters = inspect.signature(thing).parameters
        except NameError:
            assert name in UNRESOLVED, name
            continue
        for parameter in parameters:
            if values := alternatives(hints.get(parameter)):
                yield name, parameter, values


def alternatives(hint):
    if hint is bool:
        return CHOICES
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    found = [alternatives(part) for part in typing.get_args(hint)]
    return next((values for values in found if values), ())


OPTIONS = {(name, parameter): values for name, parameter, values in public_options()}


def test_every_option_is_told_apart_or_said_to_change_no_answer():
    assert set(OPTIONS) == set(ANSWERS) | set(SAME_ANSWER)
    assert not set(ANSWERS) & set(SAME_ANSWER)
    for (_, parameter), reason in SAME_ANSWER.items():
        assert parameter in Path(reason.split(": ")[1]).read_text()


@pytest.mark.parametrize("option", ANSWERS, ids="-".join)
def test_each_alternative_answers_something_else(option):
    values = OPTIONS[option]
    answers = zip(values, said([ANSWERS[option](value) for value in values]), strict=True)
    for (one, ours), (other, theirs) in itertools.combinations(answers, 2):
        assert different(ours, theirs), f"{one!r} and {other!r} answer the same"


def different(a, b):
    if isinstance(a, jax.Array | np.ndarray):
        return not np.array_equal(a, b)
    return a != b


def test_what_answers_the_same_is_seen():
    assert not different(*said([coded(bits=4), coded()]))
