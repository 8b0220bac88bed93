import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.network.cost import Cost, SiteCost
from tests.support import models
from tests.support.networks import DEEP_SITES as SITES
from tests.support.networks import attention, stack
from tests.support.networks import deep_cnn as cnn
from tests.support.printed import header, rows
from tests.support.scans import MATMUL, RUNS, grouped_scan, reused

# by hand, for 8 images of 6×6×3: outputs of each layer, and products in each output
OUTPUTS = [8 * 6 * 6 * 4, 8 * 3 * 3 * 6, 8 * 8, 8 * 3]
DEPTH = [3 * 3 * 3, 3 * 3 * 4, 6, 8]
WEIGHTS = [3 * 3 * 3 * 4, 3 * 3 * 4 * 6, 6 * 8, 8 * 3]
BIASES = 4 + 6 + 8 + 3


def column(cost, what):
    assert [site.name for site in cost.sites] == list(SITES)
    return [site.spent.get(what, 0) for site in cost.sites]


def test_a_float_network_costs_what_the_hand_counts():
    cost = cnn().cost()
    macs = [o * d for o, d in zip(OUTPUTS, DEPTH, strict=True)]
    assert column(cost, "macs") == macs
    assert column(cost, "cells") == WEIGHTS
    assert column(cost, "weight_bits") == [32 * n for n in WEIGHTS]
    assert [site.params for site in cost.sites] == WEIGHTS
    assert cost.params == sum(WEIGHTS) + BIASES
    assert cost.total("macs") == sum(macs) == sum(site.macs for site in cnn().sites)
    assert cost.total("conversions") == 0


def test_costs_follow_the_inputs_given():
    x = np.zeros((16, 6, 6, 3), np.float32)
    assert cnn().cost(x).total("macs") == 2 * cnn().cost().total("macs")
    assert cnn().cost(x).total("cells") == cnn().cost().total("cells")


def test_codes_are_stored_in_their_bits():
    cost = js.quantize(5, 8)(cnn()).cost()
    assert column(cost, "weight_bits") == [5 * n for n in WEIGHTS]
    assert column(cost, "macs") == column(cnn().cost(), "macs")


@pytest.mark.parametrize("mapping", ["differential", "offset"])
def test_a_sliced_tiled_chip_costs_what_the_hand_counts(mapping):
    """7 magnitude bits (8 when offset) in cells of 2; tiles of at most 16 rows, of equal height."""
    analog = js.analog(adc=8, mapping=mapping, rows=16)
    cost = js.compose(js.quantize(), js.slice_bits(2), analog)(cnn()).cost()
    signs, slices = (2, 4) if mapping == "differential" else (1, 4)
    tiles = [2, 3, 1, 1]  # of 27, 36, 6 and 8 rows
    rows = [14, 12, 6, 8]
    features = [4, 6, 8, 3]
    cells = [signs * slices * t * r * f for t, r, f in zip(tiles, rows, features, strict=True)]
    assert column(cost, "cells") == cells
    bits = (2 + 2 + 2 + 1) / 4 if mapping == "differential" else 2
    assert column(cost, "weight_bits") == [bits * n for n in cells]
    assert column(cost, "conversions") == [
        o * slices * t for o, t in zip(OUTPUTS, tiles, strict=True)
    ]
    products = [o * t * r for o, t, r in zip(OUTPUTS, tiles, rows, strict=True)]
    assert column(cost, "macs") == [signs * slices * n for n in products]


