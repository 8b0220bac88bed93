# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Explore and report
#
# An accelerator has digital arrays and analog ones. Which layer should run where, in which format? `js.explore` finds
# settings that no other beats in accuracy and energy together, and `js.report` writes a page about them.

# %%
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxsim as js
from jaxsim.data import fashion_mnist
from jaxsim.train import fit

train, test = (fashion_mnist(part, source="subset") for part in ("train", "test"))


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x)).mean((1, 2))
        return nn.Dense(10)(x)


model, x = Cnn(), train.images
net = js.trace(model, jax.jit(model.init)(jax.random.key(0), x[:1]), x[:1])
how = {"batch_size": 100, "optimizer": optax.adam(1e-2), "quiet": True}
net = fit(net, x, train.labels, epochs=4, key=jax.random.key(1), **how)

# %% [markdown]
# ## What may become of a layer
#
# Options are transforms with a name, and, where only some parts can run them, the part. Energy, time and area come from
# a model of the accelerator, not from a measurement.

# %%
cells = js.compose(
    js.quantize(8, 8),
    js.slice_bits(2),
    js.analog(rows=128, adc=8, cells=js.cells.proportional(0.05)),
)
options = {
    "8 bits": js.quantize(8, 8),
    "4 bits": js.quantize(4, 8),
    "cells": js.Option(cells, part="analog"),
}
accelerator = js.accelerators.mixed()
print(", ".join(accelerator.parts))

# %% [markdown]
# ## Search
#
# Half of the test images choose, the other half report. A choice that looks good by luck on the first half is found
# out on the second.

# %%
choose, report = slice(0, 500), slice(500, 1000)


def evaluate(chip, rows=choose):
    return float(np.mean(js.classify(chip, test.images[rows]) == test.labels[rows]))


front = js.explore(
    net,
    accelerator,
    options,
    x[:64],
    evaluate,
    drop=0.1,
    points=3,
    steps=2,
    key=jax.random.key(2),
    quiet=True,
)
front

# %% [markdown]
# Rows are points, cheapest first. Each is a network, and a call that makes it:

# %%
point = front.within(drop=0.03)
chip = js.deploy(front.network(point), calibrate=x[:64], key=jax.random.key(2))
print(front.recipe(point))
print(f"chosen on {point.accuracy:.3f}, reported {evaluate(chip, report):.3f}")

# %%
front.estimate(point)

# %% [markdown]
# ## A page to send
#
# The page needs nothing but a browser: accuracy over cost, energy by component, what one point changes of another, and
# the recipe to copy. It needs `pip install "jaxsim[report]"` to be written.

# %%
page = Path(tempfile.mkdtemp()) / "report.html"
js.report(front, page, title="A small CNN")
print(f"{page.stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# The same from a file: [`jaxsim explore`](../cli.md). More options, limits on time and area, executors on many
# machines: [exploring](../explore.md).
