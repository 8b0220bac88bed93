"""What does a decoder lose and take under each recipe, on text that chose nothing?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxsim as js
from benchmarks.common.record import Table, record
from benchmarks.topics.language.decoder import Decoder, random_decoder, smollm2
from benchmarks.topics.language.recipes import RECIPES, Recipe, identity
from benchmarks.topics.language.settings import LanguageSettings
from jaxsim.checkpoint.log import ScoreCache, run_digest

SHORT = (
    "--tiny --window 16 --windows 4 --calibration-windows 4 --only 'codes of the file' "
    "'4 per channel, GPTQ' 'NVFP4, inputs too, rotated' '2 of 4, SparseGPT' 'cache of 4 bits'",
)


def main(args: list[str]) -> None:
    """Scores every recipe on the same windows; what was measured before is taken from the log."""
    settings = LanguageSettings.read(args)
    decoder = random_decoder() if settings.tiny else smollm2()
    cut = js.language.windows(decoder.test, settings.window, settings.windows)
    seen = js.language.windows(decoder.valid, settings.window, settings.calibration_windows)
    net = js.trace(decoder.model, {"params": decoder.params}, cut[:1])
    log = ScoreCache(settings.log)
    run = run_digest((decoder.params, cut, seen))[:16]
    chosen = {n: r for n, r in RECIPES.items() if not settings.only or n in settings.only}
    found: dict[str, dict[str, Any]] = {}
    reference: dict[bool, js.language.Scores] = {}
    batches = [seen[i : i + 4] for i in range(0, len(seen), 4)]
    for name, recipe in chosen.items():
        transform = recipe.of(batches, decoder)

        def measure(recipe: Recipe = recipe, transform: Any = transform) -> dict[str, Any]:
            if recipe.cached not in reference:
                reference[recipe.cached] = _scores(net, cut, decoder, recipe.cached)
            scored = reference[recipe.cached]
            return _measured(net, transform, decoder, cut, batches, scored, cached=recipe.cached)

        found[name] = log.get(f"{run} {name} {identity(transform)}", measure)
        print(name, found[name], flush=True)
    record(
        "language",
        _table(found, settings),
        question="What does a decoder of 135 million parameters lose under each recipe?",
        baseline="the loaded model itself (weights of Q4_1 and Q8_0, as floats)",
        notes=_notes(decoder, settings),
        settings=settings.recorded(),
    )


def _scores(net: js.Network, cut: np.ndarray, decoder: Decoder, cached: bool) -> js.language.Scores:
    cache: Callable[..., Any] | None = decoder.model.cache if cached else None
    size = 16 if cached else 4
    return js.language.score(net, cut, batch_size=size, cache=cache, key=jax.random.key(5))


def _measured(
    net: js.Network,
    transform: Any,
    decoder: Decoder,
    cut: np.ndarray,
    batches: list[np.ndarray],
    reference: js.language.Scores,
    *,
    cached: bool,
) -> dict[str, Any]:
    """Numbers of one recipe, as JSON holds them."""
    start = time.perf_counter()
    chip = transform(net)
    if chip.cores:
        chip = js.deploy(chip, key=jax.random.key(1), calibrate=batches, keep_floats=False)
    jax.block_until_ready(jax.tree.leaves(chip))
    made = time.perf_counter() - start
    scores = _scores(chip, cut, decoder, cached)
    ratio = js.language.perplexity(scores, reference)
    call = jax.jit(lambda chip, ids: chip(ids, key=jax.random.key(6)))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(call(chip, cut[:4]))
        seconds.append(time.perf_counter() - start)
    return {
        "perplexity": js.language.perplexity(scores).value,
        "ratio": ratio.value,
        "error": ratio.error,
        "same": js.language.agreement(scores, reference).value,
        "bits": 8 * chip.nbytes / sum(np.size(p) for p in jax.tree.leaves(decoder.params)),
        "made": made,
        "call": float(np.median(seconds[1:])),
    }


def _table(found: dict[str, dict[str, Any]], settings: LanguageSettings) -> Table:
    lines = [
        [
            name,
            f"{row['perplexity']:.2f}",
            f"{row['ratio']:.4f} ± {row['error']:.4f}",
            f"{100 * row['same']:.1f}",
            f"{row['bits']:.2f}",
            f"{row['made']:.0f}",
            f"{row['call']:.2f}",
        ]
        for name, row in found.items()
    ]
    columns = (
        *("recipe", "perplexity", "ratio to the model", "same next token, %", "bits a parameter"),
        *("made in, s", "a call of 4 windows, s"),
    )
    return Table(columns, lines, f"{settings.windows} windows of {settings.window} tokens")


def _notes(decoder: Decoder, settings: LanguageSettings) -> str:
    return (
        f"{decoder.name}. Windows are spread over WikiText-2 test, whose joined marks are undone "
        f"and <unk> left; what is measured is measured on {settings.calibration_windows} windows "
        "of valid, on which settings were chosen, too. Errors of ratios are paired, by a "
        "bootstrap over windows. Bits are of all arrays that the deployed network holds. Seconds "
        "are those of the run, one after the other: networks are not timed in turn."
    )
