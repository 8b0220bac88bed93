"""`jaxsim rpm`: matrices into a file, and pictures of the first ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jaxsim.data.rpm.picture import draw
from jaxsim.data.rpm.puzzle import generate
from jaxsim.data.rpm.solver import solve
from jaxsim.files import atomic


@dataclasses.dataclass(frozen=True)
class Rpm:
    """Make Raven-like matrices with eight choices each.

    Example: jaxsim rpm --count 1000 --configuration grid_2 --out train.npz --picture some.png
    """

    count: int = 1000
    """How many."""
    configuration: str = "center"
    """Where figures stand: one of jaxsim.data.rpm.CONFIGURATIONS."""
    seed: int = 0
    """Of all that is drawn."""
    out: Path = Path("matrices.npz")
    """File to write: `panels` as symbols, the 8 of the matrix and the 8 choices, and `answers`."""
    picture: Path | None = None
    """Image file for the first matrices, the answer framed."""
    pictured: int = 3
    """How many of them."""
    json: Path | None = None
    """File for what was drawn: how many matrices, and how often each choice is the answer."""
    quiet: bool = False
    """Print nothing but errors; files are written all the same."""


def rpm(args: Rpm) -> None:
    """Writes matrices, solved once more to be sure.

    Args:
      args: Options of the command.

    Raises:
      ValueError: An argument out of range.
    """
    if args.pictured < 1:
        raise ValueError(f"pictured={args.pictured}: must be at least 1")
    atomic.check_target("picture", args.picture, image=True)
    atomic.check_target("json", args.json)
    puzzles = generate(args.count, configuration=args.configuration, seed=args.seed)
    wrong = int((solve(puzzles.panels, args.configuration) != puzzles.answers).sum())
    if wrong:
        raise ValueError(f"{wrong} of {args.count} matrices have another answer by the solver")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic.whole(args.out) as part, part.open("wb") as file:
        np.savez_compressed(file, panels=puzzles.panels, answers=puzzles.answers)
    if args.json is not None:
        answers = np.bincount(puzzles.answers, minlength=8).tolist()
        atomic.write_json(args.json, {"count": args.count, "answers": answers})
    if not args.quiet:
        print(f"wrote {args.count} matrices to {args.out}")
    if args.picture is not None:
        images = draw(puzzles.panels[: args.pictured], args.configuration, side=80)
        _plot(args.picture, images, puzzles.answers)
        if not args.quiet:
            print(f"wrote {args.picture}")


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
