"""Variables of Flax's models by their shapes: its own initializers take long to compile."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.models import normal


def initial(model, *inputs, dtype=jnp.float32):
    """Normal kernels of the size that initializers give them, unit scales and variances, zeros."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)

    def filled(seed, path, a):
        name = path[-1].key
        if name in ("scale", "var", "bias", "mean"):
            return jnp.asarray(np.full(a.shape, name in ("scale", "var")), dtype)
        # `normal` divides by the root of the first axis
        fan_in = np.float32(np.prod(a.shape[1:-1]))
        return jnp.asarray(np.asarray(normal(*a.shape, seed=seed)) / np.sqrt(fan_in), dtype)

    return jax.tree.unflatten(treedef, [filled(i, *leaf) for i, leaf in enumerate(leaves)])
