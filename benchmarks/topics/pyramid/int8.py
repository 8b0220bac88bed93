"""A pyramid of int8 layers beside the float one."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import jaxsim as js
from benchmarks.common.record import Table, record
from benchmarks.common.texts import corpus_of
from benchmarks.topics.pyramid.settings import NAMES, PyramidSettings
from benchmarks.topics.pyramid.sweeps import (
    chosen_networks,
    timed_rows,
)
from jaxsim.console.timing import alternate


def int8(settings: PyramidSettings) -> None:
    """A pyramid of int8 layers: accuracy and time beside the float one."""
    body: list[list[Any]] = []
    for name in settings.data:
        plain = chosen_networks(settings, name)["pruning and exit"]
        corpus, rows = corpus_of(name, settings.texts), timed_rows(settings, name)
        shown = corpus.validation.ids[:64], corpus.validation.lengths[:64]
        layers = ["attention_*", "feed_forward_*"]
        coded = js.deploy(js.quantize(8, 8, sites=layers)(plain), calibrate=shown)
        nets = {"float32": plain, "int8": coded}
        times = alternate(
            {kind: functools.partial(n.run, rows.ids, rows.lengths) for kind, n in nets.items()},
            runs=settings.runs,
        )
        outs = {k: net.run(corpus.test.ids, corpus.test.lengths) for k, net in nets.items()}
        labels = {kind: np.argmax(out.logits, -1) for kind, out in outs.items()}
        for kind, out in outs.items():
            body.append(
                [
                    NAMES[name],
                    kind,
                    f"{100 * np.mean(labels[kind] == corpus.test.labels):.2f}",
                    f"{100 * np.mean(labels[kind] == labels['float32']):.1f}",
                    f"{float(np.mean(out.layer)):.2f}",
                    f"{times[kind].median:.2f}",
                    f"{times['float32'].median / times[kind].median:.2f}",
                ]
            )
    columns = ["texts", "layers", "test accuracy, %", "agreement, %", "mean exit", "s"]
    record(
        "pyramid_int8",
        Table([*columns, "times faster"], body),
        question="Does a pyramid compose with int8 layers?",
        baseline="the same pyramid in float32",
        notes="Seed 0, weights and inputs of all layers in 8 bits, ranges from 64 validation "
        f"rows; times on {settings.rows} test rows.",
        settings={"runs": settings.runs, "rows": settings.rows},
    )
