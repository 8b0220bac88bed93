"""What is measured of an expert is measured on the rows that choose it."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsim as js
from jaxsim.cores.observers import moments
from jaxsim.transforms.observe import observe_sites
from tests.support.models import normal

T, D, F, G = 12, 8, 5, 3
# rows of each expert lie elsewhere, so that statistics of all rows are others
IDS = jnp.array([0, 2, 1, 1, 0, 2, 1, 0, 2, 1, 1, 0])
X = normal(T, D, seed=1) * jnp.exp(normal(G, D, seed=2))[IDS] + normal(G, D, seed=4)[IDS]
STACK = normal(G, D, F, seed=3)
ORDER = jnp.argsort(IDS, stable=True)
SIZES = jnp.bincount(IDS, length=G)
PAIRS = jnp.stack([IDS, (IDS + 1) % G], 1)
PAIRED = jnp.stack([X, 2 * X + 1], 1)

FORMS = {
    "index": lambda p, x: jnp.einsum("td,tdf->tf", x, p["w"][IDS + 0 * x[:, 0].astype(int)]),
    "ragged": lambda p, x: lax.ragged_dot(x[ORDER], p["w"], SIZES),
    "several": lambda p, x: jnp.einsum("td,tkdf->tkf", x, p["w"][PAIRS + 0 * x[:, :1].astype(int)]),
    "summed": lambda p, x: jnp.einsum(
        "tkd,tkdf->tf",
        jnp.stack([x, 2 * x + 1], 1),
        p["w"][PAIRS + 0 * x[:, :1].astype(int)],
    ),
    "turned": lambda p, x: (
        jnp.swapaxes(lax.dynamic_index_in_dim(p["w"], 1 + 0 * x[0, 0].astype(int), 0, False), 0, 1)
        @ x.T
    ),
    "twice": lambda p, x: jnp.einsum(
        "td,tkdf->tkf", x, p["w"][jnp.stack([IDS, IDS], 1) + 0 * x[:, :1].astype(int)]
    ),
}


def rows_of(form, g):
    """The rows that an expert multiplies."""
    x, ids = np.asarray(X), np.asarray(IDS)
    match form:
        case "several":
            return x[(np.asarray(PAIRS) == g).any(1)]
        case "summed":
            return np.asarray(PAIRED)[np.asarray(PAIRS) == g]
        case "turned":
            return x if g == 1 else x[:0]
        case "twice":
            return np.repeat(x[ids == g], 2, 0)
        case _:
            return x[ids == g]


def experts(form):
    return js.trace(FORMS[form], {"w": STACK}, X)


def alone(g):
    """A network of one expert."""
    return js.trace(lambda p, x: x @ p["w"], {"w": STACK[g]}, X)


@pytest.mark.parametrize("form", FORMS)
def test_second_moments_are_of_the_rows_that_an_expert_multiplies(form):
    probe = js.Wrapper.of(moments, weights=js.Grid(8))
    state = observe_sites(experts(form), {"w": (probe,)}, X)["w"]
    for g in range(G):
        rows = np.asarray(rows_of(form, g), np.float64)
        np.testing.assert_allclose(state.gram[g, 0], rows.T @ rows, rtol=2e-5, atol=1e-4)
        assert state.seen[g, 0] == len(rows)


TRANSFORMS = {
    "gptq": lambda data: js.round_weights(js.rounding.gptq(), data),
    "adaround": lambda data: js.round_weights(js.rounding.adaround(200), data),
    "smooth": lambda data: js.smooth(data, 0.7),
    "bias": lambda data: js.correct_bias(data),
    "surgeon": lambda data: js.prune_layers(data, 0.5),
}


def changed(name, net, data):
    """Numbers that a transform gave a network."""
    if name == "surgeon":
        after = TRANSFORMS[name](data)(net)
        return np.asarray(after.params["w"] * after.masks["w"])
    after = TRANSFORMS[name](data)(js.quantize(3, None)(net))
    if name == "smooth":
        return np.asarray(after.cores["w"][0].settings["channels"])
    if name == "bias":
        return np.asarray(after.cores["w"][0].settings["bias"])
    return np.asarray(after.params["w"])


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "index") for name in TRANSFORMS),
        *((name, form) for name in ("gptq", "smooth", "bias") for form in ("ragged", "summed")),
    ],
)
def test_an_expert_is_changed_as_a_network_of_it_alone_on_its_rows(name, form):
    """And not as on all rows, by which each comes out otherwise."""
    found = changed(name, experts(form), X)
    own = [changed(name, alone(g), jnp.asarray(rows_of(form, g))) for g in range(G)]
    np.testing.assert_allclose(found, own, rtol=1e-4, atol=2e-5)
    everyone = [changed(name, alone(g), X) for g in range(G)]
    assert np.abs(found - everyone).max() > 1e-2


def test_batches_are_summed_though_an_expert_has_no_row_in_one():
    later = np.asarray(IDS) == 2
    net = js.trace(lambda p, x, ids: jnp.einsum("td,tdf->tf", x, p["w"][ids]), {"w": STACK}, X, IDS)
    first, second = ((X[rows], IDS[rows]) for rows in (~later, later))
    for name in ("gptq", "smooth", "bias"):
        found = changed(name, net, [first, second])
        np.testing.assert_allclose(found, changed(name, net, (X, IDS)), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gptq", "rounded to nearest"),
        ("smooth", "stay as they are"),
        ("bias", "not corrected"),
        ("surgeon", "pruned by magnitude"),
    ],
)
def test_experts_that_no_row_chooses_are_named(name, said):
    net = js.trace(lambda p, x, ids: jnp.einsum("td,tdf->tf", x, p["w"][ids]), {"w": STACK}, X, IDS)
    idle = (X, jnp.where(IDS == 1, 0, IDS))
    told = rf"no row chooses 1 of the 3 experts of w \(numbers 1\): .*{re.escape(said)}"
    with pytest.warns(UserWarning, match=told):
        found = changed(name, net, idle)[1]
    match name:
        case "gptq":
            scale = np.abs(STACK[1]).max(0) / 3
            np.testing.assert_allclose(found, np.round(STACK[1] / scale) * scale, atol=1e-5)
        case "smooth":
            np.testing.assert_array_equal(found, 1)
        case "bias":
            np.testing.assert_array_equal(found, 0)
        case "surgeon":
            w = np.abs(np.asarray(STACK[1]))
            stays = w >= np.sort(w.ravel())[w.size // 2]
            np.testing.assert_allclose(found, np.where(stays, STACK[1], 0), atol=1e-6)


def test_values_in_rows_of_other_experts_do_not_count():
    """NaN there reaches no statistic; in its own rows it is refused."""
    net = js.trace(lambda p, x, ids: jnp.einsum("td,tdf->tf", x, p["w"][ids]), {"w": STACK}, X, IDS)
    torn = X.at[0].set(jnp.nan)
    out = (torn, IDS.at[0].set(G)), (X[1:], IDS[1:])
    fill = js.trace(
        lambda p, x, ids: jnp.einsum("td,tdf->tf", x, p["w"].at[ids].get(mode="fill")),
        {"w": STACK},
        X,
        IDS,
    )
    for name in ("gptq", "smooth", "bias"):
        found, expected = (changed(name, fill, data) for data in out)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="NaN or infinite"):
        changed("gptq", net, (torn, IDS))


def test_experts_of_layers_that_a_scan_runs_have_statistics_each():
    layers = 0.3 * normal(2, G, D, D, seed=5)

    def fn(p, x, ids):
        def layer(h, w):
            return jnp.tanh(h + jnp.einsum("td,tdf->tf", h, jnp.take(w, ids, axis=0))), None

        return lax.scan(layer, x, p["w"])[0]

    net = js.trace(fn, {"w": layers}, X, IDS)
    probe = js.Wrapper.of(moments, weights=js.Grid(8))
    gram = observe_sites(net, {"w": (probe,)}, (X, IDS))["w"].gram
    h = np.asarray(X, np.float64)
    for n in range(2):
        for g in range(G):
            rows = h[np.asarray(IDS) == g]
            np.testing.assert_allclose(gram[n, g, 0], rows.T @ rows, rtol=1e-4, atol=1e-3)
        h = np.tanh(h + np.einsum("td,tdf->tf", h, np.asarray(layers[n])[np.asarray(IDS)]))


def test_channel_scores_are_those_of_an_experts_rows():
    net = experts("index")
    for criterion in (js.sparsity.activation_variance, js.sparsity.activity):
        x = jnp.maximum(X, 0)
        found = criterion(x).score(net, ())["w"]
        own = [criterion(jnp.maximum(jnp.asarray(rows_of("index", g)), 0)) for g in range(G)]
        expected = [c.score(alone(g), ())["w"] for g, c in enumerate(own)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_an_expert_that_only_one_of_two_networks_chooses_is_not_corrected():
    """A router behind quantized layers may choose others than the network in floats does."""

    def fn(p, x):
        return jnp.einsum("td,tdf->tf", x, p["w"][(p["ids"] + 0 * x[:, 0]).astype(int)])

    def of(ids):
        return js.trace(fn, {"w": STACK, "ids": ids.astype(jnp.float32)}, X)

    floats, other = of(jnp.where(IDS == 1, 0, IDS)), of(jnp.where(IDS == 2, 0, IDS))
    with pytest.warns(UserWarning, match=r"\(numbers 1\)"):
        net = js.correct_bias(X, reference=floats, sites="w")(js.quantize(3, None)(other))
    bias = np.asarray(net.cores["w"][0].settings["bias"])
    assert (bias[1:] == 0).all()
    assert (bias[0] != 0).any()
