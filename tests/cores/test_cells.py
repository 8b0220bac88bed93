import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxsim.core import Dot, Op
from jaxsim.cores import cells
from jaxsim.cores.cells import held
from jaxsim.cores.mapping import differential, offset
from jaxsim.cores.quantized import quantized
from jaxsim.cores.sliced import sliced
from jaxsim.numerics import Grid
from tests import sites

K, N, ALPHA = 400, 500, 0.01
SQUARE = Dot((1,), (), (0,), (), 2, (K, N))
KEY = jax.random.key(5)
CODES = (quantized, {"weights": Grid(8), "inputs": None})


def weights():
    """Uniform weights in [-1, 1], on the grid."""
    w = np.random.default_rng(0).integers(-127, 127, (K, N), endpoint=True)
    w[0, 0] = 127
    return (w / 127).astype(np.float32)


def effective(mapping, device, w):
    """The weights that the cells really hold, seen by unit inputs."""
    unit = np.eye(K, dtype=np.float32)
    return np.asarray(
        sites.read([CODES, *mapping, (held, {"device": device})], SQUARE, unit, w, KEY)
    )


def laws(kind, mapping, w, gmin):
    """The standard deviation of a weight, of a largest weight of one (analog.md, 4.4)."""
    gr = 1 - gmin
    if kind is cells.independent:
        return np.full_like(w, (np.sqrt(2) if mapping is differential else 2) * ALPHA / gr)
    if mapping is differential:
        return ALPHA / gr * np.sqrt((gmin + gr * np.abs(w)) ** 2 + gmin**2)
    return 2 * ALPHA / gr * (gmin + gr * (w + 1) / 2)


@pytest.mark.parametrize("on_off", [None, 10.0])
@pytest.mark.parametrize("mapping", [differential, offset])
@pytest.mark.parametrize("kind", [cells.independent, cells.proportional])
def test_weight_errors_follow_their_law_at_every_weight(kind, mapping, on_off):
    w = weights()
    error = effective([mapping], kind(ALPHA, on_off=on_off), w) - w
    law = laws(kind, mapping, w, 0.0 if on_off is None else 1 / on_off)
    for lo in np.arange(-1, 1, 0.25):
        # a weight that a cell holds as nothing has no error at all
        there = (w >= lo) & (w < lo + 0.25) & (law > 1e-4)
        scaled = error[there] / law[there]
        assert there.sum() > 20_000
        assert np.std(scaled) == pytest.approx(1, rel=0.03)
        assert abs(np.mean(scaled)) < 0.03


def test_slices_divide_the_error_by_what_their_digits_carry():
    """Digits of 2 bits with a top slice of one: 3·1, 3·4, 3·16 and 1·64 of 127."""
    w = weights()
    error = effective([(sliced, {"bits": 2}), differential], cells.independent(ALPHA), w) - w
    law = np.sqrt(2) * ALPHA * np.sqrt(3**2 + 12**2 + 48**2 + 64**2) / 127
    assert np.std(error) == pytest.approx(law, rel=0.03)


@pytest.mark.parametrize(
    "mapping", [[differential], [offset], [(sliced, {"bits": 3}), differential]]
)
@pytest.mark.parametrize("on_off", [None, 3.0])
def test_perfect_cells_hold_the_codes(mapping, on_off):
    w = weights()
    held_weights = effective(mapping, cells.independent(0.0, on_off=on_off), w)
    np.testing.assert_allclose(held_weights, w, atol=5e-6)


def test_conductances_lie_between_the_smallest_and_the_largest():
    device = cells.Device(lambda g, key: g, on_off=4.0)
    x, w = sites.operands(sites.DENSE)
    state = sites.deployed(
        [CODES, differential, (held, {"device": device})], sites.DENSE, x, w, KEY
    )
    assert state.inner.min() == 0.25
    assert state.inner.max() == 1


def test_gradients_of_inputs_are_the_noisy_weights_transposed():
    x, w = sites.operands(sites.DENSE)
    pieces = [CODES, differential, (held, {"device": cells.proportional(0.3, on_off=5.0)})]

    def read(x):
        return sites.read(pieces, sites.DENSE, x, w, KEY, integer=False)

    noisy = np.asarray(read(np.eye(20, dtype=np.float32)))
    pull = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    gradient = jax.grad(lambda x: (read(x) * pull).sum())(jnp.asarray(x))
    np.testing.assert_allclose(gradient, pull @ noisy.T, rtol=1e-4, atol=1e-4)
    assert np.abs(noisy - w).max() > 0.1
    # nothing is rounded on the way of the inputs, so differences agree with the derivative too
    check_grads(read, (jnp.asarray(x),), order=1, modes=["rev"], rtol=0.02)


def test_cells_hold_no_sign_and_no_floats():
    core = sites.core_of((held, {"device": cells.independent(0.1)}))
    w = np.ones((20, 6), np.float32)
    for op in (Op(sites.DENSE), Op(sites.DENSE).codes(-1, 1)):
        with pytest.raises(ValueError, match="differential or offset"):
            core.write(op, w, KEY)
    with pytest.raises(ValueError, match="key=None"):
        core.write(Op(sites.DENSE).codes(0, 1), w, None)


def test_devices_print_what_they_are():
    assert str(cells.independent(0.1)) == "independent"
    assert str(cells.proportional(0.1, on_off=10)) == "proportional, on/off 10"
