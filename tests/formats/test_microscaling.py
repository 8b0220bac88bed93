"""Elements and scales of small blocks are those that `ml_dtypes` rounds to."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.storage import join_chains, wrappers_of
from jaxsim.cores.wrapper import build
from jaxsim.formats.microscaling import (
    ELEMENTS,
    Microscaled,
    from_e4m3,
    from_four_bits,
    round_element,
)
from tests.support.models import normal

DTYPES = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
K, N = 96, 5


def element(kind, x):
    """Elements by `ml_dtypes`, what lies beyond the largest clipped to it."""
    if kind == "int8":
        return np.clip(np.round(x * 64), -127, 127) / 64
    largest = float(ml_dtypes.finfo(DTYPES[kind]).max)
    return np.clip(x, -largest, largest).astype(DTYPES[kind]).astype(np.float32)


def by_hand(form, w):
    """What blocks along the first axis of a matrix [K, N] stand for."""
    x = w.reshape(-1, form.rows, w.shape[-1])
    most = np.abs(x).max(1, keepdims=True)
    if form.scale == "e8m0":
        top = {"int8": 0}.get(form.element)
        top = np.log2(float(element(form.element, 1e9))) if top is None else top
        power = np.floor(np.log2(np.where(most > 0, most, 1))) - np.floor(top)
        scale = (2.0**power).astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    else:
        tensor = np.float32(most.max() / np.float32(6 * 448))
        scale = element("e4m3", most / np.float32(6) / tensor) * tensor
    elements = np.where(scale > 0, element(form.element, x / np.where(scale > 0, scale, 1)), 0)
    return (elements * scale).reshape(w.shape)


def drawn(seed=0):
    """Blocks of every size, with zeros, ties between elements, and numbers beyond the largest."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(K // 16, 16, N)) * np.logspace(-4, 3, K // 16 * N).reshape(-1, 1, N)
    w[0, :, 0], w[2, :, 1] = 0, np.arange(16) / 4
    w[3, :, 2] = 1.96875 * 2.0 ** np.arange(-8, 8)
    return w.reshape(K, N).astype(np.float32)


FORMS = [*map(js.mx, ELEMENTS), js.nvfp4()]


@functools.partial(jax.jit, static_argnums=0)
def stored(form, w, x):
    """State of weights, the weights and inputs as they are multiplied, and a product of both."""
    op = Op(Dot((1,), (), (0,), (), 2, (K, N)), integer=True, layout="lean")
    weights, inputs = (build(wrappers_of(form, side)) for side in ("weights", "inputs"))
    both = build(join_chains(wrappers_of(form, "weights"), wrappers_of(form, "inputs")))
    state, one = weights.write(op, w, None), jnp.eye(K)
    return (
        state,
        weights.read(op, state, one, None),
        inputs.read(op, inputs.write(op, jnp.eye(K)[:, :N], None), x, None),
        both.read(op, both.write(op, w, None), x, None),
    )


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.element}-{form.rows}")
def test_blocks_are_those_of_ml_dtypes(form):
    w = drawn()
    x = drawn(1).T
    state, weights, inputs, product = stored(form, w, x)
    expected = by_hand(form, w), by_hand(form, x.T).T
    np.testing.assert_array_equal(weights, expected[0])
    np.testing.assert_array_equal(inputs, expected[1][:, :N])
    exact = expected[1].astype(float) @ expected[0]
    np.testing.assert_allclose(product, exact, rtol=0, atol=2e-6 * np.abs(exact).max())
    bits = 8 * sum(a.nbytes for a in jax.tree.leaves(state)) / w.size
    assert bits <= {4: 4.6, 6: 8.3, 8: 8.3}[ELEMENTS[form.element].bits]


@pytest.mark.parametrize("kind", ELEMENTS)
def test_every_number_goes_to_the_nearest_element(kind):
    x = np.concatenate([np.linspace(-600, 600, 4801), np.logspace(-7, 5, 2000), [0.0, -0.0]])
    x = x.astype(np.float32)
    np.testing.assert_array_equal(round_element(ELEMENTS[kind], jnp.asarray(x)), element(kind, x))


def test_a_network_is_quantized_trained_saved_and_looked_up_in_blocks(tmp_path):
    params = {"table": normal(10, 64), "w": normal(64, 6)}
    ids = jnp.asarray([3, 0, 9])
    net = js.trace(lambda p, ids: p["table"][ids] @ p["w"], params, ids)
    coded = js.quantize(js.mx("e2m1"), js.mx("e4m3"))(net)
    chip = js.deploy(coded, keep_floats=False)
    rows = by_hand(js.mx("e2m1"), np.asarray(params["table"]).T).T[np.asarray(ids)]
    expected = by_hand(js.mx("e4m3"), rows.T).T @ by_hand(js.mx("e2m1"), np.asarray(params["w"]))
    np.testing.assert_allclose(chip(ids), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(coded(ids), expected, rtol=0, atol=1e-5)
    js.save(tmp_path / "chip", chip)
    np.testing.assert_array_equal(js.load(tmp_path / "chip", like=coded)(ids), chip(ids))
    slope = jax.grad(lambda w: _with(coded, w)(ids).sum())(params["w"])
    np.testing.assert_allclose(slope, np.tile(rows.sum(0)[:, None], 6), rtol=0.1, atol=0.3)


def _with(net, w):
    return dataclasses.replace(net, params={**net.params, "w": w})


def test_what_does_not_fit_is_refused():
    net = js.trace(lambda p, x: x @ p["w"], {"w": normal(40, 3)}, normal(2, 40))
    with pytest.raises(ValueError, match="no multiple of 32"):
        js.deploy(js.quantize(js.mx(), None)(net))
    with pytest.raises(ValueError, match="element='e1m2': must be one of 'e4m3'"):
        js.mx("e1m2")
    with pytest.raises(ValueError, match="rows=8 with scale='e8m0'"):
        js.quantize(Microscaled("e2m1", 8, "e8m0"), None)
    with pytest.raises(ValueError, match="blocks of 32, and quantized has one scale"):
        js.quantize(8, js.mx())
    with pytest.raises(ValueError, match="rows=32 for the weights and rows=16 for the inputs"):
        js.quantize(js.mx(), js.nvfp4())
    grouped = js.quantize(js.Grid(4, per="group", rows=32), js.mx("e4m3"))
    assert [w.name for w in grouped(net).cores["w"]] == ["grouped", "quantized", "microscaled"]


def test_floats_of_a_few_bits_are_those_of_a_cast():
    """All codes of four bits beside their table, all scales beside ml_dtypes."""
    codes = np.arange(16, dtype=np.uint8)
    table = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    found = np.asarray(from_four_bits(jnp.asarray(codes)))
    np.testing.assert_array_equal(found, np.concatenate([table, -table]))
    np.testing.assert_array_equal(np.signbit(found), codes >= 8)
    scales = np.arange(128, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(from_e4m3(jnp.asarray(scales)), scales.astype(np.float32))
