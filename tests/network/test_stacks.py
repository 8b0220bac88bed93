"""A scan over stacked layers is cut between its slices, and computes what it did."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.network.cuts import blocks, cuts, equations, flops, sizes
from jaxsim.network.stages import split, stage_params
from tests.support import models
from tests.support.models import normal
from tests.support.networks import run
from tests.support.twins import X, assert_close, twins

DEVICE = jax.devices()[0]
BETWEEN = ("layers/up/kernel[1]", "layers/up/kernel[2]")
WRITTEN_OUT = ("layers_1/up/kernel", "layers_2/up/kernel")


def line_of(net):
    return equations(net, net.example)


def pipe(net, at, microbatches=2, **settings):
    stages = len(at) + 1
    return js.pipeline_shard(
        stages, microbatches, devices=[DEVICE] * stages, balance=at, **settings
    )(net)


@functools.cache
def recurrent():
    """Layers from last to first that read a row of numbers each, hand one on, and a head.

    The numbers are made of one input and are another, and the weight is that of a scan within.
    """

    def fn(p, x, biases):
        def outer(h, slices):
            w, shift, bias = slices
            shift = shift + bias
            h, rows = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w + shift), h[:, 0]), h, w)
            return h, rows.sum(0)

        shifts = jnp.stack([x[:, :4] * i for i in range(3)])
        h, rows = jax.lax.scan(outer, x, (p["w"], shifts, biases), reverse=True, unroll=2)
        return h @ p["head"] + rows.T

    params = {"w": 0.5 * normal(3, 2, 4, 4), "head": normal(4, 3)}
    return js.trace(fn, params, normal(6, 4, seed=1), normal(3, 4))


def test_cuts_and_work_of_a_stack_are_those_of_its_layers():
    pair = twins(layers=3)
    line, other = (line_of(net) for net in pair[:2])
    found = cuts(line)
    expected = [cut for cut in cuts(other) if cut.name in WRITTEN_OUT]
    assert [cut.name for cut in found] == [*BETWEEN]
    assert [cut[2:] for cut in found] == [cut[2:] for cut in expected]
    assert blocks(found, flops(line)) == blocks(expected, flops(other)) == [696] * 3
    # the residual stream is written once a layer, and the layer's own parameters are read
    assert blocks(found, sizes(line)) == [4 * (6 * 4 + (4 * 6 + 6) + (6 * 4 + 4))] * 3


def test_slices_are_named_in_the_order_in_which_they_run():
    assert [cut.name for cut in cuts(line_of(recurrent()))] == ["w", "w[1]", "w[0]", "head"]
    with pytest.raises(
        ValueError, match=r"no cut at w\[2\]; a stage can begin at: w, w\[1\], w\[0\]"
    ):
        pipe(recurrent(), ["w[2]"])


def test_what_is_not_stacked_or_has_one_slice_is_not_cut():
    case = models.CASES["rnn, params in consts"]()
    assert cuts(line_of(js.trace(case.model, case.variables, *case.args))) == ()
    one = js.trace(
        lambda p, x: jax.lax.scan(lambda h, w: (h @ w, None), x, p)[0], normal(1, 4, 4), X
    )
    assert cuts(line_of(one)) == ()
    with pytest.raises(ValueError, match="cut between the layers that it stacks and nowhere else"):
        js.pipeline_shard(2, 2, devices=[DEVICE] * 2)(one)


def test_two_layers_are_a_stack_and_what_nothing_reads_of_them_is_not_joined():
    def fn(p, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), h), x, p)[0]

    line = line_of(js.trace(fn, normal(2, 4, 4), normal(6, 4)))
    assert [cut.name for cut in cuts(line)] == ["params[1]"]
    assert "concatenate" not in {eqn.primitive.name for eqn in line.plan.jaxpr.eqns}


def test_a_stage_reads_its_slices_of_parameters_masks_buffers_and_states():
    net = js.prune(0.5)(twins("norms", 3).scanned)
    chip = js.deploy(js.quantize(8, 8)(net), calibrate=X)
    for given in (net, chip):
        line = line_of(given)
        cut = split(line, cuts(line)[1:])
        rows = [(0, 2), (2, 3)]
        for stage, (a, b) in zip(cut.stages, rows, strict=True):
            own = stage_params(given, cut, stage)
            w, name = given.params["layers"]["up"]["kernel"], f"layers/up/kernel[{a}:{b}]"
            np.testing.assert_array_equal(own.params[name], w[a:b])
            np.testing.assert_array_equal(own.masks[name], given.masks["layers/up/kernel"][a:b])
            assert {leaf.shape for leaf in own.buffers} == {(b - a, 6)}
            for site, state in own.states.items():
                assert_close(state, jax.tree.map(lambda s, a=a, b=b: s[a:b], given.states[site]))
            assert set(own.states) == set(given.states)


@pytest.mark.parametrize("at", [["w[1]"], ["w", "w[0]", "head"]])
def test_a_scan_in_parts_computes_the_scan_and_its_gradients(at):
    """Backwards, with activations that are scanned and stacked; a program a stage, and jitted."""
    net = recurrent()
    inputs, target = (normal(6, 4, seed=2), normal(3, 4, seed=4)), normal(6, 3, seed=3)
    cut = pipe(net, at)
    assert_close(cut(*inputs), run(net, *inputs))
    if len(at) == 1:
        assert_close(run(cut, *inputs), run(net, *inputs))

    def loss(y, target):
        return jnp.mean((y - target) ** 2)

    found = js.pipeline_value_and_grad(cut, loss)(net.params, (inputs, target))
    expected = jax.jit(jax.value_and_grad(lambda p: loss(net.with_params(p)(*inputs), target)))(
        net.params
    )
    assert_close(found, expected, tol=1e-4)


def test_stages_and_memory_count_the_slices_that_each_reads():
    pair = twins("plain", 3)
    cut, other = (
        pipe(net, [at[0]]) for net, at in zip(pair[:2], (BETWEEN, WRITTEN_OUT), strict=True)
    )
    tables = [[row[2:5] for row in net.stages.rows] for net in (cut, other)]
    assert tables[0] == tables[1] == [(348, 58, 48), (696, 116, 48)]
    memory = [[(r.params, r.gradients, r.kept) for r in net.memory().rows] for net in (cut, other)]
    assert memory[0] == memory[1]
    assert js.simulate_schedule(cut).in_flight == js.simulate_schedule(other).in_flight
    balanced = js.pipeline_shard(2, 2, devices=[DEVICE] * 2, balance="bytes")(pair.scanned)
    assert balanced.layout.cuts == (BETWEEN[0],)
    assert balanced.placed().params["layers"]["up"]["kernel"].shape == (3, 4, 6)


def gained(core, gain):
    """A core whose outputs are multiplied, by a number a slice."""

    def read(op, state, x, key):
        return op.slice_for_layer(gain) * core.read(op, state, x, key)

    return core._replace(read=read)


GAIN = js.wrap(gained, gain=np.float32([0.5, 1, 2]))


def test_parts_take_settings_and_noise_of_their_own_slices():
    cells = js.cells.independent(0.1, noise=0.1)
    noisy = js.compose(js.quantize(4, 8), js.analog(cells=cells), GAIN)(twins("plain", 3).scanned)
    key = jax.random.key(0)
    expected = run(noisy, X, key=key)
    assert_close(run(pipe(noisy, BETWEEN[1:], 1), X, key=key), expected)
    assert np.abs(run(noisy, X, key=jax.random.key(1)) - expected).max() > 1e-2


def test_exits_between_slices_are_those_between_layers(tmp_path):
    """Pruned, quantized, taught, deployed; computed for all rows and for those that stay."""
    pair, rule = twins("linen", 3), js.Rule(0.95)
    net, other = (
        js.exit_early(at[1:], rule)(js.quantize(8, 8)(js.prune(0.3)(net)))
        for net, at in zip(pair[:2], (BETWEEN, WRITTEN_OUT), strict=True)
    )
    net = js.distill_exits(net, X, key=jax.random.key(0), steps=20, batch_size=6)
    other = dataclasses.replace(other, heads=net.heads)
    chip, expected = js.deploy(net, calibrate=X), js.deploy(other, calibrate=X).simulate(X)
    found = chip.simulate(X)
    assert_close(found.logits, expected.logits, tol=1e-4)
    np.testing.assert_array_equal(found.layer, expected.layer)
    np.testing.assert_allclose(found.flops, expected.flops)
    assert len(set(np.asarray(found.layer))) == 2
    assert_close(chip.run(X).logits, found.logits)
    js.save(tmp_path / "chip", chip)
    loaded = js.load(tmp_path / "chip", like=net)
    np.testing.assert_array_equal(loaded.simulate(X).logits, found.logits)


def test_exits_are_placed_between_slices():
    assert js.exit_early(2)(twins("linen", 3).scanned).cuts == BETWEEN[:1]


def test_one_program_for_all_devices_takes_slices_for_equal_blocks():
    net = twins("plain", 3).scanned
    chip = js.deploy(js.quantize(8, 8)(net), calibrate=X)
    one = js.pipeline_shard(1, 2, engine="spmd", devices=[DEVICE])
    assert_close(one(chip)(X), run(chip, X))
    with pytest.raises(ValueError, match="gained at layers/up/kernel has settings of each slice"):
        one(GAIN(net))(X)


def test_gradients_keep_the_order_of_parameters_whatever_their_names():
    """Ten and eleven come before two where names are sorted."""

    def fn(p, x):
        for w in p:
            x = x @ w
        return x

    params = [jnp.eye(2) * (1 + i / 10) for i in range(12)]
    net = js.trace(fn, params, jnp.ones((2, 2)))
    step = js.pipeline_value_and_grad(pipe(net, []), lambda y, target: jnp.mean(y - target))
    _, grads = step(params, (jnp.ones((2, 2)), jnp.zeros((2, 2))))
    expected = jax.grad(lambda p: jnp.mean(fn(p, jnp.ones((2, 2)))))(params)
    assert_close(grads, expected)


def test_a_stack_of_shapes_alone_is_cut_and_weighed_as_one_of_arrays():
    """Models too large for this machine: a stage reads slices of a stack that is not there."""

    def model(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params)[0]

    x = jnp.ones((4, 6))
    shapes = jax.ShapeDtypeStruct((5, 6, 6), jnp.float32)
    tables = []
    for params in (jnp.ones((5, 6, 6)), shapes):
        shard = js.pipeline_shard(2, 2, devices=jax.devices()[:1] * 2)
        tables.append(shard(js.trace(model, params, x)).memory())
    assert tables[0] == tables[1]
    assert sum(row.params for row in tables[1].rows) == 5 * 6 * 6 * 4
