"""Grids of blocks decode as the package `gguf` decodes them, and hold what files hold."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.cores.storage import wrappers_of
from jaxsim.cores.wrapper import build
from jaxsim.formats.block_grid import BlockGrid
from jaxsim.numerics.packed import unpacked
from tests.support.models import normal

KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
K, N = 96, 5
GEOMETRY = Dot((1,), (), (0,), (), 2, (K, N))


def weights(seed=0):
    """Blocks of every size, among them zeros, equal numbers, and ties of the largest magnitude."""
    w = np.random.default_rng(seed).normal(size=(3, 32, N)) * np.logspace(-3, 2, 3 * N).reshape(
        3, 1, N
    )
    w[0, :, 0], w[0, :, 1], w[1, :2, 0] = 0, 0.3, (-9, 9)
    return w.reshape(K, N).astype(np.float32)


@functools.partial(jax.jit, static_argnums=1)
def held(w, kind, given=None):
    form = BlockGrid(kind, *(() if given is None else given))
    op = Op(GEOMETRY, integer=True, layout="lean")
    core = build(wrappers_of(form, "weights"))
    state = core.write(op, w, None)
    return state, core.read(op, state, jnp.eye(K), None)


def by_hand(w, kind):
    """Codes, scales and minima, in double precision and block by block."""
    bits, top = int(kind[1]), 2 ** int(kind[1])
    codes, scales, minima = (np.zeros((K, N)), np.zeros((3, N)), np.zeros((3, N)))
    for b, n in np.ndindex(3, N):
        x = w[32 * b : 32 * b + 32, n].astype(np.float64)
        if kind.endswith("_1"):
            d, m = (x.max() - x.min()) / (top - 1), x.min()
            q = np.clip(np.floor((x - m) / d + 0.5), 0, top - 1) if d else 0 * x
        elif bits == 8:
            d, m = np.abs(x).max() / 127, 0
            q = np.sign(x) * np.floor(np.abs(x) / d + 0.5) if d else 0 * x
        else:
            d, m = x[np.abs(x).argmax()] / (-top // 2), 0
            q = np.clip(np.floor(x / d + top // 2 + 0.5), 0, top - 1) - top // 2 if d else 0 * x
        codes[32 * b : 32 * b + 32, n], scales[b, n], minima[b, n] = q, d, m
    return codes, scales.astype(np.float16), minima.astype(np.float16)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_values_are_those_by_hand(kind):
    w = weights()
    state, values = held(w, kind)
    codes, scale, minimum = by_hand(w, kind)
    np.testing.assert_array_equal(np.ravel(state.scale), scale.ravel())
    mine = np.asarray(unpacked(state.codes), float).reshape(K, N)
    assert np.abs(mine - codes).max() <= 1  # a tie of double precision is none of single
    assert (mine != codes).sum() <= 1
    each = [np.repeat(a.astype(np.float32), 32, 0) for a in (scale, minimum)]
    expected = mine.astype(np.float32) * each[0] + each[1]
    np.testing.assert_array_equal(np.asarray(values), expected)
    assert np.abs(values - w).max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_bit_for_bit_what_gguf_decodes(kind):
    """And its codes of the same weights are ours, but where single and double precision tie."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    w = weights(1)
    state, values = held(w, kind)
    form = gguf.GGMLQuantizationType[kind]
    file = gguf.quantize(np.ascontiguousarray(w.T), form)
    decoded = gguf.dequantize(file, form).T
    same = decoded == np.asarray(values)
    assert same.mean() > 0.995
    # bytes from our codes: what they decode to is what we say they stand for
    written = gguf.dequantize(as_file(state, kind), form).T
    np.testing.assert_array_equal(written, np.asarray(values))


def as_file(state, kind):
    """Rows of blocks in bytes, as the files have them."""
    codes = np.asarray(unpacked(state.codes)).astype(np.int64).reshape(3, 32, N).transpose(2, 0, 1)
    scale, minimum = (
        np.asarray(a).reshape(3, N).T[..., None].view(np.uint8) if a is not None else None
        for a in (state.scale, state.minimum)
    )
    head = [np.ascontiguousarray(a) for a in (scale, minimum) if a is not None]
    if kind == "Q8_0":
        body = [codes.astype(np.int8).view(np.uint8)]
    else:
        up = codes if kind.endswith("_1") else codes + 2 ** (int(kind[1]) - 1)
        low = ((up & 15)[..., :16] | ((up & 15)[..., 16:] << 4)).astype(np.uint8)
        high = np.packbits((up >> 4).astype(np.uint8), -1, bitorder="little")
        body = [low] if kind[1] == "4" else [high, low]
    return np.concatenate([*head, *body], -1).reshape(N, -1)


