"""Layers that can be rescaled together: found by rescaling them and looking at the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsim.cores.partition import Partitioned
from jaxsim.inputs.batches import batches
from jaxsim.network.arguments import call_arguments
from jaxsim.network.network import Net, Network
from jaxsim.network.params import tensors, with_tensors
from jaxsim.network.transform import transformable
from jaxsim.numerics.arrays import placed_like, whole_on_host

TOLERANCE = 1e-4
"""What outputs may differ by, as a share of the largest, where they are to be the same."""


class Layer(NamedTuple):
    """The kernel of a site, its output channels last, and what else is an output channel's.

    Attributes:
      name: of the site.
      kernel: path of its parameter.
      bias: path of the bias that the layer adds, or None.
      stack: leading axes that scans add.
      channels: its number of output channels.
    """

    name: str
    kernel: str
    bias: str | None
    stack: tuple[int, ...]
    channels: int


class Norm(NamedTuple):
    """A batch normalization by stored statistics.

    Attributes:
      name: of its group of parameters.
      scale, bias: paths of its parameters, or None.
      mean, var: paths of its statistics.
    """

    name: str
    scale: str | None
    bias: str | None
    mean: str
    var: str


def layers(net: Network, transform: str, sites: str | Sequence[str]) -> list[Layer]:
    """The layers of float sites whose parameter has its output channels last and no other reader.

    Raises:
      ValueError: a site is transformed already.
    """
    chosen = transformable(net, transform, sites)
    held, found = tensors(net), dict[str, Layer]()
    for site in chosen:
        if site.param is None or site.shared or site.param in net.weights:
            continue
        if site.name in net.cores:
            raise ValueError(
                f"{transform} cannot follow the cores at {site.name}: put it before quantize"
            )
        kernel = f"params/{site.param}"
        shape = held[kernel].shape
        if len(shape) < len(site.stack) + 2 or shape[: len(site.stack)] != site.stack:
            continue
        bias = kernel.rpartition("/")[0] + "/bias"
        whole = (*site.stack, shape[-1])
        own = bias if bias in held and held[bias].shape == whole else None
        found.setdefault(kernel, Layer(site.name, kernel, own, site.stack, shape[-1]))
    return list(found.values())


def norms(net: Network) -> list[Norm]:
    """Groups of buffers called mean and var, and the parameters of the same path."""
    held, found = tensors(net), list[Norm]()
    for mean in held:
        group, _, leaf = mean.rpartition("/")
        var = f"{group}/var"
        if not mean.startswith("buffers/") or leaf != "mean" or var not in held:
            continue
        path = group.removeprefix("buffers/")
        # Linen keeps statistics in a collection of their own, NNX beside the parameters
        places = [f"params/{path}", "params/" + path.partition("/")[2]]
        names = [[f"{place}/{leaf}" for place in places] for leaf in ("scale", "bias")]
        scale, bias = (next((n for n in options if n in held), None) for options in names)
        found.append(Norm(path, scale, bias, mean, var))
    return found


class Trials(NamedTuple):
    """A network on some inputs, to see whether changed tensors leave its outputs; see `trials_of`.

    Attributes:
      net: the network.
      inputs: arguments of each call.
      expected: its float outputs.
    """

    net: Network
    inputs: tuple[Partitioned, ...]
    expected: list[np.ndarray]

    def off(self, changes: Mapping[str, np.ndarray]) -> float:
        """Largest difference of an output with some tensors replaced, as a share of the largest."""
        changed = {path: jnp.asarray(a) for path, a in changes.items()}
        return self.difference(with_tensors(self.net, changed))

    def difference(self, net: Network) -> float:
        """Largest difference of an output of another network, as a share of the largest."""
        found = _outputs(net, self.inputs)
        return max(
            float(np.abs(y - z).max(initial=0) / max(np.abs(y).max(initial=0), 1e-30))
            for y, z in zip(self.expected, found, strict=True)
        )

    def same(self, changes: Mapping[str, np.ndarray]) -> bool:
        """Whether the outputs stay."""
        return self.off(changes) <= TOLERANCE


def trials_of(net: Network, inputs: Any) -> Trials:
    """Trials of a network on a batch or an iterable of batches.

    Raises:
      ValueError: what `batches` raises, or its outputs are not finite.
    """
    calls = tuple(call_arguments(*batch) for batch in batches(inputs))
    expected = _outputs(net, calls)
    if not all(np.isfinite(y).all() for y in expected):
        raise ValueError("inputs: the network's outputs hold NaN or infinite values")
    return Trials(net, calls, expected)


def _outputs(net: Network, inputs: tuple[Partitioned, ...]) -> list[np.ndarray]:
    """The float outputs."""
    leaves = jax.tree.leaves([_run(net, arguments) for arguments in inputs])
    return [np.asarray(y, np.float32) for y in leaves if jnp.issubdtype(y.dtype, jnp.floating)]


@jax.jit
def _run(net: Network, arguments: Partitioned) -> Any:
    args, kwargs = arguments.combine()
    return net(*args, **kwargs)


def factors(layer: Layer) -> np.ndarray:
    """A random factor from 1/e to e for each output channel, [*stack, C]."""
    rng = np.random.default_rng(0)
    return np.exp(rng.uniform(-1, 1, (*layer.stack, layer.channels))).astype(np.float32)


def on_host(net: Network) -> dict[str, np.ndarray]:
    """Parameters and buffers by path, in NumPy: what trial and error changes compiles nothing."""
    keys = jax.dtypes.prng_key
    held = tensors(net).items()
    return {path: whole_on_host(a) for path, a in held if not jnp.issubdtype(a.dtype, keys)}


def on_devices(net: Net, changes: Mapping[str, np.ndarray]) -> Net:
    """A network whose changed tensors lie where the ones before them did."""
    before = tensors(net)
    return with_tensors(
        net,
        {path: placed_like(jnp.asarray(a), before[path]) for path, a in changes.items()},
    )


def on_outputs(kernel: np.ndarray, by: Any) -> np.ndarray:
    """A kernel, its output channels multiplied by [*stack, C]."""
    stack = np.shape(by)[:-1]
    middle = (1,) * (kernel.ndim - len(stack) - 1)
    return kernel * np.reshape(by, (*stack, *middle, np.shape(by)[-1]))


def norm_behind(
    layer: Layer, candidates: Iterable[Norm], trials: Trials, epsilon: float
) -> Norm | None:
    """The norm that a layer's outputs go into and nowhere else, if there is one."""
    held, by = on_host(trials.net), factors(layer)
    scaled = {p: on_outputs(held[p], by) for p in (layer.kernel, layer.bias) if p is not None}
    for norm in candidates:
        if held[norm.mean].shape != by.shape:
            continue
        mean, var = held[norm.mean] * by, (held[norm.var] + epsilon) * by**2 - epsilon
        if trials.same({**scaled, norm.mean: mean, norm.var: var}):
            return norm
    return None
