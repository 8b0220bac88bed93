"""Cuts, their sizes and the work between them, counted by hand on networks small enough for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsim as js
from jaxsim.network.cuts import (
    Cut,
    _bytes,
    balance_blocks,
    blocks,
    candidate_cuts,
    cuts,
    equations,
    flops,
    select_cuts,
    sizes,
    without_device,
)
from tests.support.models import normal


def line_of(fn, params, *args):
    net = js.trace(fn, params, *args)
    return equations(net, net.example)


def branched(p, x):
    """[2, 3] → [2, 4] → [2, 5] beside [2, 5], their sum → [2, 2]."""
    a = jnp.tanh(x @ p["w1"])
    b = jnp.tanh(a @ p["w2"])
    return (b + a @ p["w3"]) @ p["w4"]


BRANCHED = {
    "w1": normal(3, 4),
    "w2": normal(4, 5, seed=1),
    "w3": normal(4, 5, seed=2),
    "w4": normal(5, 2, seed=3),
}
DOT, TANH = 2, 1


def test_cuts_lie_where_least_crosses_and_as_late_as_they_can():
    """Before w2 the tanh of 2 · 4 floats; before w3 that and 2 · 5 more; before w4 their sum."""
    found = cuts(line_of(branched, BRANCHED, normal(2, 3)))
    assert found == (
        Cut("w2", 2, 1, 32, minimal=True),
        Cut("w3", 4, 2, 72, minimal=False),
        Cut("w4", 6, 1, 40, minimal=True),
    )


def test_experts_are_one_equation_and_count_what_the_model_multiplies():
    """[4, 3] by one of two [3, 5] a row, then [5, 2]: neither is counted for each expert."""

    def fn(p, x, sizes, ids):
        h = lax.ragged_dot(x, p["up"], sizes)
        return jnp.einsum("td,tdf->tf", h, p["down"][ids])

    params = {"up": normal(2, 3, 5), "down": normal(2, 5, 2)}
    line = line_of(fn, params, normal(4, 3), jnp.array([1, 3]), jnp.array([0, 1, 1, 0]))
    assert [cut.name for cut in cuts(line)] == ["down"]
    products = [count for count in flops(line) if count > 2 * 4 * 2]
    assert products == [2 * 4 * 3 * 5, 2 * 4 * 5 * 2]


def test_arguments_that_are_needed_later_cross_a_cut():
    """A second input, of 2 · 4 bfloat16, is read behind the first cut and not behind the second."""

    def fn(p, x, y):
        return ((x @ p["w1"] + y) @ p["w2"]) @ p["w3"]

    params = {"w1": normal(3, 4), "w2": normal(4, 4), "w3": normal(4, 2)}
    line = line_of(fn, params, normal(2, 3), normal(2, 4).astype(jnp.bfloat16))
    # y is cast beside the sum: before that 32 bytes and 16 cross, after it 32 alone
    found = {cut.name: cut for cut in cuts(line)}
    assert [found[name][2:] for name in ("w2", "w3")] == [(1, 32, True), (1, 32, True)]


def test_work_and_bytes_of_each_equation_by_hand():
    line = line_of(branched, BRANCHED, normal(2, 3))
    # dot w1, tanh, dot w2, tanh, dot w3, add, dot w4
    assert flops(line) == [2 * 2 * 4 * 3, 8, 2 * 2 * 5 * 4, 10, 2 * 2 * 5 * 4, 10, 2 * 2 * 2 * 5]
    written = [32, 32, 40, 40, 40, 40, 16]
    read = [3 * 4, 0, 4 * 5, 0, 4 * 5, 0, 5 * 2]
    assert sizes(line) == [a + 4 * b for a, b in zip(written, read, strict=True)]
    places = cuts(line)
    assert blocks(places, flops(line)) == [56, 90, 90, 40]
    assert blocks(places[:1], flops(line)) == [56, 220]
    assert blocks([], flops(line)) == [276]


def test_a_parameter_is_counted_where_it_is_first_read_and_through_what_is_made_of_it():
    """w of 4 · 4 floats by way of a cast and a product with a scale of 4; the second time free."""

    def fn(p, x):
        w = (p["w"] * p["scale"]).astype(jnp.bfloat16).astype(jnp.float32)
        return (x @ w) @ w

    line = line_of(fn, {"w": normal(4, 4), "scale": normal(4)}, normal(2, 4))
    assert sizes(line) == [32 + 4 * (16 + 4), 32]


def work(fn, *args, params=None):
    params = {"w": normal(3, 5)} if params is None else params
    return flops(line_of(lambda p, *a: (fn(p, *a), a[0] @ p["w"]), params, *args))


def test_work_of_each_kind_of_equation_by_hand():
    x, y = normal(2, 3), normal(2, 3)
    product = 2 * 2 * 5 * 3
    cases = {
        "elementwise": (lambda p, x: jnp.exp(x), [6]),
        "a sum reads its operand": (lambda p, x: x.sum(1), [6]),
        "so does a search": (lambda p, x: jnp.argmax(x, 1), [6]),
        "a layout is free": (lambda p, x: lax.reshape(x, (3, 2)), [0]),
        "a transpose is free": (lambda p, x: x.T, [0]),
        "a stack is free": (lambda p, x: jnp.stack([x, x], 1), [0]),
        "what takes one apart is free": (lambda p, x: jnp.unstack(x, axis=1), [0]),
        "a repetition is free": (lambda p, x: jnp.tile(x, (1, 2)), [0]),
    }
    for name, (fn, expected) in cases.items():
        assert work(fn, x) == [*expected, product], name
    assert work(lambda p, x, y: x * y, x, y) == [6, product]


def test_loops_multiply_and_branches_take_the_largest():
    x, product = normal(2, 3), 2 * 2 * 5 * 3

    def scanned(p, x):
        return lax.scan(lambda c, _: (jnp.tanh(c) * c, None), x, None, length=7)[0]

    def branch(p, x):
        few, many = (lambda x: x + 1), (lambda x: jnp.tanh(jnp.sin(x)))
        return lax.cond(x[0, 0] > 0, many, few, x)

    assert work(scanned, x) == [7 * (6 + 6), product]
    *before, chosen, last = work(branch, x)
    assert (chosen, last) == (6 + 6, product)
    assert all(amount <= 1 for amount in before)


def test_a_grouped_convolution_works_in_its_groups():
    """2 · 3 · 6 · 8 outputs, each of 3 · 2 taps of 3 of the 6 features."""
    kernel, x = normal(3, 2, 3, 8), normal(2, 5, 7, 6)

    def fn(k, x):
        dims = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, k, (1, 1), "VALID", dimension_numbers=dims, feature_group_count=2
        )

    assert flops(line_of(fn, kernel, x)) == [2 * (2 * 3 * 6 * 8) * (3 * 2 * 3)]


def places(*counts):
    """Cuts that so many activations cross, the minimal ones by definition."""
    found = []
    for i, count in enumerate(counts):
        left = [c for c in reversed(counts[:i]) if c != count][:1]
        right = [c for c in counts[i + 1 :] if c != count][:1]
        minimal = all(c > count for c in left + right)
        found.append(Cut(str(i), i + 1, count, 4 * count, minimal))
    return tuple(found)


def test_minimal_cuts_are_taken_while_they_are_enough():
    some = places(1, 2, 1, 3, 2)
    minimal = tuple(cut for cut in some if cut.minimal)
    assert [cut.name for cut in minimal] == ["0", "2", "4"]
    for stages, expected in ((1, minimal), (4, minimal), (5, some), (6, some)):
        assert candidate_cuts(some, stages) == expected
    with pytest.raises(ValueError, match="stages=7: the network has 5 cuts, for at most 6 stages"):
        candidate_cuts(some, 7)


def test_runs_of_equal_counts_are_minimal_together():
    """A chain has 2 live everywhere; the run of threes lies above, that of ones below."""

    def fn(p, x):
        y = jnp.tanh(x @ p[0])
        z = jnp.tanh(y @ p[1])
        z = jnp.tanh(z @ p[2]) + y
        z = jnp.tanh(z @ p[3])
        return z @ p[4]

    found = cuts(line_of(fn, [normal(4, 4, seed=i) for i in range(5)], normal(2, 4)))
    assert [cut.live for cut in found] == [1, 2, 1, 1]
    assert [cut.minimal for cut in found] == [True, False, True, True]


def test_cuts_are_selected_by_name_in_order_of_execution():
    some = places(1, 2, 3)
    assert select_cuts(some, ["2", "0"]) == (some[0], some[2])
    assert select_cuts(some, []) == ()
    with pytest.raises(ValueError, match=r"at=\['0', 'x'\]: no cut at x; .* begin at: 0, 1, 2"):
        select_cuts(some, ["0", "x"], argument="at")
    with pytest.raises(ValueError, match=r"balance=\['0', '0'\]: names a cut twice"):
        select_cuts(some, ["0", "0"])
    with pytest.raises(ValueError, match="begin at: none"):
        select_cuts([], ["0"])


def test_blocks_are_balanced_by_the_largest_stage_and_then_the_variance():
    """7 | 2 3 | 5 4 and 7 2 | 3 5 | 4 have 9 at most; their squares are 155 and 161."""
    assert balance_blocks([7, 2, 3, 5, 4], 3) == (1, 3)
    assert balance_blocks([7, 2, 3, 5, 4], 1) == ()
    assert balance_blocks([7, 2, 3, 5, 4], 5) == (1, 2, 3, 4)
    # no stage above 8 is needed: 8 | 1 1 | 6 has the smallest variance of those
    assert balance_blocks([8, 1, 1, 6], 3) == (1, 3)


def test_what_no_output_needs_neither_crosses_nor_costs():
    def fn(p, x):
        y = x @ p["w1"]
        jnp.sin(y) @ p["w2"]  # dropped
        return y @ p["w3"]

    params = {name: normal(4, 4, seed=i) for i, name in enumerate(("w1", "w2", "w3"))}
    line = line_of(fn, params, normal(2, 4))
    assert flops(line) == [2 * 2 * 4 * 4] * 2
    assert [cut.name for cut in cuts(line)] == ["w3"]


def test_calls_are_inlined_with_their_constants():
    table = np.arange(8.0, dtype=np.float32).reshape(2, 4)
    layer = jax.jit(lambda w, x: x @ w + table)
    net = js.trace(
        lambda p, x: layer(p[1], layer(p[0], x)),
        [normal(4, 4), normal(4, 4, seed=1)],
        normal(2, 4),
    )
    line = equations(net, net.example)
    names = [line.plan.jaxpr.eqns[i].primitive.name for i in line.active]
    assert names == ["dot_general", "add"] * 2
    assert [cut.name for cut in cuts(line)] == ["1"]


def test_what_acts_is_run_though_nothing_needs_it():
    """A callback of the input, and one of the parameters alone."""

    def fn(p, x):
        jax.debug.callback(lambda *_: None, x)
        jax.debug.callback(lambda *_: None, p["w"])
        return x @ p["w"]

    line = line_of(fn, {"w": normal(4, 4)}, normal(2, 4))
    names = [line.plan.jaxpr.eqns[i].primitive.name for i in line.active]
    assert names == ["debug_callback", "debug_callback", "dot_general"]


def test_a_key_counts_eight_bytes_and_stays_on_its_device():
    jaxpr = jax.make_jaxpr(lambda key, x, y: (key, x, y))(
        jax.random.split(jax.random.key(0), 3), normal(2, 3), jnp.ones(5, jnp.bfloat16)
    )
    assert [_bytes(v) for v in jaxpr.jaxpr.invars] == [3 * 8, 2 * 3 * 4, 5 * 2]
    key = jax.random.key(0)
    assert without_device(key) is key
    assert isinstance(without_device(jnp.ones(2)), np.ndarray)


def test_a_scan_is_a_place_and_so_is_each_of_its_slices():
    def fn(p, x):
        x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x @ p["first"], p["stack"])[0]
        return (x @ x.T) @ p["last"]

    params = {"first": normal(3, 4), "stack": normal(5, 4, 4), "last": normal(2, 6)}
    found = cuts(line_of(fn, params, normal(2, 3)))
    slices = [f"stack[{i}]" for i in range(1, 5)]
    assert [cut.name for cut in found] == ["stack", *slices, "last"]  # none before two activations
