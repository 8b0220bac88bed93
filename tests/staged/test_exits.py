"""Rows leave when the rule says so, and nothing else about the network changes."""

import dataclasses
import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

import jaxsim as js
from jaxsim.adaptive.features import first_token
from jaxsim.adaptive.heads import apply_head, fit_students
from jaxsim.models.neural_interpreter import NeuralInterpreter
from jaxsim.models.resnet import ResNet
from jaxsim.models.transformer import Transformer
from jaxsim.models.vision import Vision
from jaxsim.network.arguments import call_arguments
from jaxsim.network.network import base_network
from jaxsim.staged import exits, passes
from jaxsim.staged.exit_step import count_programs
from tests.support.networks import run
from tests.support.variables import filled

ROWS = 12
BUCKETS = js.Buckets(batch=4, max_batch=8)
ONE = js.Buckets(batch=6, max_batch=6)  # one shape, of models that are slow to compile
FULL = js.Buckets(batch=8, max_batch=8)
MODELS = {
    "resnet": ResNet((1, 1), 4, 3),
    "vit": Vision(Transformer(2, 2), (3,), 4, 8),
    "interpreter": Vision(
        NeuralInterpreter(
            functions=2, iterations=3, heads=2, qk_width=4, code_width=8, type_width=4
        ),
        (3,),
        4,
        8,
    ),
}
EXITS = {"resnet": 3, "vit": 2, "interpreter": 3}


def images(rows=ROWS, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, 8, 8, 1)).astype(np.float32)


@functools.cache
def network(name):
    model = MODELS[name]
    if name == "interpreter":  # with biases of zero, however XLA fuses them, every bit is the same
        variables = jax.jit(model.init)(jax.random.key(0), images())
    else:
        variables = filled(model, images())
    return js.trace(model, variables, images())


@functools.cache
def with_exits(name, **options):
    """Its exits, their classifiers taught."""
    made = js.exit_early(EXITS[name], **options)(network(name))
    return js.distill_exits(made, images(), key=jax.random.key(1), steps=50)


@functools.cache
def mlp(width=6):
    shapes = {**{f"w{i}": (width, width) for i in range(4)}, "head": (width, 3)}

    @jax.jit
    def drawn(keys):
        sizes = {**shapes, "x": (ROWS, width)}
        return {
            k: jax.random.normal(key, s) for key, (k, s) in zip(keys, sizes.items(), strict=True)
        }

    params = {
        k: np.asarray(v) for k, v in drawn([jax.random.key(i) for i in (*range(5), 10)]).items()
    }
    x = jnp.asarray(params.pop("x"))
    params = {k: jnp.asarray(np.float32(0.6) * v) for k, v in params.items()}

    def model(params, x):
        for i in range(4):
            x = jnp.tanh(x @ params[f"w{i}"])
        return x @ params["head"]

    made = js.exit_early(["w1", "w2", "w3"])(js.trace(model, params, x))
    return js.distill_exits(made, x, key=jax.random.key(11), steps=50), x


head_of = jax.jit(apply_head)


def at_every_exit(net, x):
    """Logits at every exit, [L, B, C], in float64."""
    *features, logits = passes.at_exits(net, call_arguments((x,), {}), 64, jax.random.key(0))
    heads = [np.asarray(head_of(h, f)) for h, f in zip(net.heads, features, strict=True)]
    return np.float64([*heads, np.asarray(logits)])


