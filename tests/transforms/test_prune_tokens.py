"""Tokens leave transformers of every kind, masked and compacted, as row by row in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

import jaxsim as js
from jaxsim.staged import exit_queue, exit_step
from tests.oracles import tokens as oracle
from tests.support import transformers
from tests.support.architectures import kit
from tests.support.architectures.catalog import ARCHITECTURES
from tests.support.models import normal
from tests.support.transformers import KINDS, inputs, network, params, present

simulate = jax.jit(lambda net, *args: net.simulate(*args))

LEVEL = np.array([0.08, 0.1, 0.13])
BUCKETS = js.Buckets(batch=2, token=2, max_batch=4)


def expected(name, level=LEVEL, **rule):
    kind = KINDS[name]
    ids, *lengths = inputs(kind)
    each = np.asarray(lengths[0]) if lengths else [None] * len(ids)
    rows = [
        oracle.row(kind, params(), i, level, length=n, **rule)
        for i, n in zip(ids, each, strict=True)
    ]
    assert min(row.margin for row in rows) > 1e-5  # else rounding decides
    return rows


def agrees(found, rows):
    np.testing.assert_array_equal(found.kept, [row.kept for row in rows])
    logits = np.stack([row.logits for row in rows])
    np.testing.assert_allclose(found.logits, logits, rtol=0, atol=2e-5 * np.abs(logits).max())


def options(name):
    return {"protect_last": 1} if KINDS[name].pool == "last" else {}


@pytest.mark.parametrize("keeps", ["above", "top"])
@pytest.mark.parametrize("name", KINDS)
def test_tokens_leave_as_if_they_were_taken_away(name, keeps):
    level = LEVEL if keeps == "above" else np.array([0.0, 0.4, 0.3])
    rows = expected(name, level, keeps=keeps, **options(name))
    assert 1 < np.mean([row.kept[-1] for row in rows]) < 0.7 * transformers.TOKENS
    args = inputs(KINDS[name])
    net = js.prune_tokens(level, keeps=getattr(js.tokens, keeps), **options(name))(network(name))
    agrees(net.simulate(*args), rows)
    agrees(net.run(*args, buckets=BUCKETS), rows)


def exit_logits(name, heads):
    """Logits of every exit of each row, and tokens that its layers keep, from the oracle."""
    kind, args = KINDS[name], inputs(KINDS[name])
    each = np.asarray(args[1]) if kind.padded else [None] * len(args[0])
    for ids, n in zip(args[0], each, strict=True):
        row = oracle.row(kind, params(), ids, LEVEL, length=n, **options(name))
        means = [x.mean(0) for x in row.states[:-1]]
        yield [*(m @ head for m, head in zip(means, heads, strict=True)), row.logits], row.kept


@pytest.mark.parametrize("name", ["vit", "scanned bert", "llama"])
def test_tokens_and_rows_leave_in_either_order(name):
    args = inputs(KINDS[name])
    kernels = [normal(transformers.WIDTH, transformers.CLASSES, seed=i) for i in range(2)]
    rows = [*exit_logits(name, [np.asarray(k, float) for k in kernels])]
    doubts = [[entropy(softmax(y)) / np.log(len(y)) for y in logits] for logits, _ in rows]
    threshold = np.sort([doubt[0] for doubt in doubts])[1:3].mean()  # two rows leave at once
    prune = js.prune_tokens(LEVEL, **options(name))
    pyramid = js.magic_pyramid(LEVEL, js.Rule(threshold), **options(name))(network(name))
    assert len(pyramid.exits) == transformers.LAYERS - 1
    exits = js.exit_early(pyramid.exits, js.Rule(threshold))
    heads = tuple({"kernel": k, "bias": jnp.zeros(transformers.CLASSES)} for k in kernels)
    nets = [
        dataclasses.replace(net, heads=heads)
        for net in (pyramid, exits(prune(network(name))), prune(exits(network(name))))
    ]
    found, *others = (simulate(net, *args) for net in nets)
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, found, other)
    for i, ((logits, kept), doubt) in enumerate(zip(rows, doubts, strict=True)):
        layer = next((i for i, u in enumerate(doubt[:-1], 1) if u < threshold), len(logits))
        assert found.layer[i] == layer
        assert found.kept[i].tolist() == [*kept[:layer], *[0] * (len(logits) - layer)]
        most = np.abs(logits[layer - 1]).max()
        np.testing.assert_allclose(found.logits[i], logits[layer - 1], rtol=0, atol=1e-4 * most)
    ran = nets[1].run(*args, buckets=BUCKETS)
    np.testing.assert_array_equal(ran.kept, found.kept)
    np.testing.assert_array_equal(ran.layer, found.layer)
    np.testing.assert_allclose(ran.flops, found.flops, rtol=1e-6)
    most = np.abs(found.logits).max()
    np.testing.assert_allclose(ran.logits, found.logits, rtol=0, atol=1e-5 * most)


def calibration(net):
    """Inputs of the network's kind."""
    padded = len(net.example.arrays) == 2
    return inputs(transformers.Kind(padded=padded))


