"""Networks as StableHLO: JAX and NumPy alone compute the network's bits."""

import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxsim as js

ROWS = 4


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (ROWS, 5, 5, 2))


@pytest.fixture(scope="module")
def net(x):
    variables = jax.jit(Net().init)(jax.random.key(1), x)
    stats = variables["batch_stats"]["BatchNorm_0"]
    stats["mean"], stats["var"] = jnp.linspace(-1, 1, 4), jnp.linspace(0.5, 2, 4)
    return js.trace(Net(), variables, x)


@pytest.fixture(scope="module")
def chip(net, x):
    inputs = js.Grid(8, symmetric=False)
    return js.deploy(js.quantize(js.Grid(4, per="channel"), inputs)(net), calibrate=x)


def reloaded(path):
    arrays = dict(np.load(path, allow_pickle=False))
    return jax.export.deserialize(bytearray(arrays.pop("program"))), arrays


def written(net, tmp_path, *args, **kwargs):
    js.export.stablehlo(net, tmp_path / "net.npz", *args, **kwargs)
    return reloaded(tmp_path / "net.npz")


def equations(program):
    """What a program runs, without the lines of Python it comes from."""
    return [line for line in program.mlir_module().splitlines() if not line.startswith("#loc")]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_deployed_network_computes_the_same_bits_for_any_batch(chip, x, rows, tmp_path):
    program, arrays = written(chip, tmp_path)
    np.testing.assert_array_equal(program.call(arrays, x[:rows]), chip(x[:rows]))


def test_a_network_in_floats_and_one_that_rounds_at_each_call(net, x, tmp_path):
    for other in (net, js.quantize(8, 8)(net)):
        program, arrays = written(other, tmp_path)
        np.testing.assert_array_equal(
            program.call(arrays, x), jax.jit(lambda net, x: net(x))(other, x)
        )


def test_the_file_holds_what_a_call_reads_and_nothing_else(chip, tmp_path):
    _, arrays = written(chip, tmp_path)
    assert {name for name in arrays if name.startswith("params/")} == {
        "params/BatchNorm_0/scale",
        "params/BatchNorm_0/bias",
        "params/Dense_0/bias",
    }
    assert arrays["states/Conv_0/kernel/inner"].dtype == np.int8