def test_pruned_weights_are_counted_out():
    cost = js.prune(0.5, distribution=js.sparsity.uniform())(cnn()).cost()
    assert [site.nonzero for site in cost.sites] == [n // 2 for n in WEIGHTS]
    assert cost.nonzero == sum(WEIGHTS) // 2 + BIASES


def test_scans_multiply_what_runs_and_what_is_stacked():
    cost = js.compose(js.quantize(), js.analog(adc=8))(stack()).cost()
    w, head = cost.sites
    assert w.params == 3 * 16
    assert w.spent["cells"] == 3 * 16 * 2
    assert w.spent["macs"] == 3 * (5 * 4 * 4) * 2
    assert w.spent["conversions"] == 3 * 5 * 4
    assert head.spent["conversions"] == 5 * 2


def test_a_weight_that_a_scan_reuses_is_stored_once():
    case = models.CASES["rnn, params in consts"]()
    cost = js.trace(case.model, case.variables, *case.args).cost()
    assert [site.spent["cells"] for site in cost.sites] == [16, 16]
    assert [site.spent["macs"] for site in cost.sites] == [5 * 2 * 4 * 4] * 2


def test_a_weight_used_twice_is_one_parameter():
    case = models.CASES["shared jit"]()
    cost = js.trace(case.model, case.variables, *case.args).cost()
    assert [site.params for site in cost.sites] == [16, 16, 0]
    assert cost.params == 32


def test_products_of_activations_store_nothing():
    sites = {site.name: site for site in attention().cost().sites}
    assert "cells" not in sites["dynamic/0"].spent or sites["dynamic/0"].spent["cells"] == 0
    assert sites["dynamic/0"].spent["macs"] == 2 * 5 * 5 * 4


def test_a_deployed_chip_costs_what_its_network_did():
    net = js.compose(js.quantize(8, js.Grid(8, dynamic=True)), js.analog())(stack())
    assert js.deploy(net).cost() == net.cost()


def counting(core, *, price):
    """A user's core that meters something of its own."""

    def read(op, state, x, key):
        op.count("energy", price * op.depth)
        return core.read(op, state, x, key)

    return core._replace(read=read)


def test_a_users_core_counts_what_it_likes():
    cost = js.wrap(counting, price=2.0)(stack()).cost()
    assert cost.total("energy") == 3 * 2 * 4 + 2 * 4


def integers(core):
    """A core that counts where it works with codes as a chip does."""

    def write(op, w, key):
        op.count("written", 1 + op.integer)
        return core.write(op, w, key)

    def read(op, state, x, key):
        op.count("read", 1 + op.integer)
        return core.read(op, state, x, key)

    return core._replace(write=write, read=read)


def test_a_cost_is_that_of_the_chip_whose_codes_are_integers():
    """Three slices are written and read once each, and one head."""
    cost = js.wrap(integers)(stack()).cost()
    assert [site.spent["written"] for site in cost.sites] == [3 * 2, 2]
    assert [site.spent["read"] for site in cost.sites] == [3 * 2, 2]


def test_costs_print_by_site():
    shown = str(js.compose(js.prune(0.5), js.quantize(), js.analog(adc=8))(cnn()).cost())
    assert all(name in shown for name in (*SITES, "conversions", "weight bits"))


def test_pruned_networks_print_and_cost_inside_jit():
    seen = []

    @jax.jit
    def traced(sparsity):
        net = js.prune(sparsity)(cnn())
        seen.append((str(net), net.cost().nonzero))
        return sparsity

    traced(0.5)
    ((shown, nonzero),) = seen
    assert "traced" in shown
    assert nonzero == sum(WEIGHTS) + BIASES


def test_a_grouped_convolution_in_a_scan_counts_every_group_and_run():
    """Nine products [26, 22] @ [22, 11] in each of five runs; weights of 6 bits."""
    (site,) = js.quantize(6, 8)(grouped_scan()).cost().sites
    assert (site.matmul, site.runs) == (MATMUL, RUNS)
    assert site.params == site.nonzero == 5 * 9 * 22 * 11
    assert site.spent["macs"] == 5 * 9 * 26 * 22 * 11
    assert site.spent["cells"] == 5 * 9 * 22 * 11
    assert site.spent["weight_bits"] == 5 * 9 * 22 * 11 * 6


def test_a_weight_read_three_times_counts_its_products_and_not_its_cells_three_times():
    (site,) = reused().cost().sites
    assert (site.matmul, site.runs) == ((1, 5, 4, 4), 3)
    assert site.spent == {"macs": 3 * 5 * 4 * 4, "cells": 16, "weight_bits": 16 * 32}


def test_products_of_heads_are_a_product_each():
    """Scores of two rows: two products [5, 4] @ [4, 5], and [5, 5] @ [5, 4] with the values."""
    sites = {site.name: site for site in attention().cost().sites}
    assert sites["dynamic/0"].matmul == (2, 5, 4, 5)
    assert sites["dynamic/1"].matmul == (2, 5, 5, 4)


def test_an_empty_batch_still_says_what_a_product_is():
    (site,) = reused().cost(np.zeros((0, 4), np.float32)).sites
    assert site.matmul == (1, 0, 4, 4)
    assert site.spent["macs"] == 0


def test_the_printed_cost_says_each_count_of_each_site():
    """Counts in order of first appearance, none where a core does not make them."""
    sites = (
        SiteCost("a", 2, 3, {"macs": 5, "weight_bits": 7}, (1, 1, 1, 1), 1),
        SiteCost("b", 1100, 13, {"weight_bits": 17, "conversions": 19}, (1, 1, 1, 1), 1),
    )
    cost = Cost(sites, params=23, nonzero=29)
    assert header(cost) == ["site", "params", "nonzero", "macs", "weight bits", "conversions"]
    assert rows(cost) == [["a", "2", "3", "5", "7", "0"], ["b", "1.1 k", "13", "0", "17", "19"]]
    assert (cost.total("macs"), cost.total("weight_bits"), cost.total("sparks")) == (5, 24, 0)


def grouped(p, x):
    """[2, 5, 7, 6] with 3 × 2 taps of 3 features each, in two groups of 4 outputs: [2, 3, 6, 8]."""
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, p["w"], (1, 1), "VALID", dimension_numbers=dims, feature_group_count=2
    )