TRANSFORMS = {
    "quantized": lambda net: js.deploy(js.quantize(8, 8)(net), calibrate=calibration(net)),
    "dynamic too": lambda net: js.quantize(8, 8, sites=["*", "dynamic*"])(net),
    "pruned": js.prune(0.5),
    "sliced": js.compose(js.quantize(4, 8), js.slice_bits(2)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["vit", "scanned bert"])
def test_what_was_done_to_a_network_stays_done(name, transform):
    args, make = inputs(KINDS[name]), TRANSFORMS[transform]
    plain = make(network(name))
    prune = js.prune_tokens(0.0)
    zero = prune(plain)
    np.testing.assert_allclose(simulate(zero, *args).logits, plain(*args), rtol=0, atol=2e-4)
    if transform == "pruned":
        behind = make(prune(network(name)))
        np.testing.assert_array_equal(zero(*args), behind(*args))
    net = dataclasses.replace(
        zero, tokens=dataclasses.replace(zero.tokens, level=jnp.asarray(LEVEL))
    )
    found = simulate(net, *args)
    assert (np.asarray(found.kept[:, -1]) < transformers.TOKENS).sum() > 0
    if plain.ranges == "batch" and plain.cores:
        with pytest.raises(ValueError, match="deploy"):
            net.run(*args, buckets=BUCKETS)
        return
    ran = net.run(*args, buckets=BUCKETS)
    np.testing.assert_array_equal(ran.kept, found.kept)
    np.testing.assert_allclose(ran.logits, found.logits, rtol=0, atol=2e-4)


ENCODERS = {
    "bert": {},
    "vit": {},
    "clip": {},
    "perceiver": {},
    "llama": {"protect_last": 1, "output": lambda y: y[:, -1]},
    "gpt2": {"protect_last": 1, "output": lambda y: y[:, -1]},
    "switch": {"protect_last": 1, "output": lambda y: y[:, -1]},
    "t5": {"output": lambda y: y[:, -1]},
    "whisper": {"output": lambda y: y[:, -1]},
    "conformer": {"output": lambda y: y.mean(1)},
    "diffusion_transformer": {"output": lambda y: y.mean(1)},
}
REFUSED = {"conformer": "conv_general_dilated", "clip": "not logits"}


@pytest.mark.parametrize("library", ["linen", "nnx_model"])
@pytest.mark.parametrize("name", ENCODERS)
def test_models_of_either_library_as_they_are(name, library):
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    args = architecture.inputs
    made = getattr(kit, library)(architecture.build, args)
    net = js.trace(*(made if isinstance(made, tuple) else (made,)), *args)
    prune = js.prune_tokens(0.35, keeps=js.tokens.top, **ENCODERS[name])
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            prune(net)
        return
    small = prune(net)
    read = ENCODERS[name].get("output", lambda y: y)
    whole = dataclasses.replace(
        small, tokens=dataclasses.replace(small.tokens, level=0 * small.tokens.level)
    )
    exact = np.asarray(read(net(*args)))
    np.testing.assert_allclose(whole(*args), exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    found, ran = simulate(small, *args), small.run(*args, buckets=js.Buckets(2, 1, 2))
    np.testing.assert_array_equal(ran.kept, found.kept)
    most = np.abs(found.logits).max()
    np.testing.assert_allclose(ran.logits, found.logits, rtol=0, atol=1e-5 * most)
    attended = max(site.w_shape[-1] for site in net.sites if site.kind == "dynamic")
    assert np.min(found.kept) < attended


@pytest.mark.parametrize("keeps", ["top", "merge"])
def test_a_row_alone_is_computed_where_the_model_runs_other_equations_for_one(keeps):
    """Flax drops the axis of a batch of one from products: such a row runs beside a copy."""
    architecture = next(a for a in ARCHITECTURES if a.name == "bert")
    args = architecture.inputs
    net = js.trace(*kit.linen(architecture.build, args), *args)
    level = 0.35 if keeps == "top" else 2
    small = js.prune_tokens(level, keeps=getattr(js.tokens, keeps))(net)
    one = [a[:1] for a in args]
    names = [
        [eqn.primitive.name for eqn in jax.make_jaxpr(net)(*given).eqns] for given in (args, one)
    ]
    assert names[0] != names[1]
    expected, found = simulate(small, *args), simulate(small, *one)
    ran = small.run(*args, buckets=js.Buckets(1, 1, 1))
    np.testing.assert_array_equal(found.kept, expected.kept[:1])
    np.testing.assert_array_equal(ran.kept, expected.kept)
    most = np.abs(expected.logits).max()
    np.testing.assert_allclose(found.logits, expected.logits[:1], rtol=0, atol=1e-5 * most)
    np.testing.assert_allclose(ran.logits, expected.logits, rtol=0, atol=1e-5 * most)
    pipe = js.pipeline_shard(2, 2, devices=jax.devices()[:1] * 2)
    if keeps == "top":
        with pytest.raises(ValueError, match="other equations for so many rows than for two"):
            pipe(small)(*(a[:2] for a in args))


def test_a_token_that_another_attention_reads_from_elsewhere_is_masked_there():
    """A decoder's attention to what an encoder read sees the tokens that are left."""

    def model(p, x, y):
        scores = jnp.einsum("bqd,bkd->bqk", x @ p["q"], x)
        x = x + jax.nn.softmax(scores) @ (x @ p["v"])
        seen = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", y @ p["c"], x)) @ (x @ p["o"])
        return jnp.sum(seen, 1)

    x, y = normal(2, 5, 8, seed=6), normal(2, 3, 8, seed=7)
    p = {name: normal(8, 8, seed=i) for i, name in enumerate("qvco")}
    net = js.prune_tokens(0.4, keeps=js.tokens.top)(js.trace(model, p, x, y))
    found = simulate(net, x, y)
    assert net.tokens.level.shape == (1,)
    p = {k: np.asarray(a, float) for k, a in p.items()}
    for i, (a, b) in enumerate(zip(np.asarray(x, float), np.asarray(y, float), strict=True)):
        share = softmax(a @ p["q"] @ a.T, -1)
        stay = sorted({0, *np.argsort(-share.mean(0))[:3]})
        assert found.kept[i].tolist() == [len(stay)]
        a = (a + share @ a @ p["v"])[stay]
        expected = (softmax(b @ p["c"] @ a.T, -1) @ a @ p["o"]).sum(0)
        np.testing.assert_allclose(
            found.logits[i], expected, rtol=0, atol=1e-4 * np.abs(expected).max()
        )


def attending(mix):
    """One attention and something behind it."""

    def model(p, x):
        scores = jnp.einsum("bqd,bkd->bqk", x @ p["q"], x)
        return mix(p, x + jax.nn.softmax(scores) @ (x @ p["v"]))

    p = {name: normal(8, 8, seed=i) for i, name in enumerate("qvo")} | {"t": normal(5, 5)}
    return js.trace(model, p, normal(2, 5, 8, seed=6))


def moved(p, x):
    """What is done to each token alike: two views of it, side by side, apart and repeated."""
    views = jnp.stack([x, jnp.tanh(x)], 2)
    one, other = jnp.unstack(views, axis=2)
    return (jnp.tile(one, (1, 1, 2)).reshape(*x.shape[:2], 2, -1).sum(2) + other @ p["o"])[:, 0]


def plain(p, x):
    return (2 * x + jnp.tanh(x) @ p["o"])[:, 0]


def test_tokens_leave_what_overwrites_some_of_their_features():
    def overwritten(p, x):
        x = jax.lax.dynamic_update_slice(x, jnp.tanh(x[..., :3]), (0, 0, 2))
        return (x @ p["o"])[:, 0]

    def written_out(p, x):
        whole = jnp.concatenate([x[..., :2], jnp.tanh(x[..., :3]), x[..., 5:]], -1)
        return (whole @ p["o"])[:, 0]

    x = normal(2, 5, 8, seed=6)
    first, second = (
        js.prune_tokens(0.4, keeps=js.tokens.top)(attending(mix)).simulate(x)
        for mix in (overwritten, written_out)
    )
    assert 0 < first.kept.min() < x.shape[1]
    np.testing.assert_allclose(first.logits, second.logits, rtol=1e-5)


def test_tokens_leave_what_stacks_their_features():
    nets = [js.prune_tokens(0.4, keeps=js.tokens.top)(attending(mix)) for mix in (moved, plain)]
    x = nets[0].example.arrays[0]
    x = normal(*x.shape, seed=6)
    first, second = (net.simulate(x) for net in nets)
    assert 0 < first.kept.min() < x.shape[1]
    np.testing.assert_allclose(first.logits, second.logits, rtol=1e-5)
    for net in nets:
        ran = net.run(x, buckets=js.Buckets(batch=2, token=1, max_batch=2))
        np.testing.assert_array_equal(ran.kept, first.kept)
        np.testing.assert_allclose(ran.logits, first.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "rule", "said"),
    [
        (lambda: attending(lambda p, x: (x @ p["o"])[:, 0]), {"level": -0.1}, "level=-0.1"),
        (lambda: attending(lambda p, x: (x @ p["o"])[:, 0]), {"level": [0.1, 0.2]}, r"level\[2\]"),
        (lambda: attending(lambda p, x: (x @ p["o"])[:, 0]), {"protect": 0}, "protect=0"),
        (lambda: attending(lambda p, x: (x @ p["o"])[:, 0]), {"present": 3}, "present=3"),
        (
            lambda: attending(lambda p, x: (x @ p["o"])[:, :2].sum(1)),
            {},
            "protect=1: must be at least 2",
        ),
        (
            lambda: attending(lambda p, x: (x @ p["o"])[:, -1]),
            {},
            "protect_last=0: must be at least 1",
        ),
        (lambda: attending(lambda p, x: (x @ p["o"])[:, 2]), {}, "mixes tokens"),
        (
            lambda: attending(lambda p, x: jnp.cumsum(x @ p["o"], 1)[:, 0]),
            {},
            "cumsum.*mixes tokens",
        ),
        (
            lambda: attending(lambda p, x: jnp.einsum("btd,ts->bsd", x, p["t"])[:, 0] @ p["o"]),
            {},
            "mixes",
        ),
        (lambda: attending(lambda p, x: jnp.sort(x @ p["o"], 1)[:, 0]), {}, "sort.*mixes tokens"),
        (
            lambda: attending(lambda p, x: jnp.tile(x @ p["o"], (1, 2, 1))[:, 0]),
            {},
            "tile.*mixes tokens",
        ),
        (
            lambda: attending(
                lambda p, x: jax.lax.dynamic_update_slice(x, x[:, :2] + 1, (0, 1, 0))[:, 0] @ p["o"]
            ),
            {},
            "dynamic_update_slice.*mixes tokens",
        ),
        (
            lambda: attending(
                lambda p, x: (
                    (
                        jax.lax.dynamic_update_slice(x @ x.swapaxes(1, 2), x[..., :2], (0, 0, 1))
                        @ jnp.tanh(x)
                    )[:, 0]
                    @ p["o"]
                )
            ),
            {},
            "dynamic_update_slice.*mixes tokens",
        ),
        (
            lambda: attending(lambda p, x: jnp.unstack(x @ p["o"], axis=1)[0]),
            {},
            "unstack.*mixes tokens",
        ),
        (lambda: attending(lambda p, x: x @ p["o"]), {}, "not logits"),
        (
            lambda: attending(
                lambda p, x: (x + jax.nn.tanh(jnp.roll(x, 1, 1)))[:, 0] @ p["o"]  # added to itself
            ),
            {},
            "protect=1: must be at least 4",
        ),
        (
            lambda: attending(
                lambda p, x: jax.lax.associative_scan(jnp.add, x, axis=1)[:, 0] @ p["o"]
            ),
            {},
            "mixes tokens",
        ),
        (
            lambda: attending(
                lambda p, x: (
                    jax.lax.scan(lambda c, t: (c + t, c), x[:, 0], jnp.moveaxis(x, 1, 0))[0]
                    @ p["o"]
                )
            ),
            {},
            "scan.*mixes tokens",
        ),
        (lambda: js.trace(lambda p, x: x @ p, normal(8, 3), normal(2, 8)), {}, "no attention"),
        (lambda: js.prune_tokens(0.1)(network("vit")), {}, "cannot follow prune_tokens"),
    ],
)
def test_what_cannot_lose_tokens_is_refused_by_name(net, rule, said):
    with pytest.raises(ValueError, match=said):
        js.prune_tokens(**{"level": 0.1, **rule})(net())


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (js.prune_tokens(0.1), js.prune_tokens(0.1), "tokens leave it already"),
        (js.prune_tokens(0.1), js.integer_only, "integer_only cannot follow prune_tokens"),
        (js.exit_early(2), js.prune_tokens(0.1, output=lambda y: y), "output: what came before"),
        (
            js.exit_early(["layers/1/q"], feature=lambda live: live[0][:, 0]),
            js.prune_tokens(0.1),
            "feature=.*must take a second argument where tokens leave",
        ),
    ],
)
def test_what_cannot_follow_says_why(before, after, said):
    with pytest.raises(ValueError, match=said):
        after(before(network("vit")))


