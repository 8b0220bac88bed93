"""Options that every command has, files of options, completion, and outputs of ASCII."""

import ast
import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
import tyro

import jaxsim
from jaxsim.cli import main as cli
from jaxsim.cli.config import config_of, defaults
from jaxsim.console.ascii import SUBSTITUTES
from tests.cli.test_main import refused, run


@pytest.fixture
def told(monkeypatch):
    """Options that commands would have run with."""
    found = []
    for name, command in cli.COMMANDS.items():
        monkeypatch.setitem(cli.COMMANDS, name, command._replace(run=found.append))
    return found


MUST = {
    "trace": ["jaxsim.models.resnet:ResNet"],
    "language": ["m.gguf", "--text", "t.txt"],
    "nac train": ["skill"],
    "nac evaluate": ["folder"],
    "influence": ["edges.txt"],
    **{name: ["chip.toml"] for name in ("transform", "bench", "estimate", "explore")},
}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_takes_the_same_options_from_words_and_from_a_file(name, told, tmp_path):
    common = ["--json", "x.json", "--quiet", "--seed", "7"]
    words = [*name.split(), *MUST.get(name, [])]
    path = tmp_path / "o.toml"
    path.write_text('json = "x.json"\nquiet = true\nseed = 7\n')
    cli.main([*words, *common])
    cli.main([*words, "--config", str(path)])
    cli.main([*words, f"--config={path}", "--seed", "8", "--no-quiet"])
    by_word, by_file, over = told
    assert (by_word.json, by_word.quiet, by_word.seed) == (Path("x.json"), True, 7)
    assert type(by_word) is cli.COMMANDS[name].options
    assert dataclasses.replace(by_file, config=None) == by_word
    assert dataclasses.replace(by_file, seed=8, quiet=False) == over


def test_a_file_of_options_may_say_all_that_a_command_must_be_told(told, tmp_path):
    path = tmp_path / "o.toml"
    path.write_text(
        'model = "m.gguf"\ntext = "t.txt"\nrecipe = ["a.toml", "b.toml"]\nthrough-cache = true\n'
        "windows = 3\ntemperature = 1\n"
    )
    cli.main(["language", "--config", str(path)])
    assert told[0].recipe == (Path("a.toml"), Path("b.toml"))
    assert (told[0].model, told[0].windows, told[0].through_cache) == (Path("m.gguf"), 3, True)
    assert told[0].temperature == 1.0
    path.write_text('model = "a:B"\nsettings = {stages = [1]}\ninput = [2, 4]\n')
    cli.main(["trace", "--config", str(path)])
    assert json.loads(told[1].settings) == {"stages": [1]}
    assert told[1].input == (2, 4)
    made = defaults(cli.COMMANDS["trace"].options, str(path))
    assert (made.seed, made.quiet) == (None, False)
    path.write_text("")
    assert defaults(cli.COMMANDS["trace"].options, str(path)).model is tyro.MISSING
    assert config_of(["rpm", "--config", "a", "--config=b=c"]) == "b=c"
    assert config_of(["rpm", "--config"]) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cuont = 3", "'cuont' is unknown (did you mean count?); it may have configuration, count"),
        ('config = "o.toml"', "'config' is unknown"),
        ('count = "x"', "count='x': must be int"),
        ("quiet = 1", "quiet=1: must be true or false"),
        ("count = true", "count=True: must be int"),
        ("count = [1, 2]", "count=[1, 2]: must be int"),
        ("count = ", "not TOML"),
    ],
)
def test_what_a_file_of_options_cannot_say_is_named(text, said, told, tmp_path, capsys):
    path = tmp_path / "o.toml"
    path.write_text(text)
    err = refused(capsys, "rpm", "--config", path).err
    assert f"config='{path}'" in err
    assert said in err
    assert not told


def test_completion_is_a_script_that_a_shell_reads():
    done = run("--tyro-print-completion", "bash")
    assert done.returncode == 0
    checked = subprocess.run(["bash", "-n"], input=done.stdout, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert all(name.split()[0].encode() in done.stdout for name in cli.COMMANDS)


def test_help_errors_and_tables_are_ascii_where_the_output_is():
    words = ("trace", "jaxsim.models.resnet:ResNet", "--input", 1, 8, 8, 1, "--settings")
    table = run(*words, '{"stages": [1], "features": 4}', PYTHONIOENCODING="ascii")
    assert table.returncode == 0, table.stderr
    helped = run("transform", "--help", PYTHONIOENCODING="ascii")
    wrong = run("rpm", "--cuont", 3, PYTHONIOENCODING="ascii")
    assert wrong.returncode == 2
    for said in (table.stdout, helped.stdout, wrong.stderr):
        assert said.strip()
        said.decode("ascii")
    # Nothing is lost: what has no letter of its own has one that stands for it.
    assert b"?" not in table.stdout


def test_all_characters_that_are_printed_have_something_that_stands_for_them():
    lacking = set()
    for path in Path(jaxsim.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = "" if id(node) in prose else node.value.translate(SUBSTITUTES)
                lacking |= {c for c in text if not c.isascii()}
    assert not lacking
