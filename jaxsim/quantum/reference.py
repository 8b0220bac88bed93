"""Quanvolutions by PennyLane, one window at a time: slow, for checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxsim.quantum.quanvolution import QuanvSpec, out_shape


def qnode_reference(
    qfunc: Callable[..., Any] | Sequence[Callable[..., Any]],
    spec: QuanvSpec,
    params: Sequence[Any] = (),
) -> Callable[[Any], Float[np.ndarray, "B h w C*n"]]:
    """Makes a layer that runs `qfunc` on default.qubit at every window, in double precision.

    Args:
      qfunc: PennyLane quantum function, or several before each of which pixels are encoded, as
        `compile_circuit` takes them.
      spec: Windows of the quanvolution.
      params: Arguments of `qfunc`.

    Returns:
      A function of images [B, H, W] or [B, H, W, C] with the outputs of `quanv2d`.

    Raises:
      ValueError: Taps that span more than the image.

    Examples:
      >>> import numpy as np
      >>> import pennylane as qml
      >>> import jaxsim.quantum as jq
      >>> layer = jq.qnode_reference(lambda: qml.CNOT(wires=[0, 1]), jq.QuanvSpec((1, 2)))
      >>> layer(np.array([[[1.0, 0.0]]])).round(3).tolist()
      [[[[-1.0, -1.0]]]]
    """
    import pennylane as qml  # takes seconds to import, and only this path and `read_qfunc` need it

    (kh, kw), (sh, sw), (dh, dw) = (
        np.broadcast_to(v, 2).tolist() for v in (spec.kernel_size, spec.stride, spec.dilation)
    )
    wires = range(kh * kw)
    several = list(qfunc) if isinstance(qfunc, Sequence) else [qfunc]

    @qml.qnode(qml.device("default.qubit", wires=len(wires)), interface=None)
    def node(angles: Any) -> Any:
        for each in several:
            for q in wires:
                qml.RY(angles[q], wires=q)
            each(*params)
        return [qml.expval(qml.PauliZ(q)) for q in wires]

    def layer(x: Any) -> Float[np.ndarray, "B h w C*n"]:
        x = np.asarray(x, float)
        x = x if x.ndim == 4 else x[..., None]
        rows, columns = out_shape(x.shape[1:3], spec)
        pads = [(0, 0)] * 4
        if spec.padding == "SAME":
            for axis, (count, s, k, d) in enumerate(
                [(rows, sh, kh, dh), (columns, sw, kw, dw)], start=1
            ):
                total = max((count - 1) * s + (k - 1) * d + 1 - x.shape[axis], 0)
                pads[axis] = (total // 2, total - total // 2)
        elif spec.padding != "VALID":
            pads[1:3] = [(int(lo), int(hi)) for lo, hi in spec.padding]
        angles = np.pad(np.asarray(spec.encoding(x), float), pads)
        out = np.empty((len(x), rows, columns, x.shape[3], len(wires)))
        for b, r, c, channel in np.ndindex(out.shape[:-1]):
            seen = [
                angles[b, r * sh + i * dh, c * sw + j * dw, channel]
                for i in range(kh)
                for j in range(kw)
            ]
            out[b, r, c, channel] = node(np.array(seen))
        return out.reshape(*out.shape[:3], -1)

    return layer
