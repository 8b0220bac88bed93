"""How numbers are stored: on a grid of codes, in a table, or as short floats."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import jax.numpy as jnp
import numpy as np

from jaxsim.cores.lookup import codebook_lookup
from jaxsim.cores.minifloat import minifloat
from jaxsim.cores.quantized import quantized
from jaxsim.cores.tiled import grouped
from jaxsim.cores.wrapper import Wrapper
from jaxsim.formats.codebook import Codebook, Floating
from jaxsim.formats.grid import Grid
from jaxsim.network.network import Network
from jaxsim.network.transform import Transform, hardware_chain, transformable
from jaxsim.numerics.checks import check_called, check_range, checked_int, is_traced, is_whole
from jaxsim.values.calls import shown_as_called

Format = int | Grid | Codebook | Floating | None
"""How numbers are stored: bits of a symmetric grid, a grid, a table, short floats, or as they are.
"""


@shown_as_called
def quantize(
    weights: Format = 8,
    inputs: int | Grid | Floating | None = 8,
    *,
    sites: str | Sequence[str] = "*",
) -> Transform:
    """Stores weights and inputs of each site as integer codes, table indices or short floats.

    Before `deploy`, ranges follow each batch and gradients pass through the rounding: training the
    composed network is quantisation-aware training. After it, weights are stored as codes, and
    codes of both operands are multiplied in integers.

    Args:
      weights: an int stands for a symmetric grid of that many bits, one scale a channel; a `Grid`,
        `Codebook` or `Floating` says more; None keeps floats.
      inputs: an int stands for a symmetric grid of that many bits, one scale, set at calibration;
        a `Grid` or `Floating` says more; None keeps floats.
      sites: patterns of the sites to quantise.

    Raises:
      ValueError: a format that is none, or whose numbers do not fit together; nothing to do; when
        applied, a site that is quantised already or that another core already took over, or a
        table at a dynamic site.

    Source: Jacob et al. (2018), arXiv 1712.05877; Gholami et al. (2021), arXiv 2103.13630.
    """
    check_called("weights", weights)
    check_called("inputs", inputs)
    w, x = _grid(weights, per="channel"), _grid(inputs, per="tensor")
    if w is None and x is None:
        raise ValueError("weights=None, inputs=None: nothing to quantise")
    if w is not None and not isinstance(w, Grid | Codebook | Floating):
        raise ValueError(f"weights={w!r}: must be an int, a Grid, a Codebook, a Floating or None")
    if x is not None and not isinstance(x, Grid | Floating):
        raise ValueError(f"inputs={x!r}: must be an int, a Grid, a Floating or None")
    w, x = _checked("weights", w), _checked("inputs", x)
    if isinstance(w, Grid) and (w.dynamic or w.average is not None or w.per == "token"):
        raise ValueError(f"weights={w}: dynamic, average and per='token' are for inputs")
    if x is not None and x.per not in ("tensor", "token"):
        raise ValueError(f"inputs: per={x.per!r}, must be 'tensor' or 'token'")
    if isinstance(x, Grid) and x.average is not None and (x.dynamic or x.per == "token"):
        raise ValueError(f"inputs: average={x.average} has no effect on ranges of each batch")

    wrappers: list[Wrapper] = []
    if w is not None and w.per == "group":
        wrappers.append(Wrapper.of(grouped, rows=w.rows))
        w = dataclasses.replace(w, per="channel", rows=None)
    if isinstance(w, Grid) or isinstance(x, Grid):
        on_grids = {"weights": _only(Grid, w), "inputs": _only(Grid, x)}
        wrappers.append(Wrapper.of(quantized, **on_grids))
    if isinstance(w, Codebook):
        wrappers.append(Wrapper.of(codebook_lookup, weights=w))
    if isinstance(w, Floating) or isinstance(x, Floating):
        short = {"weights": _only(Floating, w), "inputs": _only(Floating, x)}
        wrappers.append(Wrapper.of(minifloat, **short))

    def apply(net: Network) -> Network:
        chosen = transformable(net, "quantize", sites)
        for site in chosen:
            if before := hardware_chain(net, site):
                raise ValueError(
                    f"quantize cannot follow {before[-1].name} at {site.name}: codes must be "
                    "made before hardware stores them, and only once"
                )
            if site.kind == "dynamic" and isinstance(w, Codebook):
                raise ValueError(f"weights={w} at {site.name}: it has no weights to point")
        for wrapper in wrappers:
            net = net.wrap((s.name for s in chosen), wrapper)
        return net

    return apply


_Kind = TypeVar("_Kind")


def _only(kind: type[_Kind], form: Any) -> _Kind | None:
    return form if isinstance(form, kind) else None


def _grid(form: Any, *, per: Literal["tensor", "channel"]) -> Any:
    """The grid that a number of bits stands for."""
    if is_whole(form):
        return Grid(int(form), per=per)
    return form


def _checked(name: str, form: Any) -> Any:
    """A format whose settings fit together, what is traced of them a float.

    An int would be static, and a sweep over it recompile.
    """
    if form is None:
        return None
    pers = _PERS[type(form)]
    if form.per not in pers:
        raise ValueError(f"{name}: per={form.per!r}, must be one of {', '.join(map(repr, pers))}")
    if isinstance(form, Floating):
        if form.dtype not in _SHORT:
            raise ValueError(f"{name}: dtype={form.dtype!r}, must be one of {', '.join(_SHORT)}")
        return form
    if (form.rows is None) == (form.per == "group"):
        raise ValueError(f"{name}: rows={form.rows} with per={form.per!r}: rows are of a group")
    if form.rows is not None:
        form = dataclasses.replace(form, rows=checked_int(f"{name}: rows", form.rows, 1))
    return _checked_table(name, form) if isinstance(form, Codebook) else _checked_grid(name, form)


_PERS: dict[type, tuple[str, ...]] = {
    Grid: ("tensor", "channel", "group", "token"),
    Codebook: ("tensor", "channel", "group"),
    Floating: ("tensor", "channel"),
}
_SHORT = ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16")


def _checked_table(name: str, table: Codebook) -> Codebook:
    if table.levels is None:
        if table.per == "group":
            raise ValueError(f"{name}: per='group': a fitted table is one a tensor")
        size = checked_int(f"{name}: size", table.size, 2, 2**16)
        length = checked_int(f"{name}: length", table.length, 1)
        steps = checked_int(f"{name}: iterations", table.iterations, 1)
        return dataclasses.replace(table, size=size, length=length, iterations=steps)
    levels = np.asarray(table.levels, np.float32)
    if table.length != 1:
        raise ValueError(f"{name}: length={table.length}: only fitted tables hold vectors")
    if levels.ndim != 1 or not 2 <= levels.size <= 2**16 or not np.isfinite(levels).all():
        raise ValueError(f"{name}: levels={table.levels}: must be 2 to 65536 finite numbers")
    if not (np.diff(levels) > 0).all():
        raise ValueError(f"{name}: levels={table.levels}: must rise")
    return dataclasses.replace(table, levels=tuple(map(float, levels)))


def _checked_grid(name: str, grid: Grid) -> Grid:
    bits = checked_int(f"{name}: bits", grid.bits, 1, 8)
    if grid.spacing not in ("even", "powers"):
        raise ValueError(f"{name}: spacing={grid.spacing!r}, must be 'even' or 'powers'")
    if grid.rounding not in ("nearest", "stochastic"):
        raise ValueError(f"{name}: rounding={grid.rounding!r}, must be 'nearest' or 'stochastic'")
    if not grid.symmetric and (bits == 1 or grid.spacing == "powers"):
        raise ValueError(
            f"{name}: symmetric=False with bits={bits}, spacing={grid.spacing!r}: one bit and "
            "powers of two have a sign and no zero point"
        )
    if grid.spacing == "powers" and not 2 <= bits <= 4:
        raise ValueError(f"{name}: bits={bits} of powers of two, must be from 2 to 4")
    if bits == 1 and grid.rounding == "stochastic":
        raise ValueError(f"{name}: rounding='stochastic' with bits=1: a sign has no fraction")
    check_called(f"{name}: clip", grid.clip)
    if grid.clip is not None and not callable(grid.clip):
        raise ValueError(f"{name}: clip={grid.clip!r}, must be a rule of js.clipping or None")
    average = grid.average
    if average is not None and not is_traced(average):
        check_range(f"{name}: average", average, 0, 1)
        average = jnp.asarray(average, jnp.float32)
    return dataclasses.replace(grid, bits=bits, average=average)
