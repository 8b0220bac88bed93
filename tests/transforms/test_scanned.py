"""Layers that a scan stacks are transformed as they are when they are written out, or refused."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.network.params import by_name
from tests.support.models import normal
from tests.support.networks import run
from tests.support.twins import X, assert_close, twins

sp, q = js.sparsity, js.quantize


def loss(net):
    return jnp.mean((net(X) - 1) ** 2)


def doubled(core, gain):
    return core._replace(read=lambda *args: gain * core.read(*args))


PARAMS = {
    "prune, ERK": js.prune(0.5, distribution=sp.erk()),
    "prune, LAMP": js.prune(0.5, distribution=sp.lamp()),
    "prune, activity": js.prune(
        0.4, criterion=sp.activity(X), pattern=sp.channel(axis=-2), sites="*down*"
    ),
    "prune, variance": js.prune(
        0.4, criterion=sp.activation_variance(X), pattern=sp.channel(axis=-2)
    ),
    "equalize": js.equalize(X),
    "gates": lambda net: sp.closed(
        sp.gated(net, sp.soft_threshold(-0.5)), net, sp.soft_threshold(-0.5)
    ),
}
"""What changes parameters and masks, which are then those of each layer."""

OUTPUTS = {
    "smooth, round_weights, correct_bias": js.compose(
        q(3, 8), js.smooth(X), js.round_weights(js.rounding.gptq(), X), js.correct_bias(X)
    ),
    "slice_bits, analog, block": js.rules(
        {
            "*up*": js.compose(q(4, 8), js.slice_bits(2), js.analog(adc=6)),
            "*": js.compose(q(8, 8), js.block(4, 2, 1), js.wrap(doubled, gain=2.0)),
        }
    ),
    "rules, k-means, groups": js.rules(
        {"*up*": q(js.Codebook(size=4), None), "*": q(js.Grid(3, per="group", rows=2), 8)}
    ),
    "run_sparse": js.compose(js.prune(0.5), q(4, 8), js.run_sparse("rows", break_even=0.1)),
    "rules, tables, floats": js.rules({"*up*": q(js.nf4(), None), "*": q(js.fp4())}),
}
"""What changes how sites compute: seen in the outputs alone."""

REFUSED = {
    "integer_only": (
        lambda net: js.integer_only(js.deploy(q(8, 8)(net), calibrate=X)),
        "scan at .* runs layers/down/kernel, layers/up/kernel in a loop",
    ),
    "prune_tokens": (js.prune_tokens(0.1), "the network has no attention"),
    "magic_pyramid": (js.magic_pyramid(0.1, js.Rule(0.2)), "the network has no attention"),
}

HERE = {
    *(
        "trace",
        "prune_layers",
        "shrink",
        "dependencies",
        "fold_norms",
        "synthesize_inputs",
        "sparsity_report",
    ),
    *("Hardware", "Crossbar", "hessian_sensitivity", "wrap", "compose", "quantize", "analog"),
    *("ablation_sensitivity", "assign_bits", "deploy", "Codebook", "nf4", "fp4", "Grid"),
}
"""What other tests of this file walk."""

ELSEWHERE = {
    "exit_early, distill_exits, Staged, pipeline_shard": "tests/network/test_stacks.py",
    "pipeline_value_and_grad, simulate_schedule": "tests/network/test_stacks.py",
    "save, load": "tests/network/test_stacks.py",
    "widen_ranges, Network, Site": "tests/network/test_lifecycle.py",
    "designs": "tests/transforms/test_designs.py",
    "export": "tests/export/test_onnx.py",
    "update_norms": "tests/transforms/test_update_norms.py",
    "age, recalibrate, count_pulses": "tests/network/test_aging.py",
    "fix_writes": "tests/transforms/test_operands.py",
    "common_span": "tests/network/test_adc_span.py",
    "explore, Front, Option, report": "tests/search/test_switchboard.py",
    "Accelerator, accelerators, estimate": "tests/accelerators/test_equations.py",
    "search_blocked": "tests/search/test_blocks.py",
    "learn_ranges": "tests/transforms/test_learn_ranges.py",
    "awq": "tests/transforms/test_awq.py",
    "rotate": "tests/transforms/test_rotate.py",
    "fit_ranges": "tests/transforms/test_fit_ranges.py",
    "lora, adapters, with_adapters, merge_adapters": "tests/transforms/test_lora.py",
    "code_cache": "tests/transforms/test_code_cache.py",
    "BlockGrid, mx, nvfp4": "tests/formats/test_block_grid.py",
}
"""Where other tests have stacks."""

NOT_OF_LAYERS = {
    *("IntegerNetwork", "compare", "classify", "measure_break_even", "storage", "storage_bits"),
    *("parameter_efficiency", "hardness_normalized", "rounding", "sparsity", "tokens"),
    *("sweep", "Rule", "Exits", "Buckets", "adc", "dac", "cells", "wires", "fpg_bits", "Floating"),
    *("language", "clipping", "Format", "Core", "Op", "Wrapper", "float_core", "role"),
}
"""What looks at outputs, numbers or one core, and not at how layers are written."""

KINDS = ("linen", "plain")


def test_every_public_name_is_walked():
    keys = (*PARAMS, *OUTPUTS, *REFUSED, *ELSEWHERE)
    walked = {name for key in keys for name in key.split(", ")}
    assert set(js.__all__) - walked - HERE - NOT_OF_LAYERS == set()
    for path in ELSEWHERE.values():
        assert "stack" in Path(path).read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_twins_are_one_model_and_have_the_same_counts(kind):
    pair = twins(kind)
    assert_close(run(pair.scanned, X), run(pair.unrolled, X), tol=1e-6)
    counts = [net.cost() for net in pair[:2]]
    assert [c.total("macs") for c in counts] == [6 * 2 * (4 * 6 + 6 * 4)] * 2
    assert counts[0].params == counts[1].params
    swapped = jax.tree.map(lambda a: a[::-1], by_name(pair.scanned.params))
    with pytest.raises(AssertionError):  # a control: the layers are not the same
        assert_close(pair.of_slices(swapped), by_name(pair.unrolled.params))


@pytest.mark.parametrize(("i", "name"), [*enumerate(PARAMS)])
def test_parameters_and_masks_are_those_of_each_layer(i, name):
    pair = twins(KINDS[i % 2])
    scanned, unrolled = (PARAMS[name](net) for net in pair[:2])
    assert_close(pair.of_slices(by_name(scanned.params)), by_name(unrolled.params))
    masks = pair.of_slices(scanned.masks)
    assert masks.keys() == unrolled.masks.keys()
    for path, mask in unrolled.masks.items():
        np.testing.assert_array_equal(masks[path], mask)
    assert unrolled.masks or name == "equalize"
    if name != "equalize":
        kept = [np.asarray(mask) for mask in scanned.masks.values()]
        assert any((mask[0] != mask[1]).any() for mask in kept)


@pytest.mark.parametrize(("i", "name"), [*enumerate(OUTPUTS)])
def test_outputs_are_those_of_the_layers_written_out(i, name):
    pair = twins(KINDS[i % 2])
    plain = run(pair.unrolled, X)
    scanned, unrolled = (run(OUTPUTS[name](net), X) for net in pair[:2])
    assert_close(scanned, unrolled, tol=1e-5)
    assert np.abs(unrolled - plain).max() > 1e-3 * np.abs(plain).max()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name(name):
    transform, why = REFUSED[name]
    with pytest.raises(ValueError, match=f"{name}|prune_tokens") as refused:
        transform(twins("plain").scanned)
    assert re.search(why, str(refused.value))


def test_reports_count_each_layer():
    """Storage, crossbars and arrays of a stack are those of its layers together."""
    pair = twins("plain")
    sparse = [js.prune(0.5)(net) for net in pair[:2]]
    reports = [js.sparsity_report(net) for net in sparse]
    for form in ("dense", "bitmap", "COO", "CSR", "delta 4 bits", "bound"):
        bits = [sum(row.bits[form] for row in report.rows) for report in reports]
        assert bits[0] == bits[1], form
    assert reports[0].useful == pytest.approx(reports[1].useful)
    coded = [q(8, 8)(net) for net in pair[:2]]
    for model, chip in (
        (js.Crossbar(), js.compose(js.slice_bits(2), js.analog(adc=6))),
        (js.Hardware(), js.block(4, 2, 1)),
    ):
        energies = [model.estimate(chip(net)).energy for net in coded]
        assert energies[0] == pytest.approx(energies[1])


def test_the_expected_loss_of_a_stack_is_the_sum_over_its_layers():
    """Of a diagonal Hessian the trace is exact: Σ 2 c w² has 4 c a layer's weight."""
    pair = twins("plain")

    def of_stack(net):
        w = net.params["layers"]["up"]["kernel"]
        return jnp.sum(w[0] ** 2) + 5 * jnp.sum(w[1] ** 2)

    def of_each(net):
        first, second = (net.params[f"layers_{i}"]["up"]["kernel"] for i in range(2))
        return jnp.sum(first**2) + 5 * jnp.sum(second**2)

    found = [
        js.hessian_sensitivity(net, of, key=jax.random.key(0), bits=(2,), samples=1)
        for net, of in ((pair.scanned, of_stack), (pair.unrolled, of_each))
    ]
    widest = js.assign_bits(found[0], mean_bits=2)
    assert widest.bits == {"layers/up/kernel": 2, "layers/down/kernel": 2}
    rows = [dict(zip(f.sites, f.loss[:, 0], strict=True)) for f in found]
    expected = sum(rows[1][f"layers_{i}/up/kernel"] for i in range(2))
    assert rows[0]["layers/up/kernel"] == pytest.approx(expected, rel=1e-5)
    assert rows[1]["layers_1/up/kernel"] > 2 * rows[1]["layers_0/up/kernel"] > 0


