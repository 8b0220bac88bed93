"""What do Neural Interpreters learn beside transformers, and what do their functions cost?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

import jaxsim as js
from benchmarks.common.files import file
from benchmarks.common.parts import run_parts
from benchmarks.common.record import IMAGES, Table, record
from benchmarks.common.settings import CACHE, Checkpointed, Timed
from benchmarks.common.spread import mean_and_error
from jaxsim.checkpoint.log import ScoreCache
from jaxsim.console.timing import alternate
from jaxsim.data import fashion_mnist, rpm
from jaxsim.models.functions import add_functions, add_task, new_parameter_mask
from jaxsim.models.neural_interpreter import NeuralInterpreter
from jaxsim.models.plot import routing_maps
from jaxsim.models.reasoner import PanelSymbols, Reasoner
from jaxsim.models.transformer import Transformer
from jaxsim.models.vision import Vision
from jaxsim.train.loop import fit, only

SHORT = ("--only timing --runs 5", "--only reasoning --seeds 1 --epochs 1 --puzzles 320")

WIDTH = 96
INTERPRETER = NeuralInterpreter(
    functions=4, iterations=4, qk_width=24, code_width=WIDTH, positions="per_function"
)
BODIES: dict[str, Any] = {
    "Neural Interpreter, 4 functions, 4 iterations": INTERPRETER,
    "transformer of equal FLOPs, 9 layers": Transformer(9),
    "transformer of equal parameters, 1 layer": Transformer(1),
}
JOINT = f"joint {next(iter(BODIES))}"
COUNTS = (200, 2000)
"""Digits to learn from, after clothes."""
STEPS = 200
"""Of learning digits after clothes."""
RATES = (1e-3, 3e-3, 1e-2)
"""Of that learning."""
HELD_OUT = (("color", "arithmetic"), ("size", "progression"), ("type", "distribute"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterpretersSettings(Timed, Checkpointed):
    """Settings of the run."""

    only: Literal["all", "timing", "first", "joint", "extend", "reasoning"] = "all"
    """Which part."""
    runs: int = 11
    images: int = 12000
    """Training images of Fashion-MNIST, beside 8000 digits."""
    epochs: int = 3
    """Passes of the joint training."""
    puzzles: int = 10000
    """Matrices to learn from."""
    log: Path = CACHE / "interpreters.json"
    checkpoints: Path = CACHE / "interpreters"


def main(args: list[str]) -> None:
    """Measures the parts asked for."""
    settings = InterpretersSettings.read(args)
    parts = {
        "timing": timing,
        "first": first,
        "joint": joint,
        "extend": extend,
        "reasoning": reasoning,
    }
    run_parts(settings, parts)


def timing(settings: InterpretersSettings) -> None:
    """A forward pass and a training step beside a transformer of as many FLOPs."""
    x = np.random.default_rng(0).normal(size=(64, 28, 28, 1)).astype(np.float32)
    y = np.arange(64) % 10
    bodies = {
        "transformer, 9 layers": Transformer(9),
        "interpreter": INTERPRETER,
        "interpreter, folded": INTERPRETER.clone(fold=True),
        "transformer, 1 layer": Transformer(1),
    }
    forward: dict[str, Callable[[], Any]] = {}
    steps: dict[str, Callable[[], Any]] = {}
    facts: dict[str, tuple[int, float]] = {}
    for name, body in bodies.items():
        model = Vision(body, width=WIDTH)
        variables = jax.jit(model.init)(jax.random.key(0), x[:1])
        run = jax.jit(model.apply).lower(variables, x).compile()
        cost = run.cost_analysis()
        flops = (cost[0] if isinstance(cost, list) else cost)["flops"]
        facts[name] = (sum(w.size for w in jax.tree.leaves(variables)), flops / len(x) / 1e6)
        forward[name] = partial(run, variables, x)

        def loss(v: Any, model: Any = model) -> jax.Array:
            logits = model.apply(v, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        steps[name] = partial(jax.jit(jax.grad(loss)), variables)
    times = alternate(forward, runs=settings.runs)
    slopes = alternate(steps, runs=settings.runs)
    base, slope = (t["transformer, 9 layers"].median for t in (times, slopes))
    rows = [
        [
            name,
            facts[name][0],
            f"{facts[name][1]:.1f}",
            f"{1e3 * times[name].median:.1f}",
            f"{times[name].median / base:.2f}",
            f"{slopes[name].median / slope:.2f}",
            f"{times[name].first:.1f}",
        ]
        for name in bodies
    ]
    record(
        "interpreters_timing",
        Table(
            [
                *("body", "parameters", "MFLOP an image", "ms forward", "forward, of 9 layers"),
                *("gradient, of 9 layers", "first call, s"),
            ],
            rows,
        ),
        question="What does a Neural Interpreter take beside a transformer of as many FLOPs?",
        baseline="a transformer of 9 layers",
        notes="A batch of 64 images of 28 × 28 in patches of 4; width 96, 4 heads. FLOPs as XLA "
        "counts them.",
        settings={"runs": settings.runs},
    )


def first(settings: InterpretersSettings) -> None:
    """The first 400 steps on clothes alone, in small patches."""
    clothes, test = fashion_mnist("train"), fashion_mnist("test")
    data = clothes.images[:12800], clothes.labels[:12800]
    log, twice = ScoreCache(settings.log), dataclasses.replace(settings, epochs=2)
    scores: dict[str, list[float]] = {}
    for seed in range(settings.seeds):
        for name, body in BODIES.items():

            def measure(body: Any = body, seed: int = seed, name: str = name) -> float:
                net = _trained(Vision(body, width=WIDTH), data, seed, twice, f"first {name}")
                return float(_right(net, test.images, test.labels).mean())

            scores.setdefault(name, []).append(log.get(f"first {name} {seed}", measure))
    record(
        "interpreters_first",
        Table(
            ["body", "Fashion-MNIST, %"],
            [[name, mean_and_error(100 * np.asarray(found))] for name, found in scores.items()],
        ),
        question="How far do 400 steps take a Neural Interpreter?",
        baseline="transformers of as many FLOPs and of as many parameters",
        notes="12 800 images twice in batches of 64, patches of 4, width 96, the same AdamW for "
        f"all (cosine from 1e-3, nothing chosen). {settings.seeds} seeds, mean ± standard error, "
        "on the 10 000 test images.",
        settings={"seeds": settings.seeds},
    )


def joint(settings: InterpretersSettings) -> None:
    """Clothes and digits by one model."""
    train, test = _both(settings.images)
    log = ScoreCache(settings.log)
    scores: dict[str, list[list[float]]] = {}
    for seed in range(settings.seeds):
        for name, body in BODIES.items():

            def measure(body: Any = body, seed: int = seed, name: str = name) -> list[float]:
                model = Vision(body, (20,), 7, WIDTH)
                net = _trained(model, train, seed, settings, f"joint {name}")
                right = _right(net, test[0], test[1])
                clothes = test[1] < 10
                return [float(right[clothes].mean()), float(right[~clothes].mean())]

            found = log.get(f"joint {name} {seed}, {settings.epochs} of {settings.images}", measure)
            scores.setdefault(name, []).append(found)
    rows = []
    ours = 100 * np.asarray(next(iter(scores.values())))
    for name, found in scores.items():
        values = 100 * np.asarray(found)
        rows.append(
            [
                name,
                *(mean_and_error(values[:, i]) for i in range(2)),
                *(mean_and_error(values[:, i] - ours[:, i]) for i in range(2)),
            ]
        )
    _show_routing(_trained(Vision(INTERPRETER, (20,), 7, WIDTH), train, 0, settings, JOINT), test)
    record(
        "interpreters_joint",
        Table(
            [
                *("body", "Fashion-MNIST, %", "MNIST-10k, %"),
                *("to the interpreter, clothes", "to the interpreter, digits"),
            ],
            rows,
        ),
        question="Does a Neural Interpreter learn as much as a transformer?",
        baseline="transformers of as many FLOPs and of as many parameters",
        notes=f"One model of 20 classes; {settings.images} clothes and 8000 digits, "
        f"{settings.epochs} epochs, patches of 7, width 96, the same AdamW for all (cosine from "
        f"1e-3, nothing chosen). {settings.seeds} seeds, mean ± standard error. Tested on 10000 "
        "clothes and 2000 digits; MNIST-10k is no official split.",
        settings={"seeds": settings.seeds, "images": settings.images, "epochs": settings.epochs},
    )


def _show_routing(net: js.Network, test: tuple[np.ndarray, np.ndarray]) -> None:
    """Which function takes which patch of three clothes and three digits."""
    rows = [int(np.argmax(test[1] == label)) for label in (0, 1, 9, 10, 12, 17)]
    images = np.asarray(test[0][rows])
    _, routing = Vision(INTERPRETER, (20,), 7, WIDTH).apply(
        {"params": net.params}, images, routing=True
    )
    affinity = np.asarray(routing.affinity[0])
    routing_maps(IMAGES / "routing.png", images[..., 0], affinity)
    print(f"refused by all: {np.asarray(routing.dead).mean():.3f} of the tokens")
    print(f"largest share of a token: {affinity.max(1).mean():.3f} on average")


def extend(settings: InterpretersSettings) -> None:
    """Digits for a model that knows clothes, by two more functions or by less."""
    train, _ = _both(settings.images)
    clothes = train[0][train[1] < 10], train[1][train[1] < 10]
    digits, held = _digits()
    validation = digits[0][-1000:], digits[1][-1000:]
    log = ScoreCache(settings.log)
    scores: dict[tuple[str, int], list[float]] = {}
    rates: dict[tuple[str, int], float] = {}
    for seed in range(settings.seeds):
        net = _trained(
            Vision(INTERPRETER, (10,), 7, WIDTH), clothes, seed, settings, "extend, clothes"
        )
        model = Vision(INTERPRETER, (10,), 7, WIDTH)
        task = add_task(model, net.params, 10, jax.random.key(seed))
        more = add_functions(*task, 2, jax.random.key(seed + 1))
        fresh = jax.jit(model.init)(jax.random.key(seed + 2), digits[0][:1])["params"]
        ways = {
            "a head alone": (*task, new_parameter_mask(task[1], net.params), 1),
            "a head and 2 functions": (*more, new_parameter_mask(more[1], net.params), 1),
            "everything": (*task, None, 1),
            "everything, from scratch": (model, fresh, None, 0),
        }
        for name, (larger, params, mask, which) in ways.items():

            def measure(
                count: int,
                rate: float,
                larger: Any = larger,
                params: Any = params,
                mask: Any = mask,
                which: int = which,
                seed: int = seed,
            ) -> list[float]:
                x, y = digits[0][:count], digits[1][:count]
                tuned = fit(
                    js.trace(larger, {"params": params}, x[:2], task=which),
                    x,
                    y,
                    epochs=-(-STEPS // (count // 32)),
                    batch_size=32,
                    optimizer=_optimizer(STEPS, mask, rate),
                    key=jax.random.key(seed),
                    call={"task": which},
                    quiet=True,
                )
                return [float(_right(tuned, *d, task=which).mean()) for d in (validation, held)]

            def known(count: int, rate: float, name: str = name, seed: int = seed) -> list[float]:
                return log.get(
                    f"extend, {name}, {count} digits, seed {seed}, rate {rate}",
                    partial(measure, count, rate),
                )

            for count in COUNTS:
                if (name, count) not in rates:
                    rates[name, count] = max(
                        RATES, key=lambda rate, count=count: known(count, rate)[0]
                    )
                _, right = known(count, rates[name, count])
                scores.setdefault((name, count), []).append(right)
    names = dict.fromkeys(name for name, _ in scores)
    record(
        "interpreters_extend",
        Table(
            ["what is trained", *(f"{n} digits, %" for n in COUNTS), "learning rates"],
            [
                [
                    name,
                    *(mean_and_error(100 * np.asarray(scores[name, n])) for n in COUNTS),
                    ", ".join(f"{rates[name, n]:g}" for n in COUNTS),
                ]
                for name in names
            ],
        ),
        question="Do new functions teach a frozen model new classes?",
        baseline="a new head alone; all parameters",
        notes=f"The model knows clothes (Fashion-MNIST, {settings.images} images, "
        f"{settings.epochs} epochs). {STEPS} steps of 32 digits, AdamW, cosine from the "
        f"rate of {RATES} that is best on 1000 other digits (first seed); with functions, all "
        f"learned before is bit-unchanged without them. {settings.seeds} seeds, mean "
        "± standard error, on 2000 digits not trained on.",
        settings={"seeds": settings.seeds, "images": settings.images, "epochs": settings.epochs},
    )


def reasoning(settings: InterpretersSettings) -> None:
    """Matrices by rules that were seen, and by rules that were not."""
    seen = set(rpm.RULES) - set(HELD_OUT)
    train = rpm.generate(settings.puzzles, seed=1, allowed=seen)
    tests = {
        "rules as in training, %": rpm.generate(2000, seed=2, allowed=seen),
        "a rule held out, %": rpm.generate(2000, seed=3, wanted=HELD_OUT),
    }
    body = INTERPRETER.clone(positions=None)
    models = {
        "Neural Interpreter": Reasoner(body, PanelSymbols(WIDTH), WIDTH),
        "transformer of equal FLOPs": Reasoner(Transformer(9), PanelSymbols(WIDTH), WIDTH),
        "transformer of equal parameters": Reasoner(Transformer(1), PanelSymbols(WIDTH), WIDTH),
        "transformer that sees no matrix": Reasoner(
            Transformer(2), PanelSymbols(WIDTH), WIDTH, context=False
        ),
    }
    log = ScoreCache(settings.log)
    scores: dict[str, list[list[float]]] = {}
    for seed in range(settings.seeds):
        for name, model in models.items():

            def measure(model: Any = model, seed: int = seed, name: str = name) -> list[float]:
                data = train.panels.astype(np.int32), train.answers
                net = _trained(model, data, seed, settings, f"reasoning {name}")
                return [
                    float(_right(net, t.panels.astype(np.int32), t.answers).mean())
                    for t in tests.values()
                ]

            found = log.get(f"reasoning {name} {seed}, {settings.puzzles}", measure)
            scores.setdefault(name, []).append(found)
    record(
        "interpreters_reasoning",
        Table(
            ["model", *tests],
            [
                [name, *(mean_and_error(column) for column in 100 * np.asarray(found).T)]
                for name, found in scores.items()
            ],
        ),
        question="Do models reason by rules they have not seen?",
        baseline="chance, 12.5 %; a transformer that sees the choices alone",
        notes=f"{settings.puzzles} matrices of one figure as symbols, {settings.epochs} epochs; "
        f"2000 others for each test. Held out: {', '.join(' '.join(p) for p in HELD_OUT)}. "
        f"{settings.seeds} seeds, mean ± standard error.",
        settings={"seeds": settings.seeds, "puzzles": settings.puzzles, "epochs": settings.epochs},
    )


def _optimizer(steps: int, mask: Any = None, rate: float = 1e-3) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(100, steps // 4), steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-3)
    )
    return optimizer if mask is None else only(optimizer, mask)


def _trained(
    model: Any, data: tuple[Any, Any], seed: int, settings: InterpretersSettings, name: str
) -> js.Network:
    """A model after its epochs; goes on from checkpoints."""
    x, y = data
    variables: Mapping[str, Any] = jax.jit(model.init)(jax.random.key(seed), x[:1])
    steps = settings.epochs * (len(x) // 64)
    return fit(
        js.trace(model, variables, x[:2]),
        x,
        y,
        epochs=settings.epochs,
        batch_size=64,
        optimizer=_optimizer(steps),
        key=jax.random.key(seed + 100),
        checkpoints=settings.checkpoints.expanduser()
        / f"{name.replace(' ', '-')}-{seed}-{settings.epochs}-{len(x)}",
        label=name,
        quiet=True,
    )


def _right(net: js.Network, x: Any, y: Any, **call: Any) -> np.ndarray:
    """Whether each is classified right."""
    run = jax.jit(lambda net, x: net(x, **call))
    parts = [run(net, x[i : i + 500]) for i in range(0, len(x), 500)]
    return np.argmax(np.concatenate(parts), -1) == y


def _digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """8000 digits to learn from, 2000 to test with."""
    with np.load(file("quantum_coconet/mnist10k_npm.npz"), allow_pickle=False) as held:
        x, y = held["images"][..., None] / np.float32(255), held["labels"].astype(np.int32)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    return (x[:8000], y[:8000]), (x[8000:], y[8000:])


def _both(images: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Clothes, classes 0 to 9, and digits, 10 to 19."""
    digits, held = _digits()
    clothes, test = fashion_mnist("train"), fashion_mnist("test")
    return (
        (
            np.concatenate([np.asarray(clothes.images[:images]), digits[0]]),
            np.concatenate([np.asarray(clothes.labels[:images]), digits[1] + 10]),
        ),
        (
            np.concatenate([np.asarray(test.images), held[0]]),
            np.concatenate([np.asarray(test.labels), held[1] + 10]),
        ),
    )
