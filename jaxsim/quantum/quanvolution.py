"""Quanvolutions: circuits run at every place of an image, as filters of a convolution."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxsim.numerics.checks import checked_int
from jaxsim.quantum.encoding import Encoding, ry
from jaxsim.quantum.kernel import CircuitKernel, cosines, from_cosines, from_states, states
from jaxsim.quantum.shots import sample

Padding = Literal["VALID", "SAME"] | tuple[tuple[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class QuanvSpec:
    """Windows of a quanvolution and their encoding; pairs are for rows and columns.

    Tap (i, j) of the window at (r, c) is pixel (r·stride + i·dilation, c·stride + j·dilation) of
    the padded image, and goes to wire i·kernel_size[1] + j.

    Attributes:
      kernel_size: Taps of a window, at least 1.
      stride: Pixels from one window to the next, at least 1.
      dilation: Pixels from one tap to the next, at least 1.
      padding: "VALID", "SAME" as XLA has it, or ((above, below), (left, right)); a padded tap has
        angle 0.
      encoding: Function from pixels to angles of RY.

    Raises:
      ValueError: A value out of range.

    Examples:
      >>> import jaxsim.quantum as jq
      >>> spec = jq.QuanvSpec(stride=2)
      >>> spec.kernel_size, spec.stride, jq.out_shape((28, 28), spec)
      ((2, 2), (2, 2), (14, 14))
    """

    kernel_size: tuple[int, int] | int = (2, 2)
    stride: tuple[int, int] | int = (1, 1)
    dilation: tuple[int, int] | int = (1, 1)
    padding: Padding = "VALID"
    encoding: Encoding = ry

    def __post_init__(self) -> None:
        for name in ("kernel_size", "stride", "dilation"):
            object.__setattr__(self, name, _pair(name, getattr(self, name)))
        if isinstance(self.padding, str):
            if self.padding not in ("VALID", "SAME"):
                raise ValueError(
                    f"padding={self.padding!r}: must be 'VALID', 'SAME' or two pairs of ints"
                )
        elif np.shape(self.padding) != (2, 2):
            raise ValueError(f"padding={self.padding!r}: must be 'VALID', 'SAME' or two pairs")
        else:
            pairs = [[checked_int("padding", p, 0) for p in pair] for pair in self.padding]
            object.__setattr__(self, "padding", tuple(map(tuple, pairs)))
        if not callable(self.encoding):
            raise ValueError(f"encoding={self.encoding!r}: must be a function of pixels")


def out_shape(hw: Sequence[int], spec: QuanvSpec) -> tuple[int, int]:
    """Counts rows and columns of the output.

    Args:
      hw: Rows and columns of the image.
      spec: Windows of the quanvolution.

    Raises:
      ValueError: The taps span more than the padded image.

    Examples:
      >>> import jaxsim.quantum as jq
      >>> jq.out_shape((28, 28), jq.QuanvSpec(dilation=2))
      (26, 26)
    """
    rows, columns = (
        _windows(int(size), axis, spec)[2] for axis, size in zip((0, 1), hw, strict=True)
    )
    return rows, columns


def n_circuits(hw: Sequence[int], spec: QuanvSpec) -> int:
    """Counts runs of the circuit for one image and channel.

    Args:
      hw: Rows and columns of the image.
      spec: Windows of the quanvolution.

    Examples:
      >>> import jaxsim.quantum as jq
      >>> jq.n_circuits((28, 28), jq.QuanvSpec(dilation=2))
      676
    """
    return math.prod(out_shape(hw, spec))


def quanv2d(
    x: Float[Array, "B H W"] | Float[Array, "B H W C"],
    kernel: CircuitKernel,
    spec: QuanvSpec,
    *,
    shots: int | None = None,
    key: Key[Array, ""] | None = None,
    joint: bool = False,
) -> Float[Array, "B h w C*n"]:
    """Computes <Z> of every wire at every window, each input channel on its own.

    Args:
      x: Images, [B, H, W] or [B, H, W, C].
      kernel: Circuit with a wire for each tap, from `compile_circuit`.
      spec: Windows of the quanvolution, and the encoding of pixels.
      shots: Number of shots to sample each value with, at least 1; None for exact values.
      key: Random key of the shots.
      joint: Whether all wires are read in the same shots, as in `sample`.

    Returns:
      Expectations; output channels are pairs (channel of x, wire).

    Raises:
      ValueError: An image of another rank, a circuit whose wires are not the taps, taps that span
        more than the image, or what `sample` raises.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim.quantum as jq
      >>> kernel = jq.compile_circuit(jq.basic_entangling(jnp.zeros((1, 4))))
      >>> jq.quanv2d(jnp.zeros((2, 5, 5)), kernel, jq.QuanvSpec()).shape
      (2, 4, 4, 4)
    """
    x = jnp.asarray(x)
    if x.ndim not in (3, 4):
        raise ValueError(f"x{list(x.shape)}: must be [B, H, W] or [B, H, W, C]")
    x = x if x.ndim == 4 else x[..., None]
    taps = math.prod(_pair("kernel_size", spec.kernel_size))
    if taps != kernel.n_wires:
        raise ValueError(
            f"kernel: {kernel.n_wires} wires; kernel_size={spec.kernel_size} needs {taps}"
        )
    angles = _pad(spec.encoding(x.astype(jnp.result_type(x, jnp.float32))), spec)
    if shots is not None:
        theta = jnp.stack(_taps(angles, spec), -1)
        out = sample(kernel, theta, shots, key, joint=joint)
    # sines of pixels, not of taps: fewer by the number of wires
    elif kernel.method == "gemm":
        out = from_states(
            kernel, jnp.stack(_taps(states(angles, kept=bool(kernel.uploads)), spec), -2)
        )
    else:
        cos, sin = cosines(angles)
        out = from_cosines(kernel, _taps(cos, spec), _taps(sin, spec))
    return out.reshape(*out.shape[:3], out.shape[3] * out.shape[4])


def _pad(angles: Float[Array, "B H W C"], spec: QuanvSpec) -> Float[Array, "B P Q C"]:
    rows, columns = (_windows(angles.shape[1 + axis], axis, spec) for axis in (0, 1))
    pads = [(0, 0), rows[:2], columns[:2], (0, 0)]
    return jnp.pad(angles, pads) if any(map(any, pads)) else angles


def _taps(maps: Float[Array, "B P Q ..."], spec: QuanvSpec) -> list[Float[Array, "B h w ..."]]:
    """The pixels of padded maps that each wire sees, windows in their places."""
    (kh, kw), (sh, sw), (dh, dw) = (
        _pair(name, getattr(spec, name)) for name in ("kernel_size", "stride", "dilation")
    )
    last = [(n - 1) * d for n, d in ((kh, dh), (kw, dw))]
    return [
        maps[
            :,
            i * dh : maps.shape[1] - last[0] + i * dh : sh,
            j * dw : maps.shape[2] - last[1] + j * dw : sw,
        ]
        for i in range(kh)
        for j in range(kw)
    ]


def _windows(size: int, axis: int, spec: QuanvSpec) -> tuple[int, int, int]:
    """Padding before and behind, and the number of windows, along one axis."""
    k, s, d = (
        _pair(name, getattr(spec, name))[axis] for name in ("kernel_size", "stride", "dilation")
    )
    span = (k - 1) * d + 1
    if spec.padding == "VALID":
        lo = hi = 0
    elif spec.padding == "SAME":
        total = max((-(-size // s) - 1) * s + span - size, 0)
        lo, hi = total // 2, total - total // 2
    else:
        lo, hi = (int(p) for p in spec.padding[axis])
    if span > size + lo + hi:
        side = ("rows", "columns")[axis]
        raise ValueError(
            f"kernel_size={spec.kernel_size}, dilation={spec.dilation}: the taps span {span} "
            f"{side}; the padded image has {size + lo + hi}"
        )
    return lo, hi, (size + lo + hi - span) // s + 1


def _pair(name: str, value: tuple[int, int] | int) -> tuple[int, int]:
    pair = (value, value) if np.ndim(value) == 0 else tuple(value)  # pyright: ignore
    if len(pair) != 2:
        raise ValueError(f"{name}={value}: must be an int or two")
    first, second = (checked_int(name, v, 1) for v in pair)
    return first, second
