"""Compiled programs out of the house: StableHLO with the arrays that it reads, in one file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jaxtyping import Array

from jaxsim.export.arguments import call_shapes, explained_sizes, is_free
from jaxsim.files import atomic
from jaxsim.internals import live_operands
from jaxsim.network.leaves import is_array, path_name
from jaxsim.network.network import Network, require_uncut
from jaxsim.numerics.arrays import whole_on_host

PROGRAM = "program"
"""Name of the program's bytes in the file, among those of arrays."""

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def stablehlo(
    net: Network,
    path: str | Path,
    *args: Any,
    platforms: Sequence[str] | None = None,
    **kwargs: Any,
) -> export.Exported:
    """Writes a network as a StableHLO program with its arrays: JAX and NumPy alone run it.

    The program is a pure function `(arrays, *args, **kwargs)` of everything that a call reads:
    `arrays` are the network's own by name (codes, scales, ranges, running statistics), and where
    the network draws at each call there is a keyword `key`. What a call changes of a model's state
    (`mutable=`) comes back beside the outputs. It computes the bits that the network computes.

    Args:
      net: Network, deployed or not.
      path: File to write: an `.npz` of the arrays and of `program`, which `jax.export.deserialize`
        reads.
      *args: Arguments of the call as arrays or shapes, whose sizes may be symbols of
        `jax.export.symbolic_shape`; without any array, those of the traced example, their batch
        free.
      platforms: Names of platforms that it is to run on, as `jax.export` has them ("cpu", "cuda",
        "rocm", "tpu"); None for the one at hand.
      **kwargs: Keyword arguments of the call; what is no array is fixed.

    Returns:
      The program, as `jax.export` has it.

    Raises:
      ValueError: No such folder or platform, shapes that the model rejects, arguments or outputs in
        containers that JAX alone does not know, or a network that runs on several devices.

    Examples:
      >>> import pathlib, tempfile
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> import jaxsim as js
      >>> x = jnp.array([[-1.0, 0.5], [0.25, 1.0]])
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, x)
      >>> chip = js.deploy(js.quantize(8, 8)(net), calibrate=x)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "chip.npz")
      ...     written = js.export.stablehlo(chip, path)
      ...     arrays = dict(np.load(path))
      >>> program = jax.export.deserialize(bytearray(arrays.pop("program")))
      >>> bool((program.call(arrays, x) == chip(x)).all())
      True
    """
    _check(net)
    if not str(path).endswith(".npz"):
        raise ValueError(f"path={str(path)!r}: must end in .npz")
    atomic.check_target("path", path)
    arguments = call_shapes(net, args, kwargs)
    if net.cut_by and is_free(arguments):
        raise ValueError(
            f"args: the stages of {net.cut_by[0]} are planned for a size of the batch; give arrays "
            "or shapes of the call"
        )
    leaves, structure = jax.tree_util.tree_flatten_with_path(net)
    names = [path_name(place) for place, _ in leaves]
    held = [leaf for _, leaf in leaves]
    shapes = [jax.typeof(leaf) for leaf in held]
    (example, given), key = arguments.combine(), jax.eval_shape(lambda: jax.random.key(0))

    def call(held: Sequence[Any], arrays: Sequence[Any], key: Any) -> Any:
        args, kwargs = dataclasses.replace(arguments, arrays=tuple(arrays)).combine()
        return jax.tree.unflatten(structure, held)(*args, key=key, **kwargs)

    with explained_sizes(arguments):
        traced = jax.make_jaxpr(call)(shapes, arguments.arrays, key)
    reads = live_operands(traced.jaxpr)
    draws = reads[-1]
    stored = {n: _stored(a) for n, a, live in zip(names, held, reads, strict=False) if live}
    described = {
        name: jax.ShapeDtypeStruct(
            stored[name].shape, stored[name].dtype, weak_type=shape.weak_type
        )
        for name, shape in zip(names, shapes, strict=True)
        if name in stored
    }

    def program(arrays: dict[str, Any], *args: Any, key: Any = None, **kwargs: Any) -> Any:
        found = [
            _restored(arrays[name], leaf) if name in arrays else _unread(leaf)
            for name, leaf in zip(names, held, strict=True)
        ]
        return call(found, jax.tree.leaves((args, kwargs)), key)

    args, kwargs = jax.tree.map(lambda leaf: leaf if is_array(leaf) else None, (example, given))
    kwargs = {name: value for name, value in kwargs.items() if jax.tree.leaves(value)}
    exported = export.export(jax.jit(program), platforms=_platforms(platforms))(
        described, *args, **kwargs, **({"key": key} if draws else {})
    )
    try:
        content = np.frombuffer(exported.serialize(), np.uint8)
    except ValueError as error:
        raise ValueError(
            f"args: a container among arguments or outputs is none of JAX's own: {error}"
        ) from error
    with atomic.whole(path) as part:
        np.savez(part, allow_pickle=False, **{PROGRAM: content}, **stored)
    return exported


def _platforms(platforms: Any) -> Sequence[str] | None:
    if platforms is None:
        return None
    if isinstance(platforms, str) or not set(platforms) <= set(_PLATFORMS) or not platforms:
        known = ", ".join(map(repr, _PLATFORMS))
        raise ValueError(f"platforms={platforms!r}: must be a list of some of {known}, or None")
    return list(platforms)


def _stored(leaf: Any) -> np.ndarray:
    """An array as NumPy alone reads it from a file: random keys, and floats that it has not."""
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(leaf))
    array = whole_on_host(leaf) if isinstance(leaf, jax.Array) else np.asarray(leaf)
    array = array.astype(jnp.result_type(leaf))
    if array.dtype.kind != "V":
        return array
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(np.int8 if jnp.issubdtype(array.dtype, jnp.signedinteger) else np.uint8)
    return array.view(f"u{array.dtype.itemsize}")


def _restored(stored: Array, leaf: Any) -> Array:
    """An array of a file as the network holds it."""
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(stored, impl=jax.random.key_impl(leaf))
    if stored.dtype == dtype:
        return stored
    if jnp.issubdtype(dtype, jnp.integer):
        return stored.astype(dtype)
    return lax.bitcast_convert_type(stored, dtype)


def _unread(leaf: Any) -> Any:
    """What stands for an array that the program does not read."""
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        return leaf
    return jnp.zeros(np.shape(leaf), jnp.result_type(leaf))


def _check(net: Any) -> None:
    if not isinstance(net, Network):
        raise ValueError(f"net: a {type(net).__name__} is no Network; js.trace(model, …) makes one")
    require_uncut(
        net,
        "export.stablehlo",
        allowed=("exit_early", "prune_tokens", "magic_pyramid"),
        reason="its stages are programs of several devices",
    )
