"""Rows of a table, chosen by integers, are read from what a core stored of it."""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsim as js
from jaxsim.network import lookups
from jaxsim.network.lookups import as_written
from jaxsim.network.network import run_network
from jaxsim.network.writer import write_states
from jaxsim.search import Config, bits, blocks
from tests.support.models import normal

TABLE = normal(12, 64)
IDS = jnp.array([[3, 0, 11], [7, 7, 5]])


def head(p, rows):
    """Something multiplied, so that there is a site beside the lookup."""
    return rows @ p["head"]


LOOKUPS = {
    "take": lambda p, ids: jnp.take(p["table"], ids, axis=0),
    "index": lambda p, ids: p["table"][ids],
    "columns": lambda p, ids: jnp.moveaxis(jnp.take(p["table"].T, ids, axis=1), 0, -1),
    "one": lambda p, ids: p["table"][ids[0, 0]],
    "slice": lambda p, ids: lax.dynamic_slice_in_dim(p["table"], ids[0, 0], 4),
    "clip": lambda p, ids: jnp.take(p["table"], 2 * ids, axis=0, mode="clip"),
    "fill": lambda p, ids: jnp.take(p["table"], 2 * ids, axis=0, mode="fill", fill_value=0.5),
}


def network(name, params=None):
    def fn(p, ids):
        return LOOKUPS[name](p, ids), head(p, LOOKUPS[name](p, ids))

    return js.trace(fn, params or {"table": TABLE, "head": normal(64, 3)}, IDS)


def rounded(w, bits, groups=1):
    """The values of symmetric codes, a scale for each part of a row; from the definition."""
    parts = np.asarray(w, np.float64).reshape(len(w), groups, -1)
    most = 2 ** (bits - 1) - 1
    scale = np.float32(np.abs(parts).max(-1, keepdims=True) / most).astype(np.float64)
    return (np.clip(np.round(parts / scale), -most, most) * scale).reshape(w.shape)


@pytest.mark.parametrize("name", LOOKUPS)
def test_a_lookup_is_a_site_without_products(name):
    net = network(name)
    sites = [s for s in net.sites if s.kind == "lookup"]
    assert [s.name for s in sites] == ["table:lookup", "table:lookup#2"]
    assert all(s.param == "table" and s.macs == 0 for s in sites)
    assert sites[0].shared == ("table:lookup#2",)


@pytest.mark.parametrize("name", LOOKUPS)
def test_rows_are_those_of_the_rounded_table(name):
    """Deployed and not; a scale a row, as the head that shares the table has a scale an output."""
    net = js.quantize(4, None, sites="*:lookup*")(network(name))
    table = rounded(TABLE, 4)
    expected, _ = net.fn({"table": jnp.asarray(table, jnp.float32), "head": normal(64, 3)}, {}, IDS)
    for chip in (net, js.deploy(net)):
        np.testing.assert_allclose(jax.jit(lambda c: c(IDS))(chip)[0], expected, rtol=1e-6)
    assert np.abs(np.asarray(expected) - np.asarray(network(name)(IDS)[0])).max() > 0.01


