"""Keys and values in arrays that each call writes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.accelerators.sites import site_work
from jaxsim.cores.adc.column import AdcState
from jaxsim.models.llama import tiny
from jaxsim.network.operands import fix_text
from tests.oracles import operands as oracle
from tests.support import models, transformers
from tests.support.networks import answer, attention, run

KEY = jax.random.key(5)
DYNAMIC = "dynamic*"
CODES = js.quantize(js.Grid(8), 8, sites=DYNAMIC)
SIGMA = 0.03


def arrays(*, sites=DYNAMIC, **settings):
    return js.analog(**settings, sites=sites)


def cells(sigma=SIGMA):
    return js.cells.independent(sigma)


@functools.cache
def scores():
    """Scores of two heads and what is mixed by them, with queries that are given beside tokens."""

    def fn(params, x, q):
        k, v = (jnp.einsum("bnd,dhe->bnhe", x, params[name]) for name in "kv")
        s = jnp.einsum("bqhe,bkhe->bhqk", q, k)
        return s, jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(s), v)

    params = {name: models.normal(4, 2, 3, seed=i) for i, name in enumerate("kv")}
    return js.trace(fn, params, models.normal(2, 5, 4), models.normal(2, 6, 2, 3))


@functools.cache
def decoder():
    """A decoder whose layers are a stack, with two heads of keys and values for four of queries."""
    model = tiny(vocabulary=24, width=16, heads=4, groups=2, hidden=16)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 24, (2, 6)), jnp.int32)
    return model, js.trace(model, model.init(jax.random.key(0), ids), ids), ids


@functools.cache
def written_decoder(sigma=SIGMA, attention=1.0):
    """A deployed decoder whose keys and values are in arrays of few rows, and its tokens."""
    model, net, ids = decoder()
    params = jax.tree_util.tree_map_with_path(
        lambda path, w: attention * w if "attention'" in str(path) else w, net.params
    )
    net = net.with_params(params)
    net = arrays(adc=10, cells=cells(sigma), rows=4)(CODES(net))
    return model, js.deploy(net, key=KEY, calibrate=ids), ids


# Values


@pytest.mark.parametrize("settings", [{"rows": 4}, {"mapping": "offset", "input_bits": 1}])
def test_ideal_arrays_compute_the_bits_of_digital_codes(settings):
    x = models.normal(2, 5, 4)
    digital, analog = CODES(attention()), arrays(**settings)(CODES(attention()))
    np.testing.assert_array_equal(answer(analog, x), answer(digital, x))
    np.testing.assert_array_equal(run(analog, x), answer(digital, x))


def test_ideal_arrays_of_a_vision_transformer_and_a_decoder_of_groups():
    """Arrays hold keys, [k] of heads, where digital codes have scales of queries: both are near."""
    net = transformers.network("vit")
    _, llama, ids = decoder()
    for whole, args in ((net, transformers.inputs(transformers.KINDS["vit"])), (llama, (ids,))):
        digital, analog = (f(whole) for f in (CODES, js.compose(CODES, arrays(rows=8))))
        np.testing.assert_allclose(run(analog, *args), run(digital, *args), rtol=1e-5, atol=1e-5)


def test_fine_converters_and_perfect_cells_come_close_to_the_ideal():
    x = models.normal(2, 5, 4)
    fine = arrays(adc=14, percentile=100.0, cells=cells(0.0), rows=3)(CODES(attention()))
    y = run(js.deploy(fine, key=KEY, calibrate=x), x, key=KEY)
    np.testing.assert_allclose(y, answer(CODES(attention()), x), atol=2e-3)


def _ranges(chip, name):
    held = chip.states[name]
    adc = [s for s in jax.tree.leaves(held.inner, is_leaf=_is_adc) if _is_adc(s)]
    return {
        "x_most": float(held.inner.inputs.hi),
        "w_most": float(held.values.hi),
        "adc_most": float(adc[0].outputs.hi),
    }


def _is_adc(node):
    return isinstance(node, AdcState)


@functools.cache
def noisy_scores():
    x, q = models.normal(2, 5, 4), models.normal(2, 6, 2, 3)
    net = arrays(adc=7, cells=cells(), rows=4)(CODES(scores()))
    return js.deploy(net, key=KEY, calibrate=(x, q)), x, q


def _recomputed(chip, x, q, key, rows=4, draw=oracle.draws):
    """Scores and mixed values of `scores` with its arrays in numpy."""
    p = jax.device_get(chip.params)
    k, v = (np.einsum("bnd,dhe->bhne", x, p[name]).reshape(-1, 5, 3) for name in "kv")
    name = "dynamic/0", "dynamic/1"
    errors = [
        SIGMA * draw(oracle.site_key(key, at), depth, width, 4)
        for at, depth, width in zip(name, (3, 5), (5, 3), strict=True)
    ]
    given = np.moveaxis(np.asarray(q), 2, 1).reshape(-1, 6, 3)
    settings = {"rows": rows, "adc": 7}
    s = oracle.read(
        given, np.swapaxes(k, 1, 2), errors=errors[0], **_ranges(chip, name[0]), **settings
    )
    shares = np.asarray(jax.nn.softmax(jnp.asarray(s, jnp.float32)))
    y = oracle.read(shares, v, errors=errors[1], **_ranges(chip, name[1]), **settings)
    return s.reshape(2, 2, 6, 5), np.moveaxis(y.reshape(2, 2, 6, 3), 1, 2)


def test_attention_is_that_of_numpy_with_the_same_draws():
    chip, _, _ = noisy_scores()
    x, q = models.normal(2, 5, 4, seed=8), models.normal(2, 6, 2, 3, seed=9)
    found = run(chip, x, q, key=KEY)
    for mine, theirs in zip(found, _recomputed(chip, x, q, KEY), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    # known wrong: another order of the draws, errors of the heads exchanged, equal tiles of rows
    wrong = [
        _recomputed(chip, x, q, jax.random.key(6)),
        _recomputed(chip, x, q, KEY, draw=lambda *a: oracle.draws(*a)[:, ::-1]),
        _recomputed(chip, x, q, KEY, rows=3),
    ]
    for other in wrong:
        assert np.abs(np.asarray(found[1]) - other[1]).max() > 1e-3


# Noise


@functools.cache
def many_scores():
    """Scores of 400 calls with keys of their own, and exact ones; no converter."""
    net = arrays(cells=cells())(CODES(scores()))
    x = jnp.broadcast_to(models.normal(1, 5, 4), (2, 5, 4))
    q = jnp.broadcast_to(models.normal(1, 6, 1, 3), (2, 6, 2, 3))
    chip = js.deploy(net, key=KEY, calibrate=(x, q))
    calls = jax.jit(jax.vmap(lambda key: chip(x, q, key=key)[0]))
    s = calls(jax.random.split(jax.random.key(3), 400))
    return chip, np.asarray(s), np.asarray(run(CODES(scores()), x, q)[0]), q


def test_noise_of_writes_has_the_variance_of_pairs():
    chip, s, exact, q = many_scores()
    ranges = _ranges_of_ideal(chip)
    codes, step = oracle.codes(q, ranges["x_most"], 127)
    # 127 (g+ - g-) of cells that are off by sigma, summed over squared codes of the drive
    each = 2 * (127 * SIGMA) ** 2 * np.sum(codes[0, :, 0] ** 2, -1)
    expected = each * (step * ranges["w_most"] / 127) ** 2
    found = np.mean((s - exact) ** 2, (0, 1, 2, 4))
    np.testing.assert_allclose(found, expected, rtol=0.1)  # 400 · 2 · 2 · 5 draws, correlated by q
    assert np.abs(np.mean(s - exact)) < 0.05 * np.sqrt(expected.max())


def _ranges_of_ideal(chip):
    held = chip.states["dynamic/0"]
    return {"x_most": float(held.inner.inputs.hi), "w_most": float(held.values.hi)}


def test_rows_heads_tokens_and_calls_draw_their_own():
    _, s, exact, _ = many_scores()
    errors = (s - exact)[:, :, :, 0]  # one query: [calls, B, H, tokens]
    flat = errors.reshape(len(errors), -1)
    between = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(between).max() < 5 / np.sqrt(len(flat))
    assert np.abs(np.corrcoef(flat[:-1].ravel(), flat[1:].ravel())[0, 1]) < 5 / np.sqrt(flat.size)


def test_sites_and_layers_of_a_scan_draw_their_own():
    """Two products of equal operands, one layer twice: no two errors are equal."""

    def fn(params, x):
        def layer(x, _):
            s = x @ x.mT
            return x, (s, jax.nn.softmax(s) @ x)

        _, (s, _) = jax.lax.scan(layer, x, None, length=2)
        _, (t, mixed) = layer(x, None)
        return s, t, mixed @ params

    x = models.normal(5, 4)
    net = js.trace(fn, jnp.eye(4), x)
    net = arrays(cells=cells())(CODES(net))
    s, t, _ = run(js.deploy(net, key=KEY, calibrate=x), x, key=KEY)
    apart = [s[0] - s[1], s[0] - t, s[1] - t]
    assert all(np.abs(a).min() > 0 for a in apart)


def test_what_reads_add_is_drawn_apart_from_what_writes_do():
    net = CODES(attention())
    x = models.normal(2, 5, 4)
    noisy = js.cells.independent(SIGMA, noise=0.01)
    chip = js.deploy(arrays(cells=noisy)(net), key=KEY, calibrate=x)
    text = js.fix_writes(chip, KEY)
    one, other = (run(text, x, key=jax.random.key(i)) for i in (1, 2))
    assert 0 < np.abs(one - other).max() < np.abs(one - run(chip, x, key=KEY)).max()


@pytest.mark.parametrize("name", ["sigma", "fixed key"])
def test_a_sweep_compiles_once(name):
    x = models.normal(2, 5, 4)
    net = CODES(attention())

    @jax.jit
    def call(chip, x, key):
        return chip(x, key=key)

    made = []
    for i in range(3):
        sigma = 0.01 * (i + 1) if name == "sigma" else SIGMA
        chip = js.deploy(arrays(adc=8, cells=cells(sigma))(net), key=KEY, calibrate=x)
        chip = js.fix_writes(chip, jax.random.key(i)) if name == "fixed key" else chip
        made.append(call(chip, x, KEY))
    assert call._cache_size() == 1
    assert np.abs(made[0] - made[1]).max() > 1e-4


# Tokens that stay


def test_a_decoder_with_a_cache_reads_the_cells_of_one_without():
    model, chip, ids = written_decoder()
    text = js.fix_writes(chip, jax.random.key(7))
    full, cache, steps = run(text, ids, key=KEY), model.cache(2, 11), []
    for i in range(ids.shape[1]):
        logits, cache = run(text, ids[:, i : i + 1], cache, key=jax.random.key(20 + i))
        steps.append(logits)
    np.testing.assert_allclose(jnp.concatenate(steps, 1), full, rtol=1e-5, atol=1e-5)
    # known wrong: each call with errors of its own
    _, other = run(chip, ids[:, :5], model.cache(2, 11), key=KEY)
    last, _ = run(chip, ids[:, 5:], other, key=jax.random.key(8))
    assert np.abs(last - full[:, -1:]).max() > 1e-3


def test_tokens_that_follow_change_nothing_of_those_before():
    _, chip, ids = written_decoder()
    text = js.fix_writes(chip, KEY)
    first = run(text, ids[:, :3], key=KEY)
    np.testing.assert_array_equal(first, run(text, ids, key=KEY)[:, :3])
    digital = js.quantize(8, 8, sites=DYNAMIC)(decoder()[1])  # whose scales are the batch's
    assert np.abs(run(digital, ids[:, :3]) - run(digital, ids)[:, :3]).max() > 0


def test_text_is_written_by_one_key():
    """`generate` and `score` keep the cells of a text from call to call."""
    model, chip, ids = written_decoder()
    cached, whole = (
        js.language.score(chip, ids, key=KEY, batch_size=2, **more)
        for more in ({"cache": model.cache}, {})
    )
    np.testing.assert_allclose(cached.losses, whole.losses, rtol=1e-4, atol=1e-4)
    fixed = js.fix_writes(chip, jax.random.key(1))
    other = js.language.score(fixed, ids, key=KEY, batch_size=2)
    assert np.abs(other.losses - whole.losses).max() > 1e-3
    _, chip, _ = written_decoder(0.1, attention=6.0)  # so that tokens are of the errors
    drawn = js.language.generate(chip, ids[:, :3], model.cache(2, 8), count=4, key=KEY)
    text = jnp.concatenate([ids[:, :3], drawn[:, :3]], 1)
    said = run(fix_text(chip, KEY), text, key=KEY)[:, 2:]
    np.testing.assert_array_equal(jnp.argmax(said, -1), drawn)


def test_ranges_are_those_of_calibration():
    x = models.normal(2, 5, 4)
    chip = js.deploy(arrays(adc=8)(CODES(attention())), calibrate=x)
    assert chip.states.keys() == {"dynamic/0", "dynamic/1"}
    half = jnp.concatenate([x[:1], 3 * x[1:]])
    np.testing.assert_array_equal(run(chip, half)[0], run(chip, x)[0])
    wider = js.widen_ranges(chip, 3 * x)
    assert wider.states["dynamic/0"].values.hi > chip.states["dynamic/0"].values.hi
    assert np.abs(run(wider, 3 * x) - run(attention(), 3 * x)).max() < 0.2
    narrow = js.recalibrate(wider, x)
    (old,), (new,) = (
        [s for s in jax.tree.leaves(c.states["dynamic/0"], is_leaf=_is_adc) if _is_adc(s)]
        for c in (chip, narrow)
    )
    assert new.outputs.hi < wider.states["dynamic/0"].inner.inner.outputs.hi
    assert old.outputs.hi > 0
    with pytest.raises(ValueError, match="calibrate=None"):
        js.deploy(arrays(adc=8)(CODES(attention())))


# Gradients


def test_gradients_pass_as_through_digital_codes():
    x = models.normal(2, 5, 4)
    digital, analog = CODES(attention()), arrays(rows=4)(CODES(attention()))

    @jax.jit
    def slope(net):
        return jax.grad(lambda p: jnp.sum(net.with_params(p)(x) ** 2))(net.params)

    for mine, theirs in zip(*(jax.tree.leaves(slope(n)) for n in (analog, digital)), strict=True):
        assert np.abs(mine).max() > 1e-3
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    noisy = arrays(adc=8, cells=cells())(CODES(attention()))
    found = jax.grad(lambda p: jnp.sum(noisy.with_params(p)(x, key=KEY) ** 2))(noisy.params)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 1e-3 for g in found.values())
    chip = js.deploy(noisy, key=KEY, calibrate=x)
    assert np.abs(jax.grad(lambda x: jnp.sum(chip(x, key=KEY) ** 2))(x)).max() > 1e-3


# Beside other transforms


def test_slices_follow_and_a_chip_is_saved(tmp_path):
    x = models.normal(2, 5, 4)
    net = js.compose(CODES, arrays(adc=8, cells=cells()), js.slice_bits(2, sites=DYNAMIC))(
        attention()
    )
    assert [w.name for w in net.cores["dynamic/0"]][:3] == [
        "written_operand",
        "quantized",
        "bit_sliced",
    ]
    chip = js.fix_writes(js.deploy(net, key=KEY, calibrate=x), KEY)
    js.save(tmp_path / "chip", chip)
    loaded = js.load(tmp_path / "chip", js.fix_writes(net, KEY))
    np.testing.assert_array_equal(run(loaded, x, key=KEY), run(chip, x, key=KEY))
    lean = js.deploy(js.quantize(8, 8)(net), key=KEY, calibrate=x, keep_floats=False)
    assert set(lean.unheld) == {"q", "k", "v"}
    assert np.isfinite(run(lean, x, key=KEY)).all()


def test_a_pipeline_of_stages_writes_what_the_whole_does():
    x = models.normal(2, 5, 4)
    net = arrays(adc=8)(CODES(attention()))
    cut = js.pipeline_shard(2, 2, devices=jax.devices()[:1] * 2)(net)
    whole, staged = (js.deploy(n, calibrate=x) for n in (net, cut))
    np.testing.assert_array_equal(run(whole, x), staged(x))


def test_energy_of_writes_is_counted():
    x = models.normal(2, 5, 4)
    net = js.quantize(8, 8, sites=["q", "k", "v"])(
        arrays(adc=8, cells=cells(), rows=4)(CODES(attention()))
    )
    spent = {site.name: site.spent for site in net.cost(x).sites}
    assert spent["dynamic/0"]["cell_writes"] == 2 * 2 * 5 * 4  # pairs, rows, tokens, channels
    assert spent["dynamic/1"]["cell_writes"] == 2 * 2 * 5 * 4  # the last array holds one token
    assert spent["dynamic/1"]["cells"] == 2 * 2 * 8 * 4
    heads = arrays()(CODES(scores()))  # whose values are the first operand of their product
    work = site_work(heads, heads.portions()[0], None)["dynamic/1"]
    assert (work.matmul, work.sizes) == ((4, 6, 5, 3), (120, 60, 72))
    simd = js.accelerators.DigitalArray(rows=8, columns=8)
    parts = [
        {"analog": js.accelerators.AnalogArray(write=w, rows=4, columns=8), "simd": simd}
        for w in (2.0, None)
    ]
    found = js.estimate(net, js.Accelerator(parts[0]), x).sites["dynamic/1"]
    assert found.components["writes"] == 160.0
    with pytest.raises(ValueError, match=r"dynamic/0 \(.*AnalogArray\(write=…\)"):
        js.estimate(net, js.Accelerator(parts[1]), x)
    with pytest.raises(ValueError, match="each call writes the cells of dynamic/0"):
        js.Crossbar().estimate(net)


def test_explore_refuses_what_calls_write():
    written = js.Option(js.compose(js.quantize(js.Grid(8), 8), js.analog()), sites=DYNAMIC)
    parts = {
        "analog": js.accelerators.AnalogArray(write=1.0),
        "simd": js.accelerators.SimdUnit(lanes=4),
        "digital": js.accelerators.DigitalArray(rows=8, columns=8),
    }
    with pytest.raises(ValueError, match=r"options: analog.* at dynamic/0: each call writes"):
        js.explore(
            attention(),
            js.Accelerator(parts),
            {"arrays": written},
            calibrate=models.normal(2, 5, 4),
            evaluate=lambda chip: 0.0,
        )


REFUSED = {
    "dynamic/0, which each call writes, with wires": lambda: arrays(
        cells=cells(), wires=js.wires.input_source(1e-4)
    ),
    "each token is as old as it is": lambda: arrays(cells=js.cells.drifting(cells(), 0.05)),
    "pulses are counted where a chip is written": lambda: arrays(
        cells=js.cells.verified(cells(), tolerance=0.1, pulses=3)
    ),
    "here tokens are columns": lambda: arrays(adc=js.adc.sar(8, mismatch=0.01)),
    "dac=.*what differs from chip to chip": lambda: arrays(dac=js.dac.capacitive(mismatch=0.01)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_calls_cannot_write_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()(CODES(attention()))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (8, "steps per channel .* expected quantize\\(weights=js.Grid\\(8\\)\\)"),
        (js.Grid(8, per="group", rows=2), "steps per group"),
        (js.Grid(8, rounding="stochastic"), "rounds to stochastic"),
        (None, "put quantize\\(weights=…\\)"),
    ],
)
def test_codes_that_depend_on_other_tokens_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        arrays()(js.quantize(weights, 8, sites=DYNAMIC)(attention()))


def test_products_that_are_no_attention_are_refused():
    net = js.trace(lambda p, x: x @ (x @ p).T, jnp.eye(4), models.normal(3, 4))
    with pytest.raises(ValueError, match=r"analog at dynamic/0: .*neither operand is one"):
        arrays()(CODES(net))


def test_others_say_what_they_cannot_reach():
    x = models.normal(2, 5, 4)
    net = arrays(cells=cells())(CODES(attention()))
    assert "dynamic/0" not in arrays(sites="*")(js.quantize()(attention())).cores  # as before
    with pytest.raises(ValueError, match="analog cannot follow analog at dynamic/0"):
        arrays()(net)
    with pytest.raises(ValueError, match="no call of it writes cells"):
        js.fix_writes(CODES(attention()), KEY)
    with pytest.raises(ValueError, match="key=None"):
        js.deploy(net, calibrate=x)
    with pytest.raises(ValueError, match="key=None"):
        run(js.deploy(net, key=KEY, calibrate=x), x)
    with pytest.raises(ValueError, match="slice_bits at dynamic/0"):
        js.slice_bits(2, sites=DYNAMIC)(CODES(attention()))
    drive = js.accelerators.measure_drive
    with pytest.raises(ValueError, match="cells that stay"):
        drive(net, x, key=KEY)
