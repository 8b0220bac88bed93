"""Quantum convolutions: layers whose filters are circuits, and a classifier on top of one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxsim.numerics.checks import checked_int
from jaxsim.quantum.ansatz import basic_entangling, random_layers, strongly_entangling
from jaxsim.quantum.circuit import Circuit
from jaxsim.quantum.compilation import compile_circuit
from jaxsim.quantum.encoding import Encoding, ry
from jaxsim.quantum.kernel import CircuitKernel
from jaxsim.quantum.noise import Channel
from jaxsim.quantum.quanvolution import Padding, QuanvSpec, quanv2d

Ansatz = Literal["strongly_entangling", "basic", "random"]


class QuanvConv(nn.Module):
    """A circuit run at every window of an image; <Z> of each wire is an output channel.

    A trained circuit has the parameter `weights`, and its matrix is a site of the network. A fixed
    one has neither: it is a constant of the model.

    Attributes:
      kernel_size: Taps, one wire each.
      stride: Pixels from one window to the next.
      padding: As in `QuanvSpec`.
      dilation: Pixels from one tap to the next.
      encoding: Function from pixels to angles of RY.
      ansatz: Kind of layers, or a compiled circuit.
      layers: Number of layers of the ansatz, at least 1, behind each encoding.
      uploads: How often pixels are encoded, at least 1, each time with layers of their own behind.
      trainable: Whether the angles are parameters.
      seed: Seed of the angles of a fixed circuit, and of the gates of the random ansatz.
      noise: A channel, or None.
      shots: Number of shots, drawn with the random stream "shots"; None for exact values.
      joint: Whether the wires are read in the same shots.
    """

    kernel_size: tuple[int, int] | int = (2, 2)
    stride: tuple[int, int] | int = (1, 1)
    padding: Padding = "VALID"
    dilation: tuple[int, int] | int = (1, 1)
    encoding: Encoding = ry
    ansatz: Ansatz | CircuitKernel = "strongly_entangling"
    layers: int = 1
    uploads: int = 1
    trainable: bool = True
    seed: int = 0
    noise: Channel | None = None
    shots: int | None = None
    joint: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C*n"]:
        """The layer's output."""
        spec = QuanvSpec(self.kernel_size, self.stride, self.dilation, self.padding, self.encoding)
        kernel = self._kernel(math.prod(np.broadcast_to(spec.kernel_size, 2).tolist()))
        sampled = self.shots is not None and not self.is_initializing()
        key = self.make_rng("shots") if sampled else None
        shots = self.shots if sampled else None
        return quanv2d(x, kernel, spec, shots=shots, key=key, joint=self.joint)

    def _kernel(self, n: int) -> CircuitKernel:
        """The compiled circuit of n wires."""
        if isinstance(self.ansatz, CircuitKernel):
            if self.trainable or self.noise is not None or self.uploads != 1:
                raise ValueError(
                    f"trainable={self.trainable}, noise={self.noise}, uploads={self.uploads}: a "
                    "compiled circuit is fixed and has its noise and its encodings; give "
                    "trainable=False, noise=None and uploads=1"
                )
            return self.ansatz
        layers = checked_int("layers", self.layers, 1)
        uploads = checked_int("uploads", self.uploads, 1)
        build, angles = _circuit(self.ansatz)
        shape = (uploads * layers, n, *angles)
        if self.trainable:
            weights = self.param("weights", jax.nn.initializers.uniform(2 * math.pi), shape)
        else:
            weights = np.random.default_rng(self.seed).uniform(0, 2 * math.pi, shape)
        each = [weights[i * layers : (i + 1) * layers] for i in range(uploads)]
        circuits = [build(w, self.seed + i) for i, w in enumerate(each)]
        return compile_circuit(circuits, noise=self.noise)


def _circuit(ansatz: str) -> tuple[Callable[..., Circuit], tuple[int, ...]]:
    """Function from weights and a seed to a circuit, and the trailing axes of the weights."""
    match ansatz:
        case "strongly_entangling":
            return lambda weights, seed: strongly_entangling(weights), (3,)
        case "basic":
            return lambda weights, seed: basic_entangling(weights), ()
        case "random":
            return random_layers, ()
        case _:
            raise ValueError(
                f"ansatz={ansatz!r}: must be 'strongly_entangling', 'basic', 'random' or a "
                "compiled circuit"
            )


class QDCNN(nn.Module):
    """A quantum dilated convolution, pooling, dense layers: a classifier of images.

    Attributes:
      classes: Number of outputs.
      conv: The quantum layer; its dilation makes it dilated.
      pool: Side of the average pooling behind it; 1 for none.
      hidden: Widths of dense layers with ReLU before the last one.

    Source: Chen (2022), doi 10.1109/ACCESS.2022.3152213.
    """

    classes: int = 10
    conv: QuanvConv = QuanvConv(dilation=2)
    pool: int = 1
    hidden: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B classes"]:
        """Logits."""
        x = self.conv(x)
        if self.pool > 1:
            x = nn.avg_pool(x, (self.pool, self.pool), (self.pool, self.pool))
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.classes)(x)
