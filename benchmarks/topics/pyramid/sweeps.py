"""Accuracy and FLOPs at all settings, and the settings that validation rows choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common.texts import Part, corpus_of
from benchmarks.topics.pyramid.networks import network
from benchmarks.topics.pyramid.settings import PyramidSettings
from jaxsim.checkpoint.log import ScoreCache
from jaxsim.staged.network import Staged
from jaxsim.staged.speed import Speed, at_speed, fastest, sweep

SCALES = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
THRESHOLDS = tuple(np.round(np.arange(0, 1.0, 0.05), 2).tolist())
LOSSES = (0.0, 0.005, 0.01, 0.02)
"""Accuracy that a setting may cost on the validation rows."""
ALL = 0.0, 0.0
"""Scale and threshold that leave out nothing."""
FAMILIES: dict[str, tuple[str, Callable[[Speed], bool]]] = {
    "pruning alone": ("pyramid", lambda s: s.threshold == 0),
    "exit alone": ("exits", lambda s: s.scale == 0),
    "pruning and exit": ("pyramid", lambda s: True),
}
"""Which network, and which of its settings."""


MEASURED = 5
"""Fields of a speed without seconds, which are not measured here."""
QUARTERS = 4
"""Parts of the rows, from the shortest to the longest."""


def all_sweeps(settings: PyramidSettings) -> dict[str, list[dict[str, list[Speed]]]]:
    """Sweeps of each seed by data set; the first seed of all sets comes first."""
    log = ScoreCache(settings.log)
    names = settings.data
    found: dict[str, list[dict[str, list[Speed]]]] = {name: [] for name in names}
    for seed in range(settings.seeds):
        for name in names:
            found[name].append(sweeps_of(log, settings, name, seed))
    return found


def sweeps_of(
    log: ScoreCache, settings: PyramidSettings, name: str, seed: int
) -> dict[str, list[Speed]]:
    """Sweeps of one seed on validation and test rows: {"exits test": …} by network and rows.

    Each also of its quarters by length: {"exits test 0": …} of the shortest.
    """
    found: dict[str, list[Speed]] = {}
    for kind in ("exits", "pyramid"):
        for part in ("validation", "test"):
            rows: Part = getattr(corpus_of(name, settings.texts), part)
            quarters = np.array_split(np.argsort(rows.lengths, kind="stable"), QUARTERS)
            each: list[list[Speed]] = []
            for i, places in enumerate(quarters):

                def measure(
                    kind: str = kind, rows: Part = rows, places: np.ndarray = places
                ) -> Any:
                    net = network(settings, name, seed, kind)
                    scales = SCALES if kind == "pyramid" else (0.0,)
                    ids, lengths, labels = (column[places] for column in rows)
                    settings_of = {"scales": scales, "thresholds": THRESHOLDS}
                    speeds = sweep(net, (ids, lengths), labels, **settings_of)
                    return [list(s[:MEASURED]) for s in speeds]

                made = log.get(f"{name} {seed} {kind} {part} {i}", measure)
                each.append([Speed(*values) for values in made])
                found[f"{kind} {part} {i}"] = each[-1]
            weights = [len(places) for places in quarters]
            found[f"{kind} {part}"] = [
                Speed(*same[0][:2], *np.average([s[2:MEASURED] for s in same], 0, weights).tolist())
                for same in zip(*each, strict=True)
            ]
    return found


def chosen_setting(
    sweeps: list[dict[str, list[Speed]]], kind: str, fits: Any, loss: float, rows: str = ""
) -> tuple[float, float]:
    """The scale and the threshold that validation rows choose, means over seeds.

    `rows` names a quarter of them, " 0" to " 3".
    """
    shown = f"validation{rows}"
    whole = np.mean([at_setting(s[f"exits {shown}"], *ALL).accuracy for s in sweeps])
    columns = zip(*(s[f"{kind} {shown}"] for s in sweeps), strict=True)
    # Of equal numbers the mean need not be that number.
    means = [
        Speed(*column[0][:2], *np.mean([s[2:MEASURED] for s in column], 0).tolist())
        for column in columns
    ]
    candidates = [s for s in means if fits(s)]
    # A family that is nowhere good enough is taken at its best.
    best = fastest(candidates, min(float(whole) - loss, max(s.accuracy for s in candidates)))
    return best.scale, best.threshold


def at_setting(found: list[Speed], scale: float, threshold: float) -> Speed:
    return next(s for s in found if (s.scale, s.threshold) == (scale, threshold))


def chosen_networks(settings: PyramidSettings, name: str) -> dict[str, Staged]:
    """Of seed 0, each family at the setting that validation rows choose for half a point."""
    log = ScoreCache(settings.log)
    sweeps = [sweeps_of(log, settings, name, seed) for seed in range(settings.seeds)]
    settled = {
        family: (kind, chosen_setting(sweeps, kind, fits, 0.005))
        for family, (kind, fits) in FAMILIES.items()
    }
    return {
        family: at_speed(
            network(settings, name, 0, kind), at_setting(sweeps[0][f"{kind} validation"], *setting)
        )
        for family, (kind, setting) in settled.items()
    }


def timed_rows(settings: PyramidSettings, name: str) -> Part:
    return Part(*(column[: settings.rows] for column in corpus_of(name, settings.texts).test))