def test_given_scales_find_the_codes_of_a_file_again():
    """Codes from 3 to 9 say nothing of their scale: a control that is rounded anew errs."""
    rng = np.random.default_rng(2)
    codes = rng.integers(3, 10, (3, 32, N))
    scale, minimum = (rng.normal(size=(3, N)).astype(np.float16) for _ in range(2))
    w = codes * scale[:, None].astype(np.float32) + minimum[:, None].astype(np.float32)
    w = w.reshape(K, N).astype(np.float32)
    state, values = held(w, "Q4_1", (jnp.asarray(scale), jnp.asarray(minimum)))
    np.testing.assert_array_equal(np.ravel(unpacked(state.codes)), codes.ravel())
    np.testing.assert_array_equal(values, w)
    assert (np.asarray(held(w, "Q4_1")[1]) != w).any()


def test_a_network_is_quantized_trained_pruned_and_looked_up_in_blocks():
    table, w = normal(64, 20), normal(64, 6)
    params = {"table": table.T, "w": w}
    ids = jnp.asarray([3, 0, 19])
    net = js.trace(lambda p, ids: p["table"][ids] @ p["w"], params, ids)
    coded = js.quantize(BlockGrid("Q4_1"), None)(js.prune(0.5, sites="w")(net))
    chip = js.deploy(coded, keep_floats=False)
    assert chip.unheld == ("table", "w")
    rows, left = map(decoded, (table, w * np.asarray(coded.masks["w"])))
    expected = rows.T[ids] @ np.where(coded.masks["w"], left, 0)
    np.testing.assert_allclose(chip(ids), expected, atol=1e-5)
    bits = 8 * sum(a.nbytes for a in jax.tree.leaves(chip.states["table:lookup"])) / table.size
    assert bits == 5.0
    slope = jax.grad(lambda p: dataclasses.replace(coded, params=p)(ids).sum())(params)
    assert np.isfinite(slope["w"]).all()
    assert (np.asarray(slope["w"]) != 0).any()


def decoded(w):
    """What Q4_1 makes of a matrix alone."""
    op = Op(Dot((1,), (), (0,), (), 2, w.shape), integer=True)
    core = build(wrappers_of(BlockGrid("Q4_1"), "weights"))
    return np.asarray(core.read(op, core.write(op, jnp.asarray(w), None), jnp.eye(len(w)), None))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (BlockGrid("Q3_K"), "kind='Q3_K': must be one of 'Q4_0'"),
        (BlockGrid("Q4_0", np.ones((3, 5)), np.ones((3, 5))), "Q4_0 takes a scale alone"),
        (BlockGrid("Q4_1", np.ones((3, 5))), "Q4_1 takes scale and minimum"),
    ],
)
def test_what_is_no_grid_is_refused(form, said):
    with pytest.raises(ValueError, match=said):
        js.quantize(form, None)


def test_what_does_not_fit_a_weight_is_refused():
    net = js.trace(lambda p, x: x @ p["w"], {"w": normal(40, 3)}, normal(2, 40))
    with pytest.raises(ValueError, match="no multiple of 32"):
        js.deploy(js.quantize(BlockGrid("Q8_0"), None)(net))
    net = js.trace(lambda p, x: x @ p["w"], {"w": normal(64, 3)}, normal(2, 64))
    with pytest.raises(ValueError, match=r"scale \[4, 3\] for a weight of 6 blocks"):
        js.deploy(js.quantize(BlockGrid("Q8_0", np.ones((4, 3))), None)(net))
    with pytest.raises(ValueError, match=r"inputs=Q4_0: must be an int"):
        js.quantize(8, BlockGrid())
    with pytest.raises(ValueError, match="its weights are no integer codes"):
        js.slice_bits(2)(js.quantize(BlockGrid(), None)(net))


STACK = normal(2, 64, 64)
SCALES, MINIMA = np.abs(normal(2, 2, 64)).astype(np.float16), -np.abs(normal(2, 2, 64, seed=1))


@pytest.mark.parametrize(
    ("whole", "each"),
    [
        (js.quantize(js.mx("e2m1"), js.mx()), [js.quantize(js.mx("e2m1"), js.mx())] * 2),
        (js.quantize(js.nvfp4(), js.nvfp4()), [js.quantize(js.nvfp4(), js.nvfp4())] * 2),
        (
            js.quantize(BlockGrid("Q5_1", SCALES, MINIMA), None),
            [js.quantize(BlockGrid("Q5_1", SCALES[i], MINIMA[i]), None) for i in (0, 1)],
        ),
    ],
    ids=["mx", "nvfp4", "given scales"],
)
def test_layers_of_a_stack_have_blocks_of_their_own(whole, each):
    """A control: the given scales of the other slice give another answer."""
    x = normal(3, 64)

    def scanned(p, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]

    def unrolled(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"])

    stack = js.deploy(whole(js.trace(scanned, {"w": STACK}, x)))
    flat = js.trace(unrolled, {"a": STACK[0], "b": STACK[1]}, x)
    rows = js.deploy(js.rules({"a": each[0], "b": each[1]})(flat))
    np.testing.assert_allclose(stack(x), rows(x), rtol=0, atol=1e-5)
    if each[0] is not each[1]:
        swapped = js.deploy(js.rules({"a": each[1], "b": each[0]})(flat))
        assert np.abs(stack(x) - swapped(x)).max() > 0.01