def test_channels_are_removed_of_a_network_whose_tokens_leave():
    args, net = inputs(KINDS["vit"]), js.prune_tokens(LEVEL)(network("vit"))
    small = js.shrink(0.5, groups=["layers/*/up*"])(net)
    found, ran = simulate(small, *args), small.run(*args, buckets=BUCKETS)
    assert small.params["layers"][0]["up"].shape == (8, 6)
    np.testing.assert_array_equal(ran.kept, found.kept)
    most = np.abs(found.logits).max()
    np.testing.assert_allclose(ran.logits, found.logits, rtol=0, atol=1e-5 * most)
    np.testing.assert_array_equal(found.kept[:, 0], simulate(net, *args).kept[:, 0])


@pytest.mark.parametrize("count", [2, 4])
def test_levels_of_another_number_are_refused_when_they_are_put_in(count):
    net = js.prune_tokens(LEVEL)(network("vit"))
    rule = dataclasses.replace(net.tokens, level=jnp.full(count, 0.1))
    with pytest.raises(ValueError, match=rf"level\[{count}\]: must hold one number a layer, \[3\]"):
        dataclasses.replace(net, tokens=rule)(*inputs(KINDS["vit"]))


def test_a_presence_that_is_no_mask_is_refused():
    ids, lengths = inputs(KINDS["bert"])
    net = js.prune_tokens(0.1, present=lambda ids, lengths: lengths)(network("bert"))
    with pytest.raises(ValueError, match=r"present: gives int32\[5\]"):
        net(ids, lengths)


