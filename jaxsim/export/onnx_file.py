"""Networks as ONNX graphs: codes and scales at quantized sites, floats between them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxsim.export.arguments import call_shapes, explained_sizes
from jaxsim.export.graph import Graph, Tensor
from jaxsim.export.lowering import Lowering, known
from jaxsim.files import atomic
from jaxsim.internals import shape_of
from jaxsim.network.leaves import path_name
from jaxsim.network.network import Network, check_sites, require_uncut
from jaxsim.network.params import param_names
from jaxsim.network.planner import trace_plan
from jaxsim.network.unheld import require_held

if TYPE_CHECKING:
    import onnx as onnx_package

_LARGEST = 2**31 - 1
"""Bytes of a file that protobuf reads."""


def onnx(net: Network, path: str | Path, *args: Any, **kwargs: Any) -> onnx_package.ModelProto:
    """Writes a network as an ONNX graph: quantized sites as codes and scales, all else in floats.

    A site of `js.quantize` becomes `QuantizeLinear` and `DequantizeLinear` (QDQ) on its inputs, its
    codes with `DequantizeLinear` for a weight, and `Conv` or `MatMul` between; runtimes make
    integer kernels of that. What lies between sites is made from the equations of the model, by a
    table of primitives. Needs the package `onnx`, which `pip install "jaxsim[export]"` brings with
    `onnxruntime`.

    Args:
      net: Network without transformed sites, or deployed.
      path: File to write.
      *args: Arguments of the call as arrays or shapes, whose sizes may be symbols of
        `jax.export.symbolic_shape`; without any array, those of the traced example, their batch
        free. Inputs of the graph are called `input_0`, `input_1`, … and outputs `output_0`, ….
      **kwargs: Keyword arguments of the call; arrays among them are inputs by their name.

    Returns:
      The model that was written.

    Raises:
      ModuleNotFoundError: The package `onnx` is not installed.
      ValueError: Not deployed; a primitive that has no form in ONNX, by name and line; or a site
        that has none, by name: cells, slices, blocks of bits, groups along several axes, numbers
        that are no whole codes, ranges of each batch, a `while` around it, exits and pipelines.

    Examples:
      >>> import pathlib, tempfile
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.array([[-1.0, 0.5], [0.25, 1.0]])
      >>> net = js.trace(lambda p, x: jnp.tanh(x @ p["w"]), {"w": jnp.eye(2)}, x)
      >>> chip = js.deploy(js.quantize(8, 8)(net), calibrate=x)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     model = js.export.onnx(chip, pathlib.Path(folder, "chip.onnx"))
      >>> [node.op_type for node in model.graph.node][:5]
      ['Clip', 'QuantizeLinear', 'DequantizeLinear', 'DequantizeLinear', 'MatMul']

    Source: https://onnx.ai/onnx/operators; Jacob et al. (2018), arXiv 1712.05877, section 3.
    """
    _check(net)
    graph = Graph()
    atomic.check_target("path", path)
    arguments = call_shapes(net, args, kwargs)
    if any(jnp.issubdtype(a.dtype, jax.dtypes.prng_key) for a in arguments.arrays):
        raise ValueError("export.onnx: an argument is a random key, and ONNX has none")
    held = (net.masked_params(), net.buffers)
    shapes = jax.eval_shape(lambda: held)
    with explained_sizes(arguments):
        traced = trace_plan(net.fn, shapes[0], shapes[1], arguments, net.example, net.weights)
    check_sites(net, traced.plan)
    require_held(net.unheld, list(param_names(net)), traced.plan, net.states)
    inputs = [
        graph.met(Tensor(graph.name(name), tuple(a.shape)))
        for name, a in zip(_input_names(arguments), arguments.arrays, strict=True)
    ]
    values = [*map(known, jax.tree.leaves(held)), *inputs]
    outs = Lowering(net, graph).run(traced.plan, values)
    places = jax.tree.unflatten(traced.out_tree, range(len(outs)))
    paths = jax.tree_util.tree_leaves_with_path(places)
    outputs: list[tuple[Tensor, Any]] = []
    for i, ((place, _), value, v) in enumerate(
        zip(paths, outs, traced.plan.jaxpr.outvars, strict=True)
    ):
        whole = graph.full(value, shape_of(v).shape)
        name = f"output_{path_name(place)}" if place else f"output_{i}"
        outputs.append((graph.output(whole, name), shape_of(v).dtype))
    described = [(x, a.dtype) for x, a in zip(inputs, arguments.arrays, strict=True)]
    model = graph.model(described, outputs, "jaxsim")
    if model.ByteSize() > _LARGEST:
        raise ValueError(
            f"export.onnx: the graph takes {model.ByteSize()} bytes; must be at most {_LARGEST}"
        )
    graph.onnx.checker.check_model(model, full_check=True)
    with atomic.whole(path) as part:
        part.write_bytes(model.SerializeToString())
    return model


def _input_names(arguments: Any) -> list[str]:
    args, kwargs = arguments.combine()
    arrays = {id(a) for a in arguments.arrays}
    leaves = jax.tree_util.tree_leaves_with_path((args, kwargs))
    named = [(path[1:], path[0].idx == 0) for path, leaf in leaves if id(leaf) in arrays]
    return [f"input_{path_name(path)}" if given else path_name(path) for path, given in named]


def _check(net: Any) -> None:
    if not isinstance(net, Network):
        raise ValueError(f"net: a {type(net).__name__} is no Network; js.trace(model, …) makes one")
    require_uncut(
        net,
        "export.onnx",
        reason="rows that leave and devices that take over are no operators of a graph",
    )
    if net.cores and not net.deployed:  # which asks for inputs where ranges are to be set
        raise ValueError("net: give what js.deploy(net, calibrate=inputs) returns")
