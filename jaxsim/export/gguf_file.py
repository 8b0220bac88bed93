"""Decoders as GGUF files: weights in blocks or floats, with what describes the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import numpy as np

from jaxsim.cores.block_grid import BlockState, block_grid
from jaxsim.cores.role import WEIGHT
from jaxsim.data.gguf import Codes, bytes_of
from jaxsim.files import atomic
from jaxsim.formats.block_grid import ROWS
from jaxsim.network.calls import LinenCall
from jaxsim.network.leaves import path_name
from jaxsim.network.lookups import as_written
from jaxsim.network.network import Network, require_uncut
from jaxsim.network.site import Site
from jaxsim.numerics.packed import unpacked

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from jaxsim.models.llama.decoder import Llama
    from jaxsim.models.llama.weights import Weight

Floats = Literal["F32", "F16"]
"""Types of weights that are not quantized."""


def gguf(
    net: Network,
    path: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    floats: Floats = "F32",
    name: str = "decoder",
) -> None:
    """Writes a decoder as a GGUF file, which llama.cpp and its kin read.

    Weights that `js.quantize(js.BlockGrid(kind), None)` stores are written as they are, code by
    code: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 in one file, each where it is. All others are floats.
    Needs the package `gguf`, which `pip install "jaxsim[export]"` brings.

    Args:
      net: Network of a `jaxsim.models.llama.Llama`, without cores or deployed.
      path: File to write.
      tokenizer: Tokenizer of byte pairs; None writes none, so that programs that take text refuse
        the file.
      floats: Type of matrices that are not quantized; vectors are always F32.
      name: Name of the model in the file.

    Raises:
      ValueError: Another model, one that is not deployed, weights in other formats, quantized
        inputs, what is computed around a site, one table that is looked up in other numbers than
        it is multiplied in, weights that float16 cannot hold, or a tokenizer of another kind.

    Examples:
      >>> import pathlib, tempfile
      >>> import jax, jax.numpy as jnp
      >>> import jaxsim as js
      >>> from jaxsim.data.gguf import read_gguf
      >>> from jaxsim.models.llama import tiny
      >>> ids = jnp.array([[1, 5, 9]])
      >>> net = js.trace(tiny(), tiny().init(jax.random.key(0), ids), ids)
      >>> chip = js.deploy(js.quantize(js.BlockGrid("Q4_1"), None, sites="layers/*")(net))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "tiny.gguf")
      ...     js.export.gguf(chip, path)
      ...     tensors = read_gguf(path).tensors
      ...     kinds = {name: tensor.kind for name, tensor in tensors.items()}
      >>> kinds["blk.1.ffn_up.weight"], kinds["token_embd.weight"]
      ('Q4_1', 'F32')

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    from jaxsim.models.llama.tokenizer import to_fields
    from jaxsim.models.llama.weights import pairs_together, weights_of

    model = _model_of(net)
    if floats not in get_args(Floats):
        raise ValueError(f"floats={floats!r}: must be 'F32' or 'F16'")
    atomic.check_target("path", path)
    about = {} if tokenizer is None else to_fields(tokenizer, model.vocabulary)
    sites = _sites_of(net, model)
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    params = {
        path_name(place): leaf
        for place, leaf in jax.tree_util.tree_leaves_with_path(net.masked_params())
    }
    for weight in weights_of(model):
        found = _codes(net, weight, sites[weight.path])
        layers = range(model.layers) if weight.stacked else (0,)
        if found is None:
            whole = _floats(weight, params[weight.path], floats)
            parts = [(_kind(whole), part) for part in (whole if weight.stacked else whole[None])]
        else:
            parts = [(found.kind, bytes_of(_layer(found, i))) for i in layers]
        for i, (kind, part) in zip(layers, parts, strict=True):
            rows = pairs_together(part, weight.heads) if weight.heads else part
            tensors[weight.gguf.format(i)] = kind, rows
    with atomic.whole(path) as part:
        _write(part, model, name, about, tensors)


def _model_of(net: Any) -> Llama:
    """The decoder that a network traces, its state such that a file can hold it."""
    from jaxsim.models.llama.decoder import Llama, head_width

    if not isinstance(net, Network):
        raise ValueError(f"net: a {type(net).__name__} is no Network; js.trace(model, …) makes one")
    require_uncut(net, "export.gguf", reason="a file holds one model, without stages")
    if not isinstance(net.fn, LinenCall) or not isinstance(net.fn.model, Llama):
        called = net.fn.model if isinstance(net.fn, LinenCall) else net.fn
        raise ValueError(
            f"net: calls a {type(called).__name__}; must be a jaxsim.models.llama.Llama, as "
            "js.trace takes it"
        )
    if net.cores and not net.deployed:
        raise ValueError("net: give what js.deploy(net) returns, whose codes are written")
    head_width(net.fn.model)
    return net.fn.model


