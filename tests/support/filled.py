"""Variables of Linen models by their shapes: their own initializers take long to compile."""

import jax
import jax.numpy as jnp
import numpy as np

MAPS = ("kernel", "code", "codes", "heads")  # what the names of matrices that map end in
SCALES = ("scale", "var")


def filled(model, *inputs, seed=0, **call):
    """Variables as random as drawn ones, biases too; kernels keep the variance of what they map."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, **call))
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = getattr(path[-1], "key", "")  # what a model sows lies in tuples
        if name in SCALES:
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        values = rng.normal(size=leaf.shape)
        if name.endswith(MAPS):
            values /= np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        elif leaf.ndim < 2:
            values *= 0.1
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)
