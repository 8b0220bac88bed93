"""`jaxsim rpm`: matrices into a file, and pictures of the first ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jaxsim.cli.options import Seeded
from jaxsim.data.rpm.picture import draw
from jaxsim.data.rpm.puzzle import generate
from jaxsim.data.rpm.solver import solve
from jaxsim.files import atomic


@dataclasses.dataclass(frozen=True)
class Rpm(Seeded):
    """Make Raven-like matrices with eight choices each.

    Example: jaxsim rpm --count 1000 --configuration grid_2 --out train.npz --picture some.png
    """

    count: int = 1000
    """How many."""
    configuration: str = "center"
    """Where figures stand: one of jaxsim.data.rpm.CONFIGURATIONS."""
    out: Path = Path("matrices.npz")
    """File to write: `panels` as symbols, the 8 of the matrix and the 8 choices, and `answers`."""
    picture: Path | None = None
    """Image file for the first matrices, the answer framed."""
    pictured: int = 3
    """How many of them."""


def rpm(args: Rpm) -> None:
    """Writes matrices, solved once more to be sure.

    Args:
      args: Options of the command.

    Raises:
      ValueError: An argument out of range.
    """
    console = args.open()
    if args.pictured < 1:
        raise ValueError(f"pictured={args.pictured}: must be at least 1")
    puzzles = generate(args.count, configuration=args.configuration, seed=args.seed)
    wrong = int((solve(puzzles.panels, args.configuration) != puzzles.answers).sum())
    if wrong:
        raise ValueError(f"{wrong} of {args.count} matrices have another answer by the solver")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic.whole(args.out) as part, part.open("wb") as file:
        np.savez_compressed(file, panels=puzzles.panels, answers=puzzles.answers)
    answers = np.bincount(puzzles.answers, minlength=8).tolist()
    args.write({"count": args.count, "answers": answers})
    console.print(f"wrote {args.count} matrices to {args.out}")
    if args.picture is not None:
        images = draw(puzzles.panels[: args.pictured], args.configuration, side=80)
        _plot(args.picture, images, puzzles.answers)
        console.print(f"wrote {args.picture}")


def _plot(path: Path, images: np.ndarray, answers: np.ndarray) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4 * len(images)), layout="constrained")
    for row, part in enumerate(figure.subfigures(len(images), 1, squeeze=False)[:, 0]):
        matrix, choices = part.subfigures(1, 2, width_ratios=(3, 4))
        for block, shape, first, count in ((matrix, (3, 3), 0, 8), (choices, (2, 4), 8, 8)):
            for i, axes in enumerate(block.subplots(*shape).flat):
                axes.set(xticks=[], yticks=[])
                if i < count:
                    axes.imshow(images[row, first + i], cmap="gray", vmin=0, vmax=255)
                right = first == 8 and i == answers[row]
                axes.spines[:].set(
                    color="tab:green" if right else "0.7", linewidth=3 if right else 1
                )
    with atomic.whole(path) as part:
        figure.savefig(part, dpi=100)
