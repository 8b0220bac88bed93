"""Whatever trains on one device trains in stages, with the same gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxsim as js
from jaxsim.staged.trained import trained_values, with_values
from jaxsim.train import cross_entropy, fit, over_exits, scale_errors
from tests.support.compilations import compilations
from tests.support.models import normal

PAIR = jax.devices()[:1] * 2
X, TARGET = normal(8, 6, seed=8), normal(8, 6, seed=9)
LABELS = np.arange(8) % 6
WAYS = {
    "gpipe": {"schedule": "gpipe"},
    "1f1b": {"schedule": "1f1b", "remat": "none"},
    "zb-h1": {"schedule": "zb-h1", "remat": "none"},
    "policy": {"remat": jax.checkpoint_policies.dots_saveable},
}


def unrolled(p, x):
    for w in p["layers"]:
        x = jnp.tanh(x @ w) + x
    return x


def scanned(p, x):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w) + x, None), x, p["layers"])[0]


def moved(net):
    """A network whose adapters, which begin at zero, say something."""
    values = js.adapters(net)
    return js.with_adapters(
        net, {k: a + 0.1 * normal(*a.shape, seed=i) for i, (k, a) in enumerate(values.items())}
    )


@functools.cache
def network(form, kind):
    layers = normal(4, 6, 6, seed=1) / 2
    if form == "scanned":
        net = js.trace(scanned, {"layers": layers}, X)
    else:
        net = js.trace(unrolled, {"layers": [*layers]}, X)
    adapter = js.lora(2, jax.random.key(0))
    match kind:
        case "adapters":
            return moved(adapter(net))
        case "of codes":
            return moved(js.deploy(adapter(js.quantize(4, 8)(net)), calibrate=X))
        case "of a chip":
            coded = js.quantize(8, 8)(net)
            return moved(js.deploy(adapter(js.analog()(coded)), calibrate=X))
        case "no floats":
            whole = js.deploy(adapter(js.quantize(4, 8)(net)), calibrate=X, keep_floats=False)
            return moved(whole)
        case "ranges":
            return js.learn_ranges(X)(js.quantize(4, 3)(net))
        case _:
            return moved(adapter(js.learn_ranges(X)(js.quantize(4, None)(net))))


def squares(y, target):
    return jnp.mean((y - target) ** 2)


def of_one_device(net):
    values = trained_values(net)
    return jax.value_and_grad(lambda v: squares(with_values(net, v)(X), TARGET))(values)


def in_stages(net, microbatches=4, **way):
    pipe = js.pipeline_shard(2, microbatches, devices=PAIR, **way)(net)
    return js.pipeline_value_and_grad(pipe, squares)(trained_values(pipe), (X, TARGET))


def agree(found, expected, factor=1.0):
    """Whether gradients are a factor of others, by the largest of each array."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    assert any(jnp.abs(b).max() > 1e-5 for _, b in pairs)  # or nothing would be compared
    for a, b in pairs:  # the lower end of a symmetric range moves nothing
        np.testing.assert_allclose(a, factor * b, atol=2e-6 * float(jnp.abs(b).max()), rtol=2e-5)


KINDS = ("adapters", "of codes", "of a chip", "no floats", "adapters and ranges")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["unrolled", "scanned"])
def test_gradients_are_those_of_one_device(form, kind):
    net = network(form, kind)
    loss, grads = of_one_device(net)
    way = [*WAYS][(KINDS.index(kind) + (form == "scanned")) % len(WAYS)]
    found, slopes = in_stages(net, **WAYS[way])
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    assert jax.tree.structure(slopes) == jax.tree.structure(grads)
    if net.deployed:
        assert list(slopes) == ["adapters"]
    agree(slopes, grads)


def test_a_number_of_slices_in_both_stages_has_the_gradients_of_both():
    net = network("scanned", "of codes")
    cut = js.pipeline_shard(2, 1, devices=PAIR)(net)
    assert cut.layout.cuts == ("layers[2]",)
    _, slopes = js.pipeline_value_and_grad(cut, squares)(trained_values(cut), (X, TARGET))
    for g in jax.tree.leaves(slopes):
        assert (jnp.abs(g).max(tuple(range(1, g.ndim))) > 1e-6).all()  # of every slice


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_the_slope_of_an_input_range_counts_the_values_of_a_micro_batch(microbatches):
    # LSQ divides by the root of the number of values that share a range: docs/pipeline.md
    net = network("unrolled", "ranges")
    _, grads = of_one_device(net)
    _, slopes = in_stages(net, microbatches, schedule="1f1b")
    agree(slopes["params"], grads["params"])
    for operand, factor in (("weights", 1.0), ("inputs", microbatches**0.5)):
        found, expected = (
            {name: g for name, g in gradients["ranges"].items() if f" {operand} " in name}
            for gradients in (slopes, grads)
        )
        agree(found, expected, factor)


def test_one_program_for_all_devices_has_the_same_gradients():
    for kind in ("of codes", "adapters and ranges"):
        net = network("unrolled", kind)
        pipe = js.pipeline_shard(1, 4, engine="spmd", devices=PAIR[:1])(net)
        loss, slopes = js.pipeline_value_and_grad(pipe, squares)(trained_values(pipe), (X, TARGET))
        expected, grads = of_one_device(net)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        agree(slopes, grads)


