import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

import jaxsim as js
from tests.support.cut_networks import network
from tests.support.models import normal

HANDS = {
    "mlp": {
        "Dense_0/kernel:1": ({"Dense_0/kernel:1", "Dense_0/bias:0", "Dense_1/kernel:0"}, 16),
        "Dense_1/kernel:1": ({"Dense_1/kernel:1", "Dense_1/bias:0", "Dense_2/kernel:0"}, 12),
    },
    "attention": {
        "MultiHeadDotProductAttention_0/query/kernel:1": (
            {
                f"MultiHeadDotProductAttention_0/{n}"
                for n in (
                    *("query/kernel:1", "key/kernel:1", "value/kernel:1", "out/kernel:0"),
                    *("query/bias:0", "key/bias:0", "value/bias:0"),
                )
            },
            4,
        ),
        "MultiHeadDotProductAttention_0/value/kernel:2": (
            {
                f"MultiHeadDotProductAttention_0/{n}"
                for n in ("value/kernel:2", "value/bias:1", "out/kernel:1")
            },
            8,
        ),
        "Dense_1/kernel:1": ({"Dense_1/kernel:1", "Dense_1/bias:0", "Dense_0/kernel:0"}, 64),
    },
}


def free(found):
    return {g.name: g for g in found.groups if not g.reason}


def reason(name, fn, params, *args):
    """Why the group of that name stays whole."""
    return js.dependencies(js.trace(fn, params, *args))[name].reason


@pytest.mark.parametrize("name", HANDS)
def test_groups_are_those_found_by_hand(name):
    found = free(js.dependencies(network(name)))
    members = {
        n: ({f"{m.path.removeprefix('params/')}:{m.axis}" for m in g.members}, g.size)
        for n, g in found.items()
    }
    assert members == HANDS[name]


def test_a_residual_stream_is_one_group_with_its_statistics():
    found = js.dependencies(network("resnet"))
    stream = found["Conv_0/kernel:3"]
    paths = {m.path.removeprefix("params/") for m in stream.members}
    assert {"Conv_0/kernel", "Block_0/Conv_1/kernel", "BatchNorm_0/scale"} <= paths
    assert {"buffers/batch_stats/BatchNorm_0/mean", "Block_1/Conv_2/kernel"} <= paths
    assert {m.path for m in stream.members if m.role == "in"} == {
        f"params/Block_{i}" for i in ("0/Conv_0/kernel", "1/Conv_0/kernel", "1/Conv_2/kernel")
    }


def test_a_depthwise_convolution_loses_what_goes_into_it_and_groups_go_whole_or_evenly():
    found = js.dependencies(network("depthwise"))
    assert {m.path for m in found["Conv_0/kernel:3"].members} >= {
        f"params/{n}" for n in ("Conv_1/kernel", "Conv_1/bias", "BatchNorm_1/scale")
    }
    sizes = {n: g.size for n, g in free(found).items() if n.startswith(("Conv_2", "Conv_3"))}
    assert sizes == {"Conv_2/kernel:3.0": 4, "Conv_2/kernel:3.1": 2, "Conv_3/kernel:3.1": 3}


def test_joined_features_keep_their_places_in_what_reads_them():
    found = js.dependencies(network("joined"))
    assert [g.size for g in free(found).values()] == [8, 4, 4, 4]
    head = next(leaf for leaf in found.leaves if leaf.path == "params/Dense_0/kernel")
    assert head.axes[0].size == 4 * 4 * 20


def test_one_weight_for_q_k_and_v_loses_heads_of_all_three():
    group = free(js.dependencies(network("transformer")))["Dense_0/kernel:1.1"]
    assert group.size == 4
    assert {m.path for m in group.members} == {
        f"params/{n}" for n in ("Dense_0/kernel", "Dense_0/bias", "Dense_1/kernel")
    }


def test_numbers_that_depend_on_a_size_are_found_and_said():
    found = js.dependencies(network("attention"))
    scaled = found["MultiHeadDotProductAttention_0/query/kernel:2"]
    assert scaled.renormalizing
    with pytest.warns(DeprecationWarning, match="renormalizing"):
        assert scaled.renormalising
    assert "sqrt" in scaled.reason
    assert "8 becomes 4" in scaled.reason
    stream = js.dependencies(network("transformer"))["Embed_0/embedding:0"]
    assert not stream.renormalizing
    assert "looks entries up" in stream.reason


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (lambda h: jax.lax.top_k(h, 2)[0], "top_k at .* is not understood"),
        (lambda h: h[:, :3], "cuts it unevenly"),
        (lambda h: h[:, 1:5], "cuts it unevenly"),
        (lambda h: jnp.cumsum(h, 1), "goes along it"),
        (lambda h: h.max(1), "compares the entries"),
        (lambda h: h + jnp.arange(8), "counts"),
        (lambda h: h + jnp.ones(8), "does not run with less"),
        (lambda h: h.mean(1), "div at .* depends on its size: 8 becomes 4"),
    ],
)
def test_what_no_rule_lets_through_stays_whole_with_a_reason(fn, says):
    def model(params, x):
        h = x @ params["a"]
        return fn(h).sum() + h @ params["b"]

    params = {"a": normal(4, 8), "b": normal(8, 2)}
    assert re.search(says, reason("a:1", model, params, normal(3, 4)))