def experts(p, x):
    return jnp.einsum("ebd,edf->ebf", x, p["w"])


def nested(p, x):
    """Three weights in a scan, each used twice in another."""

    def inner(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=2)[0]

    return jax.lax.scan(lambda x, w: (inner(x, w), None), x, p["w"])[0]


BY_HAND = {
    # (B, M, K, N), runs, copies of the weight, and the weight's entries
    "grouped": (grouped, (3, 2, 3, 8), (2, 5, 7, 6), (2, 2 * 3 * 6, 18, 4), 1, 1),
    "depthwise": (
        lambda p, x: jax.lax.conv_general_dilated(
            x,
            p["w"],
            (2, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=5,
        ),
        (3, 2, 1, 15),
        (2, 7, 4, 5),
        (5, 2 * 3 * 3, 6, 3),
        1,
        1,
    ),
    "experts": (experts, (3, 7, 5), (3, 11, 7), (3, 11, 7, 5), 1, 1),
    "nested scans": (nested, (3, 4, 4), (5, 4), (1, 5, 4, 4), 6, 3),
}


@functools.cache
def by_hand(name):
    fn, w_shape, x_shape, *_ = BY_HAND[name]
    return js.trace(fn, {"w": models.normal(*w_shape)}, models.normal(*x_shape))


@pytest.mark.parametrize("name", BY_HAND)
def test_a_site_is_so_many_products_of_such_sizes(name):
    """Groups, batch dimensions and loops each by their own factor."""
    _, w_shape, _, (B, M, K, N), runs, copies = BY_HAND[name]
    (site,) = by_hand(name).cost().sites
    assert site.matmul == (B, M, K, N)
    assert site.runs == runs
    assert site.params == np.prod(w_shape) == copies * B * K * N
    assert site.spent["macs"] == runs * B * M * K * N
    assert site.spent["cells"] == copies * B * K * N
    assert site.spent["weight_bits"] == 32 * copies * B * K * N


@pytest.mark.parametrize("name", BY_HAND)
def test_a_sliced_pair_of_arrays_multiplies_each_factor_by_planes_and_tiles(name):
    """Two signs, 7 bits of magnitude in cells of 3 (3, 3 and 1), arrays of at most 5 rows."""
    _, _, _, (B, M, K, N), runs, copies = BY_HAND[name]
    signs, slices, tiles = 2, 3, -(-K // 5)
    rows = -(-K // tiles)
    chip = js.compose(js.quantize(), js.slice_bits(3), js.analog(adc=6, rows=5))(by_hand(name))
    (site,) = chip.cost().sites
    assert site.spent["cells"] == copies * B * tiles * rows * N * signs * slices
    assert site.spent["macs"] == runs * B * M * tiles * rows * N * signs * slices
    assert site.spent["conversions"] == runs * B * M * tiles * N * slices
    assert site.spent["conversion_steps"] == 2**6 * site.spent["conversions"]
    assert site.spent["weight_bits"] == pytest.approx(site.spent["cells"] * (3 + 3 + 1) / 3)


def test_a_stack_of_masks_is_counted_over_all_its_slices():
    net = js.prune(0.25, distribution=js.sparsity.uniform())(by_hand("nested scans"))
    cost = net.cost()
    assert cost.sites[0].nonzero == cost.nonzero == 36
    assert cost.params == 48


def test_later_uses_of_a_parameter_cost_no_parameters_and_lose_none():
    def fn(p, x):
        return jnp.tanh(x @ p["w"]) @ p["w"] + p["b"]

    net = js.trace(fn, {"w": models.normal(4, 4), "b": models.normal(4)}, models.normal(3, 4))
    cost = js.prune(0.5, distribution=js.sparsity.uniform())(net).cost()
    assert [(s.name, s.params, s.nonzero) for s in cost.sites] == [("w", 16, 8), ("w#2", 0, 0)]
    assert (cost.params, cost.nonzero) == (20, 12)


def test_a_printed_cost_has_a_row_a_site_with_each_count_once():
    lines = str(js.quantize(5, 8)(by_hand("grouped")).cost()).splitlines()
    (row,) = [line for line in lines if line.lstrip("│ ").startswith("w ")]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    # parameters, those left, bits, cells, multiply-accumulates: 2 · 36 · 18 · 4
    assert cells == ["w", "144", "144", "720", "144", "5.18 k"]


def test_short_floats_are_stored_in_their_width_and_read_in_as_many_products():
    cost = js.quantize(js.Floating("float8_e4m3fn"), None)(by_hand("grouped")).cost()
    (site,) = cost.sites
    assert site.spent == {"weight_bits": 8 * 144, "cells": 144, "macs": 2 * 36 * 18 * 4}
