"""Arguments of a call: keys, shapes in errors, random streams, parameters by path."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsim as js
from jaxsim.network.arguments import (
    abstract_arguments,
    apply_call,
    call_arguments,
    check_key,
    explained_call,
)
from jaxsim.network.deployment import find_read_params
from jaxsim.network.params import (
    by_name,
    param_names,
    params_of,
    stacks_of,
    tensors,
    with_params,
    with_tensors,
)
from tests.support.models import normal

X = normal(2, 4)


def test_keys_of_both_kinds_are_taken_and_nothing_else():
    for key in (None, jax.random.key(0), jax.random.PRNGKey(0)):
        check_key(key)
    jax.jit(check_key)(jax.random.key(0))
    for key in (0, jnp.int32(0), "key", np.zeros(2), jax.random.key):
        with pytest.raises(ValueError, match=r"must come from jax\.random\.key"):
            check_key(key)


def test_arrays_are_separated_from_what_is_static_and_come_back():
    arguments = call_arguments((X, None, {"a": 3}), {"flag": True, "b": X[0]})
    assert [a.shape for a in arguments.arrays] == [(2, 4), (4,)]
    seen = apply_call(arguments, lambda *args, **kwargs: (args, kwargs), "first", last=1)
    (first, x, none, tree), kwargs = seen
    assert (first, none, tree, kwargs["flag"], kwargs["last"]) == ("first", None, {"a": 3}, True, 1)
    assert x is X
    shapes = abstract_arguments(arguments)
    assert shapes.arrays[0] == jax.ShapeDtypeStruct((2, 4), jnp.float32)
    assert abstract_arguments(shapes).arrays == shapes.arrays


def test_errors_say_the_shapes_and_those_of_the_trace_where_they_differ():
    one, two = (call_arguments((x,), {}) for x in (X, normal(3, 5)))
    for example, said in (
        (one, r"^args=\(float32\[2, 4\]\): the model raised: no$"),
        (two, r"^args=\(float32\[2, 4\]\) \(it was traced with \(float32\[3, 5\]\)\): the model"),
    ):
        for error in (ValueError, TypeError):
            with pytest.raises(ValueError, match=said), explained_call(example, one):
                raise error("no")
    with pytest.raises(KeyError), explained_call(one, two):
        raise KeyError("other errors are left alone")


class Dropped(nnx.Module):
    """A layer and dropout."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 64, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.layer(x))


def test_streams_of_a_module_are_drawn_by_a_key_of_their_own():
    with pytest.warns(UserWarning, match="RngCount"):
        net = js.trace(Dropped(nnx.Rngs(0)), X)
    one, two = jax.random.split(jax.random.key(1))
    found = net.arguments((X,), {}, one)
    _, kwargs = found.combine()
    assert kwargs["rngs"] == jax.random.fold_in(one, zlib.crc32(b"rngs"))
    assert "rngs" not in net.arguments((X,), {}, None).combine()[1]
    given = net.arguments((X,), {"rngs": two}, one).combine()[1]
    assert given["rngs"] is two
    zeros = [np.asarray(net(X, key=key) == 0) for key in (one, one, two)]
    np.testing.assert_array_equal(zeros[0], zeros[1])
    assert abs(np.corrcoef(zeros[0].ravel(), zeros[2].ravel())[0, 1]) < 0.4
    assert 0.3 < zeros[0].mean() < 0.7


def masked_net():
    params = {"a": {"w": normal(4, 4)}, "b": normal(4, 4, seed=1), "c": normal(4)}
    net = js.trace(lambda p, x: x @ p["a"]["w"] @ p["b"] + p["c"], params, X)
    mask = np.eye(4, dtype=bool)
    return dataclasses.replace(net, masks={"a/w": jnp.asarray(mask)}), params, mask


def test_parameters_are_read_and_replaced_by_path():
    net, params, mask = masked_net()
    assert param_names(net) == ["a/w", "b", "c"]
    assert list(by_name(params)) == ["a/w", "b", "c"]
    assert list(params_of(net, net.sites[1:])) == ["b"]
    moved = with_params(net, {"b": 2 * params["b"]})
    np.testing.assert_array_equal(moved.params["b"], 2 * params["b"])
    assert moved.params["a"]["w"] is net.params["a"]["w"]
    seen = tensors(net)
    np.testing.assert_array_equal(seen["params/a/w"], params["a"]["w"] * mask)
    changed = with_tensors(net, {"params/c": np.arange(4)})
    np.testing.assert_array_equal(changed.params["c"], np.arange(4))
    assert changed.params["c"].dtype == jnp.float32


