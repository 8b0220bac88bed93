"""A decoder in analog cells: what each remedy wins back, from clipped weights to training."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jaxsim as js
from benchmarks.common.kept import kept
from benchmarks.common.record import Table, record
from benchmarks.common.settings import Settings
from benchmarks.common.spread import mean_and_error, standard_error
from benchmarks.topics.language.decoder import Decoder, random_decoder, smollm2
from jaxsim.checkpoint.log import run_digest
from jaxsim.train import clip_weights, distillation, distillation_targets, fit, only
from jaxsim.transforms.learn_ranges import ranges

SHORT = (
    "--tiny --window 16 --windows 2 --calibration-windows 2 --sequences 8 --length 8 "
    "--programmings 2",
)

LAYERS = "layers*"
CHANNEL = js.Grid(8, per="channel")
TOKEN = js.Grid(8, per="token")
LOSS = distillation(temperature=1.0, weight=1.0)
BATCH = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalogLanguageSettings(Settings):
    """Settings of the run."""

    sigma: float = 0.02
    """Error of every cell, as a share of the largest conductance."""
    deviations: float = 3.0
    """Bound of a weight, in standard deviations of its layer."""
    window: int = 128
    """Tokens of a window."""
    windows: int = 4
    """Windows of the test text."""
    calibration_windows: int = 4
    """Windows of the validation text that ranges are of."""
    programmings: int = 5
    """Times each chip is programmed."""
    sequences: int = 32
    """Texts that the float network writes to be trained on."""
    length: int = 64
    """Tokens of such a text."""
    epochs: int = 2
    """Passes over them of training through the cells."""
    rate: float = 5e-5
    """Largest learning rate of the weights."""
    adapter_rate: float = 1e-3
    """That of the adapters, which make one pass for each chip."""
    rank: int = 8
    """Rank of the adapters."""
    tiny: bool = False
    """A small random decoder and random text, to see that everything runs."""
    cache: Annotated[Path, tyro.conf.arg(help="what an interrupted run has measured")] = Path(
        "~/.cache/jaxsim/analog_language"
    )


class Subject(NamedTuple):
    """A decoder, its texts, and what is known of its chips before any is scored.

    Attributes:
      net: The decoder in floats.
      turned: The same with turned channels.
      cut: Windows to score.
      seen: Batches of other windows, for ranges.
      settings: Of the run.
      decoder: Where it is from.
      folder: Where what was measured is kept.
      texts: What the float network wrote and its logits, once they are there.
    """

    net: js.Network
    turned: js.Network
    cut: np.ndarray
    seen: list[np.ndarray]
    settings: AnalogLanguageSettings
    decoder: Decoder
    folder: Path
    texts: list[np.ndarray]

    @property
    def cells(self) -> js.cells.Device:
        """The cells of all chips."""
        return js.cells.independent(self.settings.sigma)


class Row(NamedTuple):
    """One line of the table.

    Attributes:
      name: What becomes of the decoder.
      prepare: `subject -> network`, not deployed.
      against: Name of the row that it is compared with, chip by chip; empty for the floats alone.
      ranged: Whether all ranges are set before, so that a window is enough to deploy with.
      tune: What becomes of a programmed chip, `(chip, subject, number) -> chip`.
    """

    name: str
    prepare: Callable[[Subject], js.Network]
    against: str = ""
    ranged: bool = False
    tune: Callable[[js.Network, Subject, int], js.Network] = lambda chip, subject, number: chip


def rows() -> list[Row]:
    """Every line, in the order of the table."""
    plain, turned = "as they are", "turned"
    static, whole = "turned, static DAC, one ADC range", "turned, ADC ranges of all that flows"
    return [
        Row(plain, lambda s: own_ranges(s, s.net)),
        Row(turned, lambda s: own_ranges(s, s.turned), plain),
        Row("turned, clipped", lambda s: own_ranges(s, clipped(s, s.turned)), turned),
        Row(whole, lambda s: own_ranges(s, s.turned, 100.0), turned),
        Row(f"{whole}, clipped", lambda s: own_ranges(s, clipped(s, s.turned), 100.0), whole),
        Row(static, lambda s: one_range(s, s.turned), turned, True),
        Row("the same, trained through noise", trained, static, True),
        Row("the same, adapters trained on each chip", with_adapters, static, True, tuned),
    ]


def own_ranges(subject: Subject, net: js.Network, percentile: float = 99.98) -> js.Network:
    """Each token scaled to the DAC, each array read by a converter of its own range."""
    array = js.analog(8, subject.cells, percentile=percentile, sites=LAYERS)
    return js.compose(js.quantize(CHANNEL, TOKEN, sites=LAYERS), array)(net)


def one_range(subject: Subject, net: js.Network) -> js.Network:
    """Ranges of inputs that stay as they were set, and one range of all converters."""
    coded = js.compose(
        js.quantize(CHANNEL, 8, sites=LAYERS),
        js.learn_ranges(subject.seen, weights=None, sites=LAYERS),
    )(net)

    def measure() -> float:
        ideal = js.analog(8, js.cells.independent(0.0), sites=LAYERS)(coded)
        key = jax.random.key(0)
        return js.common_span(js.deploy(ideal, key=key, calibrate=subject.seen, keep_floats=False))

    span = kept(subject.folder, "span", measure)
    return js.analog(js.adc.uniform(8, span=span), subject.cells, sites=LAYERS)(coded)


def clipped(subject: Subject, net: js.Network) -> js.Network:
    """The network with clipped weights, not trained."""
    clip = clip_weights(net, subject.settings.deviations, sites=LAYERS)
    zeros = jax.tree.map(jnp.zeros_like, net.params)
    updates, _ = clip.update(zeros, clip.init(net.params), net.params)
    return dataclasses.replace(net, params=optax.apply_updates(net.params, updates))


def written(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """Texts that the float network wrote from nothing, and what it says of each next token."""
    settings = subject.settings
    if subject.texts:
        return subject.texts[0], subject.texts[1]
    first = np.zeros((settings.sequences, 1), np.int32)  # the mark between texts

    def write() -> list[list[int]]:
        cache = subject.decoder.model.cache(settings.sequences, settings.length + 1)
        more: dict[str, Any] = {"count": settings.length, "temperature": 1.0}
        more["key"] = jax.random.key(3)
        return js.language.generate(subject.net, first, cache, **more).tolist()

    ids = np.concatenate([first, kept(subject.folder, "written", write)], 1)
    say = jax.jit(lambda net, ids: net(ids))
    parts = [say(subject.net, ids[i : i + BATCH, :-1]) for i in range(0, len(ids), BATCH)]
    subject.texts.extend([ids[:, :-1], distillation_targets(np.concatenate(parts), ids[:, 1:])])
    return subject.texts[0], subject.texts[1]


def trained(subject: Subject) -> js.Network:
    """Weights trained through cells whose errors grow, to say what the float network says."""
    settings, net = subject.settings, one_range(subject, subject.turned)
    path = subject.folder / "trained"
    if path.exists():
        return js.load(path, like=net)
    texts, labels = written(subject)
    steps = settings.epochs * (len(texts) // BATCH)
    rate = optax.warmup_cosine_decay_schedule(0.0, settings.rate, steps // 8, steps)
    found = fit(
        net,
        texts,
        labels,
        epochs=settings.epochs,
        optimizer=only(optax.adam(rate), _marks(net)),
        key=jax.random.key(4),
        batch_size=BATCH,
        loss=LOSS,
        errors=optax.linear_schedule(0.0, 1.0, steps // 2),
        label="through noise",
    )
    js.save(path, found)
    return found


def _marks(net: js.Network) -> Any:
    """What trains: the weights in cells; table, norms and ranges stay."""

    def mark(path: Any, _: Any) -> np.float32:
        return np.float32("/".join(key.key for key in path) in net.cores)

    params = jax.tree_util.tree_map_with_path(mark, net.params)
    return {"params": params, "ranges": jax.tree.map(lambda _: np.float32(0), ranges(net))}


def with_adapters(subject: Subject) -> js.Network:
    """The network with adapters that add nothing yet."""
    adapters = js.lora(subject.settings.rank, jax.random.key(5), sites=LAYERS)
    return adapters(one_range(subject, subject.turned))


def tuned(chip: js.Network, subject: Subject, number: int) -> js.Network:
    """A chip whose adapters learned what its cells lack."""
    texts, labels = written(subject)
    rate = optax.cosine_decay_schedule(subject.settings.adapter_rate, len(texts) // BATCH)
    return fit(
        chip,
        texts,
        labels,
        epochs=1,
        optimizer=optax.adam(rate),
        key=jax.random.key(number),
        batch_size=BATCH,
        loss=LOSS,
        label=f"adapters of chip {number}",
    )


def losses(row: Row, subject: Subject) -> tuple[np.ndarray, float]:
    """Losses of all tokens for each programming, [programmings, tokens], and seconds."""
    prepared: list[js.Network] = []

    def measure(number: int) -> tuple[list[float], float]:
        began = time.perf_counter()
        if not prepared:
            prepared.append(row.prepare(subject))
        key = jax.random.key(100 + number)
        seen = [subject.seen[0][:1]] if row.ranged else subject.seen
        chip = js.deploy(prepared[0], key=key, calibrate=seen, keep_floats=False)
        found = js.language.score(row.tune(chip, subject, number), subject.cut)
        return found.losses.ravel().tolist(), time.perf_counter() - began

    numbers = range(subject.settings.programmings)
    found = [kept(subject.folder, f"{row.name} {i}", lambda i=i: measure(i)) for i in numbers]
    return np.array([each for each, _ in found]), sum(seconds for _, seconds in found)


def line(name: str, found: np.ndarray, exact: np.ndarray, before: np.ndarray | None) -> list[str]:
    """Cells of a row: perplexity, its ratio to the floats', and what it adds to another row."""
    means = found.mean(1)
    lost = means - exact.mean()
    cells = [name, f"{np.exp(means.mean()):.1f}", _with_error(lost, np.exp)]
    return [*cells, "" if before is None else _with_error(means - before.mean(1), np.asarray)]


