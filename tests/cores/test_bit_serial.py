import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsim.cores.adc.column import uniform_adc
from jaxsim.cores.bit_serial import bit_serial, unsigned_inputs
from jaxsim.cores.geometry import Dot
from jaxsim.cores.op import Op
from jaxsim.formats.grid import Grid
from tests.oracles import crossbar
from tests.support import sites


def spy(seen):
    """Notes what an inner core is given."""

    def wrapper(core):
        def read(op, state, x, key):
            seen.append((op, x))
            return core.read(op, state, x, key)

        return core._replace(read=read)

    return wrapper


def given_to_spies(pieces, x, w):
    """What `spy` among the pieces notes of a read, computed in one program."""
    ops = []

    @jax.jit
    def run(x, w):
        seen = []
        core = sites.core_of(*(spy(seen) if piece is spy else piece for piece in pieces))
        core.read(Op(sites.DENSE), core.write(Op(sites.DENSE), w, None), x, None)
        ops[:] = [op for op, _ in seen]
        return [value for _, value in seen]

    values = run(x, w)
    return list(zip(ops, values, strict=True))


def codes(bits=8, **settings):
    return sites.quantize(8, bits, **settings)


def read_all(chains, geometry):
    """A compiled function to what sites of several chains read, deployed on their own inputs."""
    op = Op(geometry, integer=True, ranges="stored")

    @jax.jit
    def run(x, w):
        found = {}
        for name, pieces in chains.items():
            core = sites.core_of(*pieces)
            state = core.calibrate(op, core.write(op, w, None), x)
            found[name] = core.read(op, state, x, None)
        return found

    return run


@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_applied_in_parts_give_the_same_integers(geometry, symmetric):
    grid = codes(symmetric=symmetric)
    lifted = [grid, *([] if symmetric else [unsigned_inputs])]
    parts = {f"{bits} bits": [*lifted, (bit_serial, {"bits": bits})] for bits in (1, 2, 3, 5, 8)}
    found = read_all({"whole": [grid], **parts}, geometry)(*sites.operands(geometry))
    for name in parts:
        np.testing.assert_array_equal(found[name], found["whole"], err_msg=name)


def test_lifted_codes_begin_at_zero_where_the_smallest_input_is():
    seen = []
    x, w = sites.operands(sites.DENSE)
    x = np.maximum(x, 0)
    grid = codes(symmetric=False)
    sites.read([grid, unsigned_inputs, spy(seen)], sites.DENSE, x, w)
    op, codes_seen = seen[0]
    assert (op.x_lo, op.x_hi) == (0, 255)
    assert codes_seen.dtype == jnp.int16
    ((_, lifted_codes),) = given_to_spies([grid, unsigned_inputs, spy], x, w)
    lifted_codes = np.asarray(lifted_codes)
    np.testing.assert_array_equal(lifted_codes[x == 0], 0)
    assert lifted_codes.max() == 255


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("width", [4, 8])
def test_parts_are_the_digits_of_sign_and_magnitude(bits, width):
    x, w = sites.operands(sites.DENSE)
    pieces = [codes(width), spy, (bit_serial, {"bits": bits}), spy]
    (_, whole), (op, parts) = given_to_spies(pieces, x, w)
    expected = crossbar.digits(np.asarray(whole).astype(int), bits, width - 1)
    np.testing.assert_array_equal(parts, expected)
    full = 2 ** min(bits, width - 1) - 1
    assert (op.x_lo, op.x_hi) == (-full, full)


FINE = (uniform_adc, {"bits": 22.0, "percentile": 100.0, "signed": True, "rule": "granular"})
LIFTED = [codes(symmetric=False), unsigned_inputs]
CONVERTED = {
    f"{bits} bits, converted {where}": [*LIFTED, *(o if where == "before" else o[::-1])]
    for bits in (1, 3, 8)
    for where in ("before", "after")
    for o in [[FINE, (bit_serial, {"bits": bits})]]
}
converted = read_all({"whole": LIFTED[:1], **CONVERTED}, sites.DENSE)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_the_order_of_lifting_and_steps_around_a_converter_decides_what_is_converted(seed):
    """With as many bits as it takes, a converter at either place changes nothing."""
    x, w = sites.operands(sites.DENSE, seed)
    found = converted(np.abs(x), w)
    for name in CONVERTED:
        np.testing.assert_allclose(found[name], found["whole"], rtol=1e-6, atol=1e-5, err_msg=name)


def metered(core, meter, w, x):
    """A read whose costs are counted."""
    op = Op(sites.DENSE, integer=True)
    state = core.write(op, w, None)
    return core.read(dataclasses.replace(op, meter=meter), state, x, None)


