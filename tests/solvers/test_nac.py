import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim.games as jg
import jaxsim.solvers as js
from jaxsim.solvers.mixing import agent_mask
from jaxsim.solvers.networks import Unit, masked_softmax, recurrent
from tests.support.processes import of_two_and_of_one


class Gains(nn.Module):
    """The smallest meta-solver: a softmax of two numbers times the agents' gains and ages."""

    @nn.compact
    def __call__(self, payoffs, size):
        rate, slope = self.param("rates", nn.initializers.zeros, (2,))
        told = rate * payoffs.sum(1) + slope * jnp.cos(jnp.arange(len(payoffs)))
        return masked_softmax(told, agent_mask(payoffs, size))


NETWORKS = {
    "conv": js.ConvMixing((3,)),
    "gru": js.GRUMixing(3),
    "equivariant": js.EquivariantMixing(2, 4, start=0),
}
SMALLEST = Gains()
ORACLE = js.unrolled(1, 5.0)


def skill(key):
    return jg.games_of_skill(key, 8)


def drawn(shapes, seed):
    """Normal numbers of the shapes of a tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), shapes)


def payoffs(n, seed=0):
    a = np.random.default_rng(seed).normal(size=(n, n)).astype(np.float32)
    return a - a.T


@functools.cache
def shapes(network):
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((4, 4)), jnp.int32(2))


def started(network, seed=7):
    """Parameters away from where the last layer is zero."""
    values = drawn(shapes(network), seed)
    return jax.tree.map(lambda a: a / np.float32(np.sqrt(len(a)) if a.ndim > 1 else 4), values)


@pytest.mark.parametrize("name", NETWORKS)
def test_room_for_more_agents_changes_nothing(name):
    network = NETWORKS[name]
    params, a = started(network, seed=16), payoffs(5)
    apply = jax.jit(network.apply)
    plain = apply(params, a, jnp.int32(5))
    room = np.pad(a, ((0, 4), (0, 4)), constant_values=3.0)
    padded = apply(params, room, jnp.int32(5))
    np.testing.assert_allclose(padded[:5], plain, atol=1e-6)
    assert not np.asarray(padded[5:]).any()
    assert float(plain.sum()) == pytest.approx(1, abs=1e-6)
    assert np.ptp(np.asarray(plain)) > 1e-3


def test_renumbered_agents_have_their_weights():
    network = js.EquivariantMixing(3, 5, start=100)
    params, a = started(network), payoffs(6)
    order = np.array([3, 0, 5, 1, 4, 2])
    apply = jax.jit(lambda a, age: network.apply(params, a, jnp.int32(6), age))
    age = 5 - np.arange(6)
    plain, turned = apply(a, age), apply(a[order][:, order], age[order])
    np.testing.assert_allclose(turned, plain[order], atol=1e-6)
    np.testing.assert_allclose(apply(2 * a, age), plain, atol=1e-6)


def test_before_training_the_rounds_are_multiplicative_weights():
    network = js.EquivariantMixing(4, 5, start=0)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((4, 4)), jnp.int32(2))
    a = payoffs(5).astype(float)
    p = np.full(5, 0.2)
    for _ in range(4):
        p = p * np.exp(a / np.abs(a).max() @ p)
        p /= p.sum()
    np.testing.assert_allclose(
        jax.jit(network.apply)(params, np.float32(a), jnp.int32(5)), p, atol=1e-5
    )


OBJECTIVES = {
    "published": js.Objective(ORACLE, js.unrolled(3, 2.0), iterations=2, window=2),
    "all": js.Objective(ORACLE, iterations=3, window=3, each=True),
    "implicit": js.Objective(
        js.implicit(4000, 1.0, tolerance=1e-10), js.unrolled(3, 1.0), iterations=2, window=2
    ),
}


def rises_as_it_slopes(f, point):
    """That the derivative of a function along a way is that of central differences."""
    # one program for the derivative and both values
    both = jax.jit(jax.value_and_grad(f))
    way, step = drawn(point, 11), 1e-5
    slope = both(point)[1]
    ahead, behind = (
        float(both(jax.tree.map(lambda p, w, s=s: p + s * w, point, way))[0]) for s in (step, -step)
    )
    along = sum(
        float(np.vdot(a, b)) for a, b in zip(*map(jax.tree.leaves, (slope, way)), strict=True)
    )
    assert abs(along) > 1e-6
    assert along == pytest.approx((ahead - behind) / (2 * step), rel=1e-6, abs=1e-10)


@pytest.mark.parametrize(
    ("network", "objective"),
    [(NETWORKS["gru"], "published"), (SMALLEST, "all"), (SMALLEST, "implicit")],
    ids=["gru-published", "gains-all", "gains-implicit"],
)
def test_the_meta_gradient_is_that_of_central_differences(network, objective):
    with jax.enable_x64(True):
        aim = OBJECTIVES[objective]
        # of one window there is no constant population, and the derivative is that of the value
        aim = aim._replace(window=aim.iterations)
        if objective == "implicit":
            game = jg.rps_mixture(jax.random.key(3), 3)
        else:
            game = jg.matrix_game(payoffs(8))
        params, play = jax.tree.map(np.float64, started(network)), jax.random.key(4)
        rises_as_it_slopes(lambda p: js.nac_loss(network, aim, p, game, play), params)


@pytest.mark.parametrize("name", ["conv", "equivariant"])
def test_the_derivative_of_a_network_is_that_of_central_differences(name):
    """By parameters and payoffs, which depend on the weights before; one place is empty."""
    with jax.enable_x64(True):
        way, a = np.random.default_rng(2).normal(size=5), payoffs(5)

        def out(point):
            params, half = point
            return NETWORKS[name].apply(params, half - half.T, jnp.int32(4)) @ way

        rises_as_it_slopes(out, jax.tree.map(np.float64, (started(NETWORKS[name]), a / 2)))


def test_the_recurrent_unit_has_the_derivative_of_its_equations():
    with jax.enable_x64(True):
        rng, sizes = np.random.default_rng(0), ((2, 9), (9,), (3, 9), (3,), (4, 5, 2), (5, 3))
        into, shift, state, bias, x, way = (jnp.asarray(rng.normal(size=s)) for s in sizes)
        there = np.array([True, True, False, True])

        def plain(unit, x):
            h = jnp.zeros((5, 3))
            for now, counts in zip(x, there, strict=True):
                fed, held = now @ unit.into + unit.shift, h @ unit.state
                r, z = (jax.nn.sigmoid(fed[:, i : i + 3] + held[:, i : i + 3]) for i in (0, 3))
                new = jnp.tanh(fed[:, 6:] + r * (held[:, 6:] + unit.bias))
                h = jnp.where(counts, z * h + (1 - z) * new, h)
            return jnp.vdot(h, way)

        unit = Unit(into, shift, state, bias)
        ours = jax.jit(
            jax.value_and_grad(lambda u, x: jnp.vdot(recurrent(u, x, there), way), (0, 1))
        )(unit, x)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),
            ours,
            jax.jit(jax.value_and_grad(plain, (0, 1)))(unit, x),
        )


def test_derivatives_stop_at_the_start_of_a_window():
    """Of each iteration's NashConv the value is that of one window; the derivative is not."""
    net, game, key = SMALLEST, jg.matrix_game(payoffs(8)), jax.random.key(4)
    aim = js.Objective(ORACLE, iterations=2, window=1, each=True)
    aims = aim, aim._replace(window=2), aim._replace(oracle=js.first_order(ORACLE))

    @jax.jit
    def computed(params):
        return [
            jax.value_and_grad(lambda p, a=a: js.nac_loss(net, a, p, game, key))(params)
            for a in aims
        ]

    found = computed(started(net))
    values = [float(value) for value, _ in found]
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)
    slopes = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(s)]) for _, s in found]
    for other in slopes[1:]:
        assert np.abs(slopes[0] - other).max() > 1e-4