def test_norms_of_each_layer_are_folded_scored_and_met_by_inputs():
    pair = twins("norms")
    folded = [js.fold_norms(X)(net) for net in pair[:2]]
    for of in (lambda net: by_name(net.params), lambda net: by_name(net.buffers)):
        assert_close(pair.of_slices(of(folded[0])), of(folded[1]))
    with pytest.raises(AssertionError):
        assert_close(by_name(folded[0].params), by_name(pair.scanned.params))
    made = [js.synthesize_inputs(n, 4, key=jax.random.key(0), steps=3) for n in pair[:2]]
    assert_close(made[0], made[1], tol=1e-4)
    masks = [
        js.prune(
            0.5,
            criterion=sp.batch_norm_scale({f"{n}/up/kernel": f"{n}/norm/scale" for n in names}),
            pattern=sp.channel(),
            sites="*up*",
        )(net).masks
        for net, names in ((pair.scanned, ["layers"]), (pair.unrolled, ["layers_0", "layers_1"]))
    ]
    for path, mask in pair.of_slices(masks[0]).items():
        np.testing.assert_array_equal(mask, masks[1][path])


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_loses_the_channels_worth_least_over_all_layers(kind):
    """By hand: squares of what makes a channel, its bias and what reads it, over both layers."""
    pair = twins(kind)
    layers = jax.tree.map(np.asarray, pair.scanned.params["layers"])
    up, down = layers["up"], layers["down"]
    worth = (up["kernel"] ** 2).sum((0, 1)) + (up["bias"] ** 2).sum(0)
    worth = worth + (down["kernel"] ** 2).sum((0, 2))
    stay = np.sort(np.argsort(worth)[3:])
    scanned = js.shrink(0.5)(pair.scanned)
    np.testing.assert_array_equal(scanned.params["layers"]["up"]["kernel"], up["kernel"][..., stay])
    keep = {f"layers_{i}/up/kernel:1": stay for i in range(2)}
    unrolled = js.shrink(keep=keep)(pair.unrolled)
    assert_close(pair.of_slices(by_name(scanned.params)), by_name(unrolled.params), tol=0)
    assert_close(run(scanned, X), run(unrolled, X), tol=1e-6)
    with pytest.raises(ValueError, match="the same in every layer of a stack"):
        js.shrink(keep={"layers/up/kernel:2": [[0], [1]]})(pair.scanned)


