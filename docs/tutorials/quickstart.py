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
# # Quickstart
#
# In ten minutes: train a small network, trace it, change how it computes, and measure what that does. Everything here
# is a pure function of arrays; nothing has to be subclassed or patched.

# %%
import flax.linen as nn
import jax
import numpy as np
import optax

import jaxsim as js
from jaxsim.data import fashion_mnist
from jaxsim.train import fit

# %% [markdown]
# ## A trained model
#
# The package has a subset of Fashion-MNIST: 6000 images to learn from and 1000 to test with.

# %%
train, test = (fashion_mnist(part, source="subset") for part in ("train", "test"))
model = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(64), nn.relu, nn.Dense(10)])
variables = model.init(jax.random.key(0), train.images[:1])

net = js.trace(model, variables, train.images[:1])
net = fit(
    net,
    train.images,
    train.labels,
    epochs=3,
    batch_size=100,
    optimizer=optax.adam(2e-3),
    key=jax.random.key(1),
    quiet=True,
)
net

# %% [markdown]
# `js.trace` reads the model once. Each product of an activation with a parameter is a **site** with a name. The network
# that comes back computes what the model computes, bit for bit.
#
# ## One change
#
# A **transform** is a function from network to network. `quantize` says how numbers are stored. `deploy` then writes the
# weights once and sets the ranges of inputs from a few examples.

# %%
eight_bits = js.quantize(weights=8, inputs=8)
print(eight_bits)
chip = js.deploy(eight_bits(net), calibrate=train.images[:256])
js.compare(net, {"8 bits": chip}, (test.images, test.labels))

# %% [markdown]
# ## Several changes
#
# `compose` applies transforms in the written order. Here: half of the weights are left out, codes have 8 bits, each code
# is spread over 2-bit cells, and the cells stand in an analog array. Errors of cells are drawn from a key.

# %%
array = js.compose(
    js.prune(0.5),
    js.quantize(8, 8),
    js.slice_bits(2),
    js.analog(adc=8, cells=js.cells.proportional(0.05)),
)
chips = {"8 bits": chip}
chips["array"] = js.deploy(array(net), calibrate=train.images[:256], key=jax.random.key(2))
table = js.compare(net, chips, (test.images, test.labels))
table

# %%
assert table.rows[1].agreement > 0.97
assert table.rows[2].agreement > 0.85

# %% [markdown]
# An order that makes no sense is refused when it is composed, with what to do instead:

# %%
try:
    js.compose(js.slice_bits(2), js.quantize(8, 8))(net)
except ValueError as error:
    print(error)

# %% [markdown]
# ## A sweep
#
# Numbers such as the size of an error are traced: a sweep over them compiles once.

# %%
right = {}
for sigma in (0.02, 0.1, 0.3):
    cells = js.cells.proportional(sigma)
    noisy = js.compose(js.quantize(8, 8), js.analog(adc=8, cells=cells))(net)
    noisy = js.deploy(noisy, calibrate=train.images[:256], key=jax.random.key(3))
    right[sigma] = float(np.mean(js.classify(noisy, test.images) == test.labels))
right

# %% [markdown]
# ## Where to go
#
# - [All transforms](../howto/index.md), a page each with the same headings
# - [Bring your model](../models.md): NNX, Equinox, Haiku, Hugging Face, plain JAX
# - [An analog chip of a CNN](analog_cnn.py), the next tutorial
