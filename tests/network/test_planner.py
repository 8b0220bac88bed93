"""What a site is said to be: its names, loops, sources and readers, by models of a line or two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsim as js
from jaxsim.network.cuts import equations
from jaxsim.network.planner import trace_plan
from jaxsim.network.site import Site, matching_names
from tests.support.models import normal

X = normal(2, 4)


def traced(fn, params, *args):
    return js.trace(fn, params, *args)


def only(fn, params, *args):
    (site,) = traced(fn, params, *args).sites
    return site


def test_a_site_in_loops_knows_how_often_it_runs_and_what_is_stacked():
    """Scans of 3 and 5, of whose stack the weight is a slice, in whiles of unknown length and 2."""

    def fn(p, x):
        def middle(x, _):
            return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0], None

        def step(state):
            return state[0] + 1, lax.scan(middle, state[1], None, length=3)[0]

        _, x = lax.while_loop(lambda s: (s[0] < 2) & (s[1].sum() < 9), step, (0, x))
        return lax.while_loop(lambda s: s[0] < 2, step, (0, x))[1]

    for site, first in zip(traced(fn, {"w": normal(5, 4, 4)}, X).sites, (1, 2), strict=True):
        assert (site.lengths, site.stack) == ((first, 3, 5), (5,))
        assert site.stacked == (False, False, True)
    assert (site.w_shape, site.x_shape, site.macs) == ((4, 4), (2, 4), 2 * 4 * 4)


def test_a_stack_of_stacks_has_both_axes():
    def fn(p, x):
        def outer(x, ws):
            return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0], None

        return lax.scan(outer, x, p)[0]

    site = only(fn, normal(2, 3, 4, 4), X)
    assert (site.lengths, site.stacked, site.stack) == ((2, 3), (True, True), (2, 3))


def test_later_uses_of_a_weight_are_numbered_and_dynamic_ones_from_zero():
    def fn(p, x):
        y = (x @ p["w"]) @ p["w"] @ p["v"] @ p["w"]
        return (y @ y.T) @ (y @ y.T)

    net = traced(fn, {"w": normal(4, 4), "v": normal(4, 4, seed=1)}, X)
    names = [(s.name, s.param, s.kind) for s in net.sites]
    assert names == [
        ("w", "w", "dot"),
        ("w#2", "w", "dot"),
        ("v", "v", "dot"),
        ("w#3", "w", "dot"),
        ("dynamic/0", None, "dynamic"),
        ("dynamic/1", None, "dynamic"),
        ("dynamic/2", None, "dynamic"),
    ]


def test_a_weight_made_of_several_is_named_by_its_largest_and_has_them_all_for_sources():
    def fn(p, x):
        return x @ (p["small"] * p["large"] + p["bias"])

    site = only(fn, {"small": normal(4, 1), "large": normal(4, 5), "bias": normal(5)}, X)
    assert (site.name, site.sources) == ("large", ("bias", "large", "small"))


ZEROS = {
    # what of a weight's sources has its zeros where the weight has them
    "itself": (lambda p: p["w"], ("w",)),
    "moved": (lambda p: p["w"].T[::-1].reshape(4, 4), ("w",)),
    "scaled": (lambda p: p["w"] * p["s"], ("w",)),
    "divided": (lambda p: p["w"] / 3, ("w",)),
    "divided by what may be zero": (lambda p: p["w"] / p["s"], ()),
    "odd functions": (lambda p: -jnp.tanh(p["w"]), ("w",)),
    "cast": (lambda p: p["w"].astype(jnp.bfloat16).astype(jnp.float32), ("w",)),
    "cut": (lambda p: p["large"][:, :4], ("large",)),
    "joined": (lambda p: jnp.concatenate([p["w"][:2], p["v"][:2]]), ("v", "w")),
    "stacked": (lambda p: jnp.stack([p["w"], p["v"]])[0], ("v", "w")),
    "joined with what has none": (lambda p: jnp.concatenate([p["w"][:2], jnp.exp(p["v"][:2])]), ()),
    "added": (lambda p: p["w"] + p["v"], ()),
    "even at zero": (lambda p: jnp.cos(p["w"]), ()),
    "divided by it": (lambda p: 1 / p["w"], ()),
    "computed": (lambda p: p["w"] @ p["v"], ()),
}


@pytest.mark.parametrize("hold", [lax.optimization_barrier, jax.device_put])
def test_weights_that_are_held_or_placed_together_are_told_apart(hold):
    def fn(p, x):
        x, a, b = hold((x, p["a"], p["b"]))
        return x @ b, (x + 1) @ a

    net = traced(fn, {"a": normal(4, 3), "b": normal(4, 5)}, X)
    assert [(site.name, site.param, site.w_shape) for site in net.sites] == [
        ("b", "b", (4, 5)),
        ("a", "a", (4, 3)),
    ]
    assert net.sites[1].sources == ("a",)


@pytest.mark.parametrize("name", ZEROS)
def test_zeros_of_parts_are_zeros_of_the_weight(name):
    make, expected = ZEROS[name]
    params = {"w": normal(4, 4), "v": normal(4, 4), "s": normal(4), "large": normal(4, 6)}
    assert only(lambda p, x: x @ make(p), params, X).parts == expected


def test_readers_beside_a_site_are_told():
    def fn(p, x, i):
        return x @ p["w"] + p["w"][i] + (x @ p["v"]) + p["b"] * jnp.sum(x), (x @ p["w"])

    net = traced(fn, {"w": normal(4, 4), "v": normal(4, 4), "b": normal(4)}, X, jnp.int32(1))
    shared = {s.name: s.shared for s in net.sites}
    assert shared["v"] == ()
    assert "w#2" in shared["w"]
    assert "w:lookup" in shared["w"]
    assert "w" in shared["w#2"]


def test_a_parameter_that_is_an_output_is_read_by_it():
    net = traced(lambda p, x: (x @ p["w"], p["w"] * 2), {"w": normal(4, 4)}, X)
    assert net.sites[0].shared == ("output",)


def test_loops_that_carry_a_weight_read_it():
    """What a loop hands on unchanged is followed; what it changes is read by the loop."""

    def fn(p, x):
        def body(_, carry):
            x, kept, moved = carry
            return jnp.tanh(x @ kept), kept, moved * 0.5

        x, _, moved = lax.fori_loop(0, 3, body, (x, p["kept"], p["moved"]))
        return x @ moved

    net = traced(fn, {"kept": normal(4, 4), "moved": normal(4, 4)}, X)
    assert [s.name for s in net.sites if s.kind == "dot"] == ["kept"]
    reasons = {row.name: row.reason.partition(" at ")[0] for row in net.coverage().rows}
    assert reasons == {"kept": "kept", "moved": "scan", "dynamic/0": ""}
    assert net.unreached == () or all("moved" in line for line in net.unreached)


def planned(fn, params, *args):
    net = js.trace(lambda p, *a: (fn(p, *a), a[0] @ p["w"]), {**params, "w": normal(4, 4)}, *args)
    return net.unreached


def test_contractions_that_are_no_sites_are_told_with_their_reason():
    x, y = normal(2, 4), normal(2, 4)
    whole = {"t": jnp.arange(16).reshape(4, 4)}
    (told,) = planned(lambda p, x: x.astype(int) @ p["t"], whole, x)
    assert told == "t has dtype int32; a weight must be a float"
    moved = {"k": normal(2, 4, 3)}
    dims = ("NWC", "WIO", "NWC")
    (told,) = planned(
        lambda p, x, k: lax.conv_general_dilated(p["k"], k, (1,), "SAME", dimension_numbers=dims),
        moved,
        x,
        normal(2, 3, 5),
    )
    assert told == "k is contracted as no site is (conv_general_dilated)"
    assert planned(lambda p, x, y: x * y, {}, x, y) == ()


def test_products_with_complex_numbers_are_no_sites():
    x, turned = normal(2, 4), normal(2, 4) + 1j * normal(2, 4)

    def fn(p, x, z):
        seen = lax.dot_general(z, p["r"], (((1,), (0,)), ((), ())))
        return (seen @ seen.T).real @ x @ p["w"]

    params = {"r": normal(4, 4), "w": normal(4, 3)}
    net = js.trace(fn, params, x, turned)
    assert [(s.name, s.kind) for s in net.sites] == [("dynamic/0", "dynamic"), ("w", "dot")]
    assert net.unreached == ("r multiplies inputs of complex64; a site's are real",)
    (row,) = (row for row in net.coverage().rows if row.name == "r")
    assert row.reach == "no site"
    np.testing.assert_array_equal(net(x, turned), fn(params, x, turned))
    with pytest.warns(match="r multiplies inputs of complex64"):
        js.quantize(8, 8)(net)
    with pytest.raises(ValueError, match="r multiplies inputs of complex64"):
        js.trace(lambda p, z: z @ p["r"], params, turned)


def test_a_product_of_a_constant_is_no_site_and_a_weight_on_the_left_is():
    first, last = np.ones((4, 4), np.float32), np.ones((2, 6), np.float32)
    net = traced(lambda w, x: last @ (w["w"] @ (x @ first).T), {"w": normal(6, 4)}, normal(5, 4))
    assert [s.name for s in net.sites] == ["w"]
    (entry,) = [
        e for e in equations(net, net.example).plan.entries if e is not None and hasattr(e, "x_at")
    ]
    assert (entry.x_at, entry.w_at, entry.op.geometry.weight_first) == (1, 0, True)


def test_a_masked_weight_is_said_to_be_by_its_op():
    params = {"a": normal(4, 4), "b": normal(4, 4)}
    net = traced(lambda p, x: x @ (p["a"] * 2) @ p["b"], params, X)
    for masked, expected in (
        ((), [False, False]),
        (("a",), [True, False]),
        (("b",), [False, True]),
    ):
        plan = trace_plan(
            net.fn, net.params, net.buffers, net.example, net.example, (), masked
        ).plan
        assert [e.op.masked for e in plan.entries if e is not None] == expected


SITES = tuple(
    Site(name, param, kind, (1,), (1,), "float32", 1)
    for name, param, kind in (
        ("Conv_1/kernel", "Conv_1/kernel", "conv"),
        ("Dense_1/kernel", "Dense_1/kernel", "dot"),
        ("Dense_1/kernel#2", "Dense_1/kernel", "dot"),
        ("dynamic/0", None, "dynamic"),
    )
)


@pytest.mark.parametrize(
    ("pattern", "dynamic", "expected"),
    [
        ("*", False, {"Conv_1/kernel", "Dense_1/kernel", "Dense_1/kernel#2"}),
        ("*", True, {s.name for s in SITES}),
        ("dynamic/*", False, {"dynamic/0"}),
        ("re:dynamic/.", False, {"dynamic/0"}),
        ("Dense_1/kernel", False, {"Dense_1/kernel", "Dense_1/kernel#2"}),  # the parameter's path
        ("Dense_1/kernel#2", False, {"Dense_1/kernel#2"}),
        ("re:.*_1/kernel", False, {"Conv_1/kernel", "Dense_1/kernel", "Dense_1/kernel#2"}),
        ("re:Conv", False, set()),  # the whole name
        ("Conv*", True, {"Conv_1/kernel"}),  # nothing of a site without a parameter
        ("conv_1*", False, set()),
    ],
)
def test_patterns_match_whole_names_or_paths(pattern, dynamic, expected):
    assert matching_names(SITES, pattern, dynamic=dynamic, lookups=False) == expected


def test_a_pattern_that_is_no_regular_expression_is_refused():
    with pytest.raises(ValueError, match=r"sites='re:\(' is not a regular expression"):
        matching_names(SITES, "re:(", dynamic=False, lookups=False)


def test_a_convolution_in_groups_of_the_batch_is_no_site():
    def fn(p, x):
        dims = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(
            x, p["k"], (1,), "SAME", dimension_numbers=dims, batch_group_count=2
        )

    told = planned(lambda p, x, y: fn(p, y), {"k": normal(3, 4, 6)}, X, normal(2, 5, 4))
    assert told == ("k is contracted as no site is (conv_general_dilated)",)


def test_products_of_integers_are_sites_of_two_activations_and_of_no_weight():
    def fn(p, x):
        whole = x.astype(int)
        return x @ p["w"], whole @ whole.T, whole @ p["n"]

    net = traced(fn, {"w": normal(4, 4), "n": jnp.arange(8).reshape(4, 2)}, X)
    found = [(s.name, s.kind, s.dtype) for s in net.sites]
    assert found == [("w", "dot", "float32"), ("dynamic/0", "dynamic", "int32")]
