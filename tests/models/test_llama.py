"""The decoder beside one in NumPy, call by call with a cache, and under every kind of transform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxsim as js
from jaxsim.models.llama import Cache, Llama, tiny
from tests.oracles import llama as oracle
from tests.support import llama_files

MODEL = llama_files.MODEL
IDS = np.random.default_rng(1).integers(0, 96, (2, 7)).astype(np.int32)


@functools.cache
def variables():
    return {"params": llama_files.params()}


@functools.cache
def logits():
    return np.asarray(jax.jit(MODEL.apply)(variables(), IDS))


@functools.cache
def net():
    return js.trace(MODEL, variables(), IDS)


def transcribed(model, ids, **changed):
    """The logits of NumPy's decoder."""
    settings = {n: getattr(model, n) for n in ("layers", "heads", "groups", "base", "epsilon")}
    return oracle.logits(llama_files.tensors(model).get, ids, **settings | changed)


def close(a, b, tolerance):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize(
    "model",
    [MODEL, tiny(tied=False, head_width=6, groups=1, base=100.0), tiny(groups=4, layers=1)],
    ids=["grouped", "free head", "as many keys"],
)
def test_logits_are_those_of_numpy(model):
    found = jax.jit(model.apply)({"params": llama_files.params(model)}, IDS)
    for row, ids in zip(found, IDS, strict=True):
        close(row, transcribed(model, ids), 1e-5)


@pytest.mark.parametrize("changed", [{"base": 1e3}, {"epsilon": 1e-2}, {"heads": 2, "groups": 1}])
def test_another_decoder_has_other_logits(changed):
    other = transcribed(MODEL, IDS[0], **changed)
    assert np.abs(other - logits()[0]).max() > 1e-3 * np.abs(other).max()


def test_a_token_changes_no_logits_before_it():
    other = IDS.copy()
    other[:, 4] += 1
    found = jax.jit(MODEL.apply)(variables(), other % 96)
    np.testing.assert_array_equal(found[:, :4], logits()[:, :4])
    assert (np.abs(found[:, 4:] - logits()[:, 4:]).max(-1) > 1e-3).all()


def test_decoding_with_a_cache_is_what_one_call_says_and_compiles_once():
    traces = []

    @jax.jit
    def step(variables, ids, cache):
        traces.append(ids.shape)
        return MODEL.apply(variables, ids, cache)

    parts, cache = [], MODEL.cache(2, 9)
    for ids in (IDS[:, :3], *np.split(IDS[:, 3:], 4, 1)):
        part, cache = step(variables(), ids, cache)
        parts.append(part)
    close(np.concatenate(parts, 1), logits(), 1e-5)
    assert isinstance(cache, Cache)
    assert cache.length == 7
    assert not cache.keys[:, :, 7:].any()
    assert traces == [(2, 3), (2, 1)]
    # Beyond its room a compiled call cannot refuse: nothing of it is a number.
    after, full = step(variables(), IDS[:, :3], cache)
    assert np.isnan(after).all()
    with pytest.raises(ValueError, match="the cache holds 10 tokens and has room for 9"):
        MODEL.apply(variables(), IDS[:, :1], full)


