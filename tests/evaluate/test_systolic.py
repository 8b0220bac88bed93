import dataclasses

import pytest

import jaxsim as js
from jaxsim.cores.tiled import tiled
from jaxsim.cores.wrapper import Wrapper
from tests.support.networks import SITES, attention, cnn, stack

ARRAY = js.Hardware(rows=4, columns=8, weight_loads=1)
MULTIPLY, ADD, SRAM, DRAM = 0.2 / 64, 0.1 / 32, 20 / 64, 1300 / 64
# by hand, for 8 images of 6×6×3: rows, depth and columns of each layer's matrix product
SIZES = [(8 * 6 * 6, 27, 4), (8 * 3 * 3, 36, 6), (8, 6, 8), (8, 8, 3)]


def eight(net=None):
    return js.quantize(8, 8)(cnn() if net is None else net)


def test_plain_codes_are_the_baseline():
    estimate = ARRAY.estimate(eight())
    assert estimate.names == SITES
    assert estimate.spent == estimate.baseline
    assert estimate.energy_gain == estimate.speed_gain == estimate.traffic_gain == 1


def test_the_baseline_spends_what_the_hand_counts():
    for (M, K, N), spent in zip(SIZES, ARRAY.estimate(eight()).spent, strict=True):
        macs, row_tiles, column_tiles = M * K * N, -(-M // 4), 1
        moved = 8 * (M * K * column_tiles + K * N * row_tiles + M * N)
        assert spent.multiply == pytest.approx(0.2 * macs)
        assert spent.add == pytest.approx(0.1 * macs)
        assert spent.shift == 0
        assert spent.bits == moved
        assert spent.sram == pytest.approx(SRAM * moved)
        assert spent.dram == pytest.approx(DRAM * 8 * K * N)
        assert spent.cycles == row_tiles * column_tiles * K


@pytest.mark.parametrize(
    ("transform", "products", "width", "bits", "shifted", "multipliers"),
    [
        (js.block(4, 1, 1), 1, 4, (6, 6), True, 4),
        (js.block(4, 2, 1, "static"), 2, 4, (8, 4), False, 4),
        (js.block(3, 2, 2, rounding="unbiased"), 4, 4, (8, 8), True, 4),
        (js.block(3, 2, 2), 4, 3, (8, 8), True, 7),
        (js.block(2, 2, 3, ("dynamic", "static")), 6, 2, (7, 6), True, 16),
        (js.block(4, mode="static", pairs=[(0, 1), (1, 0), (1, 1)]), 3, 4, (8, 8), False, 4),
    ],
)
def test_blocks_spend_what_the_hand_counts(transform, products, width, bits, shifted, multipliers):
    estimate = ARRAY.estimate(transform(eight()))
    for (M, K, N), spent in zip(SIZES, estimate.spent, strict=True):
        macs, row_tiles = M * K * N, -(-M // 4)
        x_moved, w_moved = bits[0] * M * K, bits[1] * K * N * row_tiles
        assert spent.multiply == pytest.approx(MULTIPLY * width**2 * products * macs)
        assert spent.add == pytest.approx((0.1 + ADD * 2 * width * (products - 1)) * macs)
        assert spent.shift == pytest.approx(ADD * (16 * macs * shifted + 8 * M * N))
        assert spent.bits == x_moved + w_moved + 8 * M * N
        computing = row_tiles * K * products / multipliers
        assert spent.cycles == pytest.approx(max(computing, (x_moved + w_moved) / (8 * 12)))
        assert spent.dram == pytest.approx(DRAM * bits[1] * K * N)
    assert estimate.energy == pytest.approx(sum(s.energy for s in estimate.spent))


def test_pruned_blocks_are_gated_and_not_stored():
    """Half the energy of multiplying, all the cycles, and a bit a weight to say which."""
    dense = eight()
    sparse = js.compose(js.prune(0.5, distribution=js.sparsity.uniform()), js.quantize(8, 8))(cnn())
    wide = dataclasses.replace(ARRAY, port=1e6)  # cycles are those of multiplying alone
    for transform in (lambda net: net, js.block(3, 2, 2, "static")):
        full, half = (wide.estimate(transform(net)) for net in (dense, sparse))
        for a, b in zip(full.spent, half.spent, strict=True):
            assert b.multiply == pytest.approx(a.multiply / 2)
            assert b.add == pytest.approx(a.add / 2)
            assert b.cycles == a.cycles
            assert b.bits < a.bits
        assert half.baseline == full.baseline
    last = ARRAY.estimate(sparse).spent[-1]
    assert last.dram == pytest.approx(DRAM * 24 * (8 / 2 + 1))


def test_scans_run_as_often_as_they_do():
    (first, head) = ARRAY.estimate(eight(stack())).spent
    assert first.multiply == pytest.approx(0.2 * 3 * 5 * 4 * 4)
    assert first.cycles == 3 * 2 * 4
    assert head.multiply == pytest.approx(0.2 * 5 * 4 * 2)


def test_untouched_products_of_activations_are_left_out():
    assert ARRAY.estimate(eight(attention())).names == ("q", "k", "v")


def test_reports_say_that_they_are_a_model():
    shown = str(ARRAY.estimate(js.block(4, 1, 1)(eight())))
    assert "analytic model" in shown
    assert all(name in shown for name in SITES)


def test_the_arrays_weights_can_stay_on_chip():
    assert all(s.dram == 0 for s in js.Hardware().estimate(eight()).spent)


def test_what_the_array_cannot_hold_is_named():
    with pytest.raises(ValueError, match="Conv_0/kernel holds floats"):
        ARRAY.estimate(cnn())
    with pytest.raises(ValueError, match="floats for an operand"):
        ARRAY.estimate(js.quantize(8, None)(cnn()))
    with pytest.raises(ValueError, match="cannot hold bit_sliced"):
        ARRAY.estimate(js.slice_bits(2)(js.block(4)(eight())))
    with pytest.raises(ValueError, match="cannot hold tiled"):
        ARRAY.estimate(eight().wrap(SITES, Wrapper.of(tiled, rows=3)))


@pytest.mark.parametrize("name", ["rows", "columns", "accumulator", "shifter"])
def test_sizes_are_whole(name):
    with pytest.raises(ValueError, match=rf"{name}=0\.5: must be an int"):
        js.Hardware(**{name: 0.5})


@pytest.mark.parametrize("field", dataclasses.fields(js.Hardware), ids=lambda f: f.name)
def test_no_coefficient_is_negative_and_each_is_documented(field):
    with pytest.raises(ValueError, match=f"{field.name}=-1: must"):
        js.Hardware(**{field.name: -1})
    assert field.name in js.Hardware.__doc__
