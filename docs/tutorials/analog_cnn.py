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
# # An analog chip of a CNN
#
# A crossbar holds weights as conductances and adds currents. What do its errors do to a convolutional network, and which
# choices make them harmless? You need the [quickstart](quickstart.py) first.

# %%
import flax.linen as nn
import jax
import numpy as np
import optax

import jaxsim as js
from jaxsim.data import fashion_mnist
from jaxsim.train import fit


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (5, 5), strides=3)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


train, test = (fashion_mnist(part, source="subset") for part in ("train", "test"))
images, labels = test.images, test.labels
model = Cnn()
net = js.trace(model, jax.jit(model.init)(jax.random.key(0), images[:1]), images[:1])
how = {"batch_size": 100, "optimizer": optax.adam(3e-3), "quiet": True}
net = fit(net, train.images, train.labels, epochs=3, key=jax.random.key(1), **how)
net

# %% [markdown]
# ## From codes to conductances
#
# First numbers become codes of 8 bits. Inputs of the second layer come from a ReLU and have no sign, so they
# take a grid that begins at zero. Then `slice_bits` spreads the 7 bits of a magnitude over cells of 2 bits each, and
# `analog` puts the slices into arrays of 128 rows behind converters of 8 bits.

# %%
digital = js.rules(
    {
        "Conv_0/*": js.quantize(8, 8),
        "*": js.quantize(8, js.Grid(8, symmetric=False)),
    }
)


def chip_of(cells, mapping="differential", adc=8):
    array = js.analog(rows=128, adc=adc, cells=cells, mapping=mapping)
    made = js.compose(digital, js.slice_bits(2), array)(net)
    return js.deploy(made, calibrate=train.images[:128], key=jax.random.key(2))


js.compare(net, {"perfect cells": chip_of(None)}, (images, labels))

# %% [markdown]
# Perfect cells lose only what the converters round. Without converters (`adc=None`) the chip equals the 8-bit network
# bit for bit; a test of the package holds that.
#
# ## Errors of cells
#
# Two kinds of error, and two ways to hold signs. *Proportional* errors grow with the conductance, *independent* ones do
# not. A *differential* pair stores a zero as two empty cells; an *offset* stores it in the middle of the range.

# %%
kinds = {"proportional": js.cells.proportional, "independent": js.cells.independent}
right = {}
for kind, device in kinds.items():
    for mapping in ("differential", "offset"):
        chip = chip_of(device(0.15), mapping)
        right[kind, mapping] = float(np.mean(js.classify(chip, images) == labels))
exact = float(np.mean(js.classify(net, images) == labels))
for name, accuracy in right.items():
    print(f"{' cells, '.join(name)}: {100 * accuracy:.1f} % right ({100 * exact:.1f} in floats)")

# %%
assert right["proportional", "differential"] > right["proportional", "offset"]

# %% [markdown]
# Most weights are small. With a pair, small weights are small conductances, and a proportional error leaves them alone.
#
# ## Train with the noise
#
# A composed network that is not deployed draws new errors at every call, and gradients pass through rounding and
# noise. So training it is noise-aware training: no other code is needed.

# %%
worst = js.analog(rows=128, adc=8, cells=js.cells.independent(0.05), mapping="differential")
noisy = js.compose(digital, worst)(net)
aware = fit(noisy, train.images[:3000], train.labels[:3000], epochs=1, key=jax.random.key(4), **how)
before, after = (
    js.deploy(n, calibrate=train.images[:128], key=jax.random.key(5)) for n in (noisy, aware)
)
js.compare(net, {"trained in floats": before, "trained with noise": after}, (images, labels))

# %% [markdown]
# One pass over half of the images is a taste, and the difference is about as large as its error; longer runs, with
# errors over several networks: [noise_aware](../benchmarks.md#noise_aware).
#
# ## What it costs
#
# `js.Crossbar` counts cells, converters and energy by site; `js.estimate` puts the same network on a whole
# [accelerator](../accelerator.md).

# %%
js.Crossbar().estimate(chip_of(js.cells.proportional(0.05)))

# %% [markdown]
# More: [all choices of an array](../analog.md) · [resistance of wires](../parasitics.md) · [your own
# converter](adc.py)
