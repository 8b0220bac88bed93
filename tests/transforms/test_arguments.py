"""Arguments of transforms just inside and just outside of what they may be."""

import jax.numpy as jnp
import pytest

import jaxsim as js
from jaxsim.transforms.magic_pyramid import magic_pyramid
from jaxsim.transforms.prune_tokens import prune_tokens

X = jnp.ones((2, 3))
CELLS = js.cells.independent(0.1)
GATED, INTERLEAVED = js.wires.gated(1e-3), js.wires.input_source(1e-3, interleaved=True)

TAKEN = [
    lambda: js.analog(adc=2),
    lambda: js.analog(adc=16, mapping="offset"),
    lambda: js.analog(adc=1, mapping="unit_column", adc_range="max"),
    lambda: js.analog(adc=8, adc_range="granular", percentile=100),
    lambda: js.analog(adc=8, percentile=1e-6, rows=1),
    lambda: js.analog(input_bits=1, accumulate="analog"),
    lambda: js.analog(input_bits=8),
    lambda: js.analog(adc=js.adc.uniform(2)),
    lambda: js.analog(adc=js.adc.uniform(1), mapping="offset"),
    lambda: js.analog(cells=CELLS, wires=GATED, input_bits=1),
    lambda: js.analog(cells=CELLS, wires=INTERLEAVED),
    lambda: js.slice_bits(1),
    lambda: js.slice_bits(7, top="padded"),
    lambda: js.block(1),
    lambda: js.block(7, 7, 7),
    lambda: js.quantize(None, 8),
    lambda: js.quantize(1, None),
    lambda: js.prune(0.0),
    lambda: js.prune(0.999, rounds=1),
    lambda: js.prune(pattern=js.sparsity.n_of_m(1, 2)),
    lambda: js.prune_layers(X, 0.5, damping=1e-9),
    lambda: js.prune_layers(X, keep=(1, 2)),
    lambda: js.prune_layers(X, keep=(3, 4)),
    lambda: js.run_sparse("rows", block=(1, 1), break_even=0),
    lambda: js.run_sparse("blocks", break_even=1),
    lambda: js.smooth(X, 0),
    lambda: js.smooth(X, 1),
    lambda: js.equalize(X, epsilon=1),
    lambda: js.fold_norms(X, epsilon=1),
    lambda: js.learn_ranges(X, weights=None),
    lambda: js.learn_ranges(X, activations=None),
    lambda: js.exit_early(2, js.Rule(0.0, 1, 2)),
    lambda: js.exit_early(["a"]),
    lambda: js.pipeline_shard(1, 1, balance=[]),
    lambda: js.pipeline_shard(2, 1, remat="none", engine="spmd", schedule="1f1b", balance=["a"]),
    lambda: js.pipeline_shard(6, 6, schedule="interleaved", chunks=2),
    lambda: js.pipeline_shard(2, 3, schedule="zb-h1"),
    lambda: prune_tokens(0.0, protect=1),
]


@pytest.mark.parametrize("make", TAKEN)
def test_what_lies_just_inside_is_taken(make):
    assert callable(make())