def _sites_of(net: Network, model: Llama) -> dict[str, list[Site]]:
    """The sites that read each weight, by its path; none other is transformed."""
    from jaxsim.models.llama.weights import weights_of

    sites = {
        w.path: [s for s in net.sites if s.param == w.path or s.sources == (w.path,)]
        for w in weights_of(model)
    }
    known = {site.name for found in sites.values() for site in found}
    if others := [site for site in net.cores if site not in known]:
        raise ValueError(f"export.gguf: {others[0]} multiplies no weight that a file could hold")
    return sites


def _codes(net: Network, weight: Weight, sites: list[Site]) -> Codes | None:
    """The codes of a weight, [*layers, outputs, inputs]; None of one in floats."""
    found = [_site_codes(net, site) if site.name in net.cores else None for site in sites]
    if all(codes is None for codes in found):
        return None
    first, *others = found
    if first is None or any(o is None or not _equal(first, o) for o in others):
        names = " and ".join(site.name for site in sites)
        raise ValueError(
            f"export.gguf: {names} read {weight.path} in other numbers, and a file holds it once; "
            "quantize both in one format"
        )
    return first


def _equal(a: Codes, b: Codes) -> bool:
    return a.kind == b.kind and np.array_equal(bytes_of(a), bytes_of(b))


def _site_codes(net: Network, site: Site) -> Codes:
    """The codes that a site reads."""
    chain = [w for w in net.cores[site.name] if w.role not in WEIGHT]
    for wrapper in chain:
        if wrapper.role != "groups" and wrapper.factory is not block_grid:
            raise ValueError(
                f"export.gguf: {site.name} reads {wrapper!r}; must be blocks of {ROWS} weights "
                "with scales in float16, and inputs in floats: js.quantize(js.BlockGrid(…), None)"
            )
    state: BlockState = as_written(net.states[site.name])
    if state.kept is not None:
        raise ValueError(
            f"export.gguf: {site.name} is pruned, and {chain[-1].settings['weights']} has no code "
            "for zero; quantize in Q4_0, Q5_0 or Q8_0"
        )
    outputs_first = site.kind == "lookup"
    depth = site.w_shape[1] if outputs_first else site.w_shape[0]
    held = [np.asarray(unpacked(state.codes)), np.asarray(state.scale, np.float32)]
    if state.minimum is not None:
        held.append(np.asarray(state.minimum, np.float32))
    stack = len(site.stack)
    rows: list[np.ndarray] = []
    for a, n in zip(held, (depth, depth // ROWS, depth // ROWS), strict=False):
        if a.ndim > stack + 2:  # [1, blocks, weights of a block, outputs]
            a = a.reshape(*a.shape[:stack], n, a.shape[-1])
            rows.append(np.swapaxes(a, -1, -2))
        else:
            rows.append(a if outputs_first else np.swapaxes(a, -1, -2))
    codes, scale, *minimum = rows
    return Codes(codes, scale, minimum[0] if minimum else None, chain[-1].settings["weights"].kind)


def _layer(held: Codes, i: int) -> Codes:
    """The codes of one layer, or of what is no stack."""
    if held.codes.ndim == 2:
        return held
    minimum = None if held.minimum is None else held.minimum[i]
    return Codes(held.codes[i], held.scale[i], minimum, held.kind)


def _kind(a: np.ndarray) -> str:
    return "F16" if a.dtype == np.float16 else "F32"


def _floats(weight: Weight, values: Any, floats: Floats) -> np.ndarray:
    """A weight in floats, [*layers, outputs, inputs]."""
    a = np.asarray(values, np.float32)
    a = np.swapaxes(a, -1, -2) if weight.kernel else a
    if floats == "F32" or len(weight.shape) == 1:
        return np.ascontiguousarray(a)
    with np.errstate(over="ignore"):
        half = a.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"floats='F16': {weight.path} has weights beyond 65504; give 'F32'")
    return half


def _write(
    path: Path,
    model: Llama,
    name: str,
    about: dict[str, Any],
    tensors: dict[str, tuple[str, np.ndarray]],
) -> None:
    from gguf import GGUFWriter
    from gguf.constants import GGML_QUANT_VERSION, GGMLQuantizationType

    from jaxsim.models.llama.decoder import head_width

    writer, d = GGUFWriter(path, "llama"), head_width(model)
    writer.add_name(name)
    writer.add_block_count(model.layers)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.width)
    writer.add_feed_forward_length(model.hidden)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.groups)
    writer.add_key_length(d)
    writer.add_value_length(d)
    writer.add_rope_dimension_count(d)
    writer.add_rope_freq_base(float(model.base))
    writer.add_layer_norm_rms_eps(float(model.epsilon))
    writer.add_vocab_size(model.vocabulary)
    if any(kind not in get_args(Floats) for kind, _ in tensors.values()):
        writer.add_quantization_version(GGML_QUANT_VERSION)
    for key, value in about.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for tensor, (kind, data) in tensors.items():
        writer.add_tensor(tensor, data, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
