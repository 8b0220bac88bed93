"""Circuits as filters: a quantum circuit compiled to a small real function of its inputs."""

from jaxsim.quantum.ansatz import basic_entangling, random_layers, strongly_entangling
from jaxsim.quantum.circuit import Circuit, Gate, read_qfunc
from jaxsim.quantum.compilation import compile_circuit
from jaxsim.quantum.draw import draw
from jaxsim.quantum.encoding import ry, threshold
from jaxsim.quantum.kernel import CircuitKernel, expval, probabilities
from jaxsim.quantum.noise import Channel, amplitude_damping, depolarizing, kraus
from jaxsim.quantum.quanvolution import QuanvSpec, n_circuits, out_shape, quanv2d
from jaxsim.quantum.reference import qnode_reference
from jaxsim.quantum.shots import sample

__all__ = [
    # circuits
    "Circuit",
    "Gate",
    "read_qfunc",
    "strongly_entangling",
    "basic_entangling",
    "random_layers",
    "draw",
    # kernels
    "CircuitKernel",
    "compile_circuit",
    "expval",
    "probabilities",
    "sample",
    # noise
    "Channel",
    "depolarizing",
    "amplitude_damping",
    "kraus",
    # layers
    "QuanvSpec",
    "ry",
    "threshold",
    "out_shape",
    "n_circuits",
    "quanv2d",
    "qnode_reference",
]
