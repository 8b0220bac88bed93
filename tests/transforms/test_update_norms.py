"""Statistics of batch norms, against the moments of what reaches them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsim as js


class Model(nn.Module):
    """Two norms in a row behind kernels, of other momenta, and one that never trains."""

    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(True, name="frozen")(x)
        x = nn.Dense(5, name="first")(x)
        x = nn.BatchNorm(not train, momentum=self.momentum, name="one")(x)
        x = nn.Dense(3, name="second")(nn.relu(x))
        return nn.BatchNorm(not train, momentum=0.5, name="two")(x)


X = np.asarray(jax.random.normal(jax.random.key(0), (96, 4)) * 2 + 1)


def network(model=None):
    model = Model() if model is None else model
    held = jax.jit(model.init)(jax.random.key(1), X)
    stats = jax.tree.map(lambda a: a, held["batch_stats"])
    for i, name in enumerate(("one", "two")):
        stats[name] = {"mean": stats[name]["mean"] + 0.3 + i, "var": stats[name]["var"] * 1.7 + i}
    return js.trace(model, {"params": held["params"], "batch_stats": stats}, X)


def by_hand(params, batches):
    """Moments that reach each norm while norms divide by those of the batch, averaged over rows."""
    moments = {"one": [], "two": []}
    for x in batches:
        y = x / np.sqrt(1 + 1e-5)
        for dense, norm in (("first", "one"), ("second", "two")):
            y = y @ np.asarray(params[dense]["kernel"], np.float64) + params[dense]["bias"]
            mean, var = y.mean(0), y.var(0)
            moments[norm].append((len(x), mean, var))
            y = np.maximum((y - mean) / np.sqrt(var + 1e-5), 0)
    rows = sum(map(len, batches))
    return {
        norm: {
            "mean": sum(n * mean for n, mean, _ in seen) / rows,
            "var": sum(n * var for n, _, var in seen) / rows,
        }
        for norm, seen in moments.items()
    }


def assert_close(found, expected):
    for norm, values in expected.items():
        for kind, value in values.items():
            np.testing.assert_allclose(found[norm][kind], value, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
def test_statistics_become_the_mean_of_the_batches_moments(momentum):
    net = network(Model(momentum))
    batches = [X[:32], X[32:]]
    found = js.update_norms(batches, train=True)(net).buffers["batch_stats"]
    assert_close(found, by_hand(net.params, batches))
    # one batch of all rows has another variance, so the test would tell
    assert not np.allclose(found["one"]["var"], by_hand(net.params, [X])["one"]["var"], rtol=1e-3)
    np.testing.assert_array_equal(
        found["frozen"]["mean"], net.buffers["batch_stats"]["frozen"]["mean"]
    )


def test_with_a_reference_they_move_as_the_moments_have():
    net = network()
    chip = js.deploy(js.quantize(2, None)(net))
    moved = js.update_norms(X, reference=net, train=True)(chip).buffers["batch_stats"]
    held, exact = net.buffers["batch_stats"], by_hand(net.params, [X])
    rounded = {
        name: {**net.params[name], "kernel": js.quantize(2, None)(js.trace(
            lambda p, x: x @ p["w"], {"w": net.params[name]["kernel"]}, np.eye(n)
        ))(np.eye(n))}
        for name, n in (("first", 4), ("second", 5))
    }  # fmt: skip
    seen = by_hand(rounded, [X])
    assert_close(
        moved,
        {
            norm: {
                "mean": held[norm]["mean"] + seen[norm]["mean"] - exact[norm]["mean"],
                "var": held[norm]["var"] * seen[norm]["var"] / exact[norm]["var"],
            }
            for norm in ("one", "two")
        },
    )


def test_of_itself_as_the_reference_nothing_moves():
    net = network()
    found = js.update_norms(X, reference=net, train=True)(net)
    np.testing.assert_allclose(found(X), net(X), rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(js.update_norms(X, train=True)(net)(X) - net(X)).max()) > 0.1


def test_a_channel_that_the_reference_never_moves_takes_the_variance_added():
    """An empty channel of cells with errors: no ratio to zero."""
    net = network()
    kernel = net.params["first"]["kernel"].at[:, 2].set(0)
    empty = net.with_params({**net.params, "first": {**net.params["first"], "kernel": kernel}})
    chip = empty.with_params(net.params)
    found = js.update_norms(X, reference=empty, train=True)(chip).buffers["batch_stats"]["one"]
    held = net.buffers["batch_stats"]["one"]["var"][2]
    expected = held + by_hand(net.params, [X])["one"]["var"][2]
    np.testing.assert_allclose(found["var"][2], expected, rtol=1e-4)


def test_an_error_of_programming_is_taken_off_at_every_norm():
    """The same chip, before and after: deviations of outputs, over keys."""
    net = js.update_norms(X, train=True)(network())
    made = js.compose(js.quantize(8, 8), js.analog(cells=js.cells.proportional(0.3)))(net)

    def error(key):
        chip = js.deploy(made, key=key, calibrate=X)
        after = js.update_norms(X, reference=net, train=True)(chip)
        return [float(jnp.square(c(X) - net(X)).mean()) for c in (chip, after)]

    before, after = np.mean([error(jax.random.key(i)) for i in range(4)], 0)
    assert after < 0.5 * before


def test_norms_of_nnx_modules():
    class Norms(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(4, 5, rngs=rngs)
            self.norm = nnx.BatchNorm(5, rngs=rngs)

        def __call__(self, x, train=False):
            return self.norm(self.dense(x), use_running_average=not train)

    net = js.trace(Norms(nnx.Rngs(0)), X)
    found = js.update_norms(X, mutable="BatchStat", train=True)(net)
    np.testing.assert_allclose(found(X).mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found(X).var(0), 1, rtol=1e-3)


def test_stacked_norms_of_a_scan_each_have_their_own():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.BatchNorm(not train)(nn.Dense(4)(x)), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            scanned = nn.scan(
                Block,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                length=3,
                in_axes=nn.broadcast,
            )
            return scanned(name="blocks")(x, train)[0]

    model = Stack()
    net = js.trace(model, jax.jit(model.init)(jax.random.key(0), X), X)
    found = js.update_norms(X, train=True)(net)
    mean = found.buffers["batch_stats"]["blocks"]["BatchNorm_0"]["mean"]
    assert mean.shape == (3, 4)
    np.testing.assert_allclose(found(X).mean(0), 0, atol=1e-5)
    assert float(jnp.abs(mean[0] - mean[1]).max()) > 0.1


def test_a_large_mean_does_not_blur_the_momentum():
    """A tenth of 1e6 swallows a tenth of one; another channel tells how much is kept."""
    net = network()
    kernel = net.params["first"]["kernel"].at[:, 0].multiply(1e5)
    bias = net.params["first"]["bias"].at[0].set(1e6)
    large = net.with_params({**net.params, "first": {"kernel": kernel, "bias": bias}})
    found = js.update_norms(X, train=True)(large).buffers["batch_stats"]["one"]["mean"]
    expected = by_hand(large.params, [X])["one"]["mean"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_cells_that_are_noisy_at_each_read_ask_for_a_key():
    cells = js.cells.sonos(days=1.0)
    made = js.compose(js.quantize(8, 8), js.analog(cells=cells))(network())
    chip = js.deploy(made, key=jax.random.key(0), calibrate=X)
    key, other = jax.random.key(1), jax.random.key(2)
    with pytest.raises(ValueError, match="key"):
        js.update_norms(X, train=True)(chip)
    with pytest.raises(ValueError, match="key"):
        js.update_norms(X, reference=chip, train=True)
    moved = js.update_norms(X, reference=chip, key=key, train=True)(chip)
    assert_close(moved.buffers["batch_stats"], chip.buffers["batch_stats"])  # the same reads
    one, two = (js.update_norms(X, key=k, train=True)(chip).buffers for k in (key, other))
    assert not np.array_equal(one["batch_stats"]["one"]["mean"], two["batch_stats"]["one"]["mean"])


class Counting(nn.Module):
    """Counts its calls as a float beside a norm."""

    kind: type = float

    @nn.compact
    def __call__(self, x, train=False):
        count = self.variable("batch_stats", "count", lambda: jnp.zeros((), self.kind))
        if train:
            count.value += 1
        return nn.BatchNorm(not train)(nn.Dense(3)(x))


class Renamed(nn.Module):
    """A norm whose statistic has a name of its own."""

    @nn.compact
    def __call__(self, x, train=False):
        seen = self.variable("batch_stats", "level", lambda: jnp.zeros(4))
        if train:
            seen.value = 0.9 * seen.value + 0.1 * x.mean(0)
        return nn.Dense(3)(x - seen.value)


def traced(model):
    return js.trace(model, jax.jit(model.init)(jax.random.key(1), X), X)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: js.update_norms(X)(network()), "change no statistics; give .* train=True"),
        (lambda: js.update_norms(X, train=True)(traced(Counting())), "count is no running average"),
        (lambda: js.update_norms(X, train=True)(traced(Counting(int))), "count is int32, so no"),
        (lambda: js.update_norms([], train=True)(network()), "at least one batch"),
        (lambda: js.update_norms(X * np.nan, train=True)(network()), "inputs: .* NaN or infinite"),
        (lambda: js.update_norms(X)(lambda x: x), "update_norms takes a Network"),
        (
            lambda: js.update_norms(X, reference=traced(Renamed()), train=True)(network()),
            "reference: its calls change",
        ),
        (
            lambda: js.update_norms(X, reference=traced(Renamed()), train=True)(traced(Renamed())),
            "level is neither a mean nor a var",
        ),
    ],
)
def test_what_it_refuses(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_statistic_of_another_name_is_that_of_the_inputs():
    found = js.update_norms(X, train=True)(traced(Renamed()))
    np.testing.assert_allclose(found.buffers["batch_stats"]["level"], X.mean(0), rtol=1e-5)