def test_density_is_the_share_that_masks_leave():
    net, _, _ = masked_net()
    assert [net.density(site) for site in net.sites] == [0.25, 1.0]
    np.testing.assert_array_equal(net.site_masks(net.sites[0])[0], np.eye(4))
    assert net.site_masks(net.sites[1]) == ()

    def joined(p, x):
        return x @ jnp.concatenate([p["u"], p["v"]])

    both = js.trace(joined, {"u": normal(1, 4), "v": normal(3, 4)}, X)
    both = dataclasses.replace(both, masks={"u": jnp.zeros((1, 4), bool)})
    assert both.density(both.sites[0]) == 0.75  # what has no mask is there whole
    seen = []
    jax.jit(
        lambda m: seen.append(dataclasses.replace(net, masks={"a/w": m}).density(net.sites[0]))
    )(jnp.eye(4))
    assert seen == [None]


def test_a_written_site_reads_its_parameter_no_more():
    net, _, _ = masked_net()
    net = dataclasses.replace(net, masks={})
    assert find_read_params(net) == {"a/w", "b", "c"}
    chip = js.deploy(js.quantize(8, None, sites="b")(net))
    assert find_read_params(chip) == {"a/w", "c"}
    assert find_read_params(js.deploy(js.quantize(8, None)(net))) == {"c"}
    tied = js.trace(lambda p, x: (x @ p["w"]).sum() + p["w"].sum(), {"w": normal(4, 4)}, X)
    assert find_read_params(js.deploy(js.quantize(8, None)(tied))) == {"w"}
    unused = js.trace(lambda p, x: x @ p["w"], {"w": normal(4, 4), "other": normal(4)}, X)
    assert find_read_params(unused) == {"w"}


def test_a_parameter_is_read_where_one_of_what_is_made_of_it_is():
    def fn(p, x):
        first, _ = jnp.split(p["b"], [4])
        jnp.sin(p["c"])
        return x @ p["w"] + first

    params = {"w": normal(4, 4), "b": normal(6), "c": normal(2)}
    assert find_read_params(js.trace(fn, params, X)) == {"w", "b"}

    def branches(p, x):
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ p["w"], lambda x: x * p["b"][:4], x)
        goes_on = lambda c: c[0] < p["n"][0]  # noqa: E731
        return jax.lax.while_loop(goes_on, lambda c: (c[0] + 1, c[1] @ p["v"]), (0.0, x))[1]

    more = {**params, "v": normal(4, 4), "n": jnp.ones(1)}
    assert find_read_params(js.trace(branches, more, X)) == {"w", "b", "v", "n"}


def test_stacks_are_told_of_each_parameter_of_a_site():
    def fn(p, x):
        x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["layers"])[0]
        return x @ jnp.concatenate([p["a"], p["b"]], 1) + p["bias"]

    params = {"layers": normal(3, 4, 4), "a": normal(4, 2), "b": normal(4, 3), "bias": normal(5)}
    net = js.trace(fn, params, X)
    assert stacks_of(net) == {"layers": (3,), "a": (), "b": ()}
    assert list(params_of(net, net.sites)) == ["b", "layers"]  # named by the larger


def test_variables_may_be_given_by_name_and_what_is_static_is_a_default():
    def fn(p, x, *, scale, shift):
        return (x @ p["w"]) * scale + shift

    params = {"w": normal(4, 4)}
    net = js.trace(fn, x=X, variables=params, scale=3, shift=X)
    assert net.defaults.combine() == {"scale": 3}
    first, other = net(x=X, shift=X), net(x=X, shift=X, scale=2)
    np.testing.assert_allclose(first, 3 * (X @ params["w"]) + X, rtol=1e-5)
    np.testing.assert_allclose(other, 2 * (X @ params["w"]) + X, rtol=1e-5)
    with pytest.raises(ValueError, match="key: a network's call keeps this name for its cores"):
        js.trace(lambda p, x, key: x @ p["w"], params, X, key=1)