def _with_error(values: np.ndarray, of: Callable[[Any], Any]) -> str:
    """The mean over programmings with its standard error, both of a function of the values."""
    if of is np.exp:
        mean = np.exp(values.mean())
        return f"{mean:.3f} ± {mean * standard_error(values):.3f}"
    return mean_and_error(values, 3, signed=True)


def _subject(settings: AnalogLanguageSettings) -> Subject:
    decoder = random_decoder() if settings.tiny else smollm2()
    cut = js.language.windows(decoder.test, settings.window, settings.windows)
    seen = js.language.windows(decoder.valid, settings.window, settings.calibration_windows)
    net = js.trace(decoder.model, {"params": decoder.params}, cut[:1])
    turned = js.rotate(seen[:1], jax.random.key(7), online="*down/kernel")(net)
    shown = {k: v for k, v in settings.recorded().items() if k not in ("cache", "programmings")}
    digest = run_digest((decoder.params, cut, seen, repr(shown)))[:16]
    folder = settings.cache.expanduser() / digest
    folder.mkdir(parents=True, exist_ok=True)
    batches = [seen[i : i + BATCH] for i in range(0, len(seen), BATCH)]
    return Subject(net, turned, cut, batches, settings, decoder, folder, [])


def main(args: list[str]) -> None:
    """Measures every row that an earlier run has not."""
    settings = AnalogLanguageSettings.read(args)
    subject = _subject(settings)
    exact = js.language.score(subject.net, subject.cut).losses.ravel()
    lines = [["float32", f"{np.exp(exact.mean()):.1f}", "1", "", ""]]
    found: dict[str, np.ndarray] = {}
    for row in rows():
        found[row.name], seconds = losses(row, subject)
        before = found.get(row.against)
        lines.append([*line(row.name, found[row.name], exact, before), f"{seconds:.0f}"])
        print(lines[-1], flush=True)
    record(
        "analog_language",
        Table(["cells", "perplexity", "ratio to float", "to the row it adds to, nats", "s"], lines),
        question="What does a decoder of 135 million parameters lose in analog cells, and what "
        "wins it back?",
        baseline="the loaded model in float32, on the same tokens",
        notes=_notes(subject, settings),
        settings=settings.recorded(),
    )


