"""The code in the documentation runs, and what it claims holds."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxsim as js

ROOT = Path(__file__).parent.parent


def blocks(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


PAGES = (
    "concepts",
    "extend",
    "quantization",
    "rounding",
    "sparsity",
    "shrink",
    "analog",
    "parasitics",
    "pipeline",
    "exits",
    "pyramid",
    "quantum",
    "collaborative",
    "nac",
    "interpreters",
)


@pytest.mark.parametrize("page", [f"docs/{page}.md" for page in PAGES])
def test_every_block_of_a_page_runs_in_order(page):
    namespace = {}
    for block in blocks(page):
        exec(compile(block, page, "exec"), namespace)
    assert namespace


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
