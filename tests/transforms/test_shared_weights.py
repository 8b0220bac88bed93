"""A parameter that is read in several places, or that a weight is only computed from."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim import sparsity
from jaxsim.cores.role import WEIGHT
from jaxsim.cores.site_weight import captured
from jaxsim.cores.wrapper import Wrapper
from jaxsim.network.writer import write_states
from tests.support import models
from tests.support.networks import run

IDS = jnp.asarray(np.random.default_rng(3).integers(0, 24, (8, 16)))
FEW = js.rounding.adaround(300, rate=0.03)


def normal(seed, *shape):
    return models.normal(*shape, seed=seed)


PARAMS = {"e": normal(0, 24, 16), "a": normal(1, 16, 16), "b": normal(2, 16, 16)}


def tied(p, ids):
    """A language model whose table is also its head; the lookup is returned beside the logits."""
    found = p["e"][ids]
    h = found + jax.nn.relu(found @ p["a"]) @ p["b"]
    return found, h @ p["e"].T


NET = js.trace(tied, PARAMS, IDS)
LOOKUP = np.asarray(PARAMS["e"])[IDS]


def weights(net):
    """What each site multiplies, before its hardware."""
    cores = {
        site.name: (
            *(w for w in net.cores.get(site.name, ()) if w.role in WEIGHT),
            Wrapper.of(captured),
        )
        for site in net.sites
    }
    plain = dataclasses.replace(net, cores=cores, states={}, deployed=False)
    return {name: np.asarray(w) for name, w in write_states(plain, None).items()}


def test_sites_know_what_else_reads_their_weights():
    shared = {site.name: site.shared for site in NET.sites}
    assert shared == {"e:lookup": ("e",), "a": (), "b": (), "e": ("e:lookup",)}


PRODUCTS = "re:(?!.*:lookup).*"
CODES = js.quantize(3, 8, sites=PRODUCTS)
TRANSFORMS = {
    "quantize": CODES,
    "gptq": js.compose(CODES, js.round_weights(js.rounding.gptq(), IDS)),
    "adaround": js.compose(CODES, js.round_weights(FEW, IDS)),
    "learn_ranges": js.compose(CODES, js.learn_ranges(IDS)),
    "smooth": js.compose(CODES, js.smooth(IDS)),
    "correct_bias": js.compose(CODES, js.correct_bias(IDS)),
    "equalize": js.equalize(IDS),
    "prune": js.prune(0.5),
    "prune twice": js.compose(js.prune(0.3), js.prune(0.5)),
    "round, then prune": js.compose(
        CODES, js.round_weights(js.rounding.gptq(), IDS), js.prune(0.5)
    ),
    "analog": js.compose(CODES, js.slice_bits(2), js.analog(adc=8)),
    "prune, then analog": js.compose(
        js.prune(0.5), CODES, js.slice_bits(2), js.analog(adc=8, input_bits=1)
    ),
    "prune, then blocks": js.compose(js.prune(0.5), CODES, js.block(2, 1, 1)),
    "prune, then a table": js.compose(js.prune(0.5), js.quantize(js.nf4(), None, sites=PRODUCTS)),
    "prune, then the rest": js.compose(
        *(js.prune(0.5), CODES, js.smooth(IDS), js.correct_bias(IDS), js.learn_ranges(IDS))
    ),
}


@jax.jit
def looked_up(net):
    """What a network and its chip look up; the compiler leaves out the logits beside it."""
    chip = js.deploy(net, calibrate=IDS) if net.cores else net
    return net(IDS)[0], chip(IDS)[0]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_no_transform_changes_what_a_tied_lookup_reads(name):
    for found in looked_up(TRANSFORMS[name](NET)):
        np.testing.assert_array_equal(found, LOOKUP)


@pytest.mark.parametrize("rounding", [js.rounding.gptq(), FEW], ids=["gptq", "adaround"])
def test_rounding_a_tied_head_beats_rounding_to_nearest(rounding):
    errors = []
    for seed in range(3):
        p = {name: normal(10 * seed + i, *w.shape) for i, (name, w) in enumerate(PARAMS.items())}
        plain = js.trace(tied, p, IDS)
        net = CODES(plain)
        nets = plain, net, js.round_weights(rounding, IDS)(net)
        y, *both = (np.asarray(run(n, IDS)[1]) for n in nets)
        errors.append([np.linalg.norm(found - y) for found in both])
    nearest, rounded = np.transpose(errors)
    assert (rounded < nearest).all()


def test_a_tied_head_holds_the_codes_that_rounding_chose():
    """The site's weights lie on its grid, whatever the parameter holds."""
    net = js.round_weights(js.rounding.gptq(), IDS)(CODES(NET))
    np.testing.assert_array_equal(net.params["e"], PARAMS["e"])
    state = js.deploy(net, calibrate=IDS).states["e"]
    codes = weights(net)["e"] / np.asarray(state.scale)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
    assert np.abs(codes - weights(NET)["e"] / np.asarray(state.scale)).max() > 0.5  # not nearest


