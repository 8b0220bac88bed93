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
# # Adding an ADC
#
# Your hardware has a converter that jaxsim does not know. An `ADC` is a tuple of functions: how it converts, and which
# range it covers. No class is needed, and nothing in the package changes.

# %%
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

import jaxsim as js
from jaxsim.formats.grid import observe_range

# %% [markdown]
# ## A converter whose steps grow
#
# Telephones use μ-law: fine steps for small signals, coarse ones for large. `convert` gets the settings first, then the
# column currents `y` and the range. It must return numbers on the same scale. Rounding has no derivative, so the
# rounded part is passed straight through.


# %%
def convert(mu, steps, y, lo, hi, signed):
    del signed  # this one is the same for both signs
    most = jnp.maximum(jnp.maximum(-lo, hi), 1e-30)
    small = jnp.sign(y) * jnp.log1p(mu * jnp.minimum(jnp.abs(y) / most, 1)) / jnp.log1p(mu)
    code = small + jax.lax.stop_gradient(jnp.round(small * steps) / steps - small)
    return jnp.sign(code) * jnp.expm1(jnp.abs(code) * jnp.log1p(mu)) / mu * most


def seen(y, axes, signed):
    del signed
    return observe_range(y, axes=axes, symmetric=True)


def mu_law(bits, mu=15.0):
    steps = 2.0 ** (bits - 1) - 1
    return js.adc.ADC(Partial(convert, mu, steps), seen, span=None, bits=bits)


# %% [markdown]
# `Partial` keeps the numbers as data: a sweep over `mu` or `bits` compiles once.
#
# ## Use it
#
# It goes wherever a number of bits goes.

# %%
keys = jax.random.split(jax.random.key(0), 3)
params = {
    "a": jax.random.normal(keys[0], (64, 32)) / 8,
    "b": jax.random.laplace(keys[1], (32, 10)) / 6,
}
x = jax.random.laplace(keys[2], (128, 64))
net = js.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, x)


@jax.jit
def error(chip):
    return jnp.sqrt(jnp.mean((chip(x) - net(x)) ** 2)) / jnp.std(net(x))


def with_adc(adc):
    array = js.compose(js.quantize(8, 8), js.analog(rows=64, adc=adc))
    return js.deploy(array(net), calibrate=x)


even, ours = {}, {}
for bits in (3.0, 4.0, 6.0):
    even[bits], ours[bits] = (float(error(with_adc(adc))) for adc in (bits, mu_law(bits)))
    print(f"{bits:.0f} bits: error {even[bits]:.3f} with even steps, {ours[bits]:.3f} with ours")

# %%
assert ours[6] < ours[4] < ours[3]

# %% [markdown]
# ## Is it right?
#
# Three questions that every new part should answer, in two lines each:

# %%
# Many bits convert exactly.
fine = js.compose(js.quantize(8, 8), js.analog(rows=64, adc=mu_law(20.0)))
exact = js.compose(js.quantize(8, 8), js.analog(rows=64))
a, b = (js.deploy(t(net), calibrate=x)(x) for t in (fine, exact))
assert jnp.allclose(a, b, atol=1e-2)

# Gradients pass.
grads = jax.grad(lambda p: jnp.sum(fine(net.with_params(p))(x)))(net.params)
assert all(jnp.abs(g).sum() > 0 for g in grads.values())

# Costs count its bits.
print(js.Crossbar().estimate(with_adc(mu_law(6.0))))

# %% [markdown]
# More: [cores, devices, formats, parts of accelerators, criteria, transforms, games](../extend.md), each in a page
