"""Weights wait for their input, and are what they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core as jex
from jax.sharding import AxisType

import jaxsim as js
from jaxsim.numerics.awaited import awaited
from jaxsim.numerics.short_floats import as_bytes, from_bytes


@pytest.mark.parametrize("first", [0.0, -1.5, jnp.inf, -jnp.inf, jnp.nan])
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.float8_e4m3fn, jnp.bfloat16, bool])
def test_numbers_are_what_they_were_whatever_the_input(first, dtype):
    held = {"a": jnp.arange(6).astype(dtype), "b": jnp.float32([-0.0, jnp.nan])}
    for wait in (awaited, jax.jit(awaited)):
        found = wait(held, jnp.full((2, 3), first))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(held), strict=True):
            assert a.dtype == b.dtype
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_nothing_waits_for_an_empty_input_or_where_devices_hold_parts():
    a, x = jnp.arange(3), jnp.ones((2, 2))
    assert awaited(a, x[:0]) is a
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        assert awaited(a, jax.reshard(x, jax.P("rows"))) is a


def test_weights_are_one_for_all_rows_of_a_vmap():
    """A control: a choice by each row makes a weight of each."""
    w, xs = jnp.ones((3, 4), jnp.int8), jnp.ones((5, 2, 3))

    def product(wait, x):
        return x @ wait(w, x).astype(jnp.float32)

    def of_each(w, x):
        return jnp.where(x[0, 0] > jnp.inf, 0, w)

    sizes = [
        max(v.aval.size for e in _inside(jaxpr) for v in e.outvars if v.aval.ndim)
        for wait in (awaited, of_each)
        for jaxpr in [jax.make_jaxpr(jax.vmap(jax.vmap(lambda x, w=wait: product(w, x))))(xs[None])]
    ]
    assert sizes == [5 * 2 * 4, 5 * 3 * 4]
    np.testing.assert_array_equal(jax.vmap(lambda x: product(awaited, x))(xs), 3)


def _inside(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jex.jaxprs_in_params(eqn.params):
            yield from _inside(sub)


def test_derivatives_go_through():
    w, x = jnp.float32([[0.5, -2], [3, 0.25]]), jnp.float32([[1, -1]])

    def loss(wait, x, w):
        return jnp.sum(jnp.sin(x @ wait(w, x)))

    for change in (jax.grad, jax.hessian):
        found, expected = (
            jax.jit(change(lambda x, w, wait=wait: loss(wait, x, w), (0, 1)))(x, w)
            for wait in (awaited, lambda w, x: w)
        )
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_floats_of_eight_bits_are_the_bytes_that_they_are():
    held = jnp.arange(256, dtype=jnp.uint8)
    short = lax.bitcast_convert_type(held, jnp.float8_e5m2)
    np.testing.assert_array_equal(as_bytes(short), held)
    assert from_bytes(held, short.dtype).dtype == short.dtype
    for other in (held, jnp.ones(2, jnp.bfloat16), jax.random.key(0)):
        assert as_bytes(other) is other


FORMS = {
    "bytes": js.quantize(8, None),
    "nibbles": js.quantize(4, None),
    "affine": js.quantize(js.Grid(4, symmetric=False), None),
    "groups": js.quantize(js.Grid(3, per="group", rows=32), None),
    "groups of bytes": js.quantize(js.Grid(8, per="group", rows=32), 8),
    "a table": js.quantize(js.nf4(), None),
    "vectors of a table": js.quantize(js.Codebook(size=4, length=2), None),
    "floats of eight bits": js.quantize(js.Floating("float8_e4m3fn"), None),
    "floats of sixteen": js.quantize(js.Floating("bfloat16"), js.Floating("bfloat16")),
    "blocks": js.quantize(js.mx("e3m2"), js.mx("e3m2")),
    "two scales": js.quantize(js.nvfp4(), js.nvfp4()),
    "slices": js.compose(js.quantize(8, 8), js.slice_bits(2)),
    "pairs": js.compose(js.quantize(8, 8), js.analog(adc=8, rows=32)),
    "pairs of slices": js.compose(js.quantize(8, 8), js.slice_bits(4), js.analog(adc=8, rows=32)),
    "an offset": js.compose(js.quantize(8, 8), js.analog(adc=8, rows=32, mapping="offset")),
}


def temporaries(transform, layers, width=64):
    """Bytes that a call of a deployed network of so many layers needs beside its arguments."""
    rng = np.random.default_rng(0)
    ws = [jnp.asarray(rng.normal(size=(width, width)) / 8, jnp.float32) for _ in range(layers)]

    def model(ws, x):
        for w in ws:
            x = jnp.tanh(x @ w)
        return x

    x = jnp.asarray(rng.normal(size=(2, width)), jnp.float32)
    chip = js.deploy(transform(js.trace(model, ws, x)), calibrate=x)
    called = jax.jit(lambda chip, x: chip(x)).lower(chip, x).compile()
    return called.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("name", "transform"), FORMS.items())
def test_layers_become_floats_one_after_the_other(name, transform):
    """The memory of a call is that of its largest layer, as it is of a float model."""
    few, many = temporaries(transform, 2), temporaries(transform, 6)
    assert many < 1.2 * few + 2000, (name, few, many)


def test_layers_that_do_not_wait_become_floats_together(monkeypatch):
    """The control: what XLA makes of weights that depend on nothing."""
    monkeypatch.setattr("jaxsim.cores.op.awaited", lambda a, x: a)
    few, many = (temporaries(FORMS["bytes"], layers, width=48) for layers in (2, 6))
    assert many > 2.5 * few


def test_states_go_through_scans_as_bytes():
    """The scale of a block is a float of eight bits; a state keeps its type."""
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16, 16)), jnp.float32)

    def model(w, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    x = jnp.ones((2, 16))
    chip = js.deploy(js.quantize(js.nvfp4(), None)(js.trace(model, w, x)))
    assert any(a.dtype == jnp.float8_e4m3fn for a in jax.tree.leaves(chip.states))
    jaxpr = jax.make_jaxpr(lambda chip, x: chip(x))(chip, x)
    scans = [e for e in _inside(jaxpr.jaxpr) if e.primitive.name == "scan"]
    assert scans
    assert not any(v.aval.dtype == jnp.float8_e4m3fn for e in scans for v in e.invars)
