"""What is printed of transforms and networks."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim import sparsity as sp
from jaxsim.values.calls import brief
from tests.support.networks import DEEP_SITES, SITES, X, cnn, deep_cnn


def doubled(core, *, by):
    return js.Core(core.write, core.calibrate, lambda op, s, x, key: by * core.read(op, s, x, key))


SHOWN = {
    "quantize(weights=8, inputs=8)": lambda: js.quantize(8, 8),
    "quantize(weights=4, sites='Conv*')": lambda: js.quantize(4, sites="Conv*"),
    "quantize()": lambda: js.quantize(),
    "quantize(inputs=Grid(symmetric=False))": lambda: js.quantize(inputs=js.Grid(symmetric=False)),
    "prune(sparsity=0.5)": lambda: js.prune(0.5),
    "prune(sparsity=0.25)": lambda: js.prune(np.float64(0.25)),
    "wrap(make=doubled, by=2.0)": lambda: js.wrap(doubled, by=2.0),
    "compose(prune(sparsity=0.5), quantize(weights=8, inputs=None))": lambda: js.compose(
        js.prune(0.5), js.quantize(8, None)
    ),
    "rules(by_pattern={'Conv*': quantize(weights=4), '*': quantize(weights=8)})": lambda: js.rules(
        {"Conv*": js.quantize(weights=4), "*": js.quantize(weights=8)}
    ),
    "smooth(inputs=float32[8, 6, 6, 3], alpha=0.5)": lambda: js.smooth(X, 0.5),
    "smooth(inputs={'x': float32[8, 6, 6, 3]})": lambda: js.smooth({"x": X}),
    "prune_tokens(level=0.1, protect_last=1)": lambda: js.prune_tokens(0.1, protect_last=1),
    "exit_early(exits=2)": lambda: js.exit_early(2),
    "pipeline_shard(stages=2, microbatches=2)": lambda: js.pipeline_shard(2, 2),
    "shrink(sparsity=0.5)": lambda: js.shrink(0.5),
    "block(K=2)": lambda: js.block(2),
    "analog(adc=8, rows=64)": lambda: js.analog(rows=64, adc=8),
    "slice_bits(bits=2)": lambda: js.slice_bits(2),
    "analog(cells=proportional(sigma=0.05))": lambda: js.analog(cells=js.cells.proportional(0.05)),
}


@pytest.mark.parametrize("shown", SHOWN)
def test_a_transform_is_shown_by_its_call(shown):
    assert repr(SHOWN[shown]()) == shown


CELLS = {
    "independent(sigma=0.02)": lambda: js.cells.independent(0.02),
    "inverse(sigma=0.02, noise=0.01, on_off=50)": lambda: js.cells.inverse(
        0.02, noise=0.01, on_off=50
    ),
    "Device(σ = 0)": lambda: js.cells.independent(0.0),
    "Device(sonos, on/off 1e+07)": lambda: js.cells.sonos(),
    "Device(stuck σ = 0.02 g)": lambda: js.cells.stuck(js.cells.proportional(0.02), low=0.1),
    "Device(σ = 0.02, ages)": lambda: js.cells.drifting(js.cells.independent(0.02), 0.1),
    "Device(σ = 0.02, on/off several)": lambda: js.cells.independent(0.02)._replace(
        on_off=jnp.array([9.0, 99.0])
    ),
    "Device(σ = 0.02)": lambda: js.cells.independent(0.02)._replace(noise=lambda g: g),
}


@pytest.mark.parametrize("shown", CELLS)
def test_cells_are_shown_by_their_call_or_in_words(shown):
    assert repr(CELLS[shown]()) == shown


def test_cells_of_a_sweep_are_shown_in_words():
    shown = []

    def device(sigma):
        shown.append(repr(js.cells.independent(sigma)))
        return sigma

    jax.jit(device)(0.1)
    assert shown == ["Device(traced)"]


class Pair(NamedTuple):
    first: int
    second: int


class Own(NamedTuple):
    """Shown in words of its own."""

    size: int

    def __repr__(self):
        return f"own of {self.size}"


@dataclasses.dataclass
class Plain:
    size: int
    name: str = "same"


@dataclasses.dataclass(repr=False)
class Worded:
    size: int

    def __repr__(self):
        return f"worded {self.size}"


@dataclasses.dataclass(repr=False)
class Silent:
    size: int


class Named:
    """No function, whatever its name."""

    __name__ = "not called"

    def __repr__(self):
        return "Named()"


BRIEF = {
    "7": np.float32(7).astype(np.int64),
    "float32[2, 3]": np.zeros((2, 3), np.float32),
    "bool[]": np.zeros((), bool),
    "float": float,
    "brief(3, b=[1, 2])": functools.partial(brief, 3, b=[1, 2]),
    "{'a': float32[1]}": {"a": np.zeros(1, np.float32)},
    "Plain(size=2)": Plain(2),
    "Plain(size=2, name='other')": Plain(2, "other"),
    "worded 4": Worded(4),
    "Silent(size=float32[2])": Silent(np.zeros(2, np.float32)),
    "own of 3": Own(3),
    "Pair(1, 2)": Pair(1, 2),
    "(1, 2)": (1, 2),
    "[1, 2]": [1, 2],
    "[0, 1, 2, 3, 4, 5, 6, 7]": [*range(8)],
    "(0, 1, 2, 3, 4, 5, 6, 7, …)": tuple(range(9)),
    "Named()": Named(),
    "brief": brief,
    repr("x" * 78): "x" * 78,
    "<str>": "x" * 79,
}


@pytest.mark.parametrize("shown", BRIEF)
def test_a_value_is_shown_in_few_letters(shown):
    assert brief(BRIEF[shown]) == shown


def test_no_transform_shows_an_address_or_an_array():
    others = [
        js.prune(0.5, criterion=sp.taylor(lambda net: net(X).sum())),
        js.round_weights(js.rounding.gptq(), (x for x in [X, X])),
        js.analog(cells=js.cells.proportional(0.02)),
        js.learn_ranges([X] * 20),
        js.quantize(js.nf4(), js.Grid(8, clip=js.clipping.percentile(99.0))),
        js.magic_pyramid(jnp.ones(3), js.Rule(0.5)),
    ]
    for transform in others:
        assert "0x" not in repr(transform)
        assert len(repr(transform)) < 400, repr(transform)


def test_a_network_is_shown_in_a_line_and_printed_as_a_table():
    net = js.quantize(8, 8)(js.prune(0.5)(cnn()))
    size = sum(p.size for p in jax.tree.leaves(net.params))
    assert repr(net) == f"Network(2 sites, 2 transformed, 2 pruned, {size} parameters)"
    chip = js.deploy(net, calibrate=X)
    assert repr(chip).startswith("Network(calibrated, 2 sites")
    for shown in (chip._repr_html_(), str(chip)):
        assert all(name in shown for name in SITES)
    assert chip._repr_html_().startswith("<pre ")
    assert "array" not in jax.jit(lambda net: (print(repr(net)), net)[1])(net).__repr__()


def test_exits_and_stages_are_printed():
    exits = js.exit_early(["Conv_1/kernel", "Dense_1/kernel"], js.Rule(0.25))(deep_cnn())
    shown = str(exits)
    assert all(name in shown for name in DEEP_SITES)
    assert "before Conv_1/kernel" in shown
    assert "before Dense_1/kernel" in shown
    assert "0.25" in shown
    assert repr(exits).startswith("Staged(")
    pipe = js.pipeline_shard(2, 4, devices=jax.devices()[:1] * 2)(cnn())
    assert pipe.layout.cuts[0] in str(pipe).split("stages")[1]
    assert "4 micro-batches" in str(pipe)
    assert repr(pipe).startswith("Staged(")


def test_parameters_are_replaced_where_they_fit():
    net = js.quantize(8, None)(cnn())
    moved = jax.tree.map(lambda p: p + 1, net.params)
    assert net.with_params(moved) == dataclasses.replace(net, params=moved)
    grads = jax.eval_shape(jax.grad(lambda p: net.with_params(p)(X).sum()), net.params)
    assert jax.tree.structure(grads) == jax.tree.structure(net.params)
    lacking = {k: v for k, v in moved.items() if k != "Dense_0"}
    kernel = moved["Dense_0"] | {"kernel": jnp.zeros((3, 4))}
    whole = moved["Dense_0"] | {"kernel": jnp.zeros((4, 3), int)}
    for params, message in (
        (lacking, "params: .*without Dense_0/bias"),
        ({**moved, "more": X}, "params: .*with more"),
        ({**moved, "Dense_0": kernel}, r"Dense_0/kernel is \[3, 4\], the network's is \[4, 3\]"),
        ({**moved, "Dense_0": whole}, "Dense_0/kernel is int32 and has no gradient"),
    ):
        with pytest.raises(ValueError, match=message):
            net.with_params(params)
    with pytest.raises(ValueError, match="net is deployed"):
        js.deploy(net).with_params(moved)