def _notes(subject: Subject, settings: AnalogLanguageSettings) -> str:
    steps = settings.epochs * (settings.sequences // BATCH)
    return (
        f"{subject.decoder.name}, {subject.cut[:, 1:].size} tokens of WikiText-2 test: few, so "
        "differences count, not levels. ± is the standard error over "
        f"{settings.programmings} programmings of the same tokens; chips of two rows have the same "
        "keys, and their difference is in nats a token. Cells are off by "
        f"{settings.sigma:.0%} of the largest conductance, whatever they hold; pairs, 1152 rows, "
        "8-bit codes with a scale a channel, 8-bit inputs and ADC; table, head, norms and "
        f"attention in floats. Ranges are of {settings.calibration_windows} windows of valid. As "
        "they are: each token scaled to the DAC, a range for each layer's converters that covers "
        "99.98 % of what flows. Clipped: to "
        f"{settings.deviations:g} deviations of the layer, once, without training. Turned: "
        "`js.rotate`, at each read before `down` too. One range: the largest that any layer has "
        "(`js.common_span`). Trained: "
        f"{steps} steps of {BATCH} texts of {settings.length} tokens that the float model wrote "
        "itself, its logits as labels, errors of cells growing over the first half, in float32; "
        f"new errors in each step. Adapters: rank {settings.rank}, {settings.sequences // BATCH} "
        "such steps on each chip, cells as programmed. Steps and rates were not tuned. s: time of "
        "the row with compilation and training, on a machine that others used."
    )