REFUSED = [
    (lambda: js.analog(mapping="pair"), "mapping='pair': must be 'differential', 'offset' or 'uni"),
    (lambda: js.analog(8, adc_range="all"), "adc_range='all': must be 'calibrated', 'max' or 'gr"),
    (lambda: js.analog(adc_range="max"), "adc_range='max': has no effect with adc=None"),
    (lambda: js.analog(accumulate="charge"), "accumulate='charge': must be 'digital' or 'analog'"),
    (lambda: js.analog(8, accumulate="analog"), "accumulate='analog': has no effect with input_b"),
    (lambda: js.analog(rows=0), "rows=0: must be an int of at least 1"),
    (lambda: js.analog(adc=1.99), "adc=1.99: must be a number of at least 2 and at most 16"),
    (lambda: js.analog(adc=16.01), "adc=16.01: must be a number of at least 2 and at most 16"),
    (lambda: js.analog(adc=0.99, mapping="offset"), "adc=0.99: must be a number of at least 1 and"),
    (lambda: js.analog(8, percentile=0), "percentile=0: must be a number above 0 and at most 100"),
    (lambda: js.analog(8, percentile=100.01), "percentile=100.01"),
    (lambda: js.analog(input_bits=0), "input_bits=0: must be an int from 1 to 8"),
    (lambda: js.analog(input_bits=9), "input_bits=9: must be an int from 1 to 8"),
    (lambda: js.analog(cells=3), "cells=3: must be a device from js.cells, or None"),
    (lambda: js.analog(cells=js.cells.sonos), "cells=cells.sonos: is what makes one; call it"),
    (lambda: js.analog(cells=CELLS, wires=3), "wires=3: must be made by js.wires, or None"),
    (lambda: js.analog(wires=js.wires.input_source(1e-3)), "wires join cells; give cells="),
    (lambda: js.analog(cells=CELLS, wires=GATED), "input_bits=None: must be 1, gated wires switch"),
    (lambda: js.analog(cells=CELLS, wires=GATED, input_bits=2), "input_bits=2: must be 1, gated"),
    (
        lambda: js.analog(cells=CELLS, wires=INTERLEAVED, mapping="offset"),
        "mapping='offset': must be 'differential', interleaved wires join pairs",
    ),
    (lambda: js.analog(js.adc.uniform(1.9)), "adc.bits=1.89.*: must be a number of at least 2"),
    (
        lambda: js.analog(js.adc.uniform(8)._replace(bits=0), mapping="offset"),
        "adc.bits=0: must be a number above 0",
    ),
    (lambda: js.analog(js.adc.uniform(8), percentile=99.9), "a converter has its own range"),
    (lambda: js.analog(js.adc.uniform(8), adc_range="max"), "a converter has its own range"),
    (lambda: js.slice_bits(0), "bits=0: must be an int from 1 to 7"),
    (lambda: js.slice_bits(8), "bits=8: must be an int from 1 to 7"),
    (lambda: js.slice_bits(2, top="half"), "top='half': must be 'full_range' or 'padded'"),
    (lambda: js.block(0), "K=0: must be an int from 1 to 7"),
    (lambda: js.block(1, 8), "n_x=8: must be an int from 1 to 7"),
    (lambda: js.block(1, 1, 8), "n_w=8: must be an int from 1 to 7"),
    (lambda: js.quantize(None, None), "weights=None, inputs=None: nothing to quantize"),
    (lambda: js.prune(1.0), "sparsity=1.0: must be below 1"),
    (lambda: js.prune(0.5, rounds=0), "rounds=0: must be an int of at least 1"),
    (lambda: js.prune(0.5, criterion=3), "criterion=3: must be a Criterion of js.sparsity"),
    (lambda: js.prune(0.5, pattern=3), "pattern=3: must be a Pattern of js.sparsity"),
    (lambda: js.prune(0.5, distribution=3), "distribution=3: must be a Distribution of js.spars"),
    (
        lambda: js.prune(pattern=js.sparsity.n_of_m(1, 2), rounds=2),
        "rounds=2: the pattern fixes the sparsity, one round reaches it",
    ),
    (lambda: js.prune_layers(X, 0.5, damping=0), "damping=0: must be a number above 0"),
    (lambda: js.prune_layers(X, 0.5, keep=(1, 2)), r"sparsity=0.5: keep=\(1, 2\) says how many"),
    (lambda: js.prune_layers(X, keep=(1, 1)), "keep=1: must be an int of at least 2"),
    (lambda: js.prune_layers(X, keep=(0, 4)), "keep=0: must be an int from 1 to 3"),
    (lambda: js.prune_layers(X, keep=(4, 4)), "keep=4: must be an int from 1 to 3"),
    (lambda: js.run_sparse("csr"), "layout='csr': must be 'rows' or 'blocks'"),
    (lambda: js.run_sparse(block=(0, 1)), "block=0: must be an int of at least 1"),
    (lambda: js.run_sparse(block=(1, 2, 3)), r"block=\(1, 2, 3\): must be two whole numbers"),
    (lambda: js.run_sparse(break_even=-0.01), "break_even=-0.01: must be a number of at least 0"),
    (lambda: js.run_sparse(break_even=1.01), "break_even=1.01"),
    (lambda: js.measure_break_even(8, 8, 8, layout="csr"), "layout='csr'"),
    (lambda: js.measure_break_even(0, 8, 8), "inputs=0: must be an int of at least 1"),
    (lambda: js.measure_break_even(8, 0, 8), "outputs=0: must be an int of at least 1"),
    (lambda: js.smooth(X, -0.01), "alpha=-0.01: must be a number of at least 0 and at most 1"),
    (lambda: js.smooth(X, 1.01), "alpha=1.01"),
    (lambda: js.equalize(X, epsilon=0), "epsilon=0: must be a number above 0 and at most 1"),
    (lambda: js.equalize(X, epsilon=1.01), "epsilon=1.01"),
    (lambda: js.fold_norms(X, epsilon=1.01), "epsilon=1.01"),
    (lambda: js.learn_ranges(X, weights=None, activations=None), "nothing to learn"),
    (lambda: js.correct_bias(X, reference=3), r"correct_bias\(reference=…\) takes a Network, not"),
    (lambda: js.round_weights(3, X), "rounding=3: must be a function"),
    (lambda: js.exit_early(1), "exits=1: must be an int of at least 2"),
    (lambda: js.exit_early([]), r"exits=\[\]: name at least one site"),
    (lambda: js.exit_early(2, js.Rule(0.0, 0, 3)), "first=3"),
    (lambda: js.exit_early(2, feature=3), "feature=3: must be a function of the live activations"),
    (lambda: js.exit_early(2, output=3), "output=3: must be a function of what the network retur"),
    (lambda: js.exit_early(2, js.Rule), "rule=js.Rule: is what makes one"),
    (lambda: js.pipeline_shard(0), "stages=0: must be an int of at least 1"),
    (lambda: js.pipeline_shard(1, 0), "microbatches=0: must be an int of at least 1"),
    (lambda: js.pipeline_shard(1, schedule="1f2b"), "schedule='1f2b': must be one of 'gpipe', '1f"),
    (lambda: js.pipeline_shard(1, chunks=0), "chunks=0: must be an int of at least 1"),
    (lambda: js.pipeline_shard(2, chunks=2), "schedule='gpipe', chunks=2: devices run 2 stages or"),
    (
        lambda: js.pipeline_shard(2, schedule="interleaved"),
        "schedule='interleaved', chunks=1: devices run 2 stages or more each in 'interleaved'",
    ),
    (
        lambda: js.pipeline_shard(5, 4, schedule="interleaved", chunks=2),
        "stages=5: must be a multiple of chunks=2",
    ),
    (
        lambda: js.pipeline_shard(6, 4, schedule="interleaved", chunks=2),
        "microbatches=4: 'interleaved' takes them up in turns, and needs a multiple of 3 devices",
    ),
    (lambda: js.pipeline_shard(1, remat="all"), "remat='all': must be 'boundary', 'none' or one"),
    (lambda: js.pipeline_shard(1, engine="gpu"), "engine='gpu': must be 'mpmd', 'spmd' or 'auto'"),
    (lambda: js.pipeline_shard(1, balance="size"), "balance='size': must be 'flops', 'time', 'by"),
    (lambda: js.pipeline_shard(3, balance=["a"]), r"balance=\['a'\]: 3 stages begin at 2 cuts, n"),
    (lambda: prune_tokens(0.1, protect=0), "protect=0: must be an int of at least 1"),
    (lambda: magic_pyramid(0.1, js.Rule), "exit=js.Rule: is what makes one"),
]


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_what_lies_just_outside_is_refused_by_its_name_its_value_and_what_is_allowed(make, said):
    with pytest.raises(ValueError, match=said):
        make()
