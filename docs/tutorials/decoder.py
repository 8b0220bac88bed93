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
# # A 4-bit decoder
#
# What does a language model lose when its weights have four bits, and what wins it back? Here with a decoder so small
# that it is trained in seconds; a GGUF file or a Hugging Face folder takes its place in one line
# ([language models](../language.md)).

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsim as js
from jaxsim.models.llama import tiny

# %% [markdown]
# ## Something to learn
#
# Text of 64 tokens in which each token has three successors, one of them as likely as the others.

# %%
rng = np.random.default_rng(0)
after = np.stack([rng.permutation(64)[:3] for _ in range(64)])
text = [0]
for choice in rng.integers(0, 3, 20000):
    text.append(int(after[text[-1], choice]))
windows = js.language.windows(np.array(text, np.int32), 16)
learn, seen, test = windows[:-48], windows[-48:-32], windows[-32:]

model = tiny(width=64, hidden=64, heads=2, groups=1)
net = js.trace(model, jax.jit(model.init)(jax.random.key(0), learn[:1]), learn[:1])


@jax.jit
def step(net, state, batch):
    def loss(params):
        logits = net.with_params(params)(batch)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    value, grads = jax.value_and_grad(loss)(net.params)
    updates, state = optimizer.update(grads, state, net.params)
    return net.with_params(optax.apply_updates(net.params, updates)), state, value


optimizer = optax.adam(1e-2)
state = optimizer.init(net.params)
for _ in range(100):
    batch = learn[rng.integers(0, len(learn), 16)]
    net, state, value = step(net, state, jnp.asarray(batch))
print(f"loss {float(value):.2f}; the best possible is {np.log(3):.2f}")

# %% [markdown]
# ## Four bits
#
# Weights are rounded in groups of 32 with a scale each. GPTQ (`round_weights`) looks at a few windows and rounds such
# that outputs change least. `rotate` and `awq` can come before it where a model has outliers; this one is too small for any.

# %%
groups = js.Grid(4, symmetric=False, per="group", rows=32)
four = js.quantize(groups, None)
gptq = js.round_weights(js.rounding.gptq(), seen)
recipes = {
    "3 bits, nearest": js.quantize(js.Grid(3, symmetric=False, per="group", rows=32), None),
    "4 bits, nearest": four,
    "4 bits, GPTQ": js.compose(four, gptq),
}
chips = {name: js.deploy(recipe(net), keep_floats=False) for name, recipe in recipes.items()}
table = js.language.compare(net, chips, test)
table

# %%
ratios = [row.ratio.value for row in table.rows[1:]]
assert ratios[0] > ratios[1] > 1

# %% [markdown]
# The ratio is that of perplexities, with an error over the same windows; it says more than two perplexities side by
# side. *MiB* is what is really held: `keep_floats=False` drops parameters that no call reads.
#
# ## A cache in few bits, and writing
#
# The cache of keys and values is data that goes into a call and comes out of it. `code_cache` stores all but the latest
# tokens in four bits.

# %%
chip = js.code_cache(4, first=2, latest=8)(chips["4 bits, GPTQ"])
prompt = jnp.asarray(test[:1, :4])
written = js.language.generate(chip, prompt, model.cache(1, 16), count=8)
likely = [int(b) in after[int(a)] for a, b in zip(written[0][:-1], written[0][1:], strict=True)]
print(np.asarray(written[0]), f"{np.mean(likely):.0%} of them likely successors")

# %% [markdown]
# More: [recipes for real decoders and what they lose](../language.md) · the command
# [`jaxsim language`](../cli.md#language-models)
