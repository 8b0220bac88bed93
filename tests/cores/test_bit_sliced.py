import dataclasses

import jax
import numpy as np
import pytest

from jaxsim.cores.bit_sliced import bit_sliced
from jaxsim.cores.mapping import differential
from jaxsim.cores.op import Op
from jaxsim.formats.grid import Grid
from tests.oracles import crossbar, quantiser
from tests.support import sites


@pytest.mark.parametrize("width", [2, 5, 8])
def test_slices_are_the_digits_of_sign_and_magnitude(width):
    _, w = sites.operands(sites.DENSE)
    op = Op(sites.DENSE, integer=True, ranges="stored")

    @jax.jit
    def written(w):
        sliced = [(bit_sliced, {"bits": bits}) for bits in range(1, 8)]
        return [sites.core_of(sites.quantize(width), s).write(op, w, None).inner for s in sliced]

    codes, _, _ = quantiser.quantise(Grid(width), w, (0,))
    for bits, digits in enumerate(written(w), 1):
        np.testing.assert_array_equal(digits, crossbar.digits(codes, bits, width - 1))
        assert digits.dtype == np.int8


def test_digits_and_signs_are_planes_of_known_range():
    """7 magnitude bits in cells of 2: the top digit holds one."""
    seen = []

    def spy(core):
        return core._replace(
            write=lambda op, w, key: seen.append((op.w_lo, op.w_hi)) or core.write(op, w, key)
        )

    x, w = sites.operands(sites.DENSE)
    for outer, inner in (((bit_sliced, {"bits": 2}), spy), (differential, spy)):
        sites.read([sites.quantize(), outer, inner], sites.DENSE, x, w)
    (lo, hi), (minus, plus) = seen
    np.testing.assert_array_equal(hi, [3, 3, 3, 1])
    np.testing.assert_array_equal(lo, [-3, -3, -3, -1])
    np.testing.assert_array_equal(minus, [0, 0])
    np.testing.assert_array_equal(plus, [127, 127])


@pytest.mark.parametrize("wrapper", [(bit_sliced, {"bits": 2})])
def test_floats_have_no_digits(wrapper):
    core = sites.core_of(wrapper)
    with pytest.raises(ValueError, match="wrap it in quantized"):
        core.write(Op(sites.DENSE), np.ones((20, 6), np.float32), None)


@pytest.mark.parametrize(
    ("lo", "hi", "bits", "top", "expected"),
    [
        # 7 bits of magnitude in digits of 3: 7, 7 and a last one of a single bit
        (-127, 127, 3, "full_range", ([-7, -7, -1], [7, 7, 1])),
        (-127, 127, 3, "padded", ([-7, -7, -7], [7, 7, 7])),
        (-127, 127, 2, "padded", ([-3] * 4, [3] * 4)),
        # 5 = 101b and 20 = 10100b, whose last digits of two bits reach 1 and 1
        (0, 5, 2, "full_range", ([0, 0], [3, 1])),
        (0, 5, 2, "padded", ([0, 0], [3, 3])),
        (-20, 0, 2, "full_range", ([-3, -3, -1], [0, 0, 0])),
        (-20, 0, 2, "padded", ([-3, -3, -3], [0, 0, 0])),
        (-128, 127, 4, "full_range", ([-15, -8], [15, 8])),
        (-1, 1, 3, "full_range", ([-1], [1])),
        (-1, 1, 3, "padded", ([-7], [7])),
    ],
)
def test_digits_range_by_hand(lo, hi, bits, top, expected):
    found = digits_seen(np.asarray(lo), np.asarray(hi), bits, top)
    np.testing.assert_array_equal(found, expected)


def test_planes_of_different_codes_have_digits_of_their_own_range():
    """Codes up to 63 beside codes up to 3: a top digit of the second holds nothing, even padded."""
    for top in ("full_range", "padded"):
        lo, hi = digits_seen(np.array([0, -3]), np.array([63, 0]), 3, top)
        np.testing.assert_array_equal(hi, [[7, 0], [7, 0]])
        np.testing.assert_array_equal(lo, [[0, -3 if top == "full_range" else -7], [0, 0]])


def digits_seen(lo, hi, bits, top):
    """The ranges of the digits that an inner core is given."""
    seen = []

    def spy(core):
        return core._replace(write=lambda op, w, key: seen.append((op.w_lo, op.w_hi)))

    core = sites.core_of((bit_sliced, {"bits": bits, "top": top}), spy)
    core.write(Op(sites.DENSE).codes(lo, hi), np.zeros((*lo.shape, 20, 6), np.int8), None)
    return seen[0]


@pytest.mark.parametrize("missing", ["w_lo", "w_hi"])
def test_digits_need_both_ends_of_their_codes(missing):
    op = dataclasses.replace(Op(sites.DENSE).codes(-1, 1), **{missing: None})
    with pytest.raises(ValueError, match="wrap it in quantized"):
        sites.core_of((bit_sliced, {"bits": 2})).write(op, np.ones((20, 6), np.int8), None)