FORMATS = {
    "int8": 8,
    "affine": js.Grid(5, symmetric=False),
    "per tensor": js.Grid(6, per="tensor"),
    "one bit": 1,
    "groups": js.Grid(3, per="group", rows=16),
    "table": js.nf4(),
    "groups of a table": dataclasses.replace(js.nf4(), per="group", rows=32),
    "short floats": js.Floating("float8_e4m3fn"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_stores_a_table_as_it_stores_the_head_that_shares_it(name):
    """What a product with an identity reads is what is looked up, to the bit."""

    def fn(p, ids, x):
        return p["table"][ids], x @ p["table"].T

    one, every = jnp.eye(64), jnp.arange(12)
    net = js.quantize(FORMATS[name], None)(js.trace(fn, {"table": TABLE}, every, one))
    assert set(net.cores) == {"table:lookup", "table"}
    chip = js.deploy(net)
    rows, columns = jax.jit(lambda c: c(every, one))(chip)
    np.testing.assert_array_equal(rows, columns.T)
    assert np.abs(np.asarray(rows) - TABLE).max() > 1e-4
    held = [a.dtype for a in jax.tree.leaves(chip.states["table:lookup"]) if a.size >= TABLE.size]
    assert held == [a.dtype for a in jax.tree.leaves(chip.states["table"]) if a.size >= TABLE.size]


def test_every_site_is_reached_and_inputs_of_lookups_stay_integers():
    chip = js.quantize(8, 8)(network("take"))
    assert set(chip.cores) == {"table:lookup", "table:lookup#2", "head"}
    weights, inputs = chip.cores["table:lookup"][0].formats
    assert weights is not None
    assert inputs is None
    assert set(js.quantize(None, 8)(network("take")).cores) == {"head"}
    with pytest.raises(ValueError, match="weights=None at table:lookup: integers choose its rows"):
        js.quantize(None, 8, sites="*:lookup")(network("take"))


def test_one_of_two_lookups_is_pruned_where_it_stands():
    net = js.prune(0.5, sites="table:lookup")(network("take"))
    rows, product = net(IDS)
    assert (np.asarray(rows) == 0).mean() == pytest.approx(0.5, abs=0.15)
    np.testing.assert_allclose(product, network("take")(IDS)[1], rtol=1e-5, atol=1e-6)


def test_the_path_of_a_table_names_the_product_and_a_glob_both():
    def fn(p, ids):
        return p["table"][ids] @ p["table"].T

    net = js.trace(fn, {"table": TABLE}, IDS)
    chosen = {
        sites: set(js.quantize(8, None, sites=sites)(net).cores)
        for sites in ("table", "table*", "table:lookup", "*")
    }
    both = {"table", "table:lookup"}
    assert chosen == {
        "table": {"table"},
        "table*": both,
        "table:lookup": {"table:lookup"},
        "*": both,
    }


def test_a_rule_for_tables_alone_reaches_them():
    net = js.rules({"table:lookup*": js.quantize(4, None), "*": js.quantize(8, 8)})(network("take"))
    bits = {name: chain[0].formats[0].bits for name, chain in net.cores.items()}
    assert bits == {"table:lookup": 4, "table:lookup#2": 4, "head": 8}


def test_a_scan_looks_up_in_its_own_slice_of_a_stack():
    tables = normal(3, 12, 8)

    def fn(p, ids):
        def layer(h, table):
            return h + table[ids], None

        h, _ = lax.scan(layer, jnp.zeros((2, 3, 8)), p["tables"])
        return h @ p["head"]

    params = {"tables": tables, "head": jnp.eye(8)}
    net = js.quantize(5, None, sites="tables:lookup")(js.trace(fn, params, IDS))
    expected = sum(rounded(np.asarray(t), 5)[np.asarray(IDS)] for t in tables)
    for chip in (net, js.deploy(net)):
        np.testing.assert_allclose(jax.jit(lambda c: c(IDS))(chip), expected, rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_rows_that_were_looked_up_and_no_others():
    net = js.quantize(8, None)(network("take"))

    def loss(params):
        return jnp.sum(net.with_params(params)(IDS)[0] * 2.0)

    slope = np.asarray(jax.jit(jax.grad(loss))(net.params)["table"])
    counts = np.bincount(np.ravel(IDS), minlength=12)
    # the largest entry of a row sets its scale, whose slope is its own
    np.testing.assert_allclose(np.median(slope, axis=1), 2.0 * counts, atol=1e-5)
    assert (slope[counts == 0] == 0).all()


def test_pruned_rows_stay_zero_in_every_format():
    net = js.prune(0.5, sites="table:lookup*")(network("take"))
    assert net.masks.keys() == {"table"}
    rows = js.deploy(js.quantize(js.nf4(), None)(net))(IDS)[0]
    kept = np.asarray(net.masks["table"])[np.asarray(IDS)]
    assert kept.mean() < 0.7
    assert (np.asarray(rows)[~kept] == 0).all()


def test_a_saved_table_is_loaded_with_its_codes(tmp_path):
    net = js.quantize(4, 8)(network("take"))
    chip = js.deploy(net, calibrate=IDS)
    js.save(tmp_path / "chip", chip)
    loaded = js.load(tmp_path / "chip", like=net)
    for a, b in zip(loaded(IDS), chip(IDS), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_table_costs_its_bits_and_no_products():
    cost = js.quantize(4, 8)(network("take")).cost()
    first, again, product = cost.sites
    assert (first.name, first.params, again.params) == ("table:lookup", 12 * 64, 0)
    assert first.spent == {"weight_bits": 4 * 12 * 64, "cells": 12 * 64, "macs": 0}
    assert product.spent["macs"] == 6 * 64 * 3


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (lambda s: js.compose(js.quantize(8, 8), js.analog(adc=8, sites=s)), "analog"),
        (lambda s: js.compose(js.quantize(8, 8), js.slice_bits(2, sites=s)), "slice_bits"),
        (lambda s: js.compose(js.quantize(8, 8), js.block(2, 2, sites=s)), "block"),
        (lambda s: js.compose(js.quantize(8, 8), js.smooth(IDS, sites=s)), "smooth"),
    ],
)
def test_hardware_that_multiplies_refuses_lookups_and_leaves_them_out_of_all(transform, name):
    with pytest.raises(ValueError, match=f"{name} at table:lookup: rows are looked up"):
        transform("*:lookup*")(network("take"))
    telling = pytest.warns(UserWarning, match=rf"{name} of every site leaves 80% .* table:lookup")
    with telling if name != "smooth" else contextlib.nullcontext():
        chip = transform("*")(network("take"))
    assert len(chip.cores["table:lookup"]) == 1
    assert len(chip.cores["head"]) > 1 or name == "smooth"


BOOK = normal(2, 12, 8)
STACKED = {
    "rows of two axes": lambda t, i: t[jnp.arange(2)[:, None, None], i],
    "mapped": lambda t, i: jax.vmap(lambda t, i: jnp.take(t, i, axis=0), (0, None))(t, i),
    "middle": lambda t, i: jnp.take(t, i, axis=1),
    "first": lambda t, i: jnp.swapaxes(t, 0, 1)[i],
    "last": lambda t, i: jnp.swapaxes(t, 1, 2)[:, :, i],
    "batch of one": lambda t, i: jnp.take(t[:1], i, axis=1),
    "slice": lambda t, i: lax.dynamic_slice(t, (1, i[0, 0], 0), (1, 4, 8)),
    "clip": lambda t, i: jnp.take(t, 2 * i - 7, axis=1, mode="clip"),
    "fill": lambda t, i: jnp.take(t, 2 * i, axis=1, mode="fill", fill_value=0.5),
    "slices mapped": lambda t, i: jax.vmap(lambda j: lax.dynamic_slice(t, (0, j, 0), (2, 3, 8)))(
        i[0]
    ),
    "a matrix, mapped": lambda t, i: jax.vmap(
        lambda j: lax.dynamic_index_in_dim(t[0], j, 0, keepdims=False)
    )(i[0]),
}


@pytest.mark.parametrize("name", STACKED)
def test_a_table_of_more_axes_is_rows_of_its_last(name):
    """A scale a row, whatever the axes that integers choose along."""
    net = js.trace(lambda p, i: STACKED[name](p["t"], i), {"t": BOOK}, IDS)
    (site,) = net.sites
    entries = BOOK.size // (2 if name in ("batch of one", "a matrix, mapped") else 1)
    assert (site.name, site.kind, site.macs) == ("t:lookup", "lookup", 0)
    assert (site.w_shape[1], np.prod(site.w_shape)) == (8, entries)
    assert not net.unreached
    coded = js.quantize(4, None, sites="*:lookup")(net)
    table = rounded(np.asarray(BOOK).reshape(-1, 8), 4).reshape(BOOK.shape)
    expected = STACKED[name](jnp.asarray(table, jnp.float32), IDS)
    np.testing.assert_allclose(coded(IDS), expected, rtol=1e-6)
    assert np.abs(np.asarray(expected) - STACKED[name](BOOK, IDS)).max() > 0.01


def test_masks_and_files_of_a_stack_of_tables_are_those_of_the_parameter(tmp_path):
    net = js.trace(lambda p, i: jnp.take(p["t"], i, axis=1), {"t": BOOK}, IDS)
    net = js.quantize(js.nf4(), None)(js.prune(0.5, sites="t:lookup")(net))
    mask = np.asarray(net.masks["t"])
    assert mask.shape == BOOK.shape
    chip = js.deploy(net)
    js.save(tmp_path / "chip", chip)
    every = jnp.arange(12)[None]
    rows = np.asarray(js.load(tmp_path / "chip", like=net)(every))[:, 0]
    assert (rows[~mask] == 0).all()
    np.testing.assert_array_equal(rows, np.asarray(chip(every))[:, 0])
    (cost,) = net.cost().sites
    assert (cost.params, cost.spent["weight_bits"]) == (BOOK.size, 4 * BOOK.size)


def test_a_wide_table_is_read_in_blocks(monkeypatch):
    """Blocks of five columns of 64, the last of four: the same rows to the bit."""
    net = js.deploy(js.quantize(js.Grid(3, per="group", rows=16), None)(network("take")))
    whole = net(IDS)[0]
    monkeypatch.setattr(lookups, "IDENTITY", 5)
    jaxpr = jax.make_jaxpr(lambda: network_function(net, IDS)[0])()
    assert "64,64" not in str(jaxpr)
    np.testing.assert_array_equal(jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts)[0], whole)


@pytest.mark.parametrize(
    "form", [js.BlockGrid("Q8_0"), js.Grid(4, per="group", rows=32), js.nvfp4()], ids=str
)
def test_a_table_that_is_multiplied_too_is_held_once(form, tmp_path):
    table = normal(96, 64)
    net = js.trace(lambda p, i: p["t"][i] @ p["t"].T, {"t": table}, IDS % 96)
    coded = js.quantize(form, None)(net)
    chip = js.deploy(coded, keep_floats=False)
    lookup, product = (jax.tree.leaves(chip.states[name]) for name in ("t:lookup", "t"))
    large = [a for a in lookup if a.size > 64]
    assert large
    assert all(any(a is b for b in product) for a in large)
    codes = sum(a.nbytes for a in large)
    assert codes <= chip.nbytes < codes + 600
    js.save(tmp_path / "chip", chip)
    again = js.load(tmp_path / "chip", coded)
    assert again.nbytes == chip.nbytes
    np.testing.assert_array_equal(again(IDS % 96), chip(IDS % 96))


@pytest.mark.parametrize("width", [64, 96])
@pytest.mark.parametrize(
    "form", [js.Grid(8, per="channel"), js.Grid(4, per="channel"), js.nf4()], ids=str
)
def test_a_table_with_a_scale_a_row_is_held_once(form, width, tmp_path):
    """Its rows are the head's outputs, in an array that it reads along the other axis."""
    net = js.trace(lambda p, i: p["t"][i] @ p["t"].T, {"t": normal(96, width)}, IDS % 96)
    coded = js.quantize(form, None)(net)
    chip = js.deploy(coded, keep_floats=False)
    apart = dataclasses.replace(chip, states=write_states(coded, None, layout="lean"))
    np.testing.assert_array_equal(chip(IDS % 96), apart(IDS % 96))
    codes = sum(a.nbytes for a in jax.tree.leaves(chip.states["t"]) if a.size > 64)
    assert codes <= chip.nbytes < codes + 600
    assert apart.nbytes > 1.9 * codes
    assert all(map(np.array_equal, *map(jax.tree.leaves, (as_written(chip.states), apart.states))))
    sizes = {}
    for name, each in {"once": chip, "twice": apart}.items():
        js.save(tmp_path / name, each)
        again = js.load(tmp_path / name, coded)
        assert again.nbytes == chip.nbytes
        np.testing.assert_array_equal(again(IDS % 96), chip(IDS % 96))
        leaves = (tmp_path / name).rglob("*")
        sizes[name] = sum(f.stat().st_size for f in leaves if f.is_file())
        said = json.loads((tmp_path / name / "_CHECKPOINT_METADATA").read_text())
        assert bool(said["custom_metadata"]["again"]) == (name == "once")
    packed = 96 * width * getattr(form, "bits", 4) / 8
    assert sizes["twice"] - sizes["once"] > 0.7 * packed


def test_tables_that_differ_are_held_apart():
    """Codes of a head that is pruned where it stands, and of one with a scale for all of it."""
    net = js.trace(lambda p, i: p["t"][i] @ p["t"].T, {"t": normal(96, 64)}, IDS % 96)
    for transform in (
        js.compose(js.prune(0.5, sites="t"), js.quantize(js.Grid(4, per="group", rows=32), None)),
        js.rules(
            {
                "t": js.quantize(js.Grid(8, per="tensor"), None),
                "t:lookup": js.quantize(js.Grid(8, per="channel"), None),
            }
        ),
    ):
        chip = js.deploy(transform(net), keep_floats=False)
        lookup, product = (jax.tree.leaves(chip.states[name])[0] for name in ("t:lookup", "t"))
        assert lookup is not product


def test_other_files_hold_one_table_as_it_was_written(tmp_path):
    x = IDS % 96
    net = js.trace(lambda p, i: p["t"][i] @ p["t"].T, {"t": normal(96, 64)}, x)
    chip = js.deploy(js.quantize(js.Grid(8, per="channel"), None)(net), keep_floats=False)
    assert js.export.stablehlo(chip, tmp_path / "chip.npz") is not None
    js.export.onnx(chip, tmp_path / "chip.onnx")


def network_function(net, ids):
    """A call that is traced anew."""
    return run_network.__wrapped__(net, net.arguments((ids,), {}, None), None)


def test_what_has_no_whole_rows_is_told():
    """Numbers of a vector, parts of a matrix along both axes, and positions that are added."""

    def fn(p, i, x):
        part = lax.dynamic_slice(p["m"], (i, i), (2, 2))
        return (x + p["pos"][:, :2]) @ p["w"] * p["shift"][i] + part.sum()

    params = {"shift": normal(40), "m": normal(5, 5), "w": normal(8, 3), "pos": normal(1, 4, 8)}
    net = js.trace(fn, params, jnp.int32(1), normal(1, 2, 8))
    assert net.unreached == (
        "m is looked up as no site is (dynamic_slice)",
        "shift is looked up as no site is (dynamic_slice)",
    )
    reasons = {row.name: row.reason.partition(" at ")[0] for row in net.coverage().rows}
    assert reasons == {"m": "dynamic_slice", "shift": "dynamic_slice", "w": "w", "pos": "add"}
    with pytest.warns(UserWarning, match="quantize of every site leaves 73%"):
        js.quantize(8, 8)(net)


def test_what_counts_or_measures_products_leaves_lookups_out():
    """Scores of inputs, searches of bits and of blocks: a table has neither inputs nor products."""
    net = network("take")
    assert [s.name for s in net.sites if s.multiplies] == ["head"]
    score = js.sparsity.activation_variance(IDS).score(net, ())
    rows = np.asarray(TABLE)[np.ravel(IDS)]
    expected = np.broadcast_to(rows.var(0)[:, None], (64, 3))
    np.testing.assert_allclose(score["head"], expected, rtol=1e-4)
    assert not np.any(score["table"])
    assert [site.name for site in bits._site_facts(net)] == ["head"]
    eight = js.quantize(8, 8, sites="head")(net)
    found = blocks._model_candidates(eight, (Config(4),), js.Hardware())
    assert found.names == ("head",)


def positions(p, ids):
    """Words and places, the places looked up by what no input decides; a permuted head."""
    rows = p["table"][ids] + jnp.take(p["places"], jnp.arange(ids.shape[-1]), axis=0)
    return jnp.tanh(rows @ p["in"]) @ p["head"][jnp.array([3, 1, 0, 2])]


PLACED = {
    "table": TABLE,
    "places": normal(5, 64),
    "in": normal(64, 4),
    "head": normal(4, 6),
}


def test_rows_that_no_input_chooses_are_looked_up_unless_they_are_multiplied():
    net = js.trace(positions, PLACED, IDS)
    kinds = {s.name: s.kind for s in net.sites}
    assert kinds == {
        "table:lookup": "lookup",
        "places:lookup": "lookup",
        "in": "dot",
        "head": "dot",
    }
    quantized = js.quantize(4, None)(net)
    assert quantized.coverage().share("transformed") == 1
    table, places = (jnp.asarray(rounded(PLACED[n], 4), jnp.float32) for n in ("table", "places"))
    columns = [rounded(np.asarray(PLACED[n]).T, 4).T for n in ("in", "head")]
    floats = dict(zip(("in", "head"), map(jnp.float32, columns), strict=True))
    expected = positions({"table": table, "places": places, **floats}, IDS)
    for chip in (quantized, js.deploy(quantized)):
        found = jax.jit(lambda c: c(IDS))(chip)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_places_keep_their_codes_in_the_stage_that_adds_them():
    mean = lambda p, ids: positions(p, ids).mean(1)  # noqa: E731
    chip = js.deploy(js.quantize(2, None)(js.trace(mean, PLACED, IDS)))
    exits = js.exit_early(["head"], js.Rule(0.0))
    expected = np.asarray(jax.jit(lambda c: c(IDS))(chip))
    staged = np.asarray(jax.jit(lambda c: c(IDS))(exits(chip)))
    np.testing.assert_allclose(staged, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
