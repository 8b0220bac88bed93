"""`jaxsim language`: what recipes make of a decoder, on a text and in what it writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

import jaxsim as js
from jaxsim.cli.options import Reseeded
from jaxsim.cli.recipe import deploy_key, read_recipe, with_seed
from jaxsim.cli.steps import Given, compose_steps
from jaxsim.console.timing import alternate
from jaxsim.evaluate.language.comparison import language_row
from jaxsim.files.text import read_text
from jaxsim.models.llama import (
    Llama,
    Pretrained,
    from_gguf,
    from_hugging_face,
    with_layers,
)
from jaxsim.numerics.checks import check_range, checked_int

_FLOAT = "float"


@dataclasses.dataclass(frozen=True)
class Language(Reseeded):
    """Score a decoder and what recipes make of it on a text, and let them write.

    Example: jaxsim language model.gguf --text wiki.txt --recipe four_bits.toml --prompt "Once upon"
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A .gguf file, or a folder with config.json, tokenizer.json and safetensors."""
    text: Path
    """Text file to score."""
    recipe: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """TOML file of transforms; docs/cli.md shows one. A line of the table for each --recipe."""
    calibrate: Path | None = None
    """Text file that ranges and roundings are set by; not the one that is scored."""
    calibration_windows: int = 8
    """How many windows of it, spread over the text."""
    window: int = 128
    """Tokens of a window, at most the model's context."""
    windows: int | None = None
    """How many windows of the text to score, spread over it; all unless said."""
    batch: int = 4
    """Windows of a call."""
    through_cache: bool = False
    """Read windows a token a call, as they would be written: what code_cache loses counts so."""
    prompt: str | None = None
    """Text to write on from; tokens a second are timed by it, too."""
    count: int = 32
    """Tokens to write."""
    temperature: float = 0.0
    """Of the draws; 0 takes the most probable token."""
    exits: tuple[int, ...] = ()
    """Layers after which tokens may leave, such as 12 20: writes on from the prompt so, too."""
    exit_threshold: float = 0.8
    """How far the first choice must be ahead of the second for a token to leave."""
    draft: int | None = None
    """Number of first layers that draft tokens for all to check: writes on so, too."""
    ahead: int = 4
    """Tokens drafted for a check."""
    checkpoints: Path | None = None
    """Folder to go on from where a run was stopped."""


def language(args: Language) -> js.language.LanguageComparison:
    """Prints a table of the decoder and its recipes, and what each writes.

    Args:
      args: Options of the command.

    Returns:
      The comparison that was printed.

    Raises:
      ValueError: A recipe, a model or a text that cannot be used, or an option out of range.
    """
    console = args.open()
    _check(args)
    recipes = _recipes(args.recipe, args.seed)
    for name, recipe in recipes.items():
        steps = [step["name"] for step in recipe["transform"]]
        if "code_cache" in steps and not args.through_cache:
            raise ValueError(
                f"recipe {name!r}: code_cache changes nothing where windows are read in one call; "
                "say --through-cache"
            )
        if "code_cache" in steps and args.draft is not None:
            raise ValueError(
                f"recipe {name!r}: code_cache keeps codes that a check cannot set back; leave out "
                "--draft"
            )
    model, params, tokenizer = _pretrained(args.model)
    if args.draft is not None:
        checked_int("draft", args.draft, 1, model.layers)
    cut = _windows(args.text, tokenizer, args.window, args.windows)
    inputs = None
    if args.calibrate is not None:
        inputs = _windows(args.calibrate, tokenizer, args.window, args.calibration_windows)
    prompt = _prompt(args, tokenizer, model.context)
    net = js.trace(model, {"params": params}, cut[:1])
    rows, kept, first = list[Any](), dict[str, js.Network](), None
    for name, recipe in {_FLOAT: None, **recipes}.items():
        chip = net if recipe is None else _chip(name, net, recipe, inputs)
        scores = js.language.score(
            chip,
            cut,
            key=_key(recipe),
            batch_size=args.batch,
            cache=model.cache if args.through_cache else None,
            checkpoints=None if args.checkpoints is None else args.checkpoints / name,
            label=name,
            quiet=args.quiet,
        )
        first = scores if first is None else first
        rows.append(language_row(name, chip, cut, scores, first))
        if prompt is not None:
            kept[name] = chip
    table = js.language.LanguageComparison(tuple(rows))
    console.print(table)
    numbers: dict[str, Any] = {"rows": [_numbers(row) for row in rows]}
    if prompt is not None:
        numbers |= _all_written(console, args, model, params, tokenizer, kept, recipes, prompt)
    args.write(numbers)
    return table


