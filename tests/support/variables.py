"""Variables of Linen models by their shapes: their own initializers take long to compile."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.models import normal

MAPS = ("kernel", "code", "codes", "heads")  # what the names of matrices that map end in


def initial(model, *inputs, dtype=jnp.float32):
    """As initializers leave them: normal kernels, unit scales and variances, zeros."""

    def fill(seed, path, a):
        name = path[-1].key
        if name in ("scale", "var", "bias", "mean"):
            return jnp.asarray(np.full(a.shape, name in ("scale", "var")), dtype)
        # `normal` divides by the root of the first axis
        fan_in = np.float32(np.prod(a.shape[1:-1]))
        return jnp.asarray(np.asarray(normal(*a.shape, seed=seed)) / np.sqrt(fan_in), dtype)

    return _by_leaf(fill, model, inputs, {})


def filled(model, *inputs, seed=0, **call):
    """As training leaves them, biases and scales too; kernels keep variance."""
    rng = np.random.default_rng(seed)

    def fill(_, path, leaf):
        name = getattr(path[-1], "key", "")  # what a model sows lies in tuples
        if name in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        values = rng.normal(size=leaf.shape)
        if name.endswith(MAPS):
            values /= np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        elif leaf.ndim < 2:
            values *= 0.1
        return jnp.asarray(values, leaf.dtype)

    return _by_leaf(fill, model, inputs, call)


def _by_leaf(fill, model, inputs, call):
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, **call))
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    return jax.tree.unflatten(treedef, [fill(i, *leaf) for i, leaf in enumerate(leaves)])
