"""A Neural Interpreter computes the published equations, and functions come and go."""

import dataclasses
from functools import partial

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

SMALL = NeuralInterpreter(
    functions=3, iterations=2, heads=2, qk_width=3, code_width=5, type_width=4, positions=None
)
X = normal(2, 7, 8)
IMAGES, LABELS = normal(12, 8, 12, 1), np.arange(12) % 3
VISION = Vision(SMALL.clone(positions="per_function"), tasks=(3,), width=8)


def variables(model, x=X, seed=0, **call):
    return jax.jit(lambda key: model.init(key, x, **call))(jax.random.key(seed))


def run(model, params, x=X, **call):
    """The model, compiled: an operation at a time is slow."""
    return jax.jit(lambda p, x: model.apply({"params": p}, x, **call))(params, x)


logits = partial(run, x=IMAGES)


def wide(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), dict(tree))


@pytest.mark.parametrize("tau", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("positions", [None, "shared", "per_function"])
def test_the_published_equations(tau, positions):
    model = SMALL.clone(tau=tau, positions=positions, locs=2)
    call = {} if positions is None else {"grid": (2, 3)}
    found = variables(model, seed=3, **call)
    found = jax.tree.map(lambda w: w + 0.1 * jnp.cos(jnp.arange(w.size)).reshape(w.shape), found)
    y, routing = run(model, found["params"], **call)
    for image in range(len(X)):
        want, shares = oracle.script(
            wide(found["params"]["script_0"]),
            np.asarray(X[image], np.float64),
            iterations=2,
            locs=2,
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
    model = SMALL.clone(scripts=2)
    found = variables(model)["params"]
    x = np.asarray(X[0], np.float64)
    for i in range(2):
        x, _ = oracle.script(
            wide(found[f"script_{i}"]),
            x,
            iterations=2,
            locs=1,
            heads=2,
            depth=2,
            tau=1.42026,
            eps=1e-6,
        )
    y, _ = run(model, found, X)
    np.testing.assert_allclose(y[0], x, rtol=1e-5, atol=1e-5)


def test_folded_weights_are_the_same_function():
    found = variables(VISION, IMAGES)["params"]
    folded = VISION.clone(body=VISION.body.clone(fold=True))
    np.testing.assert_allclose(logits(folded, found), logits(VISION, found), rtol=1e-5, atol=1e-5)


def test_one_function_that_takes_all_is_a_transformer_of_tied_weights():
    model = SMALL.clone(functions=1, tau=2.0, iterations=3)
    found = variables(model)["params"]
    p, x = wide(found["script_0"]), np.asarray(X[0], np.float64)
    code = p["codes"][0] @ np.eye(5)

    def folded(layer):
        return np.diag(oracle._norm(code @ layer["code"], eps=1e-5)) @ layer["kernel"]

    loc = p["loc_0"]
    for _ in range(3):
        h = np.stack([oracle._norm(row) for row in x])
        q, k = h @ folded(loc["query"]), h @ folded(loc["key"])
        v = h @ folded(loc["value"]) + loc["value"]["bias"]
        heads = []
        for a in range(2):
            s = q[:, 3 * a : 3 * a + 3] @ k[:, 3 * a : 3 * a + 3].T / np.sqrt(3)
            e = np.exp(s - s.max(1, keepdims=True))
            heads.append(e / e.sum(1, keepdims=True) @ v[:, 4 * a : 4 * a + 4])
        x = x + np.concatenate(heads, 1) @ folded(loc["mix"]) + loc["mix"]["bias"]
        h = (
            np.stack([oracle._norm(row) for row in x]) @ folded(loc["hidden"])
            + loc["hidden"]["bias"]
        )
        x = x + oracle._gelu(h) @ folded(loc["output"]) + loc["output"]["bias"]
    y, _ = run(model, found, X)
    np.testing.assert_allclose(y[0], x, rtol=2e-5, atol=2e-5)


def test_the_order_of_functions_does_not_matter():
    found = variables(VISION, IMAGES)["params"]
    order = jnp.asarray([2, 0, 1])
    script = found["body"]["script_0"]
    moved = {**script, **{name: script[name][order] for name in ("signatures", "codes")}}
    other = {**found, "body": {"script_0": moved}}
    a, b = logits(VISION, found, routing=True), logits(VISION, other, routing=True)
    np.testing.assert_allclose(a[0], b[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(a[1].affinity[:, :, order], b[1].affinity, atol=1e-6)


@given(st.integers(0, 100), st.floats(0.2, 2.0), st.integers(1, 6))
def test_affinities_of_a_token_sum_to_one_or_are_all_zero(seed, tau, functions):
    share = affinity(normal(functions, 4, seed=seed), normal(9, 4, seed=seed + 1), tau=tau)
    total = np.asarray(share.sum(0))
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
    grads = [
        jax.grad(lambda t, tau=tau: jnp.sum(jnp.sin(affinity(signatures, t, tau=tau))))(types)
        for tau in (0.01, 2.0)
    ]
    assert np.abs(grads[0]).max() > 0
    x64 = jax.enable_x64(True)
    with x64:
        s, t = (jnp.asarray(a, jnp.float64) for a in (signatures, types))

        def smooth(t):
            return jnp.sum(jnp.sin(affinity(s, t, tau=2.0)))

        step = 1e-6 * jnp.asarray(np.random.default_rng(0).normal(size=t.shape))
        slope = (smooth(t + step) - smooth(t - step)) / 2
        np.testing.assert_allclose(jnp.vdot(jax.grad(smooth)(t), step), slope, rtol=1e-6)


def test_a_token_that_all_refuse_becomes_zero_and_is_counted():
    model = SMALL.clone(tau=1e-6, iterations=1)
    y, routing = run(model, variables(model)["params"])
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(routing.dead, 1)


def test_words_replace_types_by_the_nearest_and_pass_the_gradient():
    types, words = normal(6, 4), normal(3, 4, seed=1)
    out, loss = nearest_word(types, words)
    cosine = [[t @ w / np.linalg.norm(t) / np.linalg.norm(w) for w in words] for t in types]
    best = np.asarray(words)[np.argmax(cosine, 1)]
    np.testing.assert_allclose(out, best / np.linalg.norm(best, axis=1)[:, None], rtol=1e-5)
    np.testing.assert_allclose(loss, np.mean(1 - np.max(cosine, 1)), rtol=1e-5)
    model = SMALL.clone(vocabulary=4)
    (_, routing), sown = run(model, variables(model)["params"], mutable=["losses"])
    assert len(np.unique(np.round(routing.affinity[0, 0].reshape(3, -1), 5), axis=1).T) <= 4
    assert len(sown["losses"]["script_0"]["commitment"]) == 2


def test_more_iterations_at_the_call_than_the_model_was_made_with():
    found = variables(SMALL)["params"]
    y, routing = run(SMALL, found, X, iterations=5)
    assert routing.affinity.shape == (1, 5, 3, 2, 7)
    want, _ = run(SMALL.clone(iterations=5), found, X)
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("init", ["random", "mirror"])
def test_masked_new_functions_leave_every_bit(init):
    found = variables(VISION, IMAGES)["params"]
    larger, more = add_functions(VISION, found, 2, jax.random.key(1), init=init)
    np.testing.assert_array_equal(logits(larger, more, functions=range(3)), logits(VISION, found))
    assert np.abs(logits(larger, more) - logits(VISION, found)).max() > 1e-3
    rows = more["body"]["script_0"]["codes"]
    if init == "mirror":
        assert all(any(np.array_equal(a, b) for b in rows[:3]) for a in rows[3:])
    smaller, fewer = remove_functions(larger, more, [3, 4])
    assert smaller == VISION
    jax.tree.map(np.testing.assert_array_equal, fewer, dict(found))


def test_a_function_that_no_token_reaches_leaves_every_bit():
    model = SMALL.clone(iterations=1)
    found = variables(model)["params"]
    larger, more = add_functions(model, found, 1, jax.random.key(1))
    script = more["script_0"]
    # A signature opposite to the mean type, and a tau that it cannot meet.
    mean = jax.jit(_types)(found["script_0"], X).reshape(-1, 4)
    away = -mean.sum(0)
    cosines = mean @ away / np.linalg.norm(mean, axis=1) / np.linalg.norm(away)
    tau = float(1 - cosines.max()) - 1e-3
    script = {**script, "signatures": script["signatures"].at[-1].set(away)}
    y, routing = run(larger.clone(tau=tau), {"script_0": script}, X)
    assert np.all(np.asarray(routing.affinity)[:, :, -1] == 0)
    want, _ = run(model.clone(tau=tau), found, X)
    np.testing.assert_array_equal(y, want)


def _types(p, x):
    h = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    h = jax.nn.gelu(h @ p["type_0"]["kernel"] + p["type_0"]["bias"], approximate=False)
    return h @ p["type_1"]["kernel"] + p["type_1"]["bias"]


@pytest.mark.slow
def test_frozen_parameters_keep_every_bit_through_decay_and_momentum():
    found = variables(VISION, IMAGES)["params"]
    larger, more = add_functions(VISION, found, 2, jax.random.key(1))
    larger, more = add_task(larger, more, 4, jax.random.key(2))
    trained = new_parameter_mask(more, found)
    moving = only(optax.adamw(1e-2, weight_decay=0.1), trained)

    def loss(params):
        out = larger.apply({"params": params}, IMAGES, task=1)
        return optax.softmax_cross_entropy_with_integer_labels(out, LABELS).mean()

    @jax.jit
    def step(params, state):
        changes, state = moving.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, changes), state

    tuned, state = more, moving.init(more)
    for _ in range(10):
        tuned, state = step(tuned, state)
    same = jax.tree.map(lambda a, b, m: np.all((a == b) | (m == 1)), tuned, more, trained)
    assert all(jax.tree.leaves(same))
    moved = tuned["body"]["script_0"]["codes"] != more["body"]["script_0"]["codes"]
    assert moved[3:].all()
    assert not moved[:3].any()
    assert float(loss(tuned)) < float(loss(more))
    np.testing.assert_array_equal(
        logits(larger, tuned, task=0, functions=range(3)), logits(VISION, found)
    )


@pytest.mark.slow
def test_it_trains_as_a_network_and_through_four_bits():
    net = js.trace(VISION, variables(VISION, IMAGES), IMAGES[:2])
    y = np.arange(48) % 3
    x = normal(48, 8, 12, 1, seed=5) + np.eye(3)[y].repeat(4, 1)[:, None, :, None]
    how = {"epochs": 60, "optimizer": optax.adam(3e-3), "key": jax.random.key(0), "quiet": True}
    for start in (net, js.quantize(4, 8)(net)):
        tuned = fit(start, x, y, batch_size=16, **how)
        right = np.mean(np.argmax(jax.jit(tuned)(x), -1) == y)
        assert right > 0.85


@pytest.mark.parametrize("fold", [False, True])
def test_it_is_quantised_sliced_and_held_in_cells(fold):
    model = VISION.clone(body=VISION.body.clone(fold=fold))
    net = js.trace(model, variables(model, IMAGES), IMAGES[:2])
    want = np.asarray(jax.jit(net)(IMAGES))
    eight = js.deploy(js.quantize(8, 8)(net), calibrate=IMAGES)
    sliced = js.deploy(
        js.compose(js.quantize(8, 8), js.slice_bits(2), js.analog(adc=None))(net),
        calibrate=IMAGES,
        key=jax.random.key(0),
    )
    found = np.asarray(jax.jit(eight)(IMAGES))
    assert np.abs(found - want).max() < 0.1 * np.abs(want).max()
    np.testing.assert_allclose(jax.jit(sliced)(IMAGES), found, rtol=1e-4, atol=1e-4)


def test_iterations_are_stages_of_a_pipeline():
    model = VISION.clone(body=VISION.body.clone(iterations=4))
    net = js.trace(model, variables(model, IMAGES), IMAGES)
    pipe = js.pipeline_shard(2, microbatches=4, devices=jax.devices()[:1] * 2)(net)
    np.testing.assert_allclose(pipe(IMAGES), jax.jit(net)(IMAGES), rtol=1e-5, atol=1e-5)


def test_a_vision_transformer_beside_it():
    model = Vision(Transformer(2, 2, 2), tasks=(3,), width=8)
    net = js.trace(model, variables(model, IMAGES), IMAGES[:2])
    assert net(IMAGES).shape == (12, 3)
    swapped = IMAGES[:, ::-1]
    assert np.abs(net(swapped) - net(IMAGES)).max() > 1e-4  # places matter


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
    found = variables(VISION, IMAGES)["params"]
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
    found = variables(VISION, IMAGES)["params"]
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
