"""Models that carry a state along a sequence."""

import jax
import jax.numpy as jnp
from jax import lax


def lstm(k, x):
    """LSTM (Hochreiter and Schmidhuber, 1997)."""
    return k.dense(k.recurrent(x, "lstm", 6), 3)


def gru(k, x):
    """GRU (Cho et al., 2014)."""
    return k.dense(k.recurrent(x, "gru", 6), 3)


def wavenet(k, x):
    """WaveNet (van den Oord et al., 2016): gated causal convolutions, ever further apart."""
    x, skips = k.dense(x, 6), 0
    for i in range(2):
        inner = k.conv(x, 12, (2,), dilation=2**i, padding="CAUSAL")
        inner = jnp.tanh(inner[..., :6]) * jax.nn.sigmoid(inner[..., 6:])
        skips = skips + inner
        x = x if i else x + k.dense(inner, 6)
    return k.dense(jax.nn.relu(skips), 5)


def _selected(k, x):
    """What Mamba's block decides of each position: decay, what goes in and what is read."""
    step = jax.nn.softplus(k.dense(x, 8))
    decay = jnp.exp(-step[..., None] * jnp.exp(jnp.arange(4) / 4))
    enters = (step * x)[..., None] * k.dense(x, 4, bias=False)[..., None, :]
    return decay, enters, k.dense(x, 4, bias=False)


def mamba_scan(k, x):
    """Mamba (Gu and Dao, 2023), its state walked by a scan."""
    gate = k.dense(x, 8, bias=False)
    x = jax.nn.silu(k.conv(k.dense(x, 8, bias=False), 8, (3,), groups=8, padding="CAUSAL"))
    decay, enters, reads = _selected(k, x)

    def step(state, at):
        state = at[0] * state + at[1]
        return state, (state * at[2][:, None]).sum(-1)

    over = [jnp.moveaxis(a, 1, 0) for a in (decay, enters, reads)]
    _, y = lax.scan(step, jnp.zeros_like(enters[:, 0]), tuple(over))
    return k.dense(jnp.moveaxis(y, 0, 1) * jax.nn.silu(gate), 8, bias=False)


def mamba_associative(k, x):
    """The same by an associative scan."""
    gate = k.dense(x, 8, bias=False)
    x = jax.nn.silu(k.conv(k.dense(x, 8, bias=False), 8, (3,), groups=8, padding="CAUSAL"))
    decay, enters, reads = _selected(k, x)

    def join(a, b):
        return a[0] * b[0], b[0] * a[1] + b[1]

    _, states = lax.associative_scan(join, (decay, enters), axis=1)
    y = (states * reads[..., None, :]).sum(-1)
    return k.dense(y * jax.nn.silu(gate), 8, bias=False)


def structured(k, x):
    """S4D (Gu et al., 2022): a state-space layer as a long convolution by FFT."""
    length = x.shape[1]
    x = k.dense(x, 8)
    mixed = k.weight(8, 4)
    kernel = (mixed[..., None] * 0.8 ** (jnp.arange(1, 5)[:, None] * jnp.arange(length))).sum(1).T
    y = jnp.fft.irfft(jnp.fft.rfft(x, 2 * length, 1) * jnp.fft.rfft(kernel, 2 * length, 0), axis=1)
    return k.dense(jax.nn.gelu(y[:, :length]), 3)


def layers_by_index(k, x):
    """A stack of equal layers, walked by a loop that counts."""
    x, stack = k.dense(x, 8), k.weight(3, 8, 8)
    return k.dense(lax.fori_loop(0, 3, lambda i, x: x + jnp.tanh(x @ stack[i]), x), 3)


def layers_scanned(k, x):
    """A stack of equal layers, scanned."""
    x, stack = k.dense(x, 8), k.weight(3, 8, 8)
    return k.dense(lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, stack)[0], 3)