def test_rows_that_say_what_they_hold_are_computed_at_their_length(monkeypatch):
    """Short rows begin short, and give what they gave; tokens are said, not guessed."""
    args = inputs(KINDS["bert"])
    guessed = js.prune_tokens(LEVEL)(network("bert"))
    told = js.prune_tokens(LEVEL, present=present)(network("bert"))
    sizes, made = [], exit_queue.stepper

    def stepper(*given):
        step = made(*given)

        def recorded(at, which, live, streak, tokens, count):
            sizes.append((at, count))
            return step(at, which, live, streak, tokens, count)

        return recorded

    monkeypatch.setattr(exit_queue, "stepper", stepper)
    agrees(told.run(*args, buckets=BUCKETS), expected("bert"))
    assert [count for at, count in sizes if at == 0] == [9, 2]  # four rows, and the shortest
    assert all(count < transformers.TOKENS for at, count in sizes if at > 1)
    assert (simulate(told, *args).kept == simulate(guessed, *args).kept).all()


def test_a_sweep_over_levels_compiles_once_and_warm_up_all_that_run_meets():
    args, net = inputs(KINDS["vit"]), js.prune_tokens(LEVEL)(network("vit"))
    simulate.clear_cache()
    for scale in (0.0, 0.5, 1.0):
        rule = dataclasses.replace(net.tokens, level=scale * net.tokens.level)
        simulate(dataclasses.replace(net, tokens=rule), *args)
    assert simulate._cache_size() == 1
    buckets = js.Buckets(batch=3, token=4, max_batch=3)
    assert net.warm_up(*args, buckets=buckets) > 0
    before = exit_step.count_programs()
    net.run(*args, buckets=buckets)
    assert exit_step.count_programs() == before
    assert net.warm_up(*args, buckets=buckets) == 0