def test_exits_train_beside_adapters():
    net = network("unrolled", "adapters")
    early = js.exit_early(["layers/2"], js.Rule(0.5))(net)
    early = dataclasses.replace(
        early, heads=[{k: normal(*a.shape) for k, a in h.items()} for h in early.heads]
    )
    loss = over_exits(cross_entropy, weights=(0.5, 1.0))
    values = trained_values(early)
    assert list(values) == ["params", "heads", "adapters"]

    def whole(values):
        return loss(with_values(early, values).exit_logits(X), LABELS)

    expected, grads = jax.value_and_grad(whole)(values)
    pipe = js.pipeline_shard(2, 2, devices=PAIR)(early)
    found, slopes = js.pipeline_value_and_grad(pipe, loss)(trained_values(pipe), (X, LABELS))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    agree(slopes, grads)


SETTING = {"epochs": 2, "batch_size": 4, "key": jax.random.key(3), "quiet": True}


def test_adapters_of_codes_train_in_stages_as_on_one_device():
    net = network("scanned", "of codes")
    settings = {**SETTING, "optimizer": optax.sgd(0.5)}
    whole = fit(net, X, LABELS, **settings)
    pipe = js.pipeline_shard(2, 2, devices=PAIR)(net)
    cut = fit(pipe, X, LABELS, **settings)
    agree(js.adapters(cut), js.adapters(whole))
    assert any(jnp.abs(a - b).max() > 1e-3 for a, b in zip(
        js.adapters(cut).values(), js.adapters(net).values(), strict=True
    ))  # fmt: skip
    for a, b in zip(jax.tree.leaves(cut.states), jax.tree.leaves(net.states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_ranges_train_in_stages_as_on_one_device():
    net = network("unrolled", "ranges")
    settings = {**SETTING, "optimizer": optax.sgd(0.1)}
    whole = fit(net, X, LABELS, **settings)
    cut = fit(js.pipeline_shard(2, 1, devices=PAIR)(net), X, LABELS, **settings)
    agree(trained_values(cut), trained_values(whole))
    before, after = (trained_values(n)["ranges"] for n in (net, cut))
    assert any(jnp.abs(after[name] - a).max() > 1e-4 for name, a in before.items())


def test_errors_of_cells_grow_in_stages_as_on_one_device():
    noisy = js.analog(cells=js.cells.independent(0.3))(
        js.quantize(8, 8)(js.trace(unrolled, {"layers": [*(normal(4, 6, 6, seed=1) / 2)]}, X))
    )
    settings = {**SETTING, "optimizer": optax.sgd(0.1)}
    grown = optax.linear_schedule(0.0, 1.0, 4)
    whole = fit(noisy, X, LABELS, errors=grown, **settings)
    pipe = js.pipeline_shard(2, 1, devices=PAIR)(noisy)
    cut = fit(pipe, X, LABELS, errors=grown, **settings)
    agree(cut.params, whole.params)
    full = fit(pipe, X, LABELS, **settings)
    assert any(
        jnp.abs(a - b).max() > 1e-3
        for a, b in zip(jax.tree.leaves(full.params), jax.tree.leaves(cut.params), strict=True)
    )


def test_shares_of_errors_compile_no_stage_anew():
    noisy = js.analog(cells=js.cells.independent(0.3))(
        js.quantize(8, 8)(js.trace(unrolled, {"layers": [*(normal(4, 6, 6, seed=1) / 2)]}, X))
    )
    pipe = js.pipeline_shard(2, 2, devices=PAIR)(noisy)

    def step(share):
        made = js.pipeline_value_and_grad(scale_errors(pipe, np.float32(share)), squares)
        return float(made(pipe.params, (X, TARGET), key=jax.random.key(0))[0])

    first = step(0.1)
    with compilations() as compiled:
        second = step(0.9)
    assert not compiled
    assert abs(second - first) > 1e-4


def test_memory_counts_the_gradients_of_what_trains():
    net = network("unrolled", "of codes")
    table = js.pipeline_shard(2, 2, devices=PAIR)(net).memory()
    numbers = sum(a.size * a.dtype.itemsize for a in js.adapters(net).values())
    assert sum(row.gradients for row in table.rows) == numbers


def test_what_nothing_trains_is_refused():
    net = js.deploy(
        js.quantize(8, 8)(js.trace(scanned, {"layers": normal(4, 6, 6)}, X)), calibrate=X
    )
    pipe = js.pipeline_shard(2, 2, devices=PAIR)(net)
    with pytest.raises(ValueError, match=r"net is deployed.*js\.lora before deploy"):
        js.pipeline_value_and_grad(pipe, squares)
    pipe = js.pipeline_shard(2, 2, devices=PAIR)(network("unrolled", "of codes"))
    with pytest.raises(ValueError, match="adapters"):
        js.pipeline_value_and_grad(pipe, squares)(pipe.params, (X, TARGET))