def _all_written(
    console: Any,
    args: Language,
    model: Llama,
    params: Any,
    tokenizer: Any,
    kept: dict[str, js.Network],
    recipes: dict[str, dict[str, Any]],
    prompt: np.ndarray,
) -> dict[str, Any]:
    """Lets each network write on from a prompt, prints that, and returns what there is to know."""
    cache = model.cache(1, prompt.shape[1] + args.count)
    written = {
        name: _written(chip, prompt, cache, args, tokenizer, _key(recipes.get(name)))
        for name, chip in kept.items()
    }
    # A key for cores that draw at a read; nothing is drawn where none does.
    times = js.language.speed(kept, prompt, cache, count=args.count, key=jax.random.key(0))
    early = {n: _early(chip, prompt, cache, args, tokenizer) for n, chip in kept.items()}
    drafted = _drafted(args, model, params, kept, prompt)
    for name, text in written.items():
        console.rule(name, align="left")
        console.print(f"{args.prompt}{text}", markup=False, highlight=False)
        console.print(
            f"{times[name].read:.0f} tokens a second read, {times[name].written:.1f} written"
        )
        if left := early[name]:
            console.print(
                f"tokens that may leave early: {left['layers']:.1f} of {model.layers} layers, "
                f"{100 * left['operations']:.0f} % of the operations"
            )
            console.print(f"{args.prompt}{left['text']}", markup=False, highlight=False)
        if found := drafted.get(name):
            console.print(
                f"drafted by {args.draft} layers: {found['accepted']:.2f} of {args.ahead} stand, "
                f"{found['time']:.2f} of the time, the same tokens: {found['same']}"
            )
    numbers: dict[str, Any] = {"written": written}
    numbers["speed"] = {name: taken._asdict() for name, taken in times.items()}
    return (
        numbers
        | ({"early": early} if args.exits else {})
        | ({} if args.draft is None else {"drafted": drafted})
    )


def _early(
    net: js.Network, prompt: np.ndarray, cache: Any, args: Language, tokenizer: Any
) -> dict[str, Any]:
    """What a network writes whose tokens may leave early, and by how many layers."""
    if not args.exits:
        return {}
    text = js.language.write_early(
        net,
        prompt,
        cache,
        count=args.count,
        after=args.exits,
        threshold=args.exit_threshold,
        key=jax.random.key(args.seed or 0),
    )
    return {
        "text": tokenizer.decode(text.tokens[0].tolist()),
        "layers": float(text.layers.mean()),
        "operations": text.flops / text.whole,
    }


def _drafted(
    args: Language, model: Llama, params: Any, kept: dict[str, js.Network], prompt: np.ndarray
) -> dict[str, dict[str, Any]]:
    """How much of what first layers draft stands, and the time beside writing without drafts."""
    if args.draft is None:
        return {}
    small, some = with_layers(model, params, range(args.draft))
    draft = js.trace(small, {"params": some}, prompt)
    room = prompt.shape[1] + args.count + args.ahead
    caches = model.cache(1, room), small.cache(1, room)
    more: dict[str, Any] = {"count": args.count, "key": jax.random.key(args.seed or 0)}
    found: dict[str, dict[str, Any]] = {}
    for name, net in kept.items():
        whole = partial(js.language.generate, net, prompt, caches[0], **more)
        fast = partial(js.language.speculate, net, draft, prompt, *caches, ahead=args.ahead, **more)
        times = alternate({"whole": whole, "drafted": fast}, runs=5)
        text = fast()
        found[name] = {
            "accepted": text.accepted,
            "checks": text.checks,
            "same": bool((text.tokens == whole()).all()),
            "time": times["drafted"].median / times["whole"].median,
        }
    return found