def masked(net, gone):
    """A network without some outputs of `up` in each layer."""
    masks = {}
    for path, p in by_name(net.params).items():
        if path.endswith("up/kernel"):
            mask = np.ones(p.shape, bool)
            for i, channels in enumerate(gone):
                one = mask[i] if mask.ndim == 3 else mask
                if mask.ndim == 3 or path.startswith(f"layers_{i}/"):
                    one[:, list(channels)] = False
            masks[path] = jnp.asarray(mask)
    return dataclasses.replace(net, masks=masks)


def test_masks_remove_what_is_empty_in_every_layer_and_its_constant_goes_on():
    pair = twins("plain")
    nets = [masked(net, [(1, 4), (1, 4)]) for net in pair[:2]]
    small = [js.shrink()(net) for net in nets]
    assert small[0].params["layers"]["up"]["kernel"].shape == (2, 4, 4)
    assert_close(pair.of_slices(by_name(small[0].params)), by_name(small[1].params))
    assert_close(run(small[0], X), run(nets[1], X))
    before = pair.scanned.params["layers"]["down"]["bias"]
    moved = np.abs(small[0].params["layers"]["down"]["bias"] - before).max(1)
    assert (moved > 1e-3).all()  # each layer took its own constant


def test_masks_that_differ_between_layers_stay_or_are_refused_by_name():
    net = masked(twins("plain").scanned, [(1, 4), (1, 5)])
    with pytest.warns(
        UserWarning, match=r"shrink: layers/up/kernel:2\[4\], layers/up/kernel:2\[5\] are"
    ):
        small = js.shrink()(net)
    assert small.params["layers"]["up"]["kernel"].shape == (2, 4, 5)
    assert_close(run(small, X), run(net, X))
    with pytest.raises(
        ValueError, match=r"remove: layers/up/kernel:2\[0\], layers/up/kernel:2\[2\] are"
    ):
        js.shrink()(masked(twins("plain").scanned, [(0,), (2,)]))