def doubts(logits):
    """Entropy over that of a uniform choice, in float64."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return -np.sum(p * np.log(p), -1) / np.log(logits.shape[-1])


def exit_of(net, logits):
    """The exit that each row takes, a row and an exit at a time."""
    L, B, _ = logits.shape
    found = []
    for row in range(B):
        agreed = 0
        for at in range(L):
            if at:
                same = np.argmax(logits[at, row]) == np.argmax(logits[at - 1, row])
                agreed = agreed + 1 if same else 0
            ready = doubts(logits[at, row]) < net.threshold
            if net.patience:
                ready = agreed >= net.patience
            if (ready and at + 1 >= net.first) or at == L - 1:
                found.append(at + 1)
                break
    return np.array(found)


def check(net, x, buckets=ONE, tolerance=1e-5):
    """Both executions against an oracle that computes everything."""
    logits = at_every_exit(net, x)
    layer = exit_of(net, logits)
    computed = np.arange(1, len(logits) + 1) <= layer[:, None]
    doubt = np.where(computed, doubts(logits).T, np.nan)
    for found in (net.simulate(x), net.run(x, buckets=buckets)):
        np.testing.assert_array_equal(found.layer, layer)
        np.testing.assert_allclose(found.uncertainty, doubt, atol=tolerance)
        expected = logits[layer - 1, np.arange(len(x))]
        np.testing.assert_allclose(found.logits, expected, atol=tolerance)
        assert found.kept is None


@pytest.mark.parametrize("name", MODELS)
def test_a_threshold_of_zero_is_the_network_and_one_above_one_its_first_exit(name):
    net, x = with_exits(name), images()
    whole = run(network(name), x)
    for found in (net.simulate(x).logits, net(x)):
        np.testing.assert_array_equal(found, whole)
    np.testing.assert_allclose(net.run(x, buckets=ONE).logits, whole, atol=1e-6)
    fast = dataclasses.replace(net, threshold=1.5)
    assert set(np.asarray(fast.simulate(x).layer)) == {1}
    check(fast, x)


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_leave_are_those_that_an_oracle_finds(name):
    net, x = with_exits(name), images()
    threshold = np.quantile(doubts(at_every_exit(net, x)[:-1]), 0.3)
    net = dataclasses.replace(net, threshold=threshold)
    assert len(set(np.asarray(net.simulate(x).layer))) > 1
    check(net, x)


def test_exits_of_an_interpreter_are_between_its_iterations():
    assert with_exits("interpreter").cuts == (
        "body/script_0/type_0/kernel#2",
        "body/script_0/type_0/kernel#3",
    )


@settings(max_examples=20)
@given(st.integers(1, 21), st.floats(0, 1.1), st.sampled_from([(0, 1), (0, 3), (1, 1), (2, 2)]))
def test_a_run_of_any_rows_says_what_the_simulation_says(rows, quantile, rule):
    net, _ = mlp()
    x = np.random.default_rng(0).normal(size=(21, 6)).astype(np.float32)
    logits = at_every_exit(net, x)
    doubt = np.sort(doubts(logits).ravel())
    # Half-way between two uncertainties: rounding decides nothing.
    i = int(quantile * (len(doubt) - 1))
    threshold = 2.0 if i + 1 >= len(doubt) else (doubt[i] + doubt[i + 1]) / 2
    net = dataclasses.replace(net, threshold=threshold, patience=rule[0], first=rule[1])
    simulated, ran = net.simulate(x), net.run(x[:rows], buckets=FULL)
    np.testing.assert_array_equal(simulated.layer, exit_of(net, logits))
    for a, b in zip(simulated[:4], ran[:4], strict=True):
        np.testing.assert_allclose(np.asarray(a)[:rows], b, atol=1e-5)


def test_sweeps_compile_once_and_vmap():
    net, x = mlp()
    before = exits._simulate._cache_size()
    for threshold in (0.1, jnp.float32(0.5), np.float64(0.7)):
        dataclasses.replace(net, threshold=threshold).simulate(x)
    assert exits._simulate._cache_size() == before + 1

    def layers(threshold):
        return dataclasses.replace(net, threshold=threshold).simulate(x).layer

    found = jax.vmap(layers)(jnp.array([0.0, 0.75, 2.0]))
    np.testing.assert_array_equal(found[0], 4)
    np.testing.assert_array_equal(found[1], layers(0.75))
    np.testing.assert_array_equal(found[2], 1)


def test_a_warm_run_compiles_nothing():
    net, x = mlp()
    buckets = js.Buckets(batch=3, max_batch=8)
    assert net.warm_up(x, buckets=buckets) == 4 * 2
    before = count_programs()
    for rows in (1, 3, 12):
        for threshold in (0.0, 0.75, 2.0):
            dataclasses.replace(net, threshold=threshold).run(x[:rows], buckets=buckets)
    assert count_programs() == before
    assert net.warm_up(x, buckets=buckets) == 0


def test_flops_are_those_of_a_count_by_hand_and_of_what_was_computed():
    net, x = mlp()
    found = dataclasses.replace(net, threshold=0.75).simulate(x)
    layer, head = 2 * 6 * 6, 2 * 6 * 3
    by_exit = [(layer + head) * i for i in (1, 2, 3)] + [4 * layer + 4 * head]
    assert len(set(np.asarray(found.layer))) > 2
    np.testing.assert_array_equal(found.flops, np.take(by_exit, found.layer - 1))


def test_gradients_are_those_of_the_exit_each_row_takes():
    net, x = mlp()
    net = dataclasses.replace(net, threshold=0.75)
    layer = np.asarray(net.simulate(x).layer)

    def loss(params, rows):
        out = dataclasses.replace(net, params=params).simulate(x)
        return jnp.sum(out.logits[rows] ** 2)

    def plain(params, rows):
        h, logits = x[rows], None
        for i in range(layer[rows][0]):
            h = jnp.tanh(h @ params[f"w{i}"])
            head = net.heads[i] if i < 3 else {"kernel": params["head"], "bias": 0.0}
            logits = apply_head(head, h)
        return jnp.sum(logits**2)

    assert len(set(layer)) > 2
    for at in set(layer):
        rows = np.flatnonzero(layer == at)
        found, expected = (
            jax.jit(jax.grad(partial(f, rows=rows)))(net.params) for f in (loss, plain)
        )
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_students_do_not_move_what_made_their_features():
    net, x = mlp()

    def size(params):
        h = jnp.tanh(x @ params["w0"])
        (head,) = fit_students((h,), h @ params["head"], jax.random.key(0), steps=3)
        return jnp.sum(head["kernel"] ** 2)

    assert size(net.params) > 0
    for slope in jax.tree.leaves(jax.grad(size)(net.params)):
        np.testing.assert_array_equal(slope, 0)


def test_distilled_exits_say_what_the_network_says():
    net, x = mlp()
    taught = js.distill_exits(net, x, key=jax.random.key(0), steps=800, batch_size=5)
    logits = at_every_exit(taught, x)

    def kl(student):
        t, s = (log_softmax(a, -1) for a in (logits[-1], student))
        return np.mean(np.sum(np.exp(t) * (t - s), -1))

    assert kl(logits[2]) < 0.1 * kl(np.zeros_like(logits[0]))
    np.testing.assert_array_equal(taught.simulate(x).logits, net.simulate(x).logits)


@pytest.mark.parametrize("after", [False, True])
def test_exits_of_quantized_networks(after):
    """Quantized before the exits are made or after: the same network."""
    key = jax.random.key(0)
    if after:
        plain, x = base_network(mlp()[0]), mlp()[1]
    else:
        model, x = ResNet((1,), 4, 3), images()
        plain = js.trace(model, filled(model, x), x)
    quantize, cut = js.quantize(weights=8, inputs=8), js.exit_early(3 if after else 2)
    net = js.compose(*((cut, quantize) if after else (quantize, cut)))(plain)
    chip = js.distill_exits(js.deploy(net, key=key, calibrate=x), x, key=key, steps=50)
    alone = js.deploy(quantize(plain), key=key, calibrate=x)
    np.testing.assert_array_equal(chip.simulate(x).logits, run(alone, x))
    threshold = np.quantile(doubts(at_every_exit(chip, x)[:-1]), 0.3)
    check(dataclasses.replace(chip, threshold=threshold), x)


def test_exits_of_pruned_and_of_noisy_networks():
    (net, x), key = mlp(), jax.random.key(0)
    plain, sites = base_network(net), ["w1", "head"]
    for hardware in (
        js.prune(0.5),
        js.compose(
            js.quantize(8, 8, sites=sites),
            js.analog(cells=js.cells.proportional(0.02), sites=sites),
        ),
    ):
        alone, cut = hardware(plain), js.compose(hardware, js.exit_early(3))(plain)
        np.testing.assert_allclose(
            cut.simulate(x, key=key).logits, run(alone, x, key=key), atol=1e-5
        )
    alone, cut = (js.deploy(n, key=key, calibrate=x) for n in (alone, cut))
    found = cut.run(x, key=key, buckets=BUCKETS).logits
    np.testing.assert_allclose(found, run(alone, x, key=key), atol=1e-5)


def masked(params, tokens, mask, scale):
    """Attention within a mask; the mask, a row of numbers and a skip are needed to the end."""
    x = params["embed"][tokens] * scale
    bias = jnp.where(mask, 0.0, -1e9)[:, None]
    skip = jnp.tanh(x @ params["skip"])
    for name in ("a", "b"):
        scores = jax.nn.softmax((x @ params[name]) @ x.swapaxes(1, 2) + bias)
        x = x + scores @ x
    return (x + skip).mean(1) * scale @ params["head"]


def test_side_inputs_ride_along_and_the_feature_is_told():
    shapes = {"embed": (9, 4), "skip": (4, 4), "a": (4, 4), "b": (4, 4), "head": (4, 3)}
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    tokens, mask = rng.integers(0, 9, (ROWS, 5)), rng.random((ROWS, 5)) < 0.8
    scale = jnp.array([0.3, 0.5, 0.7, 0.9])  # as many as a batch has rows: no rows for all that
    net = js.trace(masked, params, tokens, mask, scale)
    with pytest.raises(ValueError, match=r"\[2, 1, 5\].*are live where the network is cut"):
        js.exit_early(["b"])(net)

    def last(live):
        return max(live, key=lambda a: a.size).mean(1)

    cut = js.exit_early(["b"], feature=last)(net)
    cut = js.distill_exits(cut, (tokens, mask, scale), key=jax.random.key(0), steps=50)
    doubt = cut.simulate(tokens, mask, scale).uncertainty[:, 0]
    for threshold in (0.0, np.median(doubt), 2.0):
        now = dataclasses.replace(cut, threshold=threshold)
        a, b = now.simulate(tokens, mask, scale), now.run(tokens, mask, scale, buckets=BUCKETS)
        np.testing.assert_array_equal(a.layer, b.layer)
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-6)
    np.testing.assert_allclose(cut(tokens, mask, scale), run(net, tokens, mask, scale), atol=1e-6)


def test_rows_may_lie_along_any_axis():
    """Between these stages the batch is the second axis."""
    params = {"a": jnp.eye(4), "b": 0.5 * jnp.eye(4), "head": jnp.ones((4, 2))}

    def model(params, x):
        x = jnp.tanh(x @ params["a"]).swapaxes(0, 1)
        return jnp.tanh(x @ params["b"]).sum(0) @ params["head"]

    x = np.random.default_rng(0).normal(size=(ROWS, 5, 4)).astype(np.float32)
    net = js.exit_early(["b"])(js.trace(model, params, x))
    net = js.distill_exits(net, x, key=jax.random.key(0), steps=20)
    threshold = np.median(doubts(at_every_exit(net, x))[0])
    check(dataclasses.replace(net, threshold=threshold), x)


def test_first_token_reads_the_class_token():
    net = with_exits("vit", feature=first_token)
    *features, _ = passes.at_exits(net, call_arguments((images(),), {}), 64, jax.random.key(0))
    see = jax.jit(lambda p, x: MODELS["vit"].apply({"params": p}, x, capture_intermediates=True))
    _, state = see(network("vit").params, images())
    layers = state["intermediates"]["body"]
    for i, feature in enumerate(features):
        expected = layers[f"layer_{i}"]["__call__"][0][:, 0]
        np.testing.assert_allclose(feature, expected, atol=1e-5)


def test_exits_are_kept_on_disk(tmp_path):
    net = dataclasses.replace(mlp()[0], threshold=jnp.float32(0.75))
    js.save(tmp_path / "net", net)
    blank = dataclasses.replace(net, heads=jax.tree.map(jnp.zeros_like, net.heads))
    found = js.load(tmp_path / "net", blank)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(net), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="exit at w1"):
        js.load(tmp_path / "net", js.exit_early(["w2"])(base_network(net)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exits": 1}, "exits=1"),
        ({"exits": []}, "name at least one"),
        ({"rule": js.Rule(-1.0)}, r"threshold=-1\.0"),
        ({"rule": js.Rule(patience=-1)}, "patience=-1"),
        ({"rule": js.Rule(first=5)}, "first=5"),
        ({"feature": 3}, "feature=3"),
    ],
)
def test_errors_of_settings(options, message):
    with pytest.raises(ValueError, match=message):
        js.exit_early(**options)


def test_errors_of_networks():
    net, x = mlp()
    plain = base_network(net)
    with pytest.raises(ValueError, match="takes a Network"):
        js.exit_early()(3)
    with pytest.raises(ValueError, match="exits=9: the network has 4 places"):
        js.exit_early(9)(plain)
    with pytest.raises(ValueError, match=r"exits=\['x'\]: no cut at x"):
        js.exit_early(["x"])(plain)
    with pytest.raises(ValueError, match=r"gives \[2\] for 2 rows at w2, not"):
        js.exit_early(["w2"], feature=lambda live: live[0][:, 0])(plain)
    with pytest.raises(ValueError, match="has no tokens"):
        js.exit_early(["w2"], feature=first_token)(plain)
    two = js.trace(lambda w, x: (x @ w @ w, x), jnp.eye(3), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="not logits"):
        js.exit_early(2)(two)
    with pytest.raises(ValueError, match="has no exits"):
        js.distill_exits(plain, x, key=jax.random.key(0))
    with pytest.raises(ValueError, match="a row at least"):
        net.run(x[:0])
    with pytest.raises(ValueError, match="use simulate"):
        jax.jit(net.run)(x)
    with pytest.raises(ValueError, match="batch=0"):
        net.run(x, buckets=js.Buckets(batch=0))
    wrong = ({"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, *net.heads[1:])
    with pytest.raises(ValueError, match=r"heads\[0\]: a kernel \[2, 3\] where \[6, 3\]"):
        dataclasses.replace(net, heads=wrong).simulate(x)


def test_errors_of_order():
    net, x = mlp()
    plain = base_network(net)
    pipe = js.pipeline_shard(2, 2, devices=jax.devices()[:1] * 2)
    cases = {
        "exit_early cannot follow exit_early: it has exits": (net, js.exit_early(2)),
        "exit_early cannot follow exit_early": (pipe(net), js.exit_early(2)),
        "pipeline_shard cannot follow pipeline_shard: it is a": (pipe(plain), pipe),
        "pipeline_shard cannot follow pipeline_shard": (pipe(net), pipe),
        "integer_only cannot follow exit_early": (net, js.integer_only),
    }
    for message, (given_net, transform) in cases.items():
        with pytest.raises(ValueError, match=message):
            transform(given_net)
    with pytest.raises(ValueError, match=r"run: the core at w0 is not deployed"):
        js.quantize(8, 8)(net).run(x)


def test_a_network_that_mixes_rows_is_not_run():
    params = {"a": jnp.eye(3), "b": jnp.eye(3)}

    def model(params, x):
        centre = jnp.max(x)
        return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) * centre

    x = jnp.ones((4, 3))
    net = js.exit_early(["b"])(js.trace(model, params, x))
    net.simulate(x)
    with pytest.raises(ValueError, match="no row has a part of crosses the cut at b"):
        net.run(x)


def test_quantized_attention_is_not_run():
    x = images()
    net = js.quantize(8, 8, sites="dynamic*")(with_exits("vit"))
    chip = js.deploy(net, calibrate=x)
    chip.simulate(x)
    with pytest.raises(ValueError, match="run: dynamic/0 contracts two inputs"):
        chip.run(x)


def test_training_sees_the_network():
    """A flax model with batch statistics is refused by name of what it returns."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
            return nn.Dense(3)(nn.Dense(4)(x))

    x = jnp.ones((4, 3))
    net = js.exit_early(2)(js.trace(Net(), filled(Net(), x), x))
    with pytest.raises(ValueError, match="not logits"):
        net(x, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_exits_answer_in_the_floats_of_the_network(dtype):
    w = {n: jnp.eye(8, dtype=dtype) for n in "abc"}

    def model(p, x):
        for n in "abc":
            x = jnp.tanh(x @ p[n])
        return x

    x = jnp.ones((3, 8), dtype)
    net = js.exit_early(2)(js.trace(model, w, x))
    assert net(x).dtype == net.run(x).logits.dtype == net.simulate(x).logits.dtype == dtype


@functools.cache
def talkative():
    """A network that returns logits of every token among other things, and its inputs."""
    rng = np.random.default_rng(3)
    w = {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in (("a", (6, 8)), ("b", (8, 3)))}
    x = jnp.asarray(rng.normal(size=(4, 5, 6)), jnp.float32)

    def fn(p, x):
        hidden = jax.nn.relu(x @ p["a"])
        return {"hidden": hidden, "logits": hidden @ p["b"]}

    return js.trace(fn, w, x), x


def test_logits_are_found_among_what_a_network_returns():
    net, x = talkative()
    exits = js.exit_early(["b"], js.Rule(0.0), output=lambda y: y["logits"][:, -1])(net)
    expected = np.asarray(net(x)["logits"])[:, -1]
    np.testing.assert_allclose(exits(x), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert exits.simulate(x).layer.tolist() == [2] * 4


@pytest.mark.parametrize("output", [None, lambda y: y["logits"], lambda y: y["logits"].mean()])
def test_what_is_not_logits_is_refused_with_the_way_out(output):
    net, _ = talkative()
    with pytest.raises(ValueError, match=r"not logits .* output=, a function from"):
        js.exit_early(["b"], output=output)(net)
    with pytest.raises(ValueError, match="output='logits': must be a function"):
        js.exit_early(["b"], output="logits")
