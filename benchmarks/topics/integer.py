"""How fast is a network in integers, and does it answer as its simulation does?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn

import jaxsim as js
from benchmarks.common.record import Table, record
from benchmarks.common.settings import CACHE, Timed
from jaxsim.cli.demo import Demo
from jaxsim.console.timing import alternate
from jaxsim.data import fashion_mnist
from jaxsim.evaluate.comparison import classify
from jaxsim.models.efficientnet_lite import EfficientNetLite
from jaxsim.models.resnet import ResNet
from jaxsim.train.reference import trained

SHORT = ("--runs 5 --models 'ResNet, width 16' 'MLP, width 256'",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerSettings(Timed):
    """Settings of the run."""

    only: Literal["both", "timing", "agreement"] = "both"
    """Which part to run; each writes a result of its own."""
    runs: int = 15
    models: tuple[str, ...] = ()
    """Which to time; none is all of them."""
    cache: Annotated[Path, tyro.conf.arg(help="folder of trained weights")] = CACHE


class Mlp(nn.Module):
    """Three hidden layers of one width."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        for _ in range(3):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(10)(x)


def main(args: list[str]) -> None:
    """Times networks and compares answers."""
    settings = IntegerSettings.read(args)
    if settings.only != "agreement":
        record(
            "integer",
            timing(settings),
            question="How fast is a network in integers?",
            baseline="the float32 network under jit; more than 1 is faster than it",
            notes="Random weights, which times do not depend on. qwix: int8 PTQ of the same "
            "model, its weights quantized before.",
            settings={"runs": settings.runs},
        )
    if settings.only != "timing":
        record(
            "integer_agreement",
            agreement(settings),
            question="Does a network in integers answer as its simulation does?",
            baseline="the simulated chip",
            notes="The demo's network on the 10000 test images of Fashion-MNIST.",
        )


def timing(settings: IntegerSettings) -> Table:
    """Calls of a batch."""
    rows = []
    for name in settings.models or MODELS:
        model, shape = MODELS[name]
        variables = _random(model, shape)
        x = jax.random.normal(jax.random.key(1), shape)
        chip = js.deploy(js.quantize(8, 8)(js.trace(model, variables, x)), calibrate=x)
        alternatives: dict[str, Callable[[], Any]] = {
            "float32": _call(jax.jit(model.apply), variables, x),
            "simulated": _call(jax.jit(lambda chip, x: chip(x)), chip, x),
            "integers": _call(jax.jit(lambda net, x: net(x)), js.integer_only(chip), x),
        }
        if qwix := _qwix(model, variables, x):
            alternatives["qwix"] = qwix
        times = alternate(alternatives, runs=settings.runs)
        base = times["float32"].median
        gains = [
            f"{base / times[k].median:.2f}" if k in times else "does not run"
            for k in ("simulated", "integers", "qwix")
        ]
        ms = [f"{1e3 * times[k].median:.2f}" for k in ("float32", "integers")]
        rows.append([name, shape[0], *ms, *gains])
    columns = ["network", "batch", "float32, ms", "integers, ms"]
    return Table([*columns, "simulated, ×", "integers, ×", "qwix, ×"], rows)


MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    **{
        f"ResNet, width {n}": (ResNet(features=n, stem_stride=2), (64, 28, 28, 1))
        for n in (16, 32, 64)
    },
    **{
        f"MLP, width {n}" + (", larger batch" if batch > 64 else ""): (Mlp(n), (batch, 784))
        for n in (256, 1024)
        for batch in (64, 256)
    },
    "EfficientNet-lite0, 64 × 64": (EfficientNetLite(classes=10), (4, 64, 64, 3)),
}
"""Models and the shapes of their inputs."""


def agreement(settings: IntegerSettings) -> Table:
    """Accuracy and shares of equal answers on the test set."""
    train, test = fashion_mnist("train"), fashion_mnist("test")
    net, _ = trained(train, epochs=Demo.epochs, seed=0, cache=settings.cache, quiet=True)
    exact, rows = classify(net, test.images), []
    rows.append(["float32", f"{100 * np.mean(exact == test.labels):.2f}", "", "", ""])
    for bits in (8, 6, 4):
        for kind, inputs in {
            "symmetric": js.Grid(bits),
            "affine": js.Grid(bits, symmetric=False),
        }.items():
            chip = js.deploy(js.quantize(bits, inputs)(net), calibrate=train.images[:256])
            simulated = classify(chip, test.images)
            found = classify(js.integer_only(chip), test.images)  # pyright: ignore
            rows.append(
                [
                    f"{bits} bits, {kind} inputs",
                    f"{100 * np.mean(simulated == test.labels):.2f}",
                    f"{100 * np.mean(found == test.labels):.2f}",
                    f"{100 * np.mean(found == simulated):.2f}",
                    f"{100 * np.mean(found == exact):.2f}",
                ]
            )
    columns = ["network", "simulated, %", "integers, %", "equal answers, %", "equal to float32, %"]
    return Table(columns, rows)


def _random(model: nn.Module, shape: tuple[int, ...]) -> Any:
    """Variables of random numbers, without the time that an initialization compiles."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: jnp.asarray(np.abs(rng.normal(0.05, 0.05, p.shape)), p.dtype), variables
    )


def _call(f: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return lambda: f(*args)


def _qwix(model: nn.Module, variables: Any, x: jax.Array) -> Callable[[], Any] | None:
    """The model under qwix's int8 PTQ with dynamic input ranges, or None where it does not run."""
    import qwix

    rules = [qwix.QuantizationRule(module_path=".*", weight_qtype=jnp.int8, act_qtype=jnp.int8)]
    try:
        ptq = qwix.quantize_model(model, qwix.PtqProvider(rules))
        abstract = jax.eval_shape(ptq.init, jax.random.key(0), x)["params"]
        params = qwix.quantize_params(variables["params"], abstract)
        call = _call(jax.jit(ptq.apply), {**variables, "params": params}, x)
        jax.block_until_ready(call())
    except (ValueError, TypeError, NotImplementedError, KeyError) as error:
        print(f"qwix: {error}")
        return None
    return call
