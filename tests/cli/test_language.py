"""A decoder's file, texts and recipes, to a table and what is written."""

import json
import re

import jax
import numpy as np
import pytest

pytest.importorskip("gguf", reason="gguf is not installed")
import jaxsim as js
from jaxsim.checkpoint import resume
from jaxsim.cli import main as cli
from jaxsim.cli.language import Language, language
from jaxsim.models.llama import from_gguf, with_layers
from tests.support import llama_files

EIGHT = """
[[transform]]
name = "quantize"
sites = "layers*"

[[transform]]
name = "smooth"
sites = "layers*"

[deploy]
seed = 4
"""
NOISY = """
[[transform]]
name = "quantize"
weights = 6
inputs = {Grid = {bits = 8, per = "token"}}
sites = "layers*"

[[transform]]
name = "analog"
cells = {"cells.independent" = {sigma = 0.0, noise = 0.02}}
sites = "layers*"
"""
CACHE = """
[[transform]]
name = "code_cache"
form = 2
latest = 2
"""
PRUNED = """
[[transform]]
name = "prune"
sparsity = 0.5
"""
LETTERS = np.random.default_rng(5).choice(llama_files.LETTERS, 600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("language")
    content = llama_files.gguf_file(llama_files.fields(), llama_files.tensors())
    (path / "model.gguf").write_bytes(content)
    (path / "test.txt").write_text("".join(LETTERS[:200]))
    (path / "valid.txt").write_text("".join(LETTERS[200:]))
    for name, text in (("eight", EIGHT), ("noisy", NOISY), ("pruned", PRUNED), ("cache", CACHE)):
        (path / f"{name}.toml").write_text(text)
    return path


def options(folder, *recipes, **others):
    return Language(
        folder / "model.gguf",
        folder / "test.txt",
        tuple(folder / f"{name}.toml" for name in recipes),
        **{"calibrate": folder / "valid.txt", "window": 20, "quiet": True} | others,
    )


@pytest.fixture(scope="module")
def run(folder):
    return language(options(folder, "eight", "noisy", "pruned"))


def test_lines_are_what_the_same_code_says(folder, run):
    model, params, tokenizer = from_gguf(folder / "model.gguf")
    cut, seen = (
        js.language.windows(tokenizer.encode((folder / file).read_text()).ids, 20, count)
        for file, count in (("test.txt", None), ("valid.txt", 8))
    )
    net = js.trace(model, {"params": params}, cut[:1])
    chip = js.compose(js.quantize(sites="layers*"), js.smooth(seen, sites="layers*"))(net)
    chip = js.deploy(chip, key=jax.random.key(4), calibrate=seen, keep_floats=False)
    pruned = js.deploy(js.prune(0.5)(net), keep_floats=False)
    expected = js.language.compare(net, {"eight": chip, "pruned": pruned}, cut)
    by_name = {row.name: row for row in run.rows}
    assert [*by_name] == ["float", "eight", "noisy", "pruned"]
    assert by_name["float"] == expected.rows[0]._replace(name="float")
    assert by_name["eight"] == expected.rows[1]
    assert by_name["pruned"] == expected.rows[2]
    assert by_name["eight"].ratio.value != 1
    assert by_name["noisy"].ratio.value != 1


def test_a_run_that_was_stopped_goes_on_with_the_same_numbers(folder, tmp_path, monkeypatch):
    stopping = options(folder, "noisy", batch=1, windows=9, checkpoints=tmp_path / "kept")
    whole = language(options(folder, "noisy", batch=1, windows=9))
    add, calls = resume.RunCheckpointer.add, []

    def stop_after_two(self, *args):
        add(self, *args)
        calls.append(args[0])
        if len(calls) == 3:  # the second network's first eight windows
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resume.RunCheckpointer, "add", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            language(stopping)
    assert calls == [8, 9, 8]
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            resume.RunCheckpointer, "add", lambda self, *a: (calls.append(a[0]), add(self, *a))
        )
        assert language(stopping) == whole
    assert calls == [9]  # one window was left
    other = options(folder, "noisy", batch=1, windows=8, checkpoints=tmp_path / "kept")
    with pytest.raises(ValueError, match="windows"):
        language(other)


def test_windows_are_read_through_a_cache(folder, run):
    table = language(options(folder, "cache", through_cache=True))
    exact, coded = table.rows
    assert exact.perplexity.value == pytest.approx(run.rows[0].perplexity.value, rel=1e-4)
    assert abs(coded.ratio.value - 1) > 1e-3
    assert coded.held == exact.held


