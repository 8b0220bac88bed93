import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.network.arguments import call_arguments
from jaxsim.network.lockstep import walk_together
from tests.support.models import normal
from tests.support.networks import stack


def walk(net, sites, xs, change=lambda w: w, what="walk"):
    """Names, slices and inputs of all visits; weights are changed on the way."""
    visits = []

    def visit(entry, at, inputs, w):
        visits.append((entry.site.name, at, [np.asarray(x) for x in inputs]))
        return [x @ change(w) for x in inputs]

    walk_together(net, sites, [call_arguments((x,), {}) for x in xs], visit, what)
    return visits


def test_all_batches_reach_a_slice_of_a_scan_before_any_goes_on():
    xs = [normal(5, 4, seed=i) for i in (1, 2)]
    visits = walk(stack(), {"w", "head"}, xs, lambda w: 0.5 * w)
    assert [(name, at) for name, at, _ in visits] == [
        *(("w", (i,)) for i in range(3)),
        ("head", ()),
    ]
    hidden = [np.asarray(x) for x in xs]
    for (name, _, inputs), w in zip(visits, [*stack().params["w"], None], strict=True):
        np.testing.assert_allclose(inputs, hidden, rtol=1e-5, atol=1e-6)
        if name == "w":
            hidden = [np.tanh(h @ np.asarray(0.5 * w)) for h in hidden]


def test_reversed_scans_run_from_the_last_slice_and_what_is_stacked_is_in_order():
    def fn(params, x):
        def step(x, w):
            x = jnp.tanh(x @ w)
            return x, x

        x, all_of_them = jax.lax.scan(step, x, params["w"], reverse=True)
        return all_of_them[0] @ params["v"]

    w, x = normal(3, 4, 4), normal(5, 4, seed=1)
    net = js.trace(fn, {"w": w, "v": normal(4, 2)}, x)
    visits = walk(net, {"w", "v"}, [x])
    assert [at for _, at, _ in visits] == [(2,), (1,), (0,), ()]
    expected = x
    for i in (2, 1, 0):
        expected = np.tanh(expected @ w[i])
    np.testing.assert_allclose(visits[-1][2][0], expected, rtol=1e-5, atol=1e-6)


def test_what_lies_behind_the_last_site_is_not_run():
    def fn(params, x):
        y = jax.nn.relu(x @ params["a"])
        return jax.pure_callback(lambda y: 1 / 0, y, y)

    x = normal(2, 3)
    net = js.trace(fn, {"a": normal(3, 3)}, x)
    assert len(walk(net, {"a"}, [x])) == 1


def test_what_cannot_be_walked_is_named():
    x = normal(2, 3)

    def fn(params, x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ params["a"], lambda x: x, x)

    net = js.trace(fn, {"a": normal(3, 3)}, x)
    with pytest.raises(ValueError, match="method at a: it runs inside a branch"):
        walk(net, {"a"}, [x], what="method")
    with pytest.raises(ValueError, match="method needs batches of one shape"):
        walk(net, {"a"}, [x, x[:1]], what="method")
