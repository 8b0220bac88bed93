import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.bit_sliced import bit_sliced
from jaxsim.cores.quantized import quantized
from tests.support.networks import X, answer, cnn


@pytest.mark.parametrize("bits", [1, 3, 7])
def test_a_sliced_network_computes_the_same_bits(bits):
    plain = js.quantize(8, 8)(cnn())
    net = js.slice_bits(bits)(plain)
    y, expected = (answer(n, X) for n in (net, plain))
    np.testing.assert_array_equal(y, expected)


def test_slices_come_inside_the_codes_of_the_chosen_sites():
    net = js.compose(js.quantize(), js.slice_bits(2, sites="Conv*"))(cnn())
    makers = {name: [w.factory for w in chain] for name, chain in net.cores.items()}
    assert makers["Conv_0/kernel"] == [quantized, bit_sliced]
    assert makers["Dense_0/kernel"] == [quantized]