def test_another_process_needs_no_jaxsim(chip, x, tmp_path):
    js.export.stablehlo(chip, tmp_path / "net.npz")
    np.save(tmp_path / "x.npy", x)
    code = f"""
import sys, jax, numpy as np
arrays = dict(np.load({str(tmp_path / "net.npz")!r}, allow_pickle=False))
program = jax.export.deserialize(bytearray(arrays.pop("program")))
np.save({str(tmp_path / "y.npy")!r}, program.call(arrays, np.load({str(tmp_path / "x.npy")!r})))
assert not any(name.startswith(("jaxsim", "flax")) for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), chip(x))


def test_arrays_are_arguments_and_another_chip_is_the_same_program(chip, net, x, tmp_path):
    program, arrays = written(chip, tmp_path)
    grids = js.Grid(4, per="channel"), js.Grid(8, symmetric=False)
    other = js.deploy(js.quantize(*grids)(net), calibrate=2 * x)
    again, others = written(other, tmp_path)
    assert equations(again) == equations(program)
    np.testing.assert_array_equal(program.call(others, x), other(x))
    assert (program.call(arrays, x) != program.call(others, x)).any()


def test_a_network_that_draws_takes_a_key(net, x, tmp_path):
    make = js.compose(
        js.quantize(8, 8), js.analog(adc=8, cells=js.cells.independent(0.02, noise=0.05))
    )
    chip = js.deploy(make(net), key=jax.random.key(2), calibrate=x)
    program, arrays = written(chip, tmp_path)
    one, other = jax.random.key(3), jax.random.key(4)
    np.testing.assert_array_equal(program.call(arrays, x, key=one), chip(x, key=one))
    assert (program.call(arrays, x, key=one) != program.call(arrays, x, key=other)).any()


def test_what_a_call_changes_comes_back(x, tmp_path):
    variables = jax.jit(Net().init)(jax.random.key(1), x)
    net = js.trace(Net(), variables, x, train=True, mutable=["batch_stats"])
    program, arrays = written(net, tmp_path)
    assert set(arrays) > {"buffers/batch_stats/BatchNorm_0/mean"}
    y, updates = program.call(arrays, x)
    expected, changed = jax.jit(lambda net, x: net(x))(net, x)
    np.testing.assert_array_equal(y, expected)
    jax.tree.map(np.testing.assert_array_equal, updates, changed)


def test_keys_and_bfloat16_are_read_by_numpy(tmp_path):
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.out = nnx.Linear(4, 3, rngs=rngs, param_dtype=jnp.bfloat16)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.out(self.dropout(x))

    x = jnp.linspace(-1, 1, 8).reshape(2, 4)
    net = js.trace(Noisy(nnx.Rngs(0)), x, mutable="RngCount")
    program, arrays = written(net, tmp_path)
    assert arrays["params/out/kernel"].dtype == np.uint16
    key = jax.random.key(7)
    y, _ = program.call(arrays, x, key=key)
    expected, _ = jax.jit(lambda net, x: net(x, key=key))(net, x)
    np.testing.assert_array_equal(y, expected)


def scaled(core, *, by):
    return core._replace(read=lambda op, state, x, key: by * core.read(op, state, x, key))


def test_settings_keep_the_weak_type_of_pythons_numbers(tmp_path):
    w = jax.random.normal(jax.random.key(3), (6, 5), jnp.bfloat16)
    x = jax.random.normal(jax.random.key(4), (ROWS, 6), jnp.bfloat16)
    net = js.wrap(scaled, by=0.3)(js.trace(lambda w, x: x @ w, w, x))
    program, arrays = written(net, tmp_path)
    np.testing.assert_array_equal(
        np.asarray(program.call(arrays, x), np.float32), np.asarray(net(x), np.float32)
    )


def test_whole_numbers_of_four_bits_are_read_by_numpy(tmp_path):
    params = {"w": jnp.eye(3), "shift": jnp.arange(-3, 3, dtype=jnp.int4).reshape(2, 3)}
    params["small"] = jnp.array([0.5, -2, 1], jnp.float8_e4m3fn)
    x = jnp.ones((2, 3))

    def model(p, x):
        return x @ p["w"] + p["shift"].astype(x.dtype) * p["small"].astype(x.dtype)

    program, arrays = written(js.trace(model, params, x), tmp_path, x)
    assert {name: a.dtype.name for name, a in arrays.items()} == {
        "params/w": "float32",
        "params/shift": "int8",
        "params/small": "uint8",
    }
    np.testing.assert_array_equal(program.call(arrays, x), jax.jit(model)(params, x))


def test_shapes_that_are_given_are_those_of_the_program(chip, x, tmp_path):
    program, arrays = written(chip, tmp_path, x)
    with pytest.raises(ValueError, match="shape"):
        program.call(arrays, x[:2])
    (n,) = jax.export.symbolic_shape("n", constraints=["n >= 2"])
    shape = jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype)
    program, arrays = written(chip, tmp_path, shape)
    np.testing.assert_array_equal(program.call(arrays, x[:2]), chip(x[:2]))


def test_a_program_of_several_platforms(chip, tmp_path):
    program, _ = written(chip, tmp_path, platforms=["cpu", "cuda"])
    assert program.platforms == ("cpu", "cuda")


@pytest.mark.parametrize("platforms", ["cpu", [], ["gpu"]])
def test_platforms_that_there_are_not(chip, platforms, tmp_path):
    with pytest.raises(ValueError, match=r"platforms=.*'cpu', 'cuda', 'rocm', 'tpu'"):
        js.export.stablehlo(chip, tmp_path / "net.npz", platforms=platforms)


def test_a_file_that_cannot_be(chip, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        js.export.stablehlo(chip, tmp_path / "net.bin")
    with pytest.raises(ValueError, match="no folder"):
        js.export.stablehlo(chip, tmp_path / "none" / "net.npz")


def test_networks_in_stages(net, x, tmp_path):
    exits = js.exit_early(["Dense_0/kernel"], js.Rule(0.5))(net)
    with pytest.raises(ValueError, match="stages of exit_early are planned for a size"):
        js.export.stablehlo(exits, tmp_path / "net.npz")
    program, arrays = written(exits, tmp_path, x)
    np.testing.assert_array_equal(program.call(arrays, x), jax.jit(lambda net, x: net(x))(exits, x))
    pipeline = js.pipeline_shard(2, 2, devices=jax.devices()[:1] * 2)(net)
    with pytest.raises(ValueError, match=r"stablehlo cannot follow pipeline_shard: .*devices"):
        js.export.stablehlo(pipeline, tmp_path / "net.npz")


def test_a_model_that_is_traced_for_fixed_sizes_alone(tmp_path):
    def model(w, x):
        return x @ w if x.shape[0] > 2 else -x @ w

    net = js.trace(model, jnp.eye(3), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="cannot be traced for sizes that are free; give arrays"):
        js.export.stablehlo(net, tmp_path / "net.npz")
    program, arrays = written(net, tmp_path, jnp.ones((2, 3)))
    np.testing.assert_array_equal(
        program.call(arrays, np.ones((2, 3), np.float32)), -np.ones((2, 3))
    )


def test_containers_of_others_are_refused(tmp_path):
    class Pair(NamedTuple):
        first: jax.Array
        second: jax.Array

    net = js.trace(lambda w, x: Pair(x @ w, x), jnp.eye(3), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"none of JAX.s own: .*Pair"):
        js.export.stablehlo(net, tmp_path / "net.npz")
