"""Scores of a long sweep, and digests that tell one run from another."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.files import atomic
from jaxsim.numerics.arrays import whole_on_host
from jaxsim.numerics.renamed import old_names


def run_digest(arrays: Any, *facts: Any) -> str:
    """Digests arrays and facts, so that another run has another digest.

    Args:
      arrays: Tree of arrays, compared bit by bit; random keys as their data.
      *facts: Whatever else matters, with a `repr` that is the same in every process.

    Returns:
      64 hexadecimal digits.

    Examples:
      >>> import numpy as np
      >>> from jaxsim.checkpoint import run_digest
      >>> first, second = (run_digest(np.zeros(3), rate) for rate in (0.1, 0.2))
      >>> len(first), first == second, first == run_digest(np.zeros(3), 0.1)
      (64, False, True)
    """
    digest = hashlib.sha256(repr(facts).encode())
    for leaf in map(_numbers, jax.tree.leaves(arrays)):
        digest.update(f"{leaf.dtype} {leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def _numbers(leaf: Any) -> np.ndarray:
    dtype = getattr(leaf, "dtype", None)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return whole_on_host(jax.random.key_data(leaf) if is_key else leaf)


def program_digest(compiled: Any, *args: Any) -> tuple[str, bool]:
    """Digests what a jitted function computes, with the constants that it closes over.

    Tracing is shared with the call that follows. Another version of JAX has another digest.

    Args:
      compiled: A function that `jax.jit` made.
      *args: Arguments of a call.

    Returns:
      The digest, and whether it covers everything: what a host callback does is not seen.
    """
    closed = compiled.trace(*args).jaxpr
    constants: list[Any] = []
    names: set[str] = set()
    _collect(closed, constants, names)
    # Addresses of functions that rules are kept by.
    text = re.sub(r"0x[0-9a-f]{6,}", "", str(closed))
    return run_digest(constants, text), not any("callback" in name for name in names)


def _collect(jaxpr: Any, constants: list[Any], names: set[str]) -> None:
    """Constants and names of primitives of a jaxpr and of those in it, whatever holds them."""
    constants.extend(getattr(jaxpr, "consts", ()))
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        constants.extend(v.val for v in equation.invars if np.ndim(getattr(v, "val", 0)))
        for value in equation.params.values():
            for part in value if isinstance(value, list | tuple) else (value,):
                if hasattr(part, "eqns"):
                    _collect(part, constants, names)


class ScoreCache:
    """Keeps scores by name in a file of JSON, written after each: a sweep that was killed goes on.

    Several processes may fill one file. It is whole at any time, and none loses what another wrote.

    Attributes:
      path: The file, None for none.
      scores: Known scores by name.

    Examples:
      >>> from jaxsim.checkpoint import ScoreCache
      >>> cache = ScoreCache(None)
      >>> cache.get("accuracy of seed 1", lambda: 0.9)
      0.9
      >>> cache.get("accuracy of seed 1", lambda: 0.5)
      0.9
    """

    def __init__(self, path: str | Path | None):
        """Reads the scores that are there.

        Args:
          path: File to keep; its folder need not exist. None keeps the scores in memory.

        Raises:
          ValueError: The file is there and holds something else.
        """
        self.path = None if path is None else Path(path).expanduser()
        self.scores = self._read()

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """Looks a score up, and measures and keeps it where it is not known.

        Args:
          name: Name of the score, with every setting that it depends on.
          make: Measures it; returns what JSON holds.

        Returns:
          The score.

        Raises:
          ValueError: The file is damaged by now.
        """
        if name not in self.scores:
            self._add(name, make())
        return self.scores[name]

    def _add(self, name: str, made: Any) -> None:
        if self.path is None:
            self.scores[name] = made
            return
        from filelock import FileLock

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f"{self.path.name}.lock")):
            # Of two processes that measured the same, the first to finish is right for both.
            self.scores = {name: made} | self._read()
            atomic.write_text(self.path, json.dumps(self.scores, indent=1))

    def _read(self) -> dict[str, Any]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            scores = json.loads(self.path.read_bytes())
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"path={str(self.path)!r}: no log: {error}") from None
        if not isinstance(scores, dict):
            raise ValueError(f"path={str(self.path)!r}: no log, but a {type(scores).__name__}")
        return scores


__getattr__ = old_names(__name__, {"Log": ScoreCache, "fingerprint": run_digest})
