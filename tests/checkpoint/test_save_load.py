"""What is saved comes back, and what is not a checkpoint of this network is refused by name."""

import dataclasses
import json
import subprocess
import sys
import textwrap

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxsim as js
from jaxsim.checkpoint import save_load
from jaxsim.checkpoint.resume import run_checkpoints
from jaxsim.checkpoint.save_load import describe
from jaxsim.cores.conductance import ConductanceState
from jaxsim.network.deployment import find_read_params
from jaxsim.network.leaves import path_name
from jaxsim.network.writer import write_states
from jaxsim.numerics.packed import Packed
from tests.data.test_readers import damaged
from tests.support.models import CASES, NnxCnn, normal
from tests.support.networks import SITES, X, cnn, run, stack
from tests.support.processes import environment

CHIP = js.compose(
    js.prune(0.5),
    js.quantize(4, 8),
    js.slice_bits(2),
    js.analog(adc=6, cells=js.cells.proportional(0.05, on_off=20.0)),
)

INPUTS = {cnn: X, stack: normal(5, 4)}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert jnp.result_type(x) == jnp.result_type(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("net", [cnn, stack])
def test_a_deployed_network_comes_back_whole(tmp_path, net):
    composed = CHIP(net())
    chip = js.deploy(composed, key=jax.random.key(1), calibrate=INPUTS[net])
    js.save(tmp_path / "chip", chip)
    # other numbers of the same kind, to see that none of them is kept
    other = dataclasses.replace(composed, params=jax.tree.map(jnp.zeros_like, composed.params))
    loaded = js.load(tmp_path / "chip", like=other)
    read = find_read_params(chip)
    assert read.isdisjoint(chip.cores)
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: p if path_name(path) in read else jnp.full_like(p, jnp.nan), chip.params
    )
    unheld = tuple(
        path_name(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
        if path_name(path) not in read
    )
    assert loaded.unheld == unheld
    same(loaded, dataclasses.replace(chip, params=params))
    np.testing.assert_array_equal(run(loaded, INPUTS[net]), run(chip, INPUTS[net]))


def test_a_network_before_deployment_comes_back(tmp_path):
    composed = CHIP(cnn())
    js.save(tmp_path / "net", composed)
    loaded = js.load(tmp_path / "net", like=CHIP(cnn()))
    assert not loaded.deployed
    same(loaded, composed)


def test_random_keys_among_the_buffers_come_back(tmp_path):
    net = js.trace(NnxCnn(nnx.Rngs(3)), None, normal(2, 8, 8, 3))
    js.save(tmp_path / "net", net)
    loaded = js.load(tmp_path / "net", like=net)
    kept, found = (jax.tree.leaves(n.buffers) for n in (net, loaded))
    keys = [jnp.issubdtype(a.dtype, jax.dtypes.prng_key) for a in kept]
    assert any(keys)
    for a, b, is_key in zip(kept, found, keys, strict=True):
        assert np.array_equal(*(map(jax.random.key_data, (a, b)) if is_key else (a, b)))


def test_integer_codes_are_stored_as_integers(tmp_path):
    chip = js.deploy(js.quantize(8, None)(cnn()))
    js.save(tmp_path / "chip", chip)
    codes = js.load(tmp_path / "chip", like=js.quantize(8, None)(cnn())).states[SITES[0]].inner
    assert codes.dtype == jnp.int8


def size_of(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_four_bit_codes_take_four_bits(tmp_path):
    """All of the folder, scales and biases included, beside that of the floats."""
    net = js.trace(lambda p, x: x @ p["w"] + p["b"], WIDE, normal(2, 512))
    js.save(tmp_path / "float", net)
    js.save(tmp_path / "chip", js.deploy(js.quantize(4, 8)(net), calibrate=normal(2, 512)))
    assert size_of(tmp_path / "chip") <= size_of(tmp_path / "float") / 7


WIDE = {"w": normal(512, 512), "b": normal(512)}


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_of_every_width_come_back(tmp_path, bits):
    net = js.quantize(bits, bits)(cnn())
    chip = js.deploy(net, calibrate=X)
    js.save(tmp_path / "chip", chip)
    same(js.load(tmp_path / "chip", like=net).states, chip.states)


def test_a_parameter_that_is_read_elsewhere_too_is_stored(tmp_path):
    """The embedding is looked up in floats, and multiplied by at a site; biases are read."""
    case = CASES["transformer"]()
    net = js.trace(case.model, case.variables, *case.args)
    assert "Embed_0/embedding" not in find_read_params(js.deploy(js.quantize(8, None)(net)))
    net = js.quantize(8, None, sites=[s.name for s in net.sites if s.kind == "dot"])(net)
    chip = js.deploy(net)
    read = find_read_params(chip)
    assert "Embed_0/embedding" in read
    assert "stack/Dense_1/kernel" not in read
    assert "stack/Dense_1/bias" in read
    js.save(tmp_path / "chip", chip)
    loaded = js.load(tmp_path / "chip", like=net)
    np.testing.assert_array_equal(run(loaded, *case.args), run(chip, *case.args))


def test_every_parameter_is_read_before_deployment():
    net = js.quantize(8, 8)(cnn())
    assert find_read_params(net) == {
        path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(net.params)
    }


def test_a_deployed_checkpoint_of_the_first_format_still_loads(tmp_path):
    net = js.quantize(4, 8)(cnn())
    chip = js.widen_ranges(plain(net), X)
    content = {k: getattr(chip, k) for k in ("params", "buffers", "masks", "cores", "states")}
    metadata = {"format": 1, "network": describe(chip), "deployed": True, "calibrated": True}
    with ocp.StandardCheckpointer() as checkpointer:
        boxed = {"leaves": jax.tree.leaves(content)}
        checkpointer.save(tmp_path / "chip", boxed, custom_metadata=metadata)
    same(js.load(tmp_path / "chip", like=net), chip)


def plain(net):
    """A network as it was deployed when states held what reads do not need."""
    return dataclasses.replace(net, states=write_states(net, None), deployed=True)


def saved_before(folder, chip, monkeypatch, form, lines=None):
    """Saves as an earlier format, whose states `chip` holds."""
    with monkeypatch.context() as before:
        before.setattr(save_load, "_JOINED", form)
        before.setattr(save_load, "describe", lambda net: lines or describe(net))
        js.save(folder, chip)


def test_codes_that_fill_bytes_load_and_are_saved_again(tmp_path, monkeypatch):
    """As the second format had them: codes of four bits in int8, and sums that nothing reads."""
    net = js.quantize(js.Grid(4, per="group", rows=2), None)(cnn())
    old, new = plain(net), js.deploy(net)
    saved_before(tmp_path / "second", old, monkeypatch, 2)
    js.save(tmp_path / "old", old)
    js.save(tmp_path / "new", new)
    for name, chip in {"second": old, "old": old, "new": new}.items():
        loaded = js.load(tmp_path / name, like=net)
        same(loaded.states, chip.states)
        np.testing.assert_array_equal(loaded(X), chip(X))
    # Those that share bytes are summed in another order.
    np.testing.assert_allclose(old(X), new(X), rtol=0, atol=1e-6)
    for name, layout in {"old": "plain", "new": "lean"}.items():
        said = json.loads((tmp_path / name / "_CHECKPOINT_METADATA").read_text())
        assert said["custom_metadata"]["format"] == 5
        assert said["custom_metadata"]["layout"] == layout
    held = [sum(a.nbytes for a in jax.tree.leaves(chip.states)) for chip in (old, new)]
    assert held[1] < 0.6 * held[0]


def test_codes_of_two_bits_that_were_two_in_a_byte_load(tmp_path, monkeypatch):
    """As the third format had them."""
    net = js.quantize(js.Grid(2, symmetric=False, per="group", rows=2), None)(cnn())
    chip = js.deploy(net)

    def in_pairs(held):
        return Packed.of(held.numbers(), held.axis, 4) if isinstance(held, Packed) else held

    states = jax.tree.map(in_pairs, chip.states, is_leaf=lambda a: isinstance(a, Packed))
    saved_before(tmp_path / "old", dataclasses.replace(chip, states=states), monkeypatch, 3)
    js.save(tmp_path / "new", chip)
    for name in ("old", "new"):
        loaded = js.load(tmp_path / name, like=net)
        same(loaded.states, chip.states)
        np.testing.assert_array_equal(loaded(X), chip(X))
    sizes = [
        sum(f.stat().st_size for f in (tmp_path / name / "leaves").rglob("*") if f.is_file())
        for name in ("old", "new")
    ]
    assert sizes[1] <= sizes[0]


@pytest.mark.parametrize("mapping", ["differential", "offset"])
@pytest.mark.parametrize(
    "cells",
    [
        None,
        js.cells.stuck(js.cells.proportional(0.0, on_off=50.0), low=0.2, high=0.1),
        js.cells.independent(0.1, noise=0.05),
        js.cells.verified(js.cells.independent(0.1, noise=0.05), tolerance=0.05, pulses=3),
    ],
    ids=["codes", "stuck", "noise", "verified"],
)
def test_pairs_that_were_held_as_two_load_as_one(tmp_path, monkeypatch, cells, mapping):
    """As formats before the fifth had them: a read was two products, and noise drawn of cells."""
    hardware = js.compose(
        js.quantize(4, 4), js.slice_bits(2), js.analog(8, cells, rows=2, mapping=mapping)
    )
    net = hardware(js.trace(scanned, SCANNED, SCANNED["a"]))
    key, twos = jax.random.key(0), save_load._with_pairs(net, apart=True)
    new = js.deploy(net, key=key, calibrate=SCANNED["a"])
    old = js.deploy(twos, key=key, calibrate=SCANNED["a"])

    def with_cells(held):
        return held._replace(variance=held.inner) if isinstance(held, ConductanceState) else held

    states = jax.tree.map(with_cells, old.states, is_leaf=lambda a: isinstance(a, ConductanceState))
    chip = dataclasses.replace(old, states=states)
    saved_before(tmp_path / "old", chip, monkeypatch, 4, describe(net))
    loaded = js.load(tmp_path / "old", like=net).states
    assert jax.tree.structure(loaded) == jax.tree.structure(new.states)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(new.states), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


SCANNED = {"w": normal(3, 5, 4), "v": normal(3, 4, 5), "a": normal(6, 5)}


def scanned(params, x):
    """Three layers in a stack."""

    def layer(x, layer):
        return jnp.tanh(x @ layer["w"]) @ layer["v"], None

    return jax.lax.scan(layer, x, {name: params[name] for name in ("w", "v")})[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_mutations_of_a_packed_network_are_refused_or_change_nothing(tmp_path):
    """Bits flipped, bytes replaced, cut and put in, in every file."""
    rng = np.random.default_rng(0)
    net = js.quantize(4, 8)(cnn())
    chip = js.deploy(net, calibrate=X)
    js.save(tmp_path / "chip", chip)
    original = js.load(tmp_path / "chip", like=net)
    refused = 0
    files = [p for p in (tmp_path / "chip").rglob("*") if p.is_file() and p.stat().st_size]
    for _ in range(300):
        file = files[rng.integers(len(files))]
        content = bytearray(file.read_bytes())
        kept, at = bytes(content), int(rng.integers(len(content)))
        match rng.integers(4):
            case 0:
                content[at] ^= 1 << rng.integers(8)
            case 1:
                content[at : at + 8] = rng.bytes(8)
            case 2:
                del content[at : at + int(rng.integers(1, 9))]
            case _:
                content[at:at] = rng.bytes(int(rng.integers(1, 9)))
        file.write_bytes(content)
        try:
            same(js.load(tmp_path / "chip", like=net), original)
        except ValueError:
            refused += 1
        file.write_bytes(kept)
    assert refused > 100


def test_another_network_is_refused_with_the_first_difference(tmp_path):
    js.save(tmp_path / "net", js.quantize(8, 8)(cnn()))
    with pytest.raises(
        ValueError,
        match=r"it has Conv_0/kernel.*int8.*like has Conv_0/kernel.*int4",
    ):
        js.load(tmp_path / "net", like=js.quantize(4, 8)(cnn()))
    with pytest.raises(ValueError, match="another network"):
        js.load(tmp_path / "net", like=js.quantize(8, 8)(stack()))
    with pytest.raises(ValueError, match="like has mask of Conv_0/kernel"):
        js.load(tmp_path / "net", like=js.compose(js.prune(0.5), js.quantize(8, 8))(cnn()))


def test_an_existing_folder_is_not_overwritten(tmp_path):
    js.save(tmp_path / "net", cnn())
    with pytest.raises(ValueError, match=r"path='.*net' exists"):
        js.save(tmp_path / "net", cnn())


def test_a_deployed_like_is_refused(tmp_path):
    js.save(tmp_path / "net", cnn())
    with pytest.raises(ValueError, match="like: give the composed network"):
        js.load(tmp_path / "net", like=js.deploy(js.quantize(8, None)(cnn())))


def test_what_is_not_a_checkpoint_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        js.load(tmp_path / "nowhere", like=cnn())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        js.load(tmp_path / "empty", like=cnn())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_a_value_error(tmp_path):
    rng = np.random.default_rng(0)
    js.save(tmp_path / "net", cnn())
    files = [p for p in (tmp_path / "net").rglob("*") if p.is_file() and p.stat().st_size]
    for file in files:
        content = file.read_bytes()
        worst = content[: len(content) // 2], rng.bytes(len(content))
        for broken in (*worst, *(damaged(content, rng) for _ in range(4))):
            file.write_bytes(broken)
            try:
                # some files are not needed to read the arrays; then they must be right
                same(js.load(tmp_path / "net", like=cnn()).params, cnn().params)
            except ValueError as error:
                assert str(tmp_path / "net") in str(error)  # noqa: PT017
        file.write_bytes(content)


def test_another_format_is_refused(tmp_path):
    js.save(tmp_path / "net", cnn())
    file = tmp_path / "net" / "_CHECKPOINT_METADATA"
    metadata = json.loads(file.read_text())
    metadata["custom_metadata"]["format"] = 99
    file.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="format 99, this version reads 1 to 5"):
        js.load(tmp_path / "net", like=cnn())


def test_checkpoints_of_a_run_keep_the_newest(tmp_path):
    start = {"a": jnp.zeros(3)}
    with run_checkpoints(tmp_path / "run", run={"seed": 1}) as kept:
        assert kept.newest(start) == (0, start)
        kept.add(1, {"a": jnp.ones(3)})
        kept.add(2, {"a": jnp.full(3, 2.0)})
    with run_checkpoints(tmp_path / "run", run={"seed": 1}) as kept:
        step, tree = kept.newest(start)
    with (
        pytest.raises(ValueError, match=r"are of another run \(other seed\)"),
        run_checkpoints(tmp_path / "run", run={"seed": 2}),
    ):
        pass
    assert step == 2
    assert np.array_equal(tree["a"], jnp.full(3, 2.0))


def test_arrays_come_back_to_the_devices_of_like(tmp_path):
    script = f"""
        import jax, jaxsim as js
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        from tests.support.networks import X, cnn

        mesh = Mesh(jax.devices(), "d")
        composed = js.quantize(8, 8)(jax.device_put(cnn(), NamedSharding(mesh, P())))
        js.save({str(tmp_path / "chip")!r}, js.deploy(composed, calibrate=X))
        chip = js.load({str(tmp_path / "chip")!r}, like=composed)
        y = chip(jax.device_put(X, NamedSharding(mesh, P("d"))))
        assert len(y.sharding.device_set) == 2
    """
    code = textwrap.dedent(script)
    subprocess.run([sys.executable, "-c", code], env=environment(2), check=True)


def test_a_layout_of_a_later_version_is_refused_by_name(tmp_path):
    net = js.quantize(8, None)(cnn())
    js.save(tmp_path / "chip", js.deploy(net))
    file = tmp_path / "chip" / "_CHECKPOINT_METADATA"
    said = json.loads(file.read_text())
    said["custom_metadata"]["layout"] = "folded"
    file.write_text(json.dumps(said))
    with pytest.raises(ValueError, match="layout 'folded', this version reads 'plain' and 'lean'"):
        js.load(tmp_path / "chip", like=net)
