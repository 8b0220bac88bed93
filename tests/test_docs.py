"""The code in the documentation runs, and what it claims holds."""

import importlib
import inspect
import operator
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxsim as js
from benchmarks.common import record as common_record
from benchmarks.common.graphs import DATA, FILES
from tests.site import FACES, public_names
from tests.support.networks import X, cnn

ROOT = Path(__file__).parent.parent


def blocks(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


# Pages of the reference about what is under the public names.
INNER = ("base",)

PAGES = (
    "concepts",
    "models",
    "language",
    "state",
    "quantization",
    "rounding",
    "sparsity",
    "shrink",
    "accelerator",
    "analog",
    "devices",
    "on_chip",
    "parasitics",
    "explore",
    "export",
    "pipeline",
    "exits",
    "pyramid",
    "quantum",
    "collaborative",
    "nac",
    "interpreters",
)


def ran(page, namespace):
    for block in blocks(page):
        exec(compile(block, page, "exec"), namespace)
    return namespace


@pytest.mark.parametrize("page", [f"docs/{page}.md" for page in PAGES])
def test_every_block_of_a_page_runs_in_order(page):
    if page == "docs/export.md":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    assert ran(page, {})


HEADINGS = ["What it does", "When to use it", "Example", "Settings", "Limits and cost"]
HOW_TO = sorted(path.stem for path in (ROOT / "docs" / "howto").glob("*.md"))


@pytest.fixture(scope="module")
def first_lines():
    return ran("docs/howto/index.md", {})


@pytest.mark.parametrize("page", [page for page in HOW_TO if page != "index"])
def test_a_page_of_a_transform_has_its_headings_and_its_example_runs(page, first_lines, capsys):
    text = (ROOT / "docs" / "howto" / f"{page}.md").read_text(encoding="utf-8")
    assert re.findall("^## (.*)$", text, re.MULTILINE) == HEADINGS
    assert ran(f"docs/howto/{page}.md", dict(first_lines))


def test_every_transform_has_a_page_that_the_list_and_the_navigation_know():
    made = {n for n in js.__all__ if (ROOT / "jaxsim" / "transforms" / f"{n}.py").exists()}
    listed = (ROOT / "docs" / "howto" / "index.md").read_text(encoding="utf-8")
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert made | {"compose", "index"} == set(HOW_TO)
    for name in made | {"compose"}:
        assert f"]({name}.md)" in listed
        assert f"howto/{name}.md" in navigation


def test_the_first_page_shows_what_its_example_prints(capsys, monkeypatch):
    """In numbers up to what another machine's rounding may change: a point, of 1000 images."""
    ran("docs/index.md", {})
    printed = capsys.readouterr().out
    shown = re.search(r"```text\n(.*?)```", (ROOT / "docs/index.md").read_text(), re.DOTALL)[1]
    number = r"\d+(?:\.\d+)?"
    assert re.sub(number, "0", shown).split() == re.sub(number, "0", printed).split()
    for a, b in zip(re.findall(number, shown), re.findall(number, printed), strict=True):
        assert abs(float(a) - float(b)) <= 1.5
    assert blocks("README.md")[0] == blocks("docs/index.md")[0]


TASKS = ("quantize", "prune", "crossbar", "exit early", "shard", "hardware", "hugging", "search")


def rows_of_tasks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    table = text[text.index("## I want to …") :].split("\n\n")[1]
    return table.strip().splitlines()[2:]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
@pytest.mark.parametrize("task", TASKS)
def test_a_stranger_does_each_task_in_two_clicks(page, task):
    """One to a page with an example that can be run; a page of a transform links to its lines."""
    row = next(line for line in rows_of_tasks(page) if task in line.split("|")[1].lower())
    links = [(ROOT / page).parent / link for link in re.findall(r"\]\(([^)#]+)", row)]
    assert all(link.exists() for link in links)
    first = links[0]
    text = first.read_text(encoding="utf-8")
    if first.suffix == ".py":
        assert "import jaxsim as js" in text
        return
    example = "".join(blocks(first))
    assert "js." in example
    if "import jaxsim" not in example:
        (before,) = re.findall(r"first lines\]\(([^)#]+)", text)
        assert "net = js.trace(" in "".join(blocks(first.parent / before))


def test_both_first_pages_have_the_same_tasks():
    ours, theirs = (rows_of_tasks(page) for page in ("README.md", "docs/index.md"))
    assert [line.replace("docs/", "") for line in ours] == theirs


def test_the_page_on_extending_runs_and_so_does_its_benchmark(monkeypatch, tmp_path):
    namespace = ran("docs/extend.md", {})
    monkeypatch.setattr(common_record, "RESULTS", tmp_path)
    namespace["main"](["--runs", "5"])
    assert (tmp_path / "yours.json").exists()


def test_pages_about_a_network_of_yours_run_with_one(capsys):
    net = cnn()

    def near(chip):
        return 1 - float(jnp.abs(chip(X) - net(X)).mean())

    given = {"net": net, "x": X}
    integers = ran("docs/integer.md", dict(given))
    assert jnp.allclose(integers["logits"], integers["chip"](X), atol=0.05)
    steps = ran("docs/showcase.md", dict(given))
    analog = jax.jit(lambda chip: chip(X))(js.deploy(steps["array"], key=steps["key"], calibrate=X))
    assert jnp.allclose(steps["y"], analog, atol=1e-4)
    found = ran("docs/blocked.md", given | {"x_calibrate": X, "evaluate": near})["found"]
    assert found.layers.energy_gain > 1
    assert "not a measurement" in capsys.readouterr().out


def test_the_page_of_cascades_runs_on_the_graph_that_it_names(tmp_path, monkeypatch):
    graph = DATA / FILES["email"][0]
    if not graph.exists():
        pytest.skip(f"no {graph}; set JAXSIM_DATA")
    shutil.copy(graph, tmp_path)
    monkeypatch.chdir(tmp_path)
    found = ran("docs/cascades.md", {})["found"]
    assert {int(s) for s in found.seeds} == {160, 121, 86, 82, 107}


def listed(page):
    """Objects that a page of the reference shows: names, and modules with the members they show."""
    text = (ROOT / "docs" / "api" / f"{page}.md").read_text(encoding="utf-8")
    for path, members in re.findall(
        r"^::: (\S+)(?:\n    options:\n      members: \[(.*)\])?", text, re.M
    ):
        yield path, members.split(", ") if members else None


def located(path):
    """A module, or what one holds; a function may bear the name of its module."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def shown():
    """Everything that the reference shows, by identity, with the page that shows it."""
    found = {}
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for path, members in listed(page.stem):
            value = located(path)
            inside = {path: value}
            if inspect.ismodule(value):
                names = members if members is not None else vars(value)
                inside |= {n: getattr(value, n) for n in names if not n.startswith("_")}
            found |= {
                id(v): page.stem for v in inside.values() if callable(v) or inspect.ismodule(v)
            }
    return found


def test_the_reference_shows_every_public_name():
    known = shown()
    for name in public_names():
        value = operator.attrgetter(name)(js)
        ours = str(getattr(value, "__module__", "jaxsim")).startswith("jaxsim")
        if ours and (callable(value) or inspect.ismodule(value)):
            assert id(value) in known or inspect.ismodule(value), name


def test_no_page_of_the_reference_begins_with_what_is_internal():
    public = {id(operator.attrgetter(name)(js)) for name in public_names()}
    for page in (ROOT / "docs" / "api").glob("*.md"):
        first = next(listed(page.stem), None)
        if first is not None and page.stem not in INNER:
            value = located(first[0])
            inside = vars(value).values() if inspect.ismodule(value) else [value]
            modules = [importlib.import_module(f"jaxsim.{name}") for name in (*FACES, "models")]
            faces = {id(v) for module in modules for v in vars(module).values()}
            assert any(id(v) in public | faces for v in inside), f"{page.name}: {first[0]}"


def test_no_heading_of_the_reference_is_that_of_what_follows():
    """A module's name stands above its members unless it is one of theirs, or there is one only."""
    for page in (ROOT / "docs" / "api").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for path, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", text, re.M):
            module = located(path)
            if not inspect.ismodule(module) or "heading:" in options:
                continue
            members = re.search(r"members: \[(.*)\]", options)
            names = members[1].split(", ") if members else own(module)
            plain = {name.replace("_", "").lower() for name in names}
            assert len(plain) > 1, f"{page.name}: {path} shows {names} alone; name it"
            assert path.rpartition(".")[2].replace("_", "") not in plain, f"{page.name}: {path}"


def own(module):
    """Names of a module that its page shows: what it lists, or what is written in it."""
    names = [n for n in vars(module) if not n.startswith("_")]
    listed = [n for n in names if getattr(vars(module)[n], "__module__", None) == module.__name__]
    return list(getattr(module, "__all__", listed))


def test_the_lines_of_the_readme_run(tmp_path, monkeypatch, capsys):
    net = cnn()
    chip = js.quantize(8, 8)(net)
    namespace = {"net": net, "composed": chip, "chip": js.deploy(chip, calibrate=X), "js": js}
    monkeypatch.chdir(tmp_path)
    _, *rest = blocks("README.md")
    for block in rest:
        exec(block, namespace)
    loaded = js.load("chip", like=chip)
    assert jnp.array_equal(loaded(X), namespace["chip"](X))
