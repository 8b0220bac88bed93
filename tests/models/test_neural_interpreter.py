"""A Neural Interpreter computes the published equations, and functions come and go."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxsim as js
from jaxsim.models.functions import add_functions, add_task, new_parameter_mask, remove_functions
from jaxsim.models.neural_interpreter import NeuralInterpreter, affinity, nearest_word
from jaxsim.models.plot import routing_maps
from jaxsim.models.transformer import Transformer
from jaxsim.models.vision import Vision
from jaxsim.train.loop import fit, only
from tests.oracles import interpreter as oracle
from tests.support.models import normal
from tests.support.variables import filled

SMALL = NeuralInterpreter(
    functions=3, iterations=2, heads=2, qk_width=3, code_width=5, type_width=4, positions=None
)
ONCE = SMALL.clone(iterations=1)
X = normal(2, 7, 8)
IMAGES, LABELS = normal(12, 8, 12, 1), np.arange(12) % 3
VISION = Vision(ONCE.clone(positions="per_function"), tasks=(3,), width=8)


@functools.cache
def parameters(model, **call):
    x = IMAGES if isinstance(model, Vision) else X
    return filled(model, x, seed=3, **call)["params"]


@functools.cache
def compiled(model, **call):
    """The model of parameters and tokens or images: an operation at a time is slow."""
    return jax.jit(lambda p, x: model.apply({"params": p}, x, **call))


def run(model, params, x=X, **call):
    return compiled(model, **call)(params, x)


logits = functools.partial(run, x=IMAGES)


def wide(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), dict(tree))


@pytest.mark.parametrize(
    ("positions", "locs", "iterations"), [(None, 2, 2), ("shared", 1, 1), ("per_function", 2, 1)]
)
def test_the_published_equations(positions, locs, iterations):
    model = SMALL.clone(positions=positions, locs=locs, iterations=iterations)
    call = {} if positions is None else {"grid": (2, 3)}
    params = parameters(model, **call)

    @jax.jit
    def run(tau):
        return model.clone(tau=tau).apply({"params": params}, X, **call)

    for tau in (0.7, 1.0, 2.0):
        y, routing = run(tau)
        for image in range(len(X)):
            want, shares = oracle.script(
                wide(params["script_0"]),
                np.asarray(X[image], np.float64),
                iterations=iterations,
                locs=locs,
                heads=2,
                depth=2,
                tau=tau,
                eps=1e-6,
                **call,
            )
            np.testing.assert_allclose(routing.affinity[0, :, :, image], shares, atol=1e-5)
            np.testing.assert_allclose(y[image], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
        refused = float((np.asarray(routing.affinity) == 0).mean())
        assert (refused > 0.2) if tau == 0.7 else (tau == 1.0 or refused == 0)


def test_scripts_follow_one_another_with_weights_of_their_own():
    model = ONCE.clone(scripts=2)
    found = parameters(model)
    x = np.asarray(X[0], np.float64)
    for i in range(2):
        x, _ = oracle.script(
            wide(found[f"script_{i}"]),
            x,
            iterations=1,
            locs=1,
            heads=2,
            depth=2,
            tau=1.42026,
            eps=1e-6,
        )
    y, _ = run(model, found, X)
    np.testing.assert_allclose(y[0], x, rtol=1e-5, atol=1e-5)


def test_folded_weights_are_the_same_function():
    found = parameters(VISION)
    folded = VISION.clone(body=VISION.body.clone(fold=True))
    np.testing.assert_allclose(logits(folded, found), logits(VISION, found), rtol=1e-5, atol=1e-5)


def test_one_function_that_takes_all_is_a_transformer_of_tied_weights():
    model = SMALL.clone(functions=1, tau=2.0)
    found = parameters(model)
    p, x = wide(found["script_0"]), np.asarray(X[0], np.float64)
    code = p["codes"][0] @ np.eye(5)

    def folded(layer):
        return np.diag(oracle._norm(code @ layer["code"], eps=1e-5)) @ layer["kernel"]

    def normed(name):
        n = loc[name]
        return np.stack([oracle._norm(row, n["scale"], n["bias"]) for row in x])

    loc = p["loc_0"]
    for _ in range(2):
        h = normed("norm_a")
        q, k = h @ folded(loc["query"]), h @ folded(loc["key"])
        v = h @ folded(loc["value"]) + loc["value"]["bias"]
        heads = []
        for a in range(2):
            s = q[:, 3 * a : 3 * a + 3] @ k[:, 3 * a : 3 * a + 3].T / np.sqrt(3)
            e = np.exp(s - s.max(1, keepdims=True))
            heads.append(e / e.sum(1, keepdims=True) @ v[:, 4 * a : 4 * a + 4])
        x = x + np.concatenate(heads, 1) @ folded(loc["mix"]) + loc["mix"]["bias"]
        h = normed("norm_b") @ folded(loc["hidden"]) + loc["hidden"]["bias"]
        x = x + oracle._gelu(h) @ folded(loc["output"]) + loc["output"]["bias"]
    y, _ = run(model, found, X)
    np.testing.assert_allclose(y[0], x, rtol=2e-5, atol=2e-5)


def test_the_order_of_functions_does_not_matter():
    found = parameters(VISION)
    order = np.asarray([2, 0, 1])
    script = found["body"]["script_0"]
    moved = {
        **script,
        **{name: jnp.asarray(np.asarray(script[name])[order]) for name in ("signatures", "codes")},
    }
    other = {**found, "body": {"script_0": moved}}
    a, b = logits(VISION, found, routing=True), logits(VISION, other, routing=True)
    np.testing.assert_allclose(a[0], b[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(a[1].affinity)[:, :, order], b[1].affinity, atol=1e-6)


shares = jax.jit(affinity)


@given(st.integers(0, 100), st.floats(0.2, 2.0), st.sampled_from([1, 3, 6]))
def test_affinities_of_a_token_sum_to_one_or_are_all_zero(seed, tau, functions):
    share = shares(normal(functions, 4, seed=seed), normal(9, 4, seed=seed + 1), tau=tau)
    total = np.asarray(share).sum(0)
    np.testing.assert_allclose(total[total > 0], 1, atol=1e-4)
    np.testing.assert_allclose(
        share,
        oracle.affinities(
            np.asarray(normal(functions, 4, seed=seed), float),
            np.asarray(normal(9, 4, seed=seed + 1), float),
            1.0,
            tau,
            1e-6,
        ),
        atol=1e-5,
    )


def test_gradients_pass_the_truncation():
    signatures, types = normal(3, 4), normal(5, 4, seed=1)

    @jax.jit
    @jax.value_and_grad
    def smooth(types, signatures, tau=2.0):
        return jnp.sum(jnp.sin(affinity(signatures, types, tau=tau)))

    assert np.abs(smooth(types, signatures, tau=0.01)[1]).max() > 0
    with jax.enable_x64(True):
        s, t = (np.asarray(a, np.float64) for a in (signatures, types))
        step = 1e-6 * np.random.default_rng(0).normal(size=t.shape)
        slope = (smooth(t + step, s)[0] - smooth(t - step, s)[0]) / 2
        np.testing.assert_allclose(np.vdot(smooth(t, s)[1], step), slope, rtol=1e-6)


def test_a_token_that_all_refuse_becomes_zero_and_is_counted():
    model = ONCE.clone(tau=1e-6)
    y, routing = run(model, parameters(model))
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(routing.dead, 1)


def test_words_replace_types_by_the_nearest_and_pass_the_gradient():
    types, words = normal(6, 4), normal(3, 4, seed=1)
    out, loss = jax.jit(nearest_word)(types, words)
    types, words = np.asarray(types), np.asarray(words)
    cosine = [[t @ w / np.linalg.norm(t) / np.linalg.norm(w) for w in words] for t in types]
    best = words[np.argmax(cosine, 1)]
    np.testing.assert_allclose(out, best / np.linalg.norm(best, axis=1)[:, None], rtol=1e-5)
    np.testing.assert_allclose(loss, np.mean(1 - np.max(cosine, 1)), rtol=1e-5)
    model = SMALL.clone(vocabulary=4)
    (_, routing), sown = run(model, parameters(model), mutable=("losses",))
    first = np.asarray(routing.affinity)[0, 0].reshape(3, -1)
    assert len(np.unique(np.round(first, 5), axis=1).T) <= 4
    assert len(sown["losses"]["script_0"]["commitment"]) == 2


def test_more_iterations_at_the_call_than_the_model_was_made_with():
    found = parameters(ONCE)
    y, routing = run(ONCE, found, X, iterations=2)
    assert routing.affinity.shape == (1, 2, 3, 2, 7)
    want, _ = run(SMALL, found, X)
    np.testing.assert_array_equal(y, want)


@pytest.mark.usefixtures("compiled_as_elsewhere")
@pytest.mark.parametrize("init", ["random", "mirror"])
def test_masked_new_functions_leave_every_bit(init):
    found = parameters(VISION)
    larger, more = add_functions(VISION, found, 2, jax.random.key(1), init=init)
    want = np.asarray(logits(VISION, found))
    np.testing.assert_array_equal(logits(larger, more, functions=range(3)), want)
    assert np.abs(logits(larger, more) - want).max() > 1e-3
    rows = np.asarray(more["body"]["script_0"]["codes"])
    if init == "mirror":
        assert all(any(np.array_equal(a, b) for b in rows[:3]) for a in rows[3:])
    smaller, fewer = remove_functions(larger, more, [3, 4])
    assert smaller == VISION
    jax.tree.map(np.testing.assert_array_equal, fewer, dict(found))


@pytest.mark.usefixtures("compiled_as_elsewhere")
def test_a_function_that_no_token_reaches_changes_nothing():
    """But for sums over one function more, which some processors make in another order.

    A control is a tau that it meets.
    """
    found = parameters(ONCE)
    larger, more = add_functions(ONCE, found, 1, jax.random.key(1))
    script = more["script_0"]
    # A signature opposite to the mean type, and a tau that it cannot meet.
    mean = np.asarray(jax.jit(_types)(found["script_0"], X)).reshape(-1, 4)
    away = -mean.sum(0)
    cosines = mean @ away / np.linalg.norm(mean, axis=1) / np.linalg.norm(away)
    tau = float(1 - cosines.max()) - 1e-3
    script = {**script, "signatures": np.concatenate([script["signatures"][:-1], away[None]])}
    y, routing = run(larger.clone(tau=tau), {"script_0": script}, X)
    assert np.all(np.asarray(routing.affinity)[:, :, -1] == 0)
    want, _ = run(ONCE.clone(tau=tau), found, X)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-6)
    reached, _ = run(larger.clone(tau=2.0), {"script_0": script}, X)
    alone, _ = run(ONCE.clone(tau=2.0), found, X)
    assert np.abs(reached - alone).max() > 1e-3


def _types(p, x):
    h = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    h = h * p["type_norm"]["scale"] + p["type_norm"]["bias"]
    h = jax.nn.gelu(h @ p["type_0"]["kernel"] + p["type_0"]["bias"], approximate=False)
    return h @ p["type_1"]["kernel"] + p["type_1"]["bias"]


@pytest.mark.usefixtures("compiled_as_elsewhere")
@pytest.mark.slow
def test_frozen_parameters_keep_every_bit_through_decay_and_momentum():
    found = parameters(VISION)
    larger, more = add_functions(VISION, found, 2, jax.random.key(1))
    larger, more = add_task(larger, more, 4, jax.random.key(2))
    trained = new_parameter_mask(more, found)
    moving = only(optax.adamw(1e-2, weight_decay=0.1), trained)

    @jax.value_and_grad
    def loss(params):
        out = larger.apply({"params": params}, IMAGES, task=1)
        return optax.softmax_cross_entropy_with_integer_labels(out, LABELS).mean()

    @jax.jit
    def train(params):
        def step(at, _):
            params, state = at
            value, slope = loss(params)
            changes, state = moving.update(slope, state, params)
            return (optax.apply_updates(params, changes), state), value

        (params, _), values = jax.lax.scan(step, (params, moving.init(params)), None, length=10)
        return params, values

    tuned, losses = jax.tree.map(np.asarray, train(more))
    same = jax.tree.map(
        lambda a, b, m: np.all((a == np.asarray(b)) | (np.asarray(m) == 1)), tuned, more, trained
    )
    assert all(jax.tree.leaves(same))
    moved = tuned["body"]["script_0"]["codes"] != more["body"]["script_0"]["codes"]
    assert moved[3:].all()
    assert not moved[:3].any()
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(
        logits(larger, tuned, task=0, functions=range(3)), logits(VISION, found)
    )


@pytest.mark.slow
def test_it_trains_as_a_network_and_through_four_bits():
    net = js.trace(VISION, {"params": parameters(VISION)}, IMAGES[:2])
    y = np.arange(48) % 3
    x = np.asarray(normal(48, 8, 12, 1, seed=5)) + np.eye(3)[y].repeat(4, 1)[:, None, :, None]
    x = np.float32(x)
    how = {"epochs": 60, "optimizer": optax.adam(3e-3), "key": jax.random.key(0), "quiet": True}
    for start in (net, js.quantize(4, 8)(net)):
        tuned = fit(start, x, y, batch_size=16, **how)
        right = np.mean(np.argmax(jax.jit(tuned)(x), -1) == y)
        assert right > 0.85


@pytest.mark.parametrize("fold", [False, True])
def test_it_is_quantised_sliced_and_held_in_cells(fold):
    model = VISION.clone(body=(ONCE if fold else VISION.body).clone(fold=fold))
    # as initialized: larger biases bring tokens so near to where they leave that rounding decides
    net = js.trace(model, jax.jit(model.init)(jax.random.key(0), IMAGES), IMAGES[:2])
    eight = js.quantize(8, 8)

    @jax.jit
    def answers(x, key):
        sliced = js.compose(eight, js.slice_bits(2), js.analog(adc=None))(net)
        return net(x), *(js.deploy(n, calibrate=x, key=key)(x) for n in (eight(net), sliced))

    want, found, sliced = map(np.asarray, answers(IMAGES, jax.random.key(0)))
    assert np.abs(found - want).max() < 0.1 * np.abs(want).max()
    np.testing.assert_allclose(sliced, found, rtol=1e-4, atol=1e-4)


def test_iterations_are_stages_of_a_pipeline():
    model = VISION.clone(body=VISION.body.clone(iterations=2))
    net = js.trace(model, {"params": parameters(model)}, IMAGES)
    pipe = js.pipeline_shard(2, microbatches=4, devices=jax.devices()[:1] * 2)(net)
    np.testing.assert_allclose(pipe(IMAGES), logits(model, parameters(model)), rtol=1e-5, atol=1e-5)


def test_a_vision_transformer_beside_it():
    model = Vision(Transformer(1, 2, 2), tasks=(3,), width=8)
    net = js.trace(model, {"params": parameters(model)}, IMAGES[:2])
    call = jax.jit(lambda x: net(x))
    assert call(IMAGES).shape == (12, 3)
    swapped = IMAGES[:, ::-1]
    assert np.abs(call(swapped) - call(IMAGES)).max() > 1e-4  # places matter


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"functions": 0}, "functions=0"),
        ({"scripts": 0}, "scripts=0"),
        ({"iterations": 0}, "iterations=0"),
        ({"locs": 0}, "locs=0"),
        ({"heads": 3}, r"multiple of 3"),
        ({"tau": 0.0}, "tau=0.0"),
        ({"tau": 2.5}, "tau=2.5"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"vocabulary": 0}, "vocabulary=0"),
        ({"positions": "absolute"}, "positions='absolute'"),
    ],
)
def test_bad_settings(settings, says):
    with pytest.raises(ValueError, match=says):
        SMALL.clone(**settings).init(jax.random.key(0), X)


def test_bad_calls():
    found = parameters(VISION)
    body = found["body"]
    params = {"params": found}
    for says, call in (
        ("iterations=0", lambda: VISION.apply(params, IMAGES, iterations=0)),
        ("at least one", lambda: VISION.apply(params, IMAGES, functions=())),
        ("none twice", lambda: VISION.apply(params, IMAGES, functions=(0, 0))),
        ("functions=3", lambda: VISION.apply(params, IMAGES, functions=(3,))),
        ("task=1", lambda: VISION.apply(params, IMAGES, task=1)),
        ("multiples of 4", lambda: VISION.apply(params, IMAGES[:, :7])),
        ("count=0", lambda: add_functions(VISION, found, 0, jax.random.key(0))),
        ("init='zero'", lambda: add_functions(VISION, found, 1, jax.random.key(0), init="zero")),
        ("at least one of 3", lambda: remove_functions(VISION, found, [0, 1, 2])),
        ("functions=3", lambda: remove_functions(VISION, found, [3])),
        ("Transformer", lambda: add_functions(Transformer(), found, 1, jax.random.key(0))),
        ("1 scripts, the model has 2", lambda: remove_functions(SMALL.clone(scripts=2), body, [0])),
        (
            "has 3 functions, the model 4",
            lambda: remove_functions(SMALL.clone(functions=4), body, [0]),
        ),
        ("classes=0", lambda: add_task(VISION, found, 0, jax.random.key(0))),
        (
            "class_tokens",
            lambda: new_parameter_mask({**found, "class_tokens": jnp.ones((1, 9))}, found),
        ),
        ("trained", lambda: only(optax.sgd(1.0), {}).init(found)),
        ("layers=0", lambda: Transformer(0).init(jax.random.key(0), X)),
    ):
        with pytest.raises(ValueError, match=says):
            call()


def test_the_same_key_gives_the_same_functions():
    found = parameters(VISION)
    a, b = (add_functions(VISION, found, 2, jax.random.key(7))[1] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert dataclasses.is_dataclass(VISION)


def test_routing_is_drawn(tmp_path):
    """Five tokens of which the last four are patches; images and affinities have to belong."""
    shares = np.random.default_rng(0).dirichlet(np.ones(3), (2, 4, 5)).transpose(0, 3, 1, 2)
    routing_maps(tmp_path / "new" / "routing.png", np.zeros((4, 8, 8)), shares)
    assert matplotlib.image.imread(tmp_path / "new" / "routing.png").std() > 0
    with pytest.raises(ValueError, match="images: 3 of them for affinities of 4"):
        routing_maps(tmp_path / "other.png", np.zeros((3, 8, 8)), shares)
    assert not (tmp_path / "other.png").exists()
