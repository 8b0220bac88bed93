"""Figures of the routing of tokens in a Neural Interpreter."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxsim.files import atomic


def routing_maps(
    path: str | Path,
    images: Float[np.ndarray, "B H W"],
    affinity: Float[np.ndarray, "I U B N"],
) -> None:
    """Draws the function that takes each patch, iteration by iteration, to a PNG.

    A patch has the color of the function with the largest share, the fainter the nearer that share
    is to an equal one.

    Args:
      path: File to write.
      images: Gray levels.
      affinity: Share of each function in each token, the patches of a square behind whatever other
        tokens there are: a script of `Routing.affinity`.

    Raises:
      ValueError: Not one affinity an image.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    iterations, functions, rows, tokens = affinity.shape
    if len(images) != rows:
        raise ValueError(f"images: {len(images)} of them for affinities of {rows}")
    side = math.isqrt(tokens)
    colors = colormaps["tab10"](np.arange(functions) % 10)[:, :3]
    figure = Figure(figsize=(1.3 * (iterations + 1), 1.3 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, iterations + 1, squeeze=False)
    for row, (image, line) in enumerate(zip(images, axes, strict=True)):
        line[0].imshow(image, cmap="gray_r")
        for i, ax in enumerate(line[1:]):
            share = affinity[i, :, row, tokens - side**2 :]
            surplus = (share.max(0) - 1 / functions) / (1 - 1 / functions)
            strength = np.clip(surplus, 0, 1)[:, None]
            shown = 1 - strength * (1 - colors[share.argmax(0)])
            ax.imshow(shown.reshape(side, side, 3))
            if row == 0:
                ax.set_title(f"iteration {i + 1}", fontsize=8)
        for ax in line:
            ax.set_xticks([])
            ax.set_yticks([])
    handles = [Patch(color=c, label=f"function {u + 1}") for u, c in enumerate(colors)]
    figure.legend(handles=handles, loc="outside lower center", ncols=functions, fontsize=8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic.whole(path) as part:
        figure.savefig(part, dpi=120)
