"""Models: integers, Neural Interpreters, groups of channels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp

import jaxsim as js
from benchmarks.topics.interpreters import INTERPRETER, WIDTH
from benchmarks.topics.speed.row import OURS, Row
from jaxsim.models.resnet import ResNet
from jaxsim.models.transformer import Transformer
from jaxsim.models.vision import Vision


def integers() -> Iterator[Row]:
    """ResNets of the demo in integers alone, 64 images."""
    for width in (16, 32, 64):
        model, x = ResNet(features=width, stem_stride=2), jnp.ones((64, 28, 28, 1))
        variables = jax.jit(model.init)(jax.random.key(0), x)
        x = jax.random.normal(jax.random.key(1), x.shape)
        coded = js.deploy(js.quantize(8, 8)(js.trace(model, variables, x)), calibrate=x)
        call = jax.jit(lambda net, x: net(x))
        calls = {
            OURS: partial(call, js.integer_only(coded), x),
            "float32": partial(jax.jit(model.apply), variables, x),
        }
        yield Row(f"integer-only ResNet, width {width}", calls, "float32", 1 / 1.3)


def interpreters() -> Iterator[Row]:
    """A forward pass of 64 images, beside a transformer of as many FLOPs."""
    x = jax.random.normal(jax.random.key(0), (64, 28, 28, 1))
    calls = {}
    for name, body in ((OURS, INTERPRETER.clone(fold=True)), ("transformer", Transformer(9))):
        model = Vision(body, width=WIDTH)
        variables = jax.jit(model.init)(jax.random.key(0), x[:1])
        calls[name] = partial(jax.jit(model.apply), variables, x)
    yield Row("Neural Interpreter, forward", calls, "transformer", 1.3)


def groups() -> Iterator[Row]:
    """Groups of channels found, beside the two traces by Flax and JAX that this takes."""
    model, x = ResNet(), jnp.zeros((1, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    net = js.trace(model, variables, x)

    def traces() -> None:
        for _ in range(2):
            jax.make_jaxpr(lambda variables, x: model.apply(variables, x))(variables, x)

    calls = {OURS: lambda: js.dependencies(net) and None, "two traces": traces}
    yield Row("groups of channels of a ResNet", calls, "two traces", None)
