"""Every ordered pair of transforms: it composes and computes what it should, or is refused by name.

Which does what is the table in docs/pairs.md; it is the same for the three networks.
"""

import dataclasses
import functools
import os
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.models import normal

PAGE = Path(__file__).parents[2] / "docs" / "pairs.md"
PAIR = jax.devices()[:1] * 2


def normed(x):
    """A batch norm that has seen something, and a ReLU."""
    return nn.relu(nn.BatchNorm(use_running_average=True)(x))


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(normed(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


class Perceptron(nn.Module):
    """A skip connection around two layers."""

    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(8)(normed(nn.Dense(6)(x)))


class Tokens(nn.Module):
    """Attention: products of two activations among the sites."""

    @nn.compact
    def __call__(self, x):
        scores = jnp.einsum("bqd,bkd->bqk", x, x)
        x = x + jnp.einsum("bqk,bkd->bqd", nn.softmax(scores / 8), x)
        return nn.Dense(3)(normed(nn.Dense(8)(x.mean(1))))


INPUTS = {
    Convolutions: normal(4, 6, 6, 3),
    Perceptron: normal(4, 8),
    Tokens: normal(4, 5, 6),
}


ALL = "JAXSIM_ALL_PAIRS" in os.environ
"""Every pair on every network takes ten minutes of a core; else each is tried on one, in turn."""


def turn(first, second):
    """Which network a pair is tried on, where it is tried on one."""
    return (NAMES.index(first) + NAMES.index(second)) % len(INPUTS)


@functools.cache
def network(model):
    x = INPUTS[model]
    shapes = jax.eval_shape(model().init, jax.random.key(0), x)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)

    def filled(seed, path, leaf):
        values = np.asarray(normal(*leaf.shape, seed=seed))
        if leaf.ndim > 1:
            return jnp.asarray(values / np.sqrt(np.prod(leaf.shape[1:-1])))
        return jnp.asarray((path[-1].key in ("scale", "var")) + 0.05 * np.abs(values))

    moved = [filled(seed, *leaf) for seed, leaf in enumerate(leaves)]
    return js.trace(model(), jax.tree.unflatten(treedef, moved), x)


def transforms(x):
    """Each as it comes, where it can at a setting that costs next to nothing."""
    return {
        "fold_norms": js.fold_norms(x),
        "equalize": js.equalize(x),
        "shrink": js.shrink(0.25),
        "prune_layers": js.prune_layers(x, 0.5),
        "prune": js.prune(0.5),
        "run_sparse": js.run_sparse(break_even=0.0),
        "quantize": js.quantize(8, 8),
        "learn_ranges": js.learn_ranges(x),
        "smooth": js.smooth(x),
        "round_weights": js.round_weights(js.rounding.gptq(), x),
        "correct_bias": js.correct_bias(x),
        "block": js.block(2),
        "slice_bits": js.slice_bits(2),
        "analog": js.analog(),
        "exit_early": js.exit_early(2),
        "pipeline_shard": js.pipeline_shard(2, microbatches=2, devices=PAIR),
    }


NAMES = tuple(transforms(normal(1, 1)))
CHANGING = ("fold_norms", "equalize", "shrink", "prune_layers", "prune", "round_weights")
"""What changes parameters: the function that these have in floats is what is compared with."""
ON_CODES = (
    "learn_ranges",
    "smooth",
    "round_weights",
    "correct_bias",
    "block",
    "slice_bits",
    "analog",
)
FIRST = {"run_sparse": "prune", **dict.fromkeys(ON_CODES, "quantize")}
"""What a transform has to follow."""


def chain(a, b):
    """One transform and another, each with what it has to follow."""
    names = [*([FIRST[a]] if a in FIRST else []), a]
    if b in FIRST and FIRST[b] not in names:
        names.append(FIRST[b])
    return [*names, b]


def table():
    """{(first, second): whether it composes} of the page."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(NAMES)
    cells = {name: [c.strip() for c in row.split("|")] for name, row in rows}
    assert {c for row in cells.values() for c in row} == {"yes", ""}
    return {(a, b): c == "yes" for a, row in cells.items() for b, c in zip(NAMES, row, strict=True)}


@functools.cache
def composed(model, names):
    made = transforms(INPUTS[model])
    return js.compose(*(made[name] for name in names))(network(model))


@jax.jit
def run(net, x):
    """What a network answers, deployed where hardware stands: written, calibrated, read at once."""
    return (js.deploy(net, calibrate=x) if net.cores else net)(x)


def logits(net, x):
    if type(net) is not js.Network:  # it has programs of its own, and a queue on the host
        return np.asarray((js.deploy(net, calibrate=x) if net.cores else net)(x))
    return np.asarray(run(net, x))


@functools.cache
def in_floats(model, names):
    """What the parameters compute, after those of some transforms that change them."""
    net = composed(model, names) if names else network(model)
    return np.asarray(run(dataclasses.replace(net, cores={}), INPUTS[model]))


def changing(names):
    """Those that change parameters, in order, with what rounding has to follow."""
    kept = (*CHANGING, "quantize") if "round_weights" in names else CHANGING
    return tuple(name for name in names if name in kept)


def held(net, names):
    """That each has left its mark."""
    makers = {w.factory.__name__ for chain in net.cores.values() for w in chain}
    marks = {
        "prune": bool(net.masks),
        "run_sparse": "compressed" in makers,
        "quantize": "quantized" in makers,
        "slice_bits": "bit_sliced" in makers,
        "block": "blocked" in makers,
        "analog": "tiled" in makers,
        "exit_early": "exit_early" in net.cut_by,
        "pipeline_shard": "pipeline_shard" in net.cut_by,
    }
    assert all(marks[name] for name in names if name in marks), (names, makers)


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("model", INPUTS, ids=lambda model: model.__name__)
def test_a_pair_composes_and_computes_or_is_refused_by_name(model, first):
    x, yes = INPUTS[model], table()
    for second in NAMES:
        if not ALL and turn(first, second) != list(INPUTS).index(model):
            continue
        names = tuple(chain(first, second))
        if not yes[first, second]:
            refused = "|".join(names[names.index(first) + 1 :])
            with pytest.raises(ValueError, match=rf"\b({refused})\b"):
                composed(model, names)
            continue
        net = composed(model, names)
        held(net, names)
        expected = in_floats(model, changing(names))
        if "run_sparse" in names:  # as without it, whatever else was done
            dense = tuple(name for name in names if name != "run_sparse")
            expected = logits(composed(model, dense), x)
        far = np.abs(logits(net, x) - expected).max()
        near = 0.05 if "quantize" in names else 1e-5
        assert far <= near * np.abs(expected).max(), (names, far)