CRITERIA = {
    # blocks of four of nine weights: one of one layer does not reach into the next
    "WoodFisher": sp.wood_fisher(lambda net, x: jnp.sum(net(x) ** 2), normal(4, 3), block=4),
    "redundancy": sp.redundancy(),
}


@functools.cache
def products():
    """Two products of three by three in a scan, and written out."""
    w, x = normal(2, 3, 3), normal(4, 3)
    stack = js.trace(lambda p, x: jax.lax.scan(lambda x, w: (x @ w, None), x, p)[0], w, x)
    return stack, js.trace(lambda p, x: x @ p[0] @ p[1], [*w], x)


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_of_a_layer_look_at_that_layer_alone(name):
    found, expected = (CRITERIA[name].score(net, ()) for net in products())
    assert_close([*found], expected, tol=1e-4)


def test_each_layer_is_pruned_by_its_own_inputs_and_makes_up_for_it():
    found, expected = (js.prune_layers(normal(8, 3), 0.4)(net) for net in products())
    assert_close([*found.params], expected.params)
    for i, mask in enumerate(*found.masks.values()):
        np.testing.assert_array_equal(mask, expected.masks[str(i)])


def test_the_measured_loss_of_a_stack_is_that_of_all_its_layers_rounded():
    pair = twins("plain")
    found = js.ablation_sensitivity(pair.scanned, loss, bits=(2,))
    rounded = q(js.Grid(2, per="channel"), None, sites="*up*")(pair.unrolled)
    expected = jax.jit(loss)(rounded) - jax.jit(loss)(pair.unrolled)
    assert found.sites[0] == "layers/up/kernel"
    assert found.loss[0, 0] == pytest.approx(float(expected), rel=1e-4)