def test_tokens_out_of_the_vocabulary_are_refused_or_no_numbers():
    for wrong in (-1, 96):
        ids = IDS.copy()
        ids[1, 5] = wrong
        with pytest.raises(ValueError, match=f"ids: token {wrong}, must be from 0 to 95"):
            MODEL.apply(variables(), ids)
    found = jax.jit(MODEL.apply)(variables(), ids)
    assert np.isnan(found[1, 5:]).all()
    np.testing.assert_array_equal(found[0], logits()[0])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, v: m.apply(v, np.zeros((1, 65), int)), "ids\\[…, 65\\]: must hold at most"),
        (lambda m, v: m.apply(v, np.zeros((0, 3), int)), r"ids\[0, 3\]: must hold at least one"),
        (lambda m, v: m.apply(v, np.zeros((2, 0), int)), r"ids\[2, 0\]: must hold at least one"),
        (lambda m, v: m.apply(v, np.zeros(3, int)), "must be tokens \\[B, n\\]"),
        (lambda m, v: m.apply(v, np.zeros((1, 3))), "of float"),
        (
            lambda m, v: m.apply(v, IDS, m.cache(1)),
            "cache.keys\\[2, 1, 64, 2, 8\\]: must be \\[2, 2, S",
        ),
        (
            lambda m, v: m.apply(v, IDS, tiny(groups=4).cache(2)),
            "cache.keys\\[…, 4, 8\\]: must be of 2",
        ),
        (lambda m, v: m.apply(v, IDS, m.cache(2, 6)), "holds 0 tokens and has room for 6"),
        (lambda m, v: m.cache(2, 65), "size=65: must be an int from 1 to 64"),
        (lambda m, v: m.cache(0), "batch=0"),
        (lambda m, v: tiny(groups=3).cache(1), "heads=4: must be a multiple of groups=3"),
        (lambda m, v: tiny(heads=5, groups=1).cache(1), "width=32: must be a multiple of heads=5"),
        (lambda m, v: tiny(head_width=3).cache(1), "head_width=3: must be even"),
        (lambda m, v: tiny(layers=0).cache(1), "layers=0"),
        (lambda m, v: tiny(base=0.0).cache(1), "base=0.0"),
        (lambda m, v: tiny(epsilon=-1.0).cache(1), "epsilon=-1.0"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call(MODEL, variables())
    assert "\n" not in str(error.value)


def test_defaults_are_those_of_smollm2():
    shapes = jax.eval_shape(Llama().init, jax.random.key(0), np.zeros((1, 1), np.int32))
    assert sum(a.size for a in jax.tree.leaves(shapes)) == 134_515_008
    model = Llama()
    assert (model.base, model.epsilon, model.context, model.tied) == (100_000, 1e-5, 8192, True)


def test_gradients_are_those_of_differences():
    flat, back = ravel_pytree(variables()["params"])
    direction = np.random.default_rng(2).normal(size=flat.shape).astype(np.float32)

    @jax.jit
    def along(step):
        logs = jax.nn.log_softmax(MODEL.apply({"params": back(flat + step * direction)}, IDS))
        return -jnp.mean(jnp.take_along_axis(logs[:, :-1], IDS[:, 1:, None], -1))

    slope = jax.jit(jax.grad(along))(0.0)
    expected = (along(1e-3) - along(-1e-3)) / 2e-3
    np.testing.assert_allclose(slope, expected, rtol=2e-2)


def test_a_traced_network_is_the_model_with_a_cache_and_without():
    np.testing.assert_array_equal(jax.jit(lambda n: n(IDS))(net()), logits())
    names = [site.name for site in net().sites]
    assert names == [site.name for site in js.trace(MODEL, variables(), IDS, MODEL.cache(2)).sites]
    assert "embedding:lookup" in names
    assert "layers/feed_forward/down/kernel" in names


def test_heads_and_hidden_units_go_with_their_group_and_the_cache_with_them():
    kept = {
        "layers/attention/query/kernel:2.0": [1],
        "layers/attention/query/kernel:2.1": [0],
        "layers/feed_forward/gate/kernel:2": range(0, 64, 2),
    }
    shrunk = js.shrink(keep=kept)(net())
    # Of four heads over two groups the third is left: what a decoder of one head says.
    small = tiny(heads=1, groups=1, head_width=8, hidden=32)
    params = jax.tree.map(lambda a: a, variables()["params"])
    attention, perceptron = (params["layers"][n] for n in ("attention", "feed_forward"))
    heads = {"query": slice(16, 24), "key": slice(8, 16), "value": slice(8, 16)}
    own = {n: {"kernel": attention[n]["kernel"][..., at]} for n, at in heads.items()}
    own["mix"] = {"kernel": attention["mix"]["kernel"][:, 16:24]}
    units = {n: {"kernel": perceptron[n]["kernel"][..., ::2]} for n in ("gate", "up")}
    units["down"] = {"kernel": perceptron["down"]["kernel"][:, ::2]}
    params["layers"] |= {"attention": own, "feed_forward": units}
    expected = jax.jit(small.apply)({"params": params}, IDS)
    whole, (parts, _) = jax.jit(lambda n, c: (n(IDS), n(IDS, c)))(shrunk, small.cache(2, 8))
    close(whole, expected, 1e-6)
    close(parts, expected, 1e-5)
    with pytest.raises(ValueError, match="must be of 1 heads of width 8"):
        shrunk(IDS, MODEL.cache(2, 8))


def test_a_transformed_decoder_is_deployed_saved_and_decodes_with_a_cache(tmp_path):
    chip = js.compose(
        js.prune(0.3, sites="layers/*"),
        js.quantize(weights=js.Grid(8, per="channel"), inputs=js.Grid(8, per="token")),
    )
    composed = chip(net())
    assert composed.coverage().share("float") == 0
    deployed = js.deploy(composed, calibrate=IDS)
    js.save(tmp_path / "chip", deployed)
    loaded = js.load(tmp_path / "chip", composed)

    @jax.jit
    def both(chip, cache):
        whole, (first, cache) = chip(IDS), chip(IDS[:, :4], cache)
        second, _ = chip(IDS[:, 4:], cache)
        return whole, jnp.concatenate([first, second], 1)

    whole, parts = both(loaded, MODEL.cache(2, 8))
    close(parts, whole, 1e-5)
    np.testing.assert_array_equal(
        jax.jit(lambda c: c(IDS))(deployed), jax.jit(lambda c: c(IDS))(loaded)
    )
    distance = np.abs(whole - logits()).max() / np.abs(logits()).max()
    assert distance > 1e-3
