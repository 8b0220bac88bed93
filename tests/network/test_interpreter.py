"""Random streams of a call: what draws apart, what draws once, and what repeats."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsim as js
from jaxsim.network.interpreter import Walk, site_key
from tests.support.models import normal

KEY = jax.random.key(11)
KEYS = jax.random.split(KEY, 2000)[jnp.arange(2001) % 2000]
X = normal(2, 2)


def drawn(core):
    """Gives, in place of a product, what its write and its read drew."""

    def read(op, state, x, key):
        one = jnp.stack([state, jax.random.normal(key, ())])
        return one + 0 * op.contract(x, jnp.ones(op.geometry.w_shape))

    return core._replace(write=lambda op, w, key: jax.random.normal(key, ()), read=read)


def model(params, x):
    """Sites alone, used twice, in scans with weights of their own and a shared one, in a loop."""
    _, slices = lax.scan(lambda x, w: (x, x @ w), x, params["stack"])
    _, shared = lax.scan(lambda x, _: (x, x @ params["shared"]), x, None, length=3)
    _, nested = lax.scan(
        lambda x, w: (x, lax.scan(lambda x, _: (x, x @ w), x, None, length=2)[1]),
        x,
        params["nested"],
    )
    _, dynamic = lax.scan(lambda x, _: (x, x @ x), x, None, length=3)

    def step(state):
        i, y = state
        return i + 1, y.at[i].set(x @ params["loop"])

    _, loop = lax.while_loop(lambda s: s[0] < 3, step, (0, jnp.zeros((3, 2, 2))))
    alone = jnp.stack([x @ params["a"], x @ params["a"], x @ params["b"]])
    return {
        "alone": alone,
        "slices": slices,
        "shared": shared,
        "nested": nested,
        "dynamic": dynamic,
        "loop": loop,
    }


def network():
    params = {name: normal(2, 2, seed=i) for i, name in enumerate(("a", "b", "shared", "loop"))}
    params |= {"stack": normal(3, 2, 2), "nested": normal(3, 2, 2)}
    net = js.trace(model, params, X)
    return js.compose(js.wrap(drawn), js.wrap(drawn, sites="dynamic/*"))(net)


def draws():
    """What each site drew, written and read, for every key: [keys, runs] by name."""
    net = network()
    found = jax.jit(jax.vmap(lambda key: net(X, key=key)))(KEYS)
    return {
        f"{name} {side}": np.asarray(y[..., 0, i]).reshape(len(KEYS), -1)
        for name, y in found.items()
        for i, side in enumerate(("written", "read"))
    }


ONE_EACH = {
    "alone written": 3,
    "alone read": 3,
    "slices written": 3,
    "slices read": 3,
    "shared written": 1,
    "shared read": 3,
    "nested written": 3,
    "nested read": 6,
    "dynamic written": 3,
    "dynamic read": 3,
    "loop written": 1,
    "loop read": 3,
}
"""How many weights are written, and how often they are read."""


def test_weights_are_drawn_once_reads_anew_and_none_shares_its_key():
    """No site, use, slice, iteration or side draws what another does."""
    found = draws()
    distinct = []
    for name, runs in found.items():
        columns = {column[0]: column for column in runs.T}
        assert len(columns) == ONE_EACH[name], name
        np.testing.assert_array_equal(runs[0], runs[-1])
        distinct += columns.values()
    drawn_by_hand(found)
    correlation = np.corrcoef(distinct) - np.eye(len(distinct))
    assert np.abs(correlation).max() < 0.11  # five deviations of 2000 draws
    written_by_key(found)


RUNS = {
    "alone": [("a", (), ()), ("a#2", (), ()), ("b", (), ())],
    "slices": [("stack", (i,), (i,)) for i in range(3)],
    "shared": [("shared", (), (i,)) for i in range(3)],
    "nested": [("nested", (i,), (i, j)) for i in range(3) for j in range(2)],
    "dynamic": [("dynamic/0", (i,), (i,)) for i in range(3)],
    "loop": [("loop", (), (i,)) for i in range(3)],
}
"""For each run the site, the slice that is written and the iterations that read it."""


def drawn_by_hand(found):
    """Each draw is that of the key, the site's name and the iterations, counted from 0."""

    sides = ("written", "read")
    keys = [
        site_key(KEYS[0], site + end, at)
        for runs in RUNS.values()
        for end, place in (("", 1), (":read", 2))
        for site, at in ((run[0], run[place]) for run in runs)
    ]
    expected = jax.vmap(lambda key: jax.random.normal(key, ()))(jnp.stack(keys))
    every = [found[f"{name} {side}"][0] for name in RUNS for side in sides]
    np.testing.assert_allclose(np.concatenate(every), expected, rtol=1e-5)


