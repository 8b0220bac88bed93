"""What is made of a decoder: formats, roundings, prunings, hardware and caches."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxsim as js
from benchmarks.topics.language.decoder import Decoder
from jaxsim.models.llama import gguf_grids

LAYERS = "layers*"
TOKEN = js.Grid(8, per="token")
GROUPS = js.Grid(4, symmetric=False, per="group", rows=32)
KEY = jax.random.key(7)

Batches = Sequence[np.ndarray]


class Recipe(NamedTuple):
    """A transform of the decoder, made of what it is to be measured on.

    Attributes:
      of: From batches of windows and the decoder to a transform.
      cached: Whether windows are read through the cache, a token a call.
    """

    of: Callable[[Batches, Decoder], Any]
    cached: bool = False


def stored(weights: Any, inputs: Any = None) -> Any:
    """Kernels of the layers in a format, table and head in the eight bits of their file."""
    rest = js.quantize(js.BlockGrid("Q8_0"), None, sites="embedding*")
    return js.compose(js.quantize(weights, inputs, sites=LAYERS), rest)


def of_file(seen: Batches, decoder: Decoder) -> Any:
    """The codes of the decoder's file; of a decoder without one those of its format."""
    if decoder.path is None:
        return stored(js.BlockGrid("Q4_1"))
    formats = {name: js.quantize(form, None) for name, form in gguf_grids(decoder.path).items()}
    return js.compose(
        js.rules(formats), js.quantize(js.BlockGrid("Q8_0"), None, sites="embedding*")
    )


def rounded(weights: Any, inputs: Any = None) -> Callable[[Batches, Decoder], Any]:
    """Weights moved onto their grids by GPTQ, slice after slice."""
    return lambda seen, _: js.compose(
        stored(weights, inputs),
        js.round_weights(js.rounding.gptq(), seen, by_site="rounded", sites=LAYERS),
    )


def turned(then: Any) -> Callable[[Batches, Decoder], Any]:
    """Channels of the residual stream and of values turned, and at each read what gates make."""
    return lambda seen, _: js.compose(js.rotate(seen[0], KEY, online="*down/kernel"), then)


def plain(transform: Any) -> Callable[[Batches, Decoder], Any]:
    """A transform that measures nothing."""
    return lambda seen, _: transform


ANALOG = js.compose(
    js.quantize(8, TOKEN, sites=LAYERS),
    js.analog(adc=8, cells=js.cells.proportional(0.02), sites=LAYERS),
)

RECIPES: dict[str, Recipe] = {
    "codes of the file": Recipe(of_file),
    "8 per channel, inputs 8 per token": Recipe(plain(stored(js.Grid(8, per="channel"), TOKEN))),
    "8 per channel, inputs 8 static": Recipe(plain(stored(js.Grid(8, per="channel"), 8))),
    "the same, smooth": Recipe(
        lambda seen, _: js.compose(
            stored(js.Grid(8, per="channel"), 8), js.smooth(seen, sites=LAYERS)
        )
    ),
    "the same, rotated": Recipe(turned(stored(js.Grid(8, per="channel"), 8))),
    "the same, rotated, down per token": Recipe(
        turned(
            js.rules(
                {
                    "*down/kernel": js.quantize(js.Grid(8, per="channel"), TOKEN),
                    LAYERS: js.quantize(js.Grid(8, per="channel"), 8),
                    "embedding*": js.quantize(js.BlockGrid("Q8_0"), None),
                }
            )
        )
    ),
    "4 per channel": Recipe(plain(stored(js.Grid(4, per="channel")))),
    "4 per channel, GPTQ": Recipe(rounded(js.Grid(4, per="channel"))),
    "4 in groups of 32, symmetric": Recipe(plain(stored(js.Grid(4, per="group", rows=32)))),
    "4 in groups of 32, affine": Recipe(plain(stored(GROUPS))),
    "4 in groups of 32, affine, GPTQ": Recipe(rounded(GROUPS)),
    "4 in groups of 32, affine, AWQ": Recipe(
        lambda seen, _: js.compose(stored(GROUPS), js.awq(seen, sites=LAYERS))
    ),
    "4 in groups of 32, affine, ranges fitted": Recipe(
        lambda seen, _: js.compose(stored(GROUPS), js.fit_ranges(seen, sites=LAYERS))
    ),
    "4 in groups of 32, affine, rotated, GPTQ": Recipe(
        lambda seen, decoder: js.compose(
            js.rotate(seen[0], KEY, online="*down/kernel"), rounded(GROUPS)(seen, decoder)
        )
    ),
    "Q4_0": Recipe(plain(stored(js.BlockGrid("Q4_0")))),
    "NF4 in groups of 32": Recipe(plain(stored(js.nf4(per="group", rows=32)))),
    "MX e4m3, inputs too": Recipe(plain(stored(js.mx("e4m3"), js.mx("e4m3")))),
    "MX e2m1, inputs too": Recipe(plain(stored(js.mx("e2m1"), js.mx("e2m1")))),
    "NVFP4": Recipe(plain(stored(js.nvfp4()))),
    "NVFP4, inputs too": Recipe(plain(stored(js.nvfp4(), js.nvfp4()))),
    "NVFP4, GPTQ": Recipe(rounded(js.nvfp4())),
    "NVFP4, inputs too, GPTQ": Recipe(rounded(js.nvfp4(), js.nvfp4())),
    "NVFP4, inputs too, smooth, GPTQ": Recipe(
        lambda seen, _: js.compose(
            stored(js.nvfp4(), js.nvfp4()),
            js.smooth(seen, 0.75, sites=LAYERS),
            js.round_weights(js.rounding.gptq(), seen, by_site="rounded", sites=LAYERS),
        )
    ),
    "NVFP4, inputs too, rotated": Recipe(turned(stored(js.nvfp4(), js.nvfp4()))),
    "half pruned by magnitude": Recipe(
        plain(js.prune(0.5, distribution=js.sparsity.uniform(), sites=LAYERS))
    ),
    "half pruned, Wanda": Recipe(
        lambda seen, _: js.prune(
            criterion=js.sparsity.wanda(seen),
            pattern=js.sparsity.per_output(0.5),
            sites=LAYERS,
        )
    ),
    "2 of 4, Wanda": Recipe(
        lambda seen, _: js.prune(
            criterion=js.sparsity.wanda(seen), pattern=js.sparsity.n_of_m(2, 4), sites=LAYERS
        )
    ),
    "half pruned, SparseGPT": Recipe(
        lambda seen, _: js.prune_layers(seen, 0.5, by_site="pruned", sites=LAYERS)
    ),
    "2 of 4, SparseGPT": Recipe(
        lambda seen, _: js.prune_layers(seen, keep=(2, 4), by_site="pruned", sites=LAYERS)
    ),
    "analog pairs, 8/8, ADC 8, 2 % proportional": Recipe(plain(ANALOG)),
    "cache of 8 bits": Recipe(plain(js.code_cache(8)), cached=True),
    "cache of 4 bits": Recipe(
        plain(js.code_cache(js.Grid(4, symmetric=False, per="group", rows=32))), cached=True
    ),
    "cache of NVFP4": Recipe(plain(js.code_cache(js.nvfp4())), cached=True),
}


def identity(transform: Any) -> str:
    """Tells one transform from another, by how it was called."""
    return f"{zlib.crc32(repr(transform).encode()):08x}"
