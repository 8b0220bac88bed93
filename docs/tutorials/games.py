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
# # Meta-training a game solver
#
# A population of agents grows by answering mixtures of itself. Which mixture should the next agent answer? The usual
# choice is the Nash equilibrium among the agents (PSRO). Here a small network learns the choice, by the gradient of how
# exploitable the population is in the end (neural auto-curricula).

# %%
import jax
import numpy as np

import jaxsim.games as jg
import jaxsim.solvers as jv

# %% [markdown]
# ## A game and a population
#
# Games of skill: some actions beat most others, the rest is rock, paper, scissors. A game is a tuple of functions, so
# many games are one `vmap`. `psro` starts with one agent; the oracle answers a mixture by gradient ascent.

# %%
oracle = jv.unrolled(1, 25.0)


def sample(key):
    return jg.games_of_skill(key, 12)


def grown(solver):
    def one(key):
        game, play = jax.random.split(key)
        return jv.psro(sample(game), solver, oracle, play, iterations=4).nash_conv

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), 32)))


nash = grown(jv.nash())
print(f"NashConv, PSRO: {nash[:, 0].mean():.3f} at first, {nash[:, -1].mean():.3f} at the end")

# %% [markdown]
# NashConv is what both players could gain by deviating: 0 is an equilibrium.
#
# ## Learn the mixture
#
# The meta-solver is a network that sees the payoffs among the agents. `meta_step` plays a batch of games through and
# follows the gradient of the objective back through all of it.

# %%
network = jv.ConvMixing()
objective = jv.Objective(oracle, iterations=4, window=4, each=True)
optimizer = jv.meta_optimizer(rate=1e-2, steps=40)
state = jv.init_meta(network, optimizer, jax.random.key(0))
untrained = grown(jv.network_solver(network, state.params))
step = jv.meta_step(network, objective, sample, optimizer, batch=8)
curve = []
for _ in range(40):
    state, value = step(state, jax.random.key(1))
    curve.append(float(value))
print(
    f"objective: {np.mean(curve[:5]):.2f} in the first five steps, {np.mean(curve[-5:]):.2f} in the last"
)

# %% [markdown]
# ## On games it has not seen

# %%
learned = grown(jv.network_solver(network, state.params))
gain = untrained[:, -1] - learned[:, -1]
error = gain.std(ddof=1) / len(gain) ** 0.5
print(f"NashConv: untrained {untrained[:, -1].mean():.2f}, trained {learned[:, -1].mean():.2f}")
print(f"gain {gain.mean():.2f} ± {error:.2f}, paired, over {len(gain)} games")

# %%
assert gain.mean() > 2 * error

# %% [markdown]
# In forty steps a network that knew nothing comes near the Nash mixture, which a solver computed above. Whether it gets
# beyond is a matter of longer training, and of the game: `jaxsim nac train skill` runs hundreds of steps with
# checkpoints, `jaxsim nac evaluate` compares with five other solvers, and [games and learned
# meta-solvers](../nac.md) tells where it does and where not.