WHOLE = NamedSharding(jax.make_mesh((1,), ("all",)), PartitionSpec())
MOVED = {
    "stack": lambda h, p: jnp.stack([h, jnp.sin(h)], 1) @ p["b"],
    "stack behind": lambda h, p: jnp.stack([h, jnp.sin(h)], 2).swapaxes(1, 2) @ p["b"],
    "unstack": lambda h, p: [a @ p["b"] for a in jnp.unstack(jnp.stack([h, -h], 1), axis=1)],
    "unstack groups": lambda h, p: [
        a @ p["half"] for a in jnp.unstack(h.reshape(len(h), 2, -1), axis=1)
    ],
    "tile": lambda h, p: jnp.tile(h, (2, 2)) @ p["twice"],
    "name": lambda h, p: checkpoint_name(h, "hidden") @ p["b"],
    "place": lambda h, p: jax.device_put(h, jax.devices()[0]) @ p["b"],
    "place several": lambda h, p: [a @ p["b"] for a in jax.device_put([h, -h])],
    "hold": lambda h, p: [a @ p["b"] for a in jax.lax.optimization_barrier([h, -h])],
    "constrain": lambda h, p: jax.lax.with_sharding_constraint(h, WHOLE) @ p["b"],
}


@pytest.mark.parametrize("name", MOVED)
def test_channels_are_followed_where_they_are_moved(name):
    """What is removed takes its rows of every reader: the masked network's answers."""

    def model(params, x):
        return MOVED[name](x @ params["a"], params)

    shapes = {"a": (4, 8), "b": (8, 2), "half": (4, 2), "twice": (16, 2)}
    params = {n: normal(*s, seed=i) for i, (n, s) in enumerate(shapes.items())}
    net, x = js.trace(model, params, normal(3, 4)), normal(3, 4, seed=9)
    small = js.shrink(0.5)(net)
    assert small.params["a"].shape == (4, 4)
    left = [i for i in range(8) if any((params["a"][:, i] == a).all() for a in small.params["a"].T)]
    assert len(left) == 4
    masked = {**params, "a": params["a"] * np.isin(np.arange(8), left)}
    found, expected = small(x), model(masked, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_what_is_stacked_or_repeated_is_counted_not_removed():
    def model(params, x):
        pair = jnp.stack([x @ params["a"], x @ params["a"]], 1)
        return jnp.tile(pair, (1, 2, 1)).transpose(0, 2, 1) @ params["places"]

    params = {"a": normal(4, 8), "places": normal(4, 3)}
    net = js.trace(model, params, normal(3, 4))
    said = {
        g.reason
        for g in js.dependencies(net).groups
        for m in g.members
        if m.path == "params/places"
    }
    assert any("repeats them" in why for why in said), said


def test_what_is_taken_apart_by_number_stays():
    def model(params, x):
        one, other = jnp.unstack(params["pair"])
        return x @ one + x @ other

    said = reason("pair:0", model, {"pair": normal(2, 4, 3)}, normal(3, 4))
    assert re.search(r"unstack at .* counts them", said)


def test_the_line_of_the_model_is_named():
    def model(params, x):
        return jnp.sort(x @ params["a"]) @ params["b"]

    said = reason("a:1", model, {"a": normal(4, 8), "b": normal(8, 2)}, normal(3, 4))
    assert "test_groups.py" in said


def test_layers_of_a_scan_lose_the_same_channels():
    def model(params, x):
        def layer(x, w):
            up, down = w
            return x + jnp.tanh(x @ up) @ down, None

        return jax.lax.scan(layer, x, (params["up"], params["down"]))[0]

    params = {"up": normal(3, 4, 6), "down": normal(3, 6, 4)}
    found = free(js.dependencies(js.trace(model, params, normal(2, 4))))
    assert {(m.path, m.axis) for m in found["up:2"].members} == {
        ("params/up", 2),
        ("params/down", 1),
    }


def test_branches_and_loops_agree_on_their_channels():
    def model(params, x, flag):
        h = jax.lax.cond(flag, lambda x: x @ params["a"], lambda x: jnp.sin(x @ params["b"]), x)
        h = jax.lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h) * params["s"], h)
        return jax.checkpoint(lambda h: h @ params["c"])(h)

    params = {"a": normal(4, 6), "b": normal(4, 6), "s": normal(6), "c": normal(6, 2)}
    net = js.trace(model, params, normal(3, 4), jnp.array(True))
    found = free(js.dependencies(net))
    assert [{m.path for m in g.members} for g in found.values()] == [
        {"params/a", "params/b", "params/s", "params/c"}
    ]
    assert js.shrink(0.5)(net).params["c"].shape == (3, 2)


def test_the_table_names_every_group():
    found = js.dependencies(network("mlp"))
    text = str(found)
    assert "2 of 4 can shrink" in text
    assert all(g.name in text for g in found.groups)
    with pytest.raises(ValueError, match="matches no group"):
        found.select("Nothing*")
    with pytest.raises(ValueError, match="no group 'Nothing'; the groups are: Dense_0/kernel:1, "):
        found["Nothing"]
    assert np.all([g.size for g in found.select("re:Dense_[01].*:1")] == [16, 12])
