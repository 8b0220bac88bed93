import numpy as np
import pytest

from jaxsim.cores.bit_sliced import bit_sliced
from jaxsim.cores.mapping import differential
from jaxsim.cores.op import Op
from jaxsim.formats.grid import Grid
from tests.oracles import crossbar, quantiser
from tests.support import sites


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("width", [2, 5, 8])
def test_slices_are_the_digits_of_sign_and_magnitude(bits, width):
    x, w = sites.operands(sites.DENSE)
    state = sites.deployed([sites.quantize(width), (bit_sliced, {"bits": bits})], sites.DENSE, x, w)
    codes, _, _ = quantiser.quantise(Grid(width), w, (0,))
    np.testing.assert_array_equal(state.inner, crossbar.digits(codes, bits, width - 1))
    assert state.inner.dtype == np.int8


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
