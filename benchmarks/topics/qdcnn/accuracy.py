"""Accuracy over seeds, and the comparisons that were planned."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.common.paired import comparisons, mean_and_deviation
from benchmarks.common.record import IMAGES, Table, record
from benchmarks.common.spread import standard_error
from benchmarks.topics.qdcnn.fixed import DECAY, linear_accuracy, methods
from benchmarks.topics.qdcnn.problems import TEST, TRAIN, VALID, problem
from benchmarks.topics.qdcnn.settings import QdcnnSettings
from benchmarks.topics.qdcnn.trained import RATES, TRAINED, trained_accuracy
from jaxsim.checkpoint.log import ScoreCache

COMPARISONS = (
    ("quanvolution s1 d2", "quanvolution s1 d1"),
    ("quanvolution s2 d2", "quanvolution s2 d1"),
    ("quanvolution s1 d1", "raw pixels"),
    ("quanvolution s1 d2", "raw pixels"),
    ("quanvolution s1 d2", "random conv s1 d2"),
    ("quanvolution s1 d2", "quanvolution 3×3, 9 wires"),
    ("quanvolution 3×3, 9 wires", "random conv 3×3, 9 filters"),
    ("trained quantum d2", "trained quantum d1"),
    ("trained quantum d2", "trained conv d2"),
    ("trained quantum d2", "quanvolution s1 d2"),
    ("trained quantum d2, encoded twice", "trained quantum d2"),
    ("trained quantum d2", "trained conv s2, 14 filters"),
)
"""Fixed before anything was run, but for the last two, which were before these rows were; all of
them, on both sets, are corrected together."""


def accuracy(settings: QdcnnSettings) -> None:
    """Accuracy over seeds, and every comparison that was planned."""
    log, sets = ScoreCache(settings.log), settings.sets
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(settings.first, settings.first + settings.seeds):
        trained = TRAINED if seed - settings.first < settings.trained_seeds else {}
        for name in sets:
            data = problem(name, seed)
            for method, make in methods().items():
                score = log.get(
                    f"{name}, {method}, {seed}",
                    lambda make=make, data=data, seed=seed: linear_accuracy(make(seed), data),
                )
                found.setdefault((name, method), []).append(100 * score)
            for method in trained:
                score = log.get(
                    f"{name}, {method}, {seed}",
                    lambda method=method, data=data, seed=seed: trained_accuracy(
                        method, seed, data
                    ),
                )
                found.setdefault((name, method), []).append(100 * score)
    record(
        "qdcnn_accuracy",
        _scores(found, sets),
        comparisons(found, COMPARISONS, sets),
        question="What does a quantum dilated convolution classify, and what do classical features "
        "of the same number?",
        baseline="raw pixels, and random convolutions with tanh of the same taps and as many "
        "channels",
        notes=f"{TRAIN} training, {VALID} validation and {TEST} reported images; each of "
        f"{settings.seeds} seeds (trained filters: {settings.trained_seeds}), fixed before the "
        "run, has training images and circuits of its own. Reported images are the same for all "
        "seeds, so p values are about training images and circuits only. Fixed features: softmax "
        f"regression, weight decay one of {len(DECAY)}, chosen on validation images, the same "
        "for every row. Fixed circuits are RandomLayers of depth 1. Trained: StronglyEntangling, "
        "L = 2 in all, or 2×2 filters, stride 1 unless said, 12 epochs of Adam, learning rate one "
        f"of {len(RATES)}, chosen alike. MNIST-10k is no official split. s: stride, d: dilation.",
        settings={name: getattr(settings, name) for name in ("first", "seeds", "trained_seeds")},
    )
    figure(found, sets)


def _scores(found: Mapping[tuple[str, str], list[float]], sets: tuple[str, ...]) -> Table:
    rows = []
    for method in dict.fromkeys(m for _, m in found):
        rows.append([method, *(mean_and_deviation(found[name, method]) for name in sets)])
    return Table(["features", *(f"{name}, %" for name in sets)], rows, "Accuracy, mean ± sd")


def figure(found: Mapping[tuple[str, str], list[float]], sets: tuple[str, ...]) -> None:
    """Accuracy against dilation."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(10, 4), layout="constrained")
    for ax, name in zip(fig.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        for label, prefix, ds in (
            ("quanvolution, fixed", "quanvolution s1 d", (1, 2, 3, 4)),
            ("random convolution, fixed", "random conv s1 d", (1, 2)),
            ("quanvolution, trained", "trained quantum d", (1, 2)),
            ("convolution, trained", "trained conv d", (1, 2)),
        ):
            scores = [np.array(found[name, f"{prefix}{d}"]) for d in ds]
            errors = [standard_error(s) for s in scores]
            ax.errorbar(ds, [s.mean() for s in scores], errors, marker="o", capsize=3, label=label)
        raw = np.mean(found[name, "raw pixels"])
        ax.axhline(raw, color="0.5", ls=":", label="raw pixels")
        ax.set(title=name, xlabel="dilation", ylabel="accuracy, %", xticks=(1, 2, 3, 4))
        ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    fig.savefig(IMAGES / "qdcnn.png", dpi=130)
