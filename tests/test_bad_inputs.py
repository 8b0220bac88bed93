"""Every argument of the public functions, given what it cannot be: an error that names it.

Nothing is changed by a call that is refused: networks are data that no function writes to.
"""

import math
import re

import jax
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim import games, solvers
from jaxsim.adaptive.heads import fit_students
from jaxsim.adaptive.rule import Rule
from jaxsim.data import fashion_mnist, read_idx, rpm
from jaxsim.transforms.analog import analog
from tests.support.networks import X, cnn

NAN, INF = math.nan, math.inf
NO_COUNT = (0, -1, 1.5, "2", NAN)
NO_SHARE = (-0.1, 1.0, NAN, "half")
NOT_POSITIVE = (0.0, -1.0, NAN, INF)
NEGATIVE = (-1e-3, NAN, INF)
LABELS = np.zeros(len(X), int)

tx = optax.adam(1e-3)
sp = js.sparsity
net = cnn()
LOSSES = js.ablation_sensitivity(net, lambda net: net(X).sum(), bits=(2, 4))


def on_net(make):
    """What is checked when a transform is applied."""
    return lambda value: make(value)(net)


# name of the argument, a call that is given the value in its place, values it cannot be
TABLE = [
    # precision
    ("weights", lambda v: js.quantize(weights=v), (0, 9, -1, 2.5, "8", NAN, [8])),
    ("inputs", lambda v: js.quantize(inputs=v), (0, 9, 2.5, "8")),
    ("bits", lambda v: js.quantize(js.Grid(v)), (0, 9, -3, 1.5, "8", None)),
    ("per", lambda v: js.quantize(js.Grid(per=v)), ("row", None, 3)),
    ("rows", lambda v: js.quantize(js.Grid(per="group", rows=v)), NO_COUNT),
    ("spacing", lambda v: js.quantize(js.Grid(4, spacing=v)), ("log", None)),
    ("rounding", lambda v: js.quantize(js.Grid(rounding=v)), ("down", None)),
    ("average", lambda v: js.quantize(8, js.Grid(average=v)), (-0.1, 1.5, NAN)),
    ("size", lambda v: js.quantize(js.Codebook(size=v)), (0, 1, 2.5)),
    ("iterations", lambda v: js.quantize(js.Codebook(iterations=v)), (0, -1, 1.5)),
    ("length", lambda v: js.quantize(js.Codebook(length=v)), (0, -1, 1.5)),
    ("dtype", lambda v: js.quantize(js.Floating(v)), ("float4", None, "int8")),
    ("share", js.clipping.percentile, (0.0, -1.0, 100.1, NAN)),
    ("width", js.clipping.rms, NOT_POSITIVE),
    ("hi", js.clipping.pact, NOT_POSITIVE),
    ("damping", js.rounding.gptq, (-1.0, NAN)),
    ("steps", js.rounding.adaround, NO_COUNT),
    ("rate", lambda v: js.rounding.adaround(rate=v), NOT_POSITIVE),
    ("alpha", lambda v: js.smooth(X, v), (-0.1, 1.1, NAN)),
    ("steps", lambda v: js.rotate(X, jax.random.key(0), steps=v), NO_COUNT),
    ("rate", lambda v: js.rotate(X, jax.random.key(0), rate=v), NOT_POSITIVE),
    ("epsilon", lambda v: js.fold_norms(X, epsilon=v), NOT_POSITIVE),
    ("epsilon", lambda v: js.equalize(X, epsilon=v), NOT_POSITIVE),
    # sparsity
    ("sparsity", js.prune, NO_SHARE),
    ("rounds", lambda v: js.prune(0.5, rounds=v), NO_COUNT),
    ("sites", on_net(lambda v: js.prune(0.5, sites=v)), ("nowhere", "Conv_7/*", ())),
    ("sparsity", lambda v: js.shrink(v), (-0.1, 1.0, NAN)),
    ("min_channels", lambda v: js.shrink(0.5, min_channels=v), NO_COUNT),
    ("round_to", lambda v: js.shrink(0.5, round_to=v), NO_COUNT),
    ("scope", lambda v: js.shrink(0.5, scope=v), ("layer", None)),
    ("groups", on_net(lambda v: js.shrink(0.5, groups=v)), ("nowhere",)),
    ("layout", js.run_sparse, ("columns", None, 3)),
    ("block", lambda v: js.run_sparse(block=v), ((0, 4), (4, -1), (4, 1.5))),
    ("break_even", lambda v: js.run_sparse(break_even=v), (-0.1, 1.1, NAN)),
    ("damping", lambda v: js.prune_layers(X, 0.5, damping=v), (-1.0, NAN)),
    ("keep", lambda v: js.prune_layers(X, keep=v), ((0, 4), (5, 4), (2, 0))),
    ("n", lambda v: sp.n_of_m(v, 4), (0, -1, 5, 1.5)),
    ("m", lambda v: sp.n_of_m(2, v), (0, 1, 2.5)),
    ("rows", lambda v: sp.block(v, 4), NO_COUNT),
    ("columns", lambda v: sp.block(4, v), NO_COUNT),
    ("heads", sp.head, NO_COUNT),
    ("sparsity", lambda v: sp.one_shot(v), NO_SHARE),
    ("every", lambda v: sp.iterative(0.5, begin=0, every=v, rounds=2), (0, -1, 1.5)),
    ("rounds", lambda v: sp.iterative(0.5, begin=0, every=2, rounds=v), (0, -1)),
    ("begin", lambda v: sp.cubic(0.5, begin=v, every=2, updates=3), (-1, 1.5)),
    ("initial", lambda v: sp.cubic(0.5, begin=0, every=2, updates=3, initial=v), (-0.1, 1.0)),
    ("fraction", lambda v: sp.rigl(tx, js.prune(0.5)(net), every=2, until=9, fraction=v), (-0.1,)),
    ("share", lambda v: sp.topk(X, v), (-0.1, 1.5, NAN)),
    ("share", sp.topk_gradient, (-0.1, 1.5, NAN)),
    ("strength", lambda v: sp.penalized(sp.hard_concrete(), v), (-1.0, NAN)),
    ("start", sp.hard_concrete, (NAN, INF)),
    ("nonzeros", lambda v: js.parameter_efficiency(0.5, v), (0, -1)),
    ("bits", js.storage.delta, (0, -1, 1.5)),
    # hardware
    ("bits", js.slice_bits, (0, 8, -1, 1.5, "2")),
    ("top", lambda v: js.slice_bits(2, top=v), ("half", None)),
    ("adc", lambda v: analog(v), (0, -1, NAN, "8")),
    ("mapping", lambda v: analog(mapping=v), ("both", None)),
    ("rows", lambda v: analog(rows=v), NO_COUNT),
    ("adc_range", lambda v: analog(8, adc_range=v), ("wide", None)),
    ("percentile", lambda v: analog(8, percentile=v), (0.0, 101.0, NAN)),
    ("input_bits", lambda v: analog(input_bits=v), (0, -1, 1.5)),
    ("accumulate", lambda v: analog(accumulate=v), ("never", None)),
    ("sigma", js.cells.independent, NEGATIVE),
    ("sigma", js.cells.proportional, NEGATIVE),
    ("sigma", js.cells.inverse, NEGATIVE),
    ("on_off", lambda v: js.cells.independent(0.1, on_off=v), (1.0, 0.5, -2.0, NAN)),
    ("noise", lambda v: js.cells.independent(0.1, noise=v), NEGATIVE),
    ("largest", js.cells.rram_milo, (0.0, -1.0, NAN)),
    ("days", lambda v: js.cells.sonos(days=v), NEGATIVE),
    ("row", js.wires.input_source, NEGATIVE),
    ("solver", lambda v: js.wires.input_source(0.1, solver=v), ("lu", None)),
    ("column", js.wires.gated, NEGATIVE),
    ("K", js.block, (0, -1, 9)),
    ("mode", lambda v: js.block(2, 1, 1, v), ("random", None)),
    ("rounding", lambda v: js.block(2, 1, 1, rounding=v), ("up", None)),
    ("rows", lambda v: js.Hardware(rows=v), (0, -1)),
    ("adc_bits", lambda v: js.Crossbar(adc_bits=v), (0, -1)),
    ("rows", lambda v: js.fpg_bits(8, 8, v), NO_COUNT),
    # structure
    ("stages", js.pipeline_shard, NO_COUNT),
    ("microbatches", lambda v: js.pipeline_shard(2, v), NO_COUNT),
    ("schedule", lambda v: js.pipeline_shard(2, schedule=v), ("zb", None)),
    ("engine", lambda v: js.pipeline_shard(2, engine=v), ("gpu", None)),
    ("remat", lambda v: js.pipeline_shard(2, remat=v), ("all", 3)),
    ("exits", js.exit_early, (1, 0, 2.5, [])),
    ("threshold", lambda v: js.exit_early(2, Rule(v)), (-1.0, NAN)),
    ("patience", lambda v: js.exit_early(2, Rule(patience=v)), (-1, NAN)),
    ("first", lambda v: js.exit_early(2, Rule(first=v)), (0, 3)),
    ("feature", lambda v: js.exit_early(2, feature=v), (None, "mean")),
    ("protect", lambda v: js.prune_tokens(0.1, protect=v), (0, -1, 1.5)),
    # networks
    ("net", js.deploy, (None, "net", net.params)),
    ("key", lambda v: js.deploy(js.quantize()(net), key=v, calibrate=X), (0, "k", np.zeros(3))),
    (
        "args",
        lambda v: js.trace(lambda p, x: x @ p["w"], {"w": np.eye(3, dtype="f")}, v),
        (1.0, [1]),
    ),
    ("batch_size", lambda v: js.compare(net, net, (X, LABELS), batch_size=v), NO_COUNT),
    ("batch_size", lambda v: js.classify(net, X, batch_size=v), NO_COUNT),
    ("path", lambda v: js.load(v, net), ("/nowhere/at/all",)),
    ("mean_bits", lambda v: js.assign_bits(LOSSES, mean_bits=v), (0, -1.0, NAN)),
    # games and data
    ("dim", lambda v: games.games_of_skill(jax.random.key(0), v), (0, -1, 1.5)),
    ("servers", lambda v: games.lotto(jax.random.key(0), servers=v), NO_COUNT),
    ("rounds", games.matching_pennies, NO_COUNT),
    ("steps", lambda v: solvers.unrolled(v, 1.0), NO_COUNT),
    ("rate", lambda v: solvers.unrolled(2, v), NOT_POSITIVE),
    ("count", rpm.generate, NO_COUNT),
    ("configuration", lambda v: rpm.generate(1, configuration=v), ("ring", None)),
    ("seed", lambda v: rpm.generate(1, seed=v), (-1, 1.5)),
    ("split", fashion_mnist, ("validation", None)),
    ("max_bytes", lambda v: read_idx(b"", max_bytes=v), (-1, "many")),
]
CASES = [(name, call, value) for name, call, values in TABLE for value in values]