def test_conversions_multiply_with_the_steps_unless_charge_adds_them():
    x, w = sites.operands(sites.DENSE)
    adc = (uniform_adc, {"bits": 8.0, "percentile": 100.0, "signed": True})
    counts = {}
    for name, order in {
        "digital": [bit_serial, uniform_adc],
        "analog": [uniform_adc, bit_serial],
    }.items():
        parts = {bit_serial: (bit_serial, {"bits": 1}), uniform_adc: adc}
        core = sites.core_of(codes(), *(parts[p] for p in order))
        meter = {}
        jax.eval_shape(functools.partial(metered, core, meter), w, x)
        counts[name] = meter["conversions"], meter["conversion_steps"]
    assert counts == {"digital": (7 * 30, 7 * 30 * 256), "analog": (30, 30 * 256)}


def test_gradients_through_steps_are_those_of_the_whole_input():
    x, w = sites.operands(sites.DENSE)

    def total(x, *steps):
        grid = codes(symmetric=False)
        return jnp.sin(sites.read([grid, *steps], sites.DENSE, x, w, integer=False)).sum()

    @jax.jit
    def slopes(x):
        parts = unsigned_inputs, (bit_serial, {"bits": 3})
        return jax.grad(total)(x), jax.grad(lambda x: total(x, *parts))(x)

    whole, parts = map(np.asarray, slopes(x))
    assert np.abs(whole).max() > 0.1
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrapper", [unsigned_inputs, (bit_serial, {"bits": 2})])
def test_floats_have_no_codes_to_apply(wrapper):
    x, w = sites.operands(sites.DENSE)
    floats = (sites.quantize()[0], {"weights": Grid(8), "inputs": None})
    with pytest.raises(ValueError, match="the input is a float"):
        sites.read([floats, wrapper], sites.DENSE, x, w)


@pytest.mark.parametrize(
    ("lo", "hi", "bits", "digits", "expected"),
    [
        # 7 bits of magnitude in parts of 3: places 1, 8 and 64
        (-127, 127, 3, 3, (-7, 7)),
        (0, 255, 3, 3, (0, 7)),
        (0, 255, 8, 1, (0, 255)),
        (0, 5, 4, 1, (0, 5)),  # no part is larger than the code
        (-9, 2, 2, 2, (-3, 3)),  # the larger end decides
        (-1, 1, 1, 1, (-1, 1)),
    ],
)
def test_parts_of_inputs_by_hand(lo, hi, bits, digits, expected):
    seen = []
    core = sites.core_of((bit_serial, {"bits": bits}), spy(seen))
    op = Op(sites.DENSE, integer=True).inputs(lo, hi)
    w, x = jnp.ones((20, 6), jnp.int8), jnp.full((5, 20), hi, jnp.int32)
    y = core.read(op, core.write(op, w, None), x, None)
    ((inner, parts),) = seen
    assert (inner.x_lo, inner.x_hi) == expected
    places = [2 ** (bits * i) for i in range(digits)]
    np.testing.assert_array_equal(parts[:, 0, 0], [hi // p % 2**bits for p in places])
    np.testing.assert_array_equal(y, 20 * hi)


@pytest.mark.parametrize("missing", ["x_lo", "x_hi"])
@pytest.mark.parametrize("wrapper", [unsigned_inputs, (bit_serial, {"bits": 2})])
def test_both_ends_of_input_codes_are_needed(wrapper, missing):
    op = dataclasses.replace(Op(sites.DENSE).inputs(-1, 1), **{missing: None})
    with pytest.raises(ValueError, match="the input is a float"):
        sites.core_of(wrapper).write(op, jnp.ones((20, 6)), None)


@pytest.mark.parametrize(("lo", "hi"), [(-8, 7), (3, 9), (0, 15)])
def test_lifting_moves_codes_by_their_smallest_and_takes_its_share_off(lo, hi):
    """Σ (q - lo) w + lo Σ w, with Σ w of each output by hand."""
    seen = []
    core = sites.core_of(unsigned_inputs, spy(seen))
    op = Op(Dot((1,), (), (0,), (), 2, (2, 2)), integer=True).inputs(lo, hi)
    state = core.write(op, jnp.int8([[3, -5], [4, 1]]), None)
    np.testing.assert_array_equal(state.total, [[7, -4]])
    x = jnp.int8([[lo, hi]])
    y = core.read(op, state, x, None)
    ((inner, lifted),) = seen
    np.testing.assert_array_equal(lifted, [[0, hi - lo]])
    assert (inner.x_lo, inner.x_hi) == (0, hi - lo)
    np.testing.assert_array_equal(y, [[3 * lo + 4 * hi, -5 * lo + hi]])
