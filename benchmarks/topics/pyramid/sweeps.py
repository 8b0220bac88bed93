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


def sweeps_of(
    log: ScoreCache, settings: PyramidSettings, name: str, seed: int
) -> dict[str, list[Speed]]:
    """Sweeps of one seed on validation and test rows: {"validation": …, "test": …} by network."""
    found: dict[str, list[Speed]] = {}
    for kind in ("exits", "pyramid"):
        for part in ("validation", "test"):

            def measure(kind: str = kind, part: str = part) -> Any:
                net = network(settings, name, seed, kind)
                rows: Part = getattr(corpus_of(name, settings.texts), part)
                scales = SCALES if kind == "pyramid" else (0.0,)
                ids, lengths, labels = rows
                settings_of = {"scales": scales, "thresholds": THRESHOLDS}
                return [list(s) for s in sweep(net, (ids, lengths), labels, **settings_of)]

            made = log.get(f"{name} {seed} {kind} {part}", measure)
            found[f"{kind} {part}"] = [Speed(*values) for values in made]
    return found


def chosen_setting(
    sweeps: list[dict[str, list[Speed]]], kind: str, fits: Any, loss: float
) -> tuple[float, float]:
    """The scale and the threshold that validation rows choose, means over seeds."""
    whole = np.mean([at_setting(s["exits validation"], *ALL).accuracy for s in sweeps])
    columns = zip(*(s[f"{kind} validation"] for s in sweeps), strict=True)
    # Of equal numbers the mean need not be that number.
    means = [Speed(*column[0][:2], *np.mean(column, 0)[2:].tolist()) for column in columns]
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