def test_the_table_is_long_enough():
    assert len(CASES) >= 150


@pytest.mark.parametrize(
    ("name", "call", "value"), CASES, ids=[f"{n}={v!r}"[:40] for n, _, v in CASES]
)
def test_what_an_argument_cannot_be_is_refused_by_its_name(name, call, value):
    with pytest.raises((ValueError, TypeError)) as refused:
        call(value)
    assert re.search(rf"\b{name}\b", str(refused.value))


def test_the_network_of_the_table_is_as_it_was():
    for one, other in zip(jax.tree.leaves(net), jax.tree.leaves(cnn()), strict=True):
        np.testing.assert_array_equal(one, other)
    assert net.cores == cnn().cores == {}


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: js.quantize(js.nf4, None), r"weights=js\.nf4.*call it: js\.nf4\(\)"),
        (lambda: js.quantize(js.Grid, None), r"weights=js\.Grid.*call it: js\.Grid\(\)"),
        (lambda: js.quantize(8, js.Floating), r"inputs=js\.Floating.*call it: js\.Floating\(\)"),
        (lambda: js.quantize(js.Grid(clip=js.clipping.rms)), r"clip=clipping\.rms.*rms\(…\)"),
        (lambda: js.prune(0.5, criterion=sp.magnitude), r"criterion=.*call it: .*magnitude\(\)"),
        (lambda: js.prune(pattern=sp.n_of_m), r"pattern=.*call it: .*n_of_m\(…\)"),
        (lambda: js.prune(0.5, distribution=sp.erk), r"distribution=.*call it: .*erk\(\)"),
        (lambda: js.analog(cells=js.cells.sonos), r"cells=cells\.sonos.*call it: cells\.sonos\(\)"),
        (lambda: js.analog(wires=js.wires.gated), r"wires=wires\.gated.*call it: wires\.gated"),
        (lambda: js.compose(js.quantize), r"transforms=js\.quantize.*call it: js\.quantize\(\)"),
        (lambda: js.rules({"*": js.prune}), r"by_pattern.*call it: js\.prune\(\)"),
        (lambda: js.exit_early(2, Rule), r"rule=decision\.Rule|rule=js\.Rule"),
        (lambda: js.magic_pyramid(0.1, Rule, heads=()), r"exit=.*Rule.*call it"),
        (lambda: sp.gradual(tx, net, sp.cubic), r"schedule=.*call it: .*cubic\(…\)"),
        (
            lambda: sp.gradual(tx, net, sp.one_shot(0.5), criterion=sp.movement),
            r"criterion=.*call it: .*movement\(\)",
        ),
        (lambda: sp.lottery(tx, net, sp.iterative), r"schedule=.*call it: .*iterative\(…\)"),
        (lambda: sp.gated(net, sp.hard_concrete), r"gates=.*call it: .*hard_concrete\(\)"),
        (lambda: sp.penalized(sp.soft_threshold, 0.1), r"gates=.*call it: .*soft_threshold\(\)"),
        (
            lambda: js.round_weights(js.rounding.gptq, X),
            r"rounding=rounding\.gptq.*call it: rounding\.gptq\(\)",
        ),
    ],
)
def test_what_makes_a_value_is_to_be_called(call, told):
    with pytest.raises(ValueError, match=told):
        call()


