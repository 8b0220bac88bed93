"""What each device of a mesh is to a plan: a slice of a loop. Without any device but one."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, PartitionSpec

import jaxsim as js
from jaxsim.network.mesh_places import (
    device_axes,
    differing,
    everyone,
    gathered,
    strip,
    unstrip,
)
from jaxsim.network.plan import Contraction, Plan
from jaxsim.network.site import Site
from jaxsim.network.site_call import calibrated
from tests.support.models import normal

P = PartitionSpec
MESH = AbstractMesh((2, 3), ("m", "n"))


def on_mesh(fn, *specs, out=P()):
    return jax.shard_map(fn, mesh=MESH, in_specs=specs, out_specs=out)


def only(fn, params, *args):
    (site,) = js.trace(fn, params, *args).sites
    return site


CUT = {
    # specs of a weight [6, 12] and of what each device has of it
    "along the first axis": (P("m"), (True, False), (3, 12)),
    "along the other": (P(None, "n"), (False, True), (6, 4)),
    "along both": (P("m", "n"), (True, True), (3, 4)),
    "one axis along both": (P(("m", "n")), (True, True), (1, 12)),
    "not at all": (P(), (False, False), (6, 12)),
}


@pytest.mark.parametrize("name", CUT)
def test_a_weight_that_is_cut_over_devices_is_a_slice_along_their_axes(name):
    spec, stacked, shape = CUT[name]

    def body(w, x):
        return (x[:, : len(w)] @ w)[None]

    site = only(
        lambda p, x: on_mesh(body, spec, P(), out=P(("m", "n")))(p["w"], x),
        {"w": normal(6, 12)},
        normal(5, 6),
    )
    assert (site.lengths, site.stacked, site.axes) == ((2, 3), stacked, ("m", "n"))
    assert site.w_shape == shape
    assert site.layers == ()
    assert (site.runs, site.macs) == (6, 5 * shape[0] * shape[1])


def test_devices_stand_behind_the_loops_around_them():
    def body(w, x):
        return jnp.tanh(x @ w)

    def fn(p, x):
        step = lambda x, w: (on_mesh(body, P("m"), P(), out=P("m"))(w, x)[:5], None)  # noqa: E731
        return lax.scan(step, x, p["w"])[0]

    site = only(fn, {"w": normal(4, 2 * 6, 6)}, normal(5, 6))
    assert (site.lengths, site.stacked) == ((4, 2, 3), (True, True, False))
    assert (site.axes, site.stack, site.layers) == (("", "m", "n"), (4, 2), (4,))


def test_what_leaves_the_devices_is_cut_no_more():
    """A weight that a device hands on is read whole behind it, and by its own scans."""

    def fn(p, x):
        w = on_mesh(lambda w: 2 * w, P("m"), out=P("m"))(p["w"])
        return x @ w

    site = only(fn, {"w": normal(6, 4)}, normal(5, 6))
    assert (site.lengths, site.stacked, site.axes, site.sources) == ((), (), (), ("w",))


def test_the_place_of_a_device_tells_its_weight_apart():
    def body(w, x):
        return (x @ (w * (1 + lax.axis_index("n"))))[None]

    fn = lambda p, x: on_mesh(body, P(), P(), out=P("n"))(p["w"], x)  # noqa: E731
    site = only(fn, {"w": normal(6, 4)}, normal(5, 6))
    assert (site.lengths, site.stacked) == ((2, 3), (False, True))


def test_axes_of_length_one_are_taken_off_and_put_back():
    state = {"a": jnp.ones((1, 1, 3)), "b": jnp.ones((1, 1))}
    assert [a.shape for a in jax.tree.leaves(strip(state, 2))] == [(3,), ()]
    assert [a.shape for a in jax.tree.leaves(strip(state, 1))] == [(1, 3), (1,)]
    back = unstrip(strip(state, 2), 2)
    assert [a.shape for a in jax.tree.leaves(back)] == [(1, 1, 3), (1, 1)]


def test_the_first_of_equal_states_is_kept_along_an_axis_that_does_not_cut():
    local = types.SimpleNamespace(axes=("m", "n"))
    state = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    for stacked, expected in (
        ((), state[0, 0]),
        (("m",), state[:, 0]),
        (("n",), state[0]),
        (("m", "n"), state),
    ):
        np.testing.assert_array_equal(gathered({"s": state}, local, stacked)["s"], expected)


def site(stacked, axes=()):
    lengths = (2,) * len(stacked)
    return Site("w", "w", "dot", (1,), (1,), "float32", 1, lengths, stacked, axes=axes)


def test_axes_of_a_site_are_counted_behind_the_loops_around():
    entry = Contraction(site((False, True, False, True)), None, None, None, 0, 1)
    plan = Plan(None, (), (None, entry), ())
    local = types.SimpleNamespace(axes=("m", "n"))
    assert device_axes(plan, local, 1) == {"w": ("m",)}
    assert device_axes(plan, local, 2) == {"w": ("n",)}


def test_devices_that_compute_the_same_draw_the_same():
    """Of a loop, an axis that cuts a weight, one along which inputs differ, and one of neither."""
    seen = {}

    def body(x):
        places = tuple(lax.axis_index(a) for a in ("m", "n"))
        loop = jnp.int32(7)
        one = lax.pcast(jnp.ones(2), "m", to="varying")
        both = site((True, False, False), ("", "m", "n"))
        for name, operand in (("m alone", one), ("neither", jnp.ones(2)), ("x", x)):
            found = differing(both, (loop, *places), operand)
            seen[name] = [next(i for i, p in enumerate((loop, *places)) if p is f) for f in found]
        cut = site((False, True, False), ("", "m", "n"))
        seen["cut"] = len(differing(cut, (loop, *places), jnp.ones(2)))
        plain = site((False, False, False))
        seen["no mesh"] = len(differing(plain, (loop, *places), jnp.ones(2)))
        return x

    jax.make_jaxpr(on_mesh(body, P(None, "n"), out=P(None, "n")))(jnp.ones((2, 6)))
    assert seen == {"m alone": [0, 1], "neither": [0], "x": [0, 2], "cut": 2, "no mesh": 3}


def test_inputs_of_all_devices_are_collected_in_their_order():
    x = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)

    def each(axes):
        def run(x):
            return everyone(axes, [lax.axis_index(a) for a, _ in axes], x)

        within = jax.vmap(run, axis_name="n")
        return jax.jit(jax.vmap(within, axis_name="m"))(x)

    np.testing.assert_array_equal(each([("n", 3)]), np.stack([x] * 3, 1))
    along_m = each([("m", 2)])
    assert along_m.shape == (2, 3, 2, 4)
    np.testing.assert_array_equal(along_m, np.stack([x.swapaxes(0, 1)] * 2))
    both = np.asarray(each([("m", 2), ("n", 3)]))
    assert both.shape == (2, 3, 6, 4)
    for here in both.reshape(6, 6, 4):
        np.testing.assert_array_equal(sorted(here[:, 0]), x[..., 0].ravel())
    np.testing.assert_array_equal(both, np.broadcast_to(both[0, 0], both.shape))


@dataclasses.dataclass(frozen=True)
class Gain:
    """Stands for a contraction: a number, and how often rows count."""

    by: float
    rows: jax.Array | None = None


def test_inputs_of_a_shared_weight_calibrate_it_one_after_the_other():
    """As a number: 2 · (2 · (2 · 1 + 3) + 5) + 7, and one alone without a loop."""

    def calibrate(op, state, x):
        return op.by * state + (x if op.rows is None else op.rows * x)

    core, op = types.SimpleNamespace(calibrate=calibrate), Gain(2.0)
    xs, counts = jnp.array([3.0, 5.0, 7.0]), jnp.array([1.0, 0.0, 2.0])
    assert float(calibrated(core, op, jnp.float32(1), xs)) == 2 * (2 * (2 + 3) + 5) + 7
    assert float(calibrated(core, op, jnp.float32(1), xs, counts)) == 2 * (2 * (2 + 3)) + 14
    assert float(calibrated(core, op, jnp.float32(1), xs[1:2])) == 7
    loops = str(jax.make_jaxpr(lambda s, x: calibrated(core, op, s, x))(1.0, xs[:1]))
    assert "scan" not in loops
