"""Checks of arguments that every part of the package makes in the same words."""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_traced(value: Any) -> bool:
    """Whether a value is known only inside a compiled program, where no check can see it.

    Examples:
      >>> import jax
      >>> from jaxsim.numerics import is_traced
      >>> is_traced(1.0), bool(jax.jit(lambda x: is_traced(x))(1.0))
      (False, True)
    """
    return isinstance(value, Tracer)


class MissingKeyError(ValueError):
    """Something is drawn, and no random key was given.

    Attributes:
      reason: What is drawn, and what to give.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"key=None: {reason}")
        self.reason = reason


def check_range(
    name: str,
    value: Any,
    lo: float,
    hi: float = math.inf,
    *,
    above: bool = False,
    whole: bool = False,
) -> None:
    """Checks that a number is finite and in [lo, hi], or (lo, hi]; a traced one is not looked at.

    Args:
      name: of the argument, for the error.
      value: a number, or an array that holds one.
      lo: lower end.
      hi: upper end.
      above: whether `lo` itself is out of range.
      whole: whether it must be an integer.

    Raises:
      ValueError: it is not.

    Examples:
      >>> from jaxsim.numerics import check_range
      >>> check_range("damping", 2.0, 0, 1)
      Traceback (most recent call last):
      ValueError: damping=2.0: must be a number of at least 0 and at most 1
    """
    if is_traced(value):
        return
    number = np.asarray(value)
    if (
        number.ndim == 0
        and number.dtype.kind in ("iu" if whole else "iuf")
        and np.isfinite(number)
        and (number > lo if above else number >= lo)
        and number <= hi
    ):
        return
    upper = "" if hi == math.inf else f" and at most {hi}"
    raise ValueError(
        f"{name}={value}: must be {'an int' if whole else 'a number'} "
        f"{'above' if above else 'of at least'} {lo}{upper}"
    )


def check_share(name: str, value: Any) -> None:
    """Checks that a number is in [0, 1); a traced one is not looked at.

    Args:
      name: of the argument, for the error.
      value: what may be left out.

    Raises:
      ValueError: it is not.

    Examples:
      >>> from jaxsim.numerics import check_share
      >>> check_share("sparsity", 0.5)
    """
    check_range(name, value, 0, 1)
    if not is_traced(value) and np.asarray(value) >= 1:
        raise ValueError(f"{name}={value}: must be below 1")


def is_whole(value: Any) -> bool:
    """Whether a value is an int, numpy's, or an array that holds one; a boolean is none."""
    if isinstance(value, np.ndarray | jax.Array) and not is_traced(value):
        return value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer)
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def checked_int(name: str, value: Any, lo: int, hi: int | None = None) -> int:
    """A whole number in [lo, hi] as an int, numpy's and arrays that hold one included.

    Raises:
      ValueError: it is not one.

    Examples:
      >>> import numpy as np
      >>> from jaxsim.numerics import checked_int
      >>> checked_int("bits", np.int64(8), 1, 16)
      8
    """
    if not is_whole(value) or value < lo or (hi is not None and value > hi):
        allowed = f"of at least {lo}" if hi is None else f"from {lo} to {hi}"
        raise ValueError(f"{name}={value!r}: must be an int {allowed}")
    return int(value)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Count:
    """A whole number that a compiled program is made for: static, and without a leaf.

    Attributes:
      number: At least 0.
    """

    number: int

    def __len__(self) -> int:
        return self.number


def checked_count(name: str, value: Any, lo: int = 1) -> Count:
    """How often a compiled loop runs.

    Args:
      name: of the argument, for the error.
      value: the number, at most 2**31 - 1, as loops count in 32 bits.
      lo: smallest that is allowed.

    Raises:
      ValueError: it is out of range.
    """
    return Count(checked_int(name, value, lo, 2**31 - 1))


def check_called(name: str, value: Any) -> None:
    """Checks that a function of jaxsim's that makes a value is not given in place of the value.

    Args:
      name: of the argument, for the error.
      value: what a caller gave.

    Raises:
      ValueError: it is such a function, or a class.
    """
    module = getattr(value, "__module__", None) or ""
    qualified = getattr(value, "__qualname__", "")
    if not module.startswith("jaxsim.") or not qualified or "." in qualified:
        return
    parameters = [*inspect.signature(value).parameters.values()]
    if parameters and parameters[0].name in ("net", "chip", "layer"):  # takes what it is given to
        return
    public = getattr(sys.modules["jaxsim"], qualified, None) is value
    called = f"js.{qualified}" if public else f"{_shown_space(module)}.{qualified}"
    needs = any(
        p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters
    )
    raise ValueError(
        f"{name}={called}: is what makes one; call it: {called}({'…' if needs else ''})"
    )


def _shown_space(module: str) -> str:
    """The last part of a module's name, or that of a space of `js` it is a part of: `js.cells`."""
    parts = module.split(".")
    return next((p for p in parts if p in sys.modules["jaxsim"].__all__), parts[-1])


def checked_seed(value: Any, name: str = "seed") -> int:
    """A seed of `jax.random.key` as an int; beyond 32 bits two seeds would draw the same.

    Raises:
      ValueError: it is no whole number from 0 to 2**32 - 1.
    """
    return checked_int(name, value, 0, 2**32 - 1)