def test_gradients_pass_the_correction_of_a_tied_head():
    net = js.round_weights(js.rounding.gptq(), IDS)(CODES(NET))

    def loss(p):
        return (dataclasses.replace(net, params=p)(IDS)[1] ** 2).sum()

    assert np.any(np.asarray(jax.jit(jax.grad(loss))(net.params)["e"]))


def twice(p, x):
    """One kernel in two layouts."""
    return jnp.tanh(x @ p["w"]) @ p["w"].T


def test_a_kernel_in_two_layouts_is_rounded_for_each():
    p, x = {"w": normal(5, 16, 16)}, normal(6, 64, 16)
    plain = js.trace(twice, p, x)
    net = CODES(plain)
    rounded = js.round_weights(js.rounding.gptq(), x)(net)
    y, *both = (np.asarray(run(n, x)) for n in (plain, net, rounded))
    nearest, found = (np.linalg.norm(z - y) for z in both)
    assert found < nearest
    states = js.deploy(rounded, calibrate=x).states
    for name, w in weights(rounded).items():
        scale = np.asarray(states[name].scale)
        np.testing.assert_allclose(w / scale, np.round(w / scale), atol=1e-4)


def shared(p, x):
    """One kernel, used twice alike."""
    return jnp.tanh(x @ p["w"]) @ p["w"]


def test_a_site_left_out_reads_a_shared_kernel_as_before():
    p, x = {"w": normal(5, 8, 8)}, normal(6, 4, 8)
    net = js.prune(0.5, sites="w#2")(js.trace(shared, p, x))
    np.testing.assert_array_equal(weights(net)["w"], p["w"])
    assert (weights(net)["w#2"] == 0).mean() == 0.5
    whole = js.prune(0.5)(js.trace(shared, p, x))
    assert not whole.cores
    assert [(w == 0).mean() for w in weights(whole).values()] == [0.5, 0.5]


def test_a_mask_for_all_stays_when_one_site_is_pruned_further():
    p, x = {"w": normal(5, 8, 8)}, normal(6, 4, 8)
    net = js.prune(0.75, sites="w#2")(js.prune(0.5)(js.trace(shared, p, x)))
    assert [(w == 0).mean() for w in weights(net).values()] == [0.5, 0.75]


