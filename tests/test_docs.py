"""The code in the documentation runs, and what it claims holds."""

import re
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxsim as js
from benchmarks.common import record as common_record
from benchmarks.common.graphs import DATA, FILES
from tests.support.networks import X, cnn

ROOT = Path(__file__).parent.parent


def blocks(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


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
    assert {int(s) for s in found.seeds} == {160, 107, 86, 121, 5}


def test_the_story_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(nn.relu(nn.Dense(16)(x)))

    x = jax.random.normal(jax.random.key(0), (20, 12))
    model, labels = Net(), jnp.zeros(20, int)
    namespace = {
        "model": model,
        "variables": model.init(jax.random.key(1), x),
        "x": x,
        "labels": labels,
    }
    story, *rest = blocks("README.md")
    exec(story, namespace)
    assert namespace["y"].shape == (20, 10)
    namespace["composed"] = js.compose(
        js.prune(0.5),
        js.quantize(weights=8, inputs=8),
        js.slice_bits(2),
        js.analog(adc=8, cells=js.cells.proportional(0.02)),
    )(namespace["net"])
    monkeypatch.chdir(tmp_path)
    for block in rest:
        exec(block, namespace)
    loaded = js.load("chip", like=namespace["composed"])
    assert jnp.array_equal(loaded(x), namespace["chip"](x))
    assert "transformed" in capsys.readouterr().out