def test_gradients_are_those_of_the_tokens_that_are_left():
    """Of the parameters, against differences of what is computed."""
    args, net = inputs(KINDS["vit"]), js.prune_tokens(LEVEL)(network("vit"))

    def loss(head):
        return jnp.sum(dataclasses.replace(net, params={**net.params, "head": head})(*args) ** 2)

    head = net.params["head"]
    slope, way = jax.grad(loss)(head), normal(*head.shape, seed=9)
    there, back = (loss(head + s * 1e-2 * way) for s in (1, -1))
    np.testing.assert_allclose(jnp.sum(slope * way), (there - back) / 2e-2, rtol=1e-2)


def test_networks_whose_tokens_leave_come_back_from_a_checkpoint(tmp_path):
    args = inputs(KINDS["vit"])
    net = js.magic_pyramid(LEVEL, js.Rule(0.5))(network("vit"))
    js.save(tmp_path / "net", net)
    like = js.magic_pyramid(0.0, js.Rule(0.0))(network("vit"))
    loaded = js.load(tmp_path / "net", like)
    np.testing.assert_array_equal(loaded.tokens.level, net.tokens.level)
    np.testing.assert_array_equal(loaded(*args), net(*args))
    with pytest.raises(ValueError, match="tokens leave behind 3 attentions"):
        js.load(tmp_path / "net", js.exit_early(net.exits)(network("vit")))


def test_the_table_says_where_tokens_leave():
    text = str(js.prune_tokens(LEVEL)(network("vit")))
    assert "tokens · above" in text
    for line in ("dynamic/1 │ layers/0/up", "dynamic/5 │ layers/2/up"):
        assert line in text