def _check(args: Language) -> None:
    checked_int("window", args.window, 2)
    checked_int("batch", args.batch, 1)
    checked_int("count", args.count, 2)
    checked_int("calibration_windows", args.calibration_windows, 1)
    check_range("temperature", args.temperature, 0)
    check_range("exit_threshold", args.exit_threshold, 0)
    checked_int("ahead", args.ahead, 1)
    for name in ("exits", "draft"):
        if getattr(args, name) not in ((), None) and args.prompt is None:
            raise ValueError(
                f"{name}: is of text that is written; give a --prompt to write on from"
            )


def _recipes(paths: Sequence[Path], seed: int | None) -> dict[str, dict[str, Any]]:
    """Recipes by the names of their files."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        if path.stem in found or path.stem == _FLOAT:
            raise ValueError(
                f"recipe={str(path)!r}: another line of the table has the name {path.stem!r}"
            )
        recipe = read_recipe(path, ("transform", "deploy"))
        for key in recipe["deploy"].keys() - {"seed"}:
            raise ValueError(
                f"recipe={str(path)!r}: [deploy] {key} is of other models; here --calibrate names "
                "a text"
            )
        found[path.stem] = with_seed(recipe, seed)
    return found


def _pretrained(path: Path) -> Pretrained:
    if path.is_dir():
        return from_hugging_face(path)
    if path.suffix != ".gguf":
        raise ValueError(f"model={str(path)!r}: must be a .gguf file or a folder")
    return from_gguf(path)


def _windows(path: Path, tokenizer: Any, size: int, count: int | None) -> np.ndarray:
    tokens = np.array(tokenizer.encode(read_text(path)).ids, np.int32)
    try:
        return js.language.windows(tokens, size, count)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None


def _prompt(args: Language, tokenizer: Any, context: int) -> np.ndarray | None:
    if args.prompt is None:
        return None
    ids = np.array([tokenizer.encode(args.prompt).ids], np.int32)
    if not ids.size:
        raise ValueError(f"prompt={args.prompt!r}: has no tokens")
    ahead = 0 if args.draft is None else args.ahead
    if ids.size + args.count + ahead > context:
        drafts = f", ahead={ahead}" if ahead else ""
        raise ValueError(
            f"prompt of {ids.size} tokens and count={args.count}{drafts}: must be at most "
            f"{context}, the model's context"
        )
    return ids


def _chip(name: str, net: js.Network, recipe: dict[str, Any], inputs: Any) -> js.Network:
    """The network of a recipe, deployed where it has cores, and only what its calls read."""
    try:
        chip = compose_steps(recipe["transform"], Given(lambda: inputs, deploy_key(recipe)))(net)
        if not chip.cores:
            return chip
        return js.deploy(chip, key=deploy_key(recipe), calibrate=inputs, keep_floats=False)
    except ValueError as error:
        if inputs is None and any(word in str(error) for word in ("calibrate", "no data")):
            error = f"{error}; --calibrate names a text to take them from"
        raise ValueError(f"recipe {name!r}: {error}") from None


def _key(recipe: dict[str, Any] | None) -> Any:
    return None if recipe is None else jax.random.fold_in(deploy_key(recipe), 1)


def _written(
    net: js.Network, prompt: np.ndarray, cache: Any, args: Language, tokenizer: Any, key: Any
) -> str:
    key = jax.random.key(args.seed or 0) if key is None else key
    tokens = js.language.generate(
        net, prompt, cache, count=args.count, temperature=args.temperature, key=key
    )
    return tokenizer.decode(tokens[0].tolist())


def _numbers(row: js.language.LanguageRow) -> dict[str, Any]:
    of_row = row._asdict()
    estimates = {k: of_row[k]._asdict() for k in ("perplexity", "ratio", "agreement")}
    return of_row | estimates