def test_tied_masks_are_counted_where_they_are():
    net = js.prune(0.5, distribution=sparsity.uniform())(NET)
    rows = {row.name: row for row in net.cost().sites}
    assert (rows["e"].params, rows["e"].nonzero) == (24 * 16, 24 * 16 // 2)
    assert (rows["a"].params, rows["a"].nonzero) == (256, 128)
    report = {row.name: row for row in js.sparsity_report(net).rows}
    assert {name: row.nonzero for name, row in report.items()} == {"e": 192, "a": 128, "b": 128}
    assert "50.0%" in str(net)
    assert net.density(net.sites[-1]) == 0.5
    assert net.cost().nonzero == 24 * 16 + 256  # the lookup reads the whole table


def test_pruning_a_tied_head_again_counts_what_is_gone():
    once = js.prune(0.5, criterion=sparsity.random(jax.random.key(0)), sites="e")(NET)
    again = js.prune(0.75, criterion=sparsity.random(jax.random.key(1)), sites="e")(once)
    before, after = (weights(n)["e"] == 0 for n in (once, again))
    assert after.mean() == 0.75
    assert (after >= before).all()


def test_a_mask_made_after_rounding_acts_on_the_rounded_weight():
    net = js.compose(CODES, js.round_weights(js.rounding.gptq(), IDS), js.prune(0.5))(NET)
    zeros = {name: (w == 0).mean() for name, w in weights(net).items()}
    assert sum(zeros[n] * w.size for n, w in weights(net).items()) >= 0.5 * (384 + 512)


def computed(kind):
    """A dense layer whose weight is computed from what is trained."""

    def standardized(p):
        return (p["w"] - p["w"].mean(0)) / p["w"].std(0)

    of = {
        "standardized": standardized,
        "low rank": lambda p: p["w"] + p["a"] @ p["b"],
        "squashed": lambda p: jnp.sin(4 * p["w"]),
    }[kind]
    p = {"w": normal(0, 16, 8), "a": normal(1, 16, 2), "b": normal(2, 2, 8), "o": normal(3, 8, 4)}
    x = normal(4, 32, 16)
    return js.trace(lambda p, x: jax.nn.relu(x @ of(p)) @ p["o"], p, x), x


COMPUTED = ["standardized", "low rank", "squashed"]


@pytest.mark.parametrize("kind", COMPUTED)
def test_zeros_of_a_parameter_that_are_none_of_the_weight_stand_at_the_site(kind):
    net, _ = computed(kind)
    pruned = js.prune(0.5, distribution=sparsity.uniform())(net)
    w, kept = (np.asarray(weights(n)["w"]) for n in (net, pruned))
    np.testing.assert_array_equal(kept, w * (np.abs(w) > np.median(np.abs(w))))
    with pytest.raises(ValueError, match="computed from"):
        sparsity.gradual(optax.sgd(0.1), net, sparsity.one_shot(0.5))
    assert (weights(js.prune(0.5, sites="o")(net))["o"] == 0).mean() == 0.5


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_computed_weight_is_rounded_at_its_site(kind):
    net, x = computed(kind)
    plain = CODES(net)
    rounded = js.round_weights(js.rounding.gptq(), x)(plain)
    y, *both = (np.asarray(run(n, x)) for n in (net, plain, rounded))
    nearest, found = (np.linalg.norm(z - y) for z in both)
    assert found < nearest
    for name in ("w", "a", "b"):
        np.testing.assert_array_equal(rounded.params[name], net.params[name])


MADE_OF_ENTRIES = {
    "transposed": lambda w: w.reshape(8, 16).T,
    "reversed": lambda w: w[::-1],
    "halved": lambda w: (w / 2).astype(jnp.bfloat16).astype(jnp.float32),
    "normed": lambda w: w * (2 / jnp.linalg.norm(w, axis=0)),
    "jitted": jax.jit(lambda w: jnp.squeeze(w[None] * 3)),
}


@pytest.mark.parametrize("kind", MADE_OF_ENTRIES)
def test_a_weight_made_of_a_parameters_entries_is_pruned(kind):
    def fn(p, x):
        return x @ MADE_OF_ENTRIES[kind](p["w"]).reshape(16, 8)

    net = js.prune(0.5)(js.trace(fn, {"w": normal(0, 16, 8)}, normal(4, 4, 16)))
    assert (weights(net)["w"] == 0).mean() == 0.5
    assert not net.cores


def test_all_kernels_that_lie_side_by_side_in_a_weight_are_pruned():
    model, x = nn.RNN(nn.OptimizedLSTMCell(8)), jnp.ones((2, 5, 8))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    params = jax.tree.map(lambda p: normal(p.size, *p.shape), shapes)
    net = js.prune(0.5)(js.trace(model, params, x))
    assert len(net.masks) == 8
    zeros = [(w == 0).sum() for w in weights(net).values()]
    assert sum(zeros) == 256
    rows = net.cost().sites
    assert [row.params for row in rows] == [256, 256]
    assert [row.params - row.nonzero for row in rows] == zeros
    assert [r.size - r.nonzero for r in js.sparsity_report(net).rows] == zeros


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda net: sparsity.gradual(optax.sgd(0.1), net, sparsity.one_shot(0.5)),
        lambda net: sparsity.rigl(optax.sgd(0.1), net, every=2, until=8),
    ],
    ids=["gradual", "rigl"],
)
def test_sparse_optimizers_refuse_a_tied_table_by_name(optimizer):
    with pytest.raises(ValueError, match=r"at e: e is read by e:lookup too"):
        optimizer(NET)


