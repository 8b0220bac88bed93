"""Parts of architectures that hold no weights of their own, or attention's four."""

import jax
import jax.numpy as jnp


def heads(x, count):
    """[..., T, D] as [..., count, T, D / count]."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], count, -1), -2, -3)


def joined(x):
    """[..., H, T, d] as [..., T, H d]."""
    x = jnp.moveaxis(x, -3, -2)
    return x.reshape(*x.shape[:-2], -1)


def attend(q, k, v, mask=None, bias=0.0):
    """Softmax attention of [..., T, d] queries to [..., S, d] keys."""
    scores = q @ jnp.swapaxes(k, -1, -2) / jnp.sqrt(jnp.float32(q.shape[-1])) + bias
    return jax.nn.softmax(scores if mask is None else jnp.where(mask, scores, -1e9)) @ v


def attention(k, x, source=None, *, count=2, mask=None, bias=0.0):
    """Multi-head attention (Vaswani et al., 2017), to itself or to a source."""
    source = x if source is None else source
    q, key, v = (heads(k.dense(at, x.shape[-1]), count) for at in (x, source, source))
    return k.dense(joined(attend(q, key, v, mask, bias)), x.shape[-1])


def mlp(k, x, factor=2, activation=jax.nn.gelu):
    """Two layers, the inner one wider."""
    return k.dense(activation(k.dense(x, factor * x.shape[-1])), x.shape[-1])


def encoder(k, x, **options):
    """A block with its norms first."""
    x = x + attention(k, k.layer_norm(x), **options)
    return x + mlp(k, k.layer_norm(x))


def causal(length, window=None):
    """Which positions a position may see: itself and those before, as far back as the window."""
    back = jnp.arange(length)[:, None] - jnp.arange(length)
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def rotary(x, positions):
    """Rotary position embedding (Su et al., 2021) of [..., T, d]."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * 100.0 ** (-jnp.arange(half) / half)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def patches(k, x, features, size):
    """An image as [B, T, D] tokens."""
    x = k.conv(x, features, (size, size), strides=size, padding="VALID")
    return x.reshape(x.shape[0], -1, features)