def test_what_is_applied_to_networks_is_not_called_before():
    assert callable(js.compose(js.quantize(8), js.integer_only, js.widen_ranges))


HUGE = 10**10


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("layers", lambda: js.tokens.linear_thresholds(0.5, 10 * HUGE)),
        ("layers", lambda: js.tokens.pruning_ratios(0.5, 10 * HUGE)),
        ("servers", lambda: games.lotto(jax.random.key(0), servers=HUGE)),
        ("customers", lambda: games.lotto(jax.random.key(0), customers=HUGE)),
        ("rounds", lambda: games.matching_pennies(HUGE)),
        ("dim", lambda: games.games_of_skill(jax.random.key(0), HUGE)),
        ("modes", lambda: games.rps_mixture(jax.random.key(0), modes=HUGE + 1)),
        ("count", lambda: rpm.generate(HUGE)),
        (
            "iterations",
            lambda: solvers.psro(
                games.games_of_skill(jax.random.key(0), 3),
                solvers.uniform(),
                solvers.exact(),
                jax.random.key(0),
                iterations=10**9,
            ),
        ),
        ("iterations", lambda: solvers.nash(10**12)),
        ("iterations", lambda: solvers.rectified(10**12)),
        ("iterations", lambda: solvers.projected_replicator(10**11)),
        ("steps", lambda: solvers.unrolled(10**12, 0.1)),
        ("steps", lambda: solvers.implicit(10**12, 0.1)),
        ("steps", lambda: solvers.dice(10**9, 0.1)),
        ("episodes", lambda: solvers.dice(1, 0.1, episodes=10**12)),
        ("steps", lambda: solvers_of_students(HUGE)),
    ],
)
def test_sizes_are_looked_at_before_memory_is_taken(name, call):
    with pytest.raises((MemoryError, ValueError), match=rf"{name} ?[=+]"):
        call()


def solvers_of_students(steps):
    x = np.ones((4, 3), "f")
    return fit_students([x], x, jax.random.key(0), steps=steps)


def test_a_length_takes_no_memory():
    assert not jax.tree.leaves(solvers.nash(2**31 - 1))
    assert jax.tree.structure(solvers.nash(10)) == jax.tree.structure(solvers.nash(10))
    assert jax.tree.structure(solvers.nash(10)) != jax.tree.structure(solvers.nash(11))
