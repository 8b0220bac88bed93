"""A network on its way to a chip: what it says of itself, takes and refuses at each step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsim as js
from jaxsim.cores.wrapper import Wrapper
from jaxsim.network.network import require_uncut
from tests.support.models import normal

X = normal(2, 4)


def looped():
    """Five layers in a scan, each twice, and a head."""

    def fn(p, x):
        def twice(x, w):
            return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=2)[0], None

        return lax.scan(twice, x, p["stack"])[0] @ p["head"]

    return js.trace(fn, {"stack": normal(5, 4, 4), "head": normal(4, 3)}, X)


def test_a_network_says_how_far_it_is():
    net = looped()
    quantized = js.quantize(8, 8, sites="head")(net)
    chip = js.deploy(js.quantize(8, None)(net))
    calibrated = js.deploy(quantized, calibrate=X)
    pruned = dataclasses.replace(net, masks={"head": jnp.ones((4, 3), bool)})
    assert [repr(n) for n in (net, quantized, pruned, chip, calibrated)] == [
        "Network(2 sites, 0 transformed, 0 pruned, 92 parameters)",
        "Network(2 sites, 1 transformed, 0 pruned, 92 parameters)",
        "Network(2 sites, 0 transformed, 1 pruned, 92 parameters)",
        "Network(deployed, 2 sites, 2 transformed, 0 pruned, 92 parameters)",
        "Network(calibrated, 2 sites, 1 transformed, 0 pruned, 92 parameters)",
    ]
    assert [n.ranges for n in (net, quantized, chip, calibrated)] == [
        "batch",
        "batch",
        "missing",
        "stored",
    ]
    assert "deployed, calibrated" in str(calibrated)
    assert "deployed, calibrated" not in str(chip)


def test_a_printed_network_multiplies_the_turns_of_its_loops():
    """2 · 4 · 4 products, ten times; 2 · 3 · 4 once."""
    lines = str(looped()).splitlines()
    cells = [[c.strip() for c in line.strip("│").split("│")] for line in lines if "dot" in line]
    assert cells == [
        ["stack", "dot", "5 · 4×4", "2×4", "320", "all", "float"],
        ["head", "dot", "4×3", "2×4", "24", "all", "float"],
    ]


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ([], r"sites=\[\]: give at least one pattern"),
        (3, "sites=3: give a pattern or a list of patterns"),
        (["head", 3], r"sites=\['head', 3\]: give a pattern"),
        ("tail", "sites='tail' matches no site; the sites are: stack, head"),
        (["head", "tail"], "sites='tail' matches no site;"),
    ],
)
def test_patterns_that_select_nothing_are_refused(patterns, said):
    with pytest.raises(ValueError, match=said):
        looped().select(patterns)


def test_patterns_select_in_order_of_execution_within_the_focus():
    net = looped()
    assert [s.name for s in net.select(["head", "stack", "h*"])] == ["stack", "head"]
    focused = dataclasses.replace(net, focus=("head",))
    assert [s.name for s in focused.select("*")] == ["head"]
    with pytest.raises(
        ValueError, match="'stack' matches no site of its rule; the sites are: head"
    ):
        focused.select("stack")


def plain(core):
    return core


def test_wrappers_go_innermost_at_the_named_sites_alone():
    net, one, two = looped(), Wrapper.of(plain), js.quantize(4, None)
    both = two(net).wrap((name for name in ("head",)), one)
    assert [w.name for w in both.cores["head"]] == ["quantized", "plain"]
    assert [w.name for w in both.cores["stack"]] == ["quantized"]
    with pytest.raises(ValueError, match=r"names=\['a', 'b'\]: no such sites"):
        net.wrap(["b", "head", "a"], one)
    with pytest.raises(ValueError, match=r"plain\(\) cannot follow deploy"):
        js.deploy(two(net)).wrap(["head"], one)


def test_parameters_are_replaced_by_their_like_before_deployment():
    net = looped()
    moved = net.with_params(jax.tree.map(lambda p: 2 * p, net.params))
    np.testing.assert_array_equal(moved.params["head"], 2 * net.params["head"])
    with pytest.raises(ValueError, match="params: not the tree"):
        net.with_params({"head": net.params["head"]})
    with pytest.raises(ValueError, match="net is deployed"):
        js.deploy(js.quantize(8, None)(net)).with_params(net.params)


def test_masks_zero_their_parameters_alone_and_keep_their_types():
    params = {"a": normal(4, 4), "b": normal(4, 4).astype(jnp.bfloat16)}
    net = js.trace(lambda p, x: x @ p["a"] + (x @ p["b"]).sum(), params, X)
    mask = jnp.arange(16).reshape(4, 4) % 3 == 0
    masked = dataclasses.replace(net, masks={"b": mask}).masked_params()
    np.testing.assert_array_equal(masked["a"], params["a"])
    np.testing.assert_array_equal(masked["b"], params["b"] * mask.astype(jnp.bfloat16))
    assert masked["b"].dtype == jnp.bfloat16


def test_each_layer_of_a_stack_is_written_and_calibrated_by_its_own():
    """By hand: the layers' scales, and the inputs that reach each of them."""
    net = js.trace(
        lambda p, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p)[0], normal(3, 4, 4), X
    )
    chip = js.deploy(js.quantize(js.Grid(8), js.Grid(8))(net), calibrate=X)
    (state,) = chip.states.values()
    w = np.asarray(net.params)
    np.testing.assert_allclose(
        np.squeeze(state.scale)[:, 0], np.abs(w).max((1, 2)) / 127, rtol=1e-6
    )
    x, tops = X, []
    for layer in w:
        tops.append(np.abs(x).max())
        x = np.tanh(x @ layer)
    np.testing.assert_allclose(state.inputs.hi, tops, rtol=0.02)


def test_a_weight_that_a_scan_reuses_is_calibrated_on_all_of_its_turns():
    def fn(w, x):
        return lax.scan(lambda x, _: (2 * (x @ w), None), x, None, length=3)[0]

    chip = js.deploy(js.quantize(None, 8)(js.trace(fn, jnp.eye(4), X)), calibrate=X)
    (state,) = chip.states.values()
    assert float(state.inputs.hi) == pytest.approx(4 * np.abs(X).max(), rel=0.02)


def test_transforms_that_need_a_whole_network_refuse_others():
    class Cut(js.Network):
        cut_by = ("exit_early",)

    net = looped()
    cut = Cut(**{f.name: getattr(net, f.name) for f in dataclasses.fields(net)})
    require_uncut(net, "shrink")
    require_uncut(cut, "shrink", allowed=("exit_early",))
    with pytest.raises(ValueError, match="shrink"):
        require_uncut(cut, "shrink")
    with pytest.raises(ValueError, match="because of that"):
        require_uncut(cut, "shrink", allowed=("pipeline_shard",), reason="because of that")