def test_pruning_layer_by_layer_refuses_a_tied_table_by_name():
    with pytest.raises(ValueError, match=r"prune_layers at e.*e:lookup"):
        js.prune_layers(IDS, 0.5)(NET)


def test_a_tied_table_is_not_rescaled():
    """Equalizing may not scale a table whose other rows the trial inputs never look up."""
    p = {"e": normal(0, 24, 16), "b": normal(1, 24, 8)}

    def fn(p, x, ids):
        return jax.nn.relu(x @ p["e"].T) @ p["b"] + p["e"][ids].sum()

    net = js.trace(fn, p, normal(2, 4, 16), jnp.zeros(1, jnp.int32))
    with pytest.raises(ValueError, match="no two of the sites"):
        js.equalize((normal(2, 4, 16), jnp.zeros(1, jnp.int32)))(net)


def test_run_sparse_says_why_it_cannot_run_a_tied_head():
    with pytest.raises(ValueError, match="its mask stands at the site, as e:lookup"):
        js.run_sparse(break_even=0.0, sites="e")(js.prune(0.9)(NET))


def test_masks_at_sites_share_what_they_compile():
    logits = jax.jit(lambda net, ids: net(ids)[1])
    for share in (0.3, 0.5, 0.7):
        logits(js.prune(share)(NET), IDS)
    assert js.internals.compile_count(logits) == 1


def test_what_follows_a_mask_at_a_site_is_counted_and_saved(tmp_path):
    composed = js.compose(js.prune(0.5), CODES, js.slice_bits(2), js.analog(adc=8))(NET)
    chip = js.deploy(composed, calibrate=IDS)
    assert js.Crossbar().estimate(composed).energy > 0
    assert js.Hardware().estimate(js.compose(js.prune(0.5), CODES)(NET)).energy > 0
    js.save(tmp_path / "chip", chip)
    loaded = js.load(tmp_path / "chip", composed)
    np.testing.assert_array_equal(run(loaded, IDS)[1], run(chip, IDS)[1])


def test_a_masked_and_corrected_site_is_integers_alone():
    p, x = {"w": normal(5, 8, 8), "o": normal(7, 8, 4)}, normal(6, 16, 8)

    def fn(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["w"]) @ p["w"]) @ p["o"]

    net = js.compose(
        js.prune(0.5, sites="w#2"), js.quantize(8, 8), js.round_weights(js.rounding.gptq(), x)
    )(js.trace(fn, p, x))
    chip = js.deploy(net, calibrate=x)
    np.testing.assert_allclose(run(js.integer_only(chip), x), run(chip, x), atol=0.05)