def training(network, steps, **options):
    """States and objectives of a meta-training, which compiles once."""
    optimizer = js.meta_optimizer(0.01, 100)
    aim = js.Objective(ORACLE, iterations=2, window=2, each=True)
    start = jax.jit(lambda key: js.init_meta(network, optimizer, key))
    states, values = [start(jax.random.key(0))], []
    step = js.meta_step(network, aim, skill, optimizer, **{"batch": 4, **options})
    for _ in range(steps):
        state, value = step(states[-1], jax.random.key(1))
        states.append(state)
        values.append(float(value))
    # a state on one device and one on all are entries of their own, but of one program
    assert step._cache_size() <= 1 + ("mesh" in options)
    return states, values


@jax.jit
def score(params):
    """NashConv of the populations of many games."""
    net, aim = SMALLEST, js.Objective(ORACLE, iterations=2, window=2, each=True)
    keys = jax.random.split(jax.random.key(99), 64)
    return jax.vmap(lambda k: js.nac_loss(net, aim, params, skill(k), k))(keys).mean()


@pytest.mark.parametrize("gradient", ["unrolled", "es"])
def test_training_makes_nash_conv_smaller(gradient):
    net = SMALLEST
    before, *_, after = training(net, 60, gradient=gradient)[0]
    assert float(score(after.params)) < float(score(before.params)) - 0.02
    assert int(after.step) == 60


@pytest.mark.slow
def test_two_processes_train_as_two_devices_do_and_those_as_one():
    first, second, alone = of_two_and_of_one("tests.support.nac_process")
    assert first == second == alone


def test_an_evaluation_compiles_once():
    net = NETWORKS["conv"]

    @jax.jit
    def grown(solver, oracle, key):
        return js.psro(skill(key), solver, oracle, key, iterations=1).nash_conv

    for seed, rate in enumerate((1.0, 2.0)):
        solver = js.network_solver(net, started(net, seed))
        grown(solver, js.unrolled(1, rate), jax.random.key(seed))
    assert grown._cache_size() == 1


def test_bad_options_are_refused():
    net, optimizer = NETWORKS["conv"], optax.sgd(0.1)

    def make(aim=js.Objective(ORACLE), **options):
        js.meta_step(net, aim, skill, optimizer, **options)

    for told, call in {
        "window=3: must divide iterations=20": lambda: make(js.Objective(ORACLE, window=3)),
        "start=0": lambda: make(js.Objective(ORACLE, start=0)),
        "batch=0": lambda: make(batch=0),
        "gradient='x'": lambda: make(gradient="x"),
        "divides the batch": lambda: make(batch=3, mesh=jax.make_mesh((1, 1), ("a", "b"))),
        "rate=0": lambda: js.meta_optimizer(0, 3),
    }.items():
        with pytest.raises(ValueError, match=told):
            call()