def test_the_command_prints_a_table_and_what_is_written(folder, run, capsys):
    words = ["language", folder / "model.gguf", "--text", folder / "test.txt", "--window", 20]
    for name in ("again", "pruned"):
        words += ["--recipe", folder / f"{name}.toml"]
    words += ["--prompt", "er", "--count", 5]
    (folder / "again.toml").write_text("")
    cli.main([str(w) for w in (*words, "--json", folder / "all.json")])
    shown = capsys.readouterr().out
    assert "language models, cost per token" in shown
    assert re.search(r"pruned .*±", shown)
    assert "tokens a second read" in shown
    numbers = json.loads((folder / "all.json").read_text())
    assert [row["name"] for row in numbers["rows"]] == ["float", "again", "pruned"]
    assert numbers["rows"][1]["ratio"]["value"] == 1
    assert numbers["rows"][2]["ratio"]["value"] == run.rows[3].ratio.value
    model, params, tokenizer = from_gguf(folder / "model.gguf")
    prompt = np.array([tokenizer.encode("er").ids])
    net = js.trace(model, {"params": params}, prompt)
    tokens = js.language.generate(net, prompt, model.cache(1, 6), count=5)
    written = tokenizer.decode(tokens[0].tolist())
    assert numbers["written"]["float"] == written
    assert "er" + written in shown
    assert all(numbers["speed"][name]["written"] > 0 for name in ("float", "pruned"))


def test_exits_and_drafts_write_what_the_functions_say(folder, capsys):
    words = ["language", folder / "model.gguf", "--text", folder / "test.txt", "--window", 20]
    words += ["--prompt", "er", "--count", 6, "--exits", 1, "--exit-threshold", 0]
    words += ["--draft", 1, "--ahead", 2, "--json", folder / "fast.json"]
    cli.main([str(w) for w in words])
    shown = capsys.readouterr().out
    numbers = json.loads((folder / "fast.json").read_text())
    model, params, tokenizer = from_gguf(folder / "model.gguf")
    prompt = np.array([tokenizer.encode("er").ids])
    net = js.trace(model, {"params": params}, prompt)
    left = js.language.write_early(
        net, prompt, model.cache(1, 7), count=6, after=[1], threshold=0.0
    )
    early, drafted = numbers["early"]["float"], numbers["drafted"]["float"]
    assert early["layers"] == left.layers.mean() < model.layers
    assert early["operations"] == pytest.approx(left.flops / left.whole)
    assert early["text"] == tokenizer.decode(left.tokens[0].tolist())
    assert f"{early['layers']:.1f} of {model.layers} layers" in shown
    small, some = with_layers(model, params, [0])
    draft = js.trace(small, {"params": some}, prompt)
    caches = model.cache(1, 9), small.cache(1, 9)
    found = js.language.speculate(net, draft, prompt, *caches, count=6, ahead=2)
    assert (drafted["accepted"], drafted["checks"]) == (found.accepted, found.checks)
    assert drafted["same"]
    assert drafted["time"] > 0
    assert "of 2 stand" in shown


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"model": "test.txt"}, "must be a .gguf file or a folder"),
        ({"window": 1}, "window=1"),
        ({"window": 65, "calibration_windows": 6}, "context=64"),
        ({"window": 300}, "test.txt': tokens[200]: 1 windows of size=300 take 300"),
        ({"windows": 11}, "11 windows of size=20 take 220"),
        ({"calibration_windows": 0}, "calibration_windows=0"),
        ({"calibration_windows": 21}, "valid.txt': tokens[400]: 21 windows"),
        ({"count": 1}, "count=1"),
        ({"batch": 0}, "batch=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"prompt": ""}, "prompt='': has no tokens"),
        ({"prompt": "the", "count": 64}, "prompt of 1 tokens and count=64: must be at most 64"),
        ({"exits": (1,)}, "exits: is of text that is written; give a --prompt"),
        ({"draft": 1}, "draft: is of text that is written; give a --prompt"),
        ({"draft": 3, "prompt": "the"}, "draft=3: must be an int from 1 to 2"),
        ({"ahead": 0}, "ahead=0"),
        ({"exit_threshold": -1.0}, "exit_threshold=-1.0"),
        ({"draft": 1, "prompt": "the", "count": 60}, "count=60, ahead=4: must be at most 64"),
        ({"seed": -1}, "seed=-1"),
        ({"json": "nowhere/x.json"}, "nowhere"),
        ({"calibrate": None}, "recipe 'eight': transform 2, smooth: takes inputs"),
        ({"recipe": ("eight", "eight")}, "another line of the table has the name 'eight'"),
        ({"recipe": ("eight.toml", "data = 'x.npz'")}, "[deploy] data is of other models"),
        ({"recipe": ("eight.toml", "images = 3")}, "[deploy] images is of other models"),
        ({"recipe": ("float.toml", "")}, "another line of the table has the name 'float'"),
        (
            {"recipe": ("cache.toml", "[[transform]]\nname = 'code_cache'\nform = 4")},
            "recipe 'cache': code_cache changes nothing where windows are read in one call",
        ),
        ({"recipe": ("other.toml", "[model]")}, "'model' is unknown; it may have deploy, transf"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(folder, tmp_path, others, said):
    others = dict(others)
    recipes = others.pop("recipe", ("eight",))
    args = options(folder, *recipes, **{k: v for k, v in others.items() if k != "model"})
    if recipes[0].endswith(".toml"):
        name, more = recipes
        (tmp_path / name).write_text(EIGHT + more)
        args = options(folder)
        args = Language(args.model, args.text, (tmp_path / name,), quiet=True)
    if "model" in others:
        args = Language(folder / others["model"], args.text, quiet=True)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        language(args)
    assert "\n" not in str(error.value)
