"""How far transforms reach, told of each parameter."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas

import jaxsim as js
from tests.support.models import normal

X, IDS = normal(2, 4), jnp.array([0, 2])


def model(p, x, ids):
    h = x @ p["w"] + p["bias"] + p["table"][ids]
    scores = jnp.tanh(h) @ jnp.swapaxes(h, -1, -2)
    return scores @ (h @ p["frozen"]) @ p["w"].T


PARAMS = {"w": normal(4, 4), "bias": normal(4), "table": normal(7, 4), "unread": normal(3)}


def network():
    fn = lambda p, x, ids: model({**p, "frozen": normal(4, 4, seed=5)}, x, ids)  # noqa: E731
    return js.trace(fn, PARAMS, X, IDS)


def rows(net):
    return {row.name: row for row in net.coverage().rows}


def test_parameters_and_products_are_told_by_how_far_they_are_reached():
    found = rows(js.quantize(8, 8, sites="w")(network()))
    assert {name: row.reach for name, row in found.items()} == {
        "w": "transformed",
        "bias": "no site",
        "table": "float",
        "unread": "no site",
        "dynamic/0": "float",
        "dynamic/1": "float",
    }
    assert (found["w"].params, found["w"].macs) == (16, 2 * 2 * 4 * 4)
    assert (found["dynamic/0"].params, found["dynamic/0"].macs) == (0, 2 * 4 * 2)
    assert found["table"].reason == "table:lookup"
    assert found["unread"].reason == "not read"


def test_what_reads_a_parameter_instead_of_a_site_is_told_with_its_line():
    reason = rows(network())["bias"].reason
    assert reason.startswith("add at ")
    assert "test_coverage.py:18" in reason


def test_a_parameter_of_two_sites_is_reached_when_both_are():
    net = network()
    assert rows(js.quantize(8, 8, sites="re:w")(net))["w"].reach == "transformed"  # w and w#2
    (first,) = [s for s in net.sites if s.name == "w"]
    half = net.wrap([first.name], js.Wrapper.of(lambda core: core))
    assert (rows(half)["w"].reach, rows(half)["w"].reason) == ("float", "w#2")


def test_shares_are_of_entries_and_of_products():
    coverage = js.quantize(8, 8)(network()).coverage()
    total = 16 + 4 + 28 + 3
    assert coverage.share("transformed") == pytest.approx((16 + 28) / total)
    assert coverage.share("no site") == pytest.approx(7 / total)
    dense, dynamic = 2 * 2 * 4 * 4, 2 * (2 * 4 * 2)
    assert coverage.share("transformed", of="macs") == pytest.approx(dense / (dense + dynamic))
    assert coverage.line == (
        "parameters: 86.3% transformed, 0.0% float, 13.7% in no site; transformed: 66.7% of MACs"
    )


def test_pruning_counts_and_the_table_of_a_network_ends_with_the_line():
    net = js.prune(0.5)(network())
    assert rows(net)["w"].reach == "transformed"
    assert net.coverage().line.split(";")[0] in " ".join(str(net).split())
    assert "unread" in str(net.coverage())


def test_frozen_weights_are_told():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            v = self.variable("kept", "v", lambda: normal(4, 4)).value
            return nn.Dense(4, use_bias=False)(x) @ v

    variables = Half().init(jax.random.key(0), X)
    net = js.quantize(8, 8)(js.trace(Half(), variables, X, weights=["kept"]))
    found = rows(net)
    assert {name: (row.reach, row.frozen) for name, row in found.items()} == {
        "Dense_0/kernel": ("transformed", False),
        "kept/v": ("transformed", True),
    }
    assert "50.0% frozen" in net.coverage().line


def test_loops_count_every_run():
    net = js.trace(
        lambda p, x: lax.scan(lambda h, w: (h @ w, None), x, p["w"])[0], {"w": normal(3, 4, 4)}, X
    )
    (row,) = net.coverage().rows
    assert (row.params, row.macs) == (48, 3 * 2 * 4 * 4)


def kernel(x, w, y):
    y[...] = x[...] @ w[...]


def in_kernel(x, w):
    shape = jax.ShapeDtypeStruct((len(x), w.shape[1]), x.dtype)
    return pallas.pallas_call(kernel, out_shape=shape, interpret=True)(x, w)


def on_host(x, w):
    return jax.pure_callback(np.matmul, jax.ShapeDtypeStruct(x.shape, x.dtype), x, w)


def foreign(x, w):
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.ffi.ffi_call("no_such_function", out)(x, w)


def test_what_goes_into_a_kernel_or_a_call_is_told_to_be_opaque():
    calls = {"pallas_call": in_kernel, "pure_callback": on_host, "ffi_call": foreign}

    def fn(p, x):
        for name, call in calls.items():
            x = call(x, p[name])
        return x @ p["w"]

    net = js.trace(fn, {name: normal(4, 4) for name in ("w", *calls)}, X)
    found = rows(net)
    for name, call in calls.items():
        assert found[name].reach == "no site"
        assert found[name].reason.startswith(f"{name} (opaque) at ")
        assert f"({call.__name__})" in found[name].reason
    assert net.unreached == tuple(f"{n} goes into {n}, which is opaque" for n in calls)
    with pytest.warns(UserWarning, match="quantize of every site leaves 75% .*ffi_call, which is"):
        js.quantize(8, 8)(net)


def test_a_kernel_beside_sites_runs_as_it_is():
    fn = lambda p, x: in_kernel(x @ p["w"], p["k"])  # noqa: E731
    params = {"w": normal(4, 4), "k": normal(4, 4, seed=1)}
    net = js.quantize(8, None, sites="w")(js.trace(fn, params, X))
    assert float(jnp.abs(net(X) - fn(params, X)).max()) < 0.02
