"""Numbers at the ends of what floats hold: every format, every float, under jit and gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.formats import clipping
from jaxsim.transforms.learn_ranges import ranges, with_ranges

TINY = float(np.finfo(np.float32).tiny)
RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(6, 4)).astype(np.float32)
BASE /= np.abs(BASE).max()
BASE[1] = 0
BASE[:, 2] = 0


def tensors(dtype):
    """Weights [6, 4] by name, whose row 1 and column 2 are zero unless they are constant."""
    info = jnp.finfo(dtype)
    # rounding may go beyond the largest number, to one that the float does not have
    top, low = 0.49 * float(info.max), float(info.tiny)
    below = float(info.smallest_subnormal)
    lone = np.zeros_like(BASE)
    lone[3, 1] = top
    return {
        "ordinary": BASE,
        "huge": BASE * top,
        "tiny": BASE * low * 4,
        "smallest": np.sign(BASE) * low,
        "small": BASE * max(1e-30, low * 100),
        "subnormal": np.sign(BASE) * below,
        "constant": np.full_like(BASE, 0.3),
        "constant and huge": np.full_like(BASE, -top),
        "zero": 0 * BASE,
        "lone and huge": lone,
        "wide": np.where(np.abs(BASE) > 0.5, BASE * top, BASE * low),
    }


# The largest error that rounding may make, as a share of the largest magnitude; None where the rule
# cuts values off.
FORMATS = {
    **{f"int{b}": (js.Grid(b), 0.5 / (2 ** (b - 1) - 1)) for b in (2, 3, 5, 8)},
    **{f"affine {b}": (js.Grid(b, symmetric=False), 2 / (2**b - 1)) for b in (2, 4, 8)},
    "a channel": (js.Grid(8, per="channel"), 0.5 / 127),
    "affine a channel": (js.Grid(8, symmetric=False, per="channel"), 2 / 255),
    "groups": (js.Grid(8, per="group", rows=4), 0.5 / 127),
    "powers": (js.Grid(4, spacing="powers"), 1 / 3),
    "powers of 2 bits": (js.Grid(2, spacing="powers"), 1 / 2),
    "a token": (js.Grid(8, per="token"), 0.5 / 127),
    "affine a token": (js.Grid(8, per="token", symmetric=False), 2 / 255),
    "stochastic": (js.Grid(8, rounding="stochastic"), 1 / 127),
    "stochastic powers": (js.Grid(4, spacing="powers", rounding="stochastic"), 1 / 2),
    "percentile": (js.Grid(8, clip=clipping.percentile(90.0)), None),
    "affine percentile": (js.Grid(8, symmetric=False, clip=clipping.percentile(90.0)), None),
    "least squares": (js.Grid(4, clip=clipping.least_squares()), None),
    "affine least squares": (js.Grid(4, symmetric=False, clip=clipping.least_squares()), None),
    "entropy": (js.Grid(4, clip=clipping.entropy()), None),
    "affine entropy": (js.Grid(4, symmetric=False, clip=clipping.entropy()), None),
    "rms": (js.Grid(4, clip=clipping.rms(2.0)), None),
    "affine rms": (js.Grid(4, symmetric=False, clip=clipping.rms(2.0)), None),
    "float8_e4m3fn": (js.Floating(), 2**-4),
    "float8_e5m2": (js.Floating("float8_e5m2"), 2**-3),
    "float16": (js.Floating("float16"), 2**-11),
    "bfloat16": (js.Floating("bfloat16"), 2**-8),
    "bfloat16 a channel": (js.Floating("bfloat16", per="channel"), 2**-8),
    "nf4": (js.nf4(), 0.16),
    "fp4 in groups": (js.fp4(per="group", rows=4), 1 / 6),
    "k-means": (js.Codebook(size=4), None),
    "vectors": (js.Codebook(size=4, length=3), None),
    "no zero": (js.Codebook((-1.0, -0.25, 0.5, 1.0), per="tensor"), None),
    "signs": (js.Grid(1), None),
    "signs a channel": (js.Grid(1, per="channel"), None),
    "signs in groups": (js.Grid(1, per="group", rows=4), None),
    "signs by least squares": (js.Grid(1, clip=clipping.least_squares()), None),
}
NO_ZERO = {"signs", "signs a channel", "signs in groups", "signs by least squares", "no zero"}
NO_ZERO |= {"k-means", "vectors"}  # a fitted table has a zero where the fit puts one
WEIGHTS = [name for name, (form, _) in FORMATS.items() if getattr(form, "per", "") != "token"]
INPUTS = [
    name
    for name, (form, _) in FORMATS.items()
    if isinstance(form, js.Grid | js.Floating) and form.per in ("tensor", "token")
]
# All are computed in float32, whatever the model's floats: a few say that for the others.
SHORT = ("int8", "affine 8", "float8_e4m3fn", "float16", "bfloat16", "nf4", "k-means", "signs")
TOKENS = ("a token", "affine a token", "stochastic")
CASES = {
    of: [(name, "float32") for name in names if of == "weights" or name in SHORT + TOKENS]
    + [(name, dtype) for name in names if name in SHORT for dtype in ("bfloat16", "float16")]
    for of, names in (("weights", WEIGHTS), ("inputs", INPUTS))
}


def product(p, x):
    return jnp.dot(x, p["w"], precision="highest")


def held(name, *, of, shape, dtype):
    """`tensor -> what the format holds of it`, compiled once, with the gradient of its sum."""
    form, unit = FORMATS[name][0], jnp.eye(shape[0 if of == "weights" else 1], dtype=dtype)
    key = jax.random.key(1)
    w, x = (jnp.ones(shape, dtype), unit) if of == "weights" else (unit, jnp.ones(shape, dtype))
    quantize = js.quantize(**{"weights": None, "inputs": None, of: form})
    net = quantize(js.trace(product, {"w": w}, x))

    def read(a):
        if of == "weights":
            return dataclasses.replace(net, params={"w": a})(unit, key=key)
        return net(a, key=key)

    @jax.jit
    def run(a):
        y, back = jax.vjp(read, a)
        return y, back(jnp.ones_like(y))[0]

    return run


def check(name, label, a, y, slope):
    """What must hold of a tensor and what the format holds of it."""
    a, y = (np.asarray(v, np.float64) for v in (a, y))
    assert np.isfinite(y).all(), (label, y)
    assert np.isfinite(np.asarray(slope, np.float32)).all(), (label, slope)
    if name not in NO_ZERO:
        np.testing.assert_array_equal(y[a == 0], 0, err_msg=label)
    if not a.any():
        np.testing.assert_array_equal(y, 0, err_msg=label)
    bound = FORMATS[name][1]
    if bound is not None:
        # half a step, what a float's own rounding adds, and what may be flushed to zero
        eps = float(jnp.finfo(slope.dtype).eps)
        allowed = np.abs(a).max() * (bound + eps) * 1.0001 + 2 * TINY
        assert np.abs(y - a).max() <= allowed, (label, np.abs(y - a).max(), allowed)


@pytest.mark.parametrize(("name", "dtype"), CASES["weights"])
def test_weights_of_any_size_stay_finite_near_and_zero_where_they_are(name, dtype):
    run = held(name, of="weights", shape=BASE.shape, dtype=dtype)
    for label, w in tensors(dtype).items():
        a = w.astype(jnp.dtype(dtype))
        check(name, label, a, *run(a))


@pytest.mark.parametrize(("name", "dtype"), CASES["inputs"])
def test_inputs_of_any_size_stay_finite_near_and_zero_where_they_are(name, dtype):
    run = held(name, of="inputs", shape=BASE.shape, dtype=dtype)
    for label, x in tensors(dtype).items():
        a = x.astype(jnp.dtype(dtype))
        check(name, label, a, *run(a))


DEPLOYED = {
    "int8": js.quantize(8, 8),
    "affine": js.quantize(js.Grid(4, symmetric=False), js.Grid(8, symmetric=False)),
    "signs": js.quantize(1, js.Grid(1)),
    "short floats": js.quantize(js.Floating("bfloat16"), js.Floating("float16")),
    "k-means, a token": js.quantize(js.Codebook(size=4), js.Grid(8, per="token")),
    "an array": js.compose(
        js.quantize(4, 8), js.analog(adc=8, cells=js.cells.proportional(0.01, on_off=50), rows=4)
    ),
    "an array of float inputs": js.compose(js.quantize(4, None), js.analog(adc=8, rows=4)),
    "an array of offsets": js.compose(
        js.quantize(4, js.Grid(8, symmetric=False)),
        js.slice_bits(2),
        js.analog(adc=8, mapping="offset"),
    ),
    "blocks": js.compose(js.quantize(8, 8), js.block(2, 1, 2, "dynamic")),
}


@pytest.mark.parametrize("name", DEPLOYED)
def test_chips_of_any_size_stay_finite(name):
    """Calibrated on ordinary inputs, and then given others: too large, too small, and none."""
    key = jax.random.key(0)
    x = np.abs(np.random.default_rng(1).normal(size=(5, 6))).astype("f")
    traced = DEPLOYED[name](js.trace(product, {"w": BASE}, x))
    for label in ("huge", "tiny", "wide", "zero"):
        w = tensors("float32")[label].astype("f")
        net = dataclasses.replace(traced, params={"w": jnp.asarray(w)})
        largest = max(np.abs(w).max(), 1.0)
        chip = js.deploy(net, key=key, calibrate=x / largest)
        for given in (x / largest, 1e-38 * x, 0 * x, np.float32(1e30) * x / largest):
            y = np.asarray(chip(given, key=key))
            assert np.isfinite(y).all(), (label, given.max())
            exact = not name.startswith("an array") and (name != "signs" or not w.any())
            if exact and (not w.any() or not given.any()):
                np.testing.assert_array_equal(y, 0, err_msg=label)


def test_two_small_scales_multiply_what_their_product_could_not():
    """1e-22 times 1e-22 summed over many is a number, though a product of steps is none."""
    w, x = np.full((4096, 1), 1e-20, "f"), np.full((1, 4096), 1e-20, "f")
    for form in (8, js.Floating("float16")):
        q = js.quantize(form, form)(js.trace(product, {"w": w}, x))
        np.testing.assert_allclose(q(x), x @ w, rtol=1e-2)


def test_one_bit_is_signs_times_the_mean_magnitude():
    w = np.array([[1.0, 0, -3], [-2, 0, 5]], np.float32)
    eye = np.eye(2, dtype="f")
    net = js.trace(product, {"w": w}, eye)
    expected = np.array([[1.5, 0, -4], [-1.5, 0, 4]], np.float32)
    np.testing.assert_array_equal(js.quantize(1, None)(net)(eye), expected)
    np.testing.assert_array_equal(js.deploy(js.quantize(1, None)(net))(eye), expected)
    x = np.array([[0.0, 0], [2, -4]], np.float32)
    for grid, step in ((js.Grid(1), 1.5), (js.Grid(1, per="token"), 3.0)):
        signs = np.array([[1, 1], [1, -1]], np.float32) * step
        signs[0] *= grid.per == "tensor"  # all zero alone, and held as positive among others
        np.testing.assert_array_equal(js.quantize(None, grid)(net)(x), signs @ w)


def test_what_fills_the_last_group_up_is_no_weight():
    """Three groups of 3, 3 and 1 products, padded to 9: neither sum nor mean sees the padding."""
    rng = np.random.default_rng(2)
    w, x = rng.normal(size=(7, 2)).astype("f"), rng.normal(size=(4, 7)).astype("f")
    net = js.trace(product, {"w": w}, x)
    y = js.quantize(js.Grid(1, per="group", rows=3), js.Grid(1))(net)(x)
    signs = np.where(x >= 0, 1, -1) * np.abs(x).mean()
    parts = [slice(0, 3), slice(3, 6), slice(6, 7)]
    held = [np.sign(w[p]) * np.abs(w[p]).mean(0) for p in parts]
    np.testing.assert_allclose(
        y, sum(signs[:, p] @ h for p, h in zip(parts, held, strict=True)), rtol=1e-5
    )


def test_a_rule_over_ranges_commutes_with_powers_of_two():
    x = np.random.default_rng(3).normal(size=500).astype("f")
    rules = [
        clipping.rms(1.5),
        clipping.least_squares(),
        clipping.entropy(),
        clipping.percentile(95),
    ]
    for clip in rules:
        for symmetric in (True, False):
            ends = jax.jit(lambda x, c=clip, s=symmetric: tuple(c(x, bits=4, symmetric=s)))
            plain = np.asarray(ends(x), np.float64)
            for power in (-100, 100):
                found = np.asarray(ends(x * np.float32(2.0) ** power), np.float64)
                np.testing.assert_array_equal(found, plain * 2.0**power)


@jax.jit
@jax.grad
def slope_by_ranges(values, net, x):
    return with_ranges(net, values)(x).sum()


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_learned_ranges_have_finite_derivatives_at_any_size(size):
    x, w = np.ones((3, 6), "f") / np.float32(size), BASE * np.float32(size)
    net = js.quantize(4, 4)(js.trace(product, {"w": w}, x))
    net = js.learn_ranges(x)(net)
    slope = slope_by_ranges(ranges(net), net, x)
    assert len(slope) == 4
    assert all(np.isfinite(g).all() for g in slope.values())


def test_single_elements():
    one = np.ones((1, 1), "f")
    for form in (
        8,
        js.Grid(8, symmetric=False),
        js.Grid(1),
        js.nf4(),
        js.Codebook(),
        js.Floating(),
    ):
        traced = js.quantize(form, None)(js.trace(product, {"w": one}, one))
        for value in (1e38, -3.0, 1e-38, 0.0):
            net = dataclasses.replace(traced, params={"w": jnp.asarray(one * np.float32(value))})
            y = float(net(one)[0, 0])
            assert y == pytest.approx(value, rel=0.02, abs=2 * TINY), form