def written_by_key(by_key):
    """A chip holds what a call of its key writes, and is read by the key of the call."""
    found = js.deploy(network(), key=KEYS[0])(X, key=KEYS[1])
    for name, y in found.items():
        for i, side in enumerate(("written", "read")):
            # two activations are never written beforehand
            row = 0 if side == "written" and name != "dynamic" else 1
            expected = by_key[f"{name} {side}"][row]
            np.testing.assert_allclose(y[..., 0, i].ravel(), expected, rtol=1e-5)


def test_the_key_of_a_site_is_that_of_its_name_and_its_iterations_in_order():
    fold = jax.random.fold_in
    expected = fold(fold(fold(KEY, zlib.crc32(b"a/b")), 3), 5)
    assert site_key(KEY, "a/b", (3, 5)) == expected
    assert site_key(KEY, "a/b", (5, 3)) != expected
    assert site_key(None, "a/b", (3, 5)) is None


def test_parts_of_a_call_read_apart_and_are_written_as_one():
    walks = [Walk({}, "batch", KEY, part=part) for part in (None, 0, 1)]
    assert all(walk.key is KEY for walk in walks)
    assert len({tuple(np.asarray(jax.random.key_data(w.read_key))) for w in walks}) == 3
    assert Walk({}, "batch", None, part=1).read_key is None


def same(core):
    return core._replace(calibrate=core.calibrate)


def custom(kind, body):
    """A function whose derivative is not its own."""
    if kind == "vjp":
        fn = jax.custom_vjp(body)
        fn.defvjp(lambda *i: (body(*i), i), lambda i, g: tuple(7.0 * jnp.sum(g) + 0 * a for a in i))
    else:
        fn = jax.custom_jvp(body)
        fn.defjvp(lambda ins, tangents: (body(*ins), 7.0 * tangents[-1]))
    return fn


@pytest.mark.parametrize("kind", ["vjp", "jvp"])
def test_a_derivative_of_the_model_stays_where_nothing_inside_is_transformed(kind):
    """In a loop as well, without a site inside and with one that is left as it is."""
    plain = custom(kind, jnp.tanh)
    held = custom(kind, lambda w, x: jnp.tanh(x @ w))

    def fn(p, x):
        x = lax.scan(lambda x, w: (plain(x @ w), None), x, p["layers"])[0]
        return jnp.sum(held(p["held"], x))

    params, x = {"layers": normal(2, 4, 4), "held": normal(4, 4, seed=1)}, normal(3, 4)
    net = js.trace(fn, params, x)

    def slopes(nets, p):
        return [jax.grad(lambda x, n=n: n(x))(x) for n in nets] + [jax.grad(fn, 1)(p, x)]

    layers, inside = (net.wrap([name], js.Wrapper.of(same)) for name in params)
    kept, lost, model = jax.jit(slopes)([layers, inside], params)
    np.testing.assert_allclose(kept, model, rtol=1e-6)
    # of a transformed site inside it is the derivative of the body, whose entries are below one
    assert np.abs(lost - model).max() > 0.1 * np.abs(model).max()
