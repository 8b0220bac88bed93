"""A tiny decoder in files of every kind, and damaged ones."""

import functools
import json

import jax
import numpy as np
import pytest

import jaxsim as js

pytest.importorskip("gguf", reason="gguf is not installed")
pytest.importorskip("tokenizers", reason="tokenizers is not installed")
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from jaxsim.models.llama import from_gguf, from_hugging_face, gguf_codes, gguf_grids, tiny
from tests.oracles import llama as oracle
from tests.support import llama_files as files

MODEL = files.MODEL
KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "F32")
IDS = np.random.default_rng(1).integers(0, 96, 9).astype(np.int32)


@pytest.fixture
def load(tmp_path):
    def loader(metadata, arrays, kinds="F32"):
        path = tmp_path / "model.gguf"
        path.write_bytes(files.gguf_file(metadata, arrays, kinds))
        return from_gguf(path)

    return loader


def rounded(kind):
    """The tensors of a file, as the package decodes them, and its bytes' types."""
    of = GGMLQuantizationType[kind]
    return {
        name: dequantize(quantize(a, of), of) if a.ndim > 1 else a
        for name, a in files.tensors().items()
    }


def close(a, b, tolerance):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@functools.cache
def apply(model):
    return jax.jit(model.apply)


def transcribed(tensors, model, ids, **more):
    settings = {n: getattr(model, n) for n in ("layers", "heads", "groups", "base", "epsilon")}
    return oracle.logits(tensors, ids, **settings, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_the_decoder_of_its_numbers(load, kind):
    model, params, tokenizer = load(files.fields(), files.tensors(), kind)
    assert (model.layers, model.heads, model.groups, model.tied) == (2, 4, 2, True)
    found = apply(MODEL)({"params": params}, IDS[None])[0]
    close(found, transcribed(rounded(kind).get, model, IDS), 1e-5)
    assert tokenizer.encode("the<s>").ids == [94, 0]
    # Bit by bit: a tensor whose rows stay in place, transposed.
    gate = rounded(kind)["blk.1.ffn_gate.weight"]
    np.testing.assert_array_equal(
        np.asarray(params["layers"]["feed_forward"]["gate"]["kernel"][1].T).view("i4"),
        np.ascontiguousarray(gate).view("i4"),
    )


def test_a_free_head_is_read(load):
    model = tiny(tied=False, layers=1)
    loaded = load(files.fields(model), files.tensors(model), "Q8_0")
    assert not loaded.model.tied
    table = np.asarray(loaded.params["head"]["kernel"])
    of = GGMLQuantizationType.Q8_0
    expected = dequantize(quantize(files.tensors(model)["output.weight"], of), of)
    np.testing.assert_array_equal(table.T, expected)


def test_codes_are_those_of_the_parameters_bit_by_bit(tmp_path):
    mixed = {
        "attn_q": "Q4_0",
        "attn_k": "Q4_1",
        "token_embd": "Q8_0",
        "ffn_up": "F16",
        "ffn_down": "Q5_1",
    }

    def kinds(name):
        if name == "blk.1.ffn_gate.weight":
            return "Q5_0"
        return next((kind for part, kind in mixed.items() if part in name), "Q4_1")

    path = tmp_path / "mixed.gguf"
    path.write_bytes(files.gguf_file(files.fields(), files.tensors(), kinds))
    params, codes = from_gguf(path).params, gguf_codes(path)
    # up is in floats, and the two layers' gates are of different types
    layers = {f"attention/{n}" for n in ("query", "key", "value", "mix")} | {"feed_forward/down"}
    assert set(codes) == {"embedding"} | {f"layers/{n}/kernel" for n in layers}
    for path, of in codes.items():
        value = functools.reduce(lambda tree, key: tree[key], path.split("/"), params)
        numbers = of.scale.repeat(32, -1) * of.codes
        if of.minimum is not None:
            numbers = numbers + of.minimum.repeat(32, -1)
        if path.endswith("kernel"):
            numbers = numbers.swapaxes(-1, -2)
        np.testing.assert_array_equal(
            np.asarray(value).view("i4"), np.ascontiguousarray(numbers).view("i4")
        )


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_codes_of_a_file_are_those_that_a_network_is_deployed_with(load, tmp_path, kind):
    """A grid from the file finds its codes again; scales of our own would be others."""
    model, params, _ = load(files.fields(), files.tensors(), kind)
    net = js.trace(model, {"params": params}, IDS[None])
    path = tmp_path / "model.gguf"
    grids, codes = gguf_grids(path), gguf_codes(path)
    assert set(grids) == {name for name in codes if name.endswith("kernel")}
    chip = js.deploy(js.rules({n: js.quantize(g, None) for n, g in grids.items()})(net))
    exact = np.asarray(net(IDS[None]))
    np.testing.assert_allclose(chip(IDS[None]), exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    for name in grids:
        held = np.asarray(chip.states[name].codes)
        own = codes[name].codes.swapaxes(-1, -2)
        np.testing.assert_array_equal(held.reshape(own.shape), own)


def test_eight_bits_in_groups_of_32_are_a_files_own_codes(load):
    """Stored as Q8_0, a step is the largest of its group over 127: a grid of ours."""
    model, params, _ = load(files.fields(), files.tensors(), "Q8_0")
    net = js.trace(model, {"params": params}, IDS[None])
    groups = js.Grid(8, per="group", rows=32)
    chip = js.deploy(js.quantize(weights=groups, inputs=None, sites=["*kernel", "embedding*"])(net))
    assert chip.coverage().share("float") == 0
    found, expected = jax.jit(lambda *nets: [n(IDS[None]) for n in nets])(chip, net)
    close(found, expected, 1e-5)
    coarse = js.deploy(js.quantize(weights=js.Grid(8, per="tensor"), inputs=None)(net))
    other = jax.jit(lambda n: n(IDS[None]))(coarse)
    assert np.abs(other - expected).max() > 1e-3 * np.abs(expected).max()


def others(**changed):
    return files.fields(**changed), files.tensors()


def without(name):
    return files.fields(), {k: v for k, v in files.tensors().items() if k != name}


def with_tensor(name, array):
    return files.fields(), files.tensors() | {name: np.float32(array)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (others(general__architecture="gpt2"), "architecture 'gpt2'; must be 'llama'"),
        (others(general__architecture=None), "architecture None"),
        (others(llama__block_count=None), "llama.block_count is None; must be of int"),
        (others(llama__block_count=2.0), "llama.block_count is 2.0"),
        (others(llama__block_count=2**31), "has no tensor 'blk.2.attn_norm.weight'"),
        (others(llama__block_count=1), "has a tensor 'blk.1.attn_k.weight' that this decoder"),
        (others(llama__attention__head_count=3), "heads=3: must be a multiple of groups=2"),
        (others(llama__attention__head_count=0), "heads=0"),
        (others(llama__embedding_length=64), "'token_embd.weight' is [96, 32]; must be [96, 64]"),
        (others(llama__rope__freq_base=float("nan")), "base=nan"),
        (others(llama__rope__scaling__type="yarn"), "llama.rope.scaling.type is 'yarn'"),
        (others(llama__rope__dimension_count=4), "llama.rope.dimension_count is 4; must be 8"),
        (others(llama__expert_count=8), "llama.expert_count is 8; must be 0"),
        (others(tokenizer__ggml__model="llama"), "the tokenizer is 'llama' cut by 'smollm'"),
        (others(tokenizer__ggml__pre=None), "cut by None; must be 'gpt2' cut by one of"),
        (others(tokenizer__ggml__tokens=files.TOKENS[1:]), "it has 95 tokens, the model 96"),
        (others(tokenizer__ggml__tokens=["er", *files.TOKENS[1:]]), "has a token twice"),
        (others(tokenizer__ggml__tokens=7), "tokenizer.ggml.tokens must be a list of strings"),
        (others(tokenizer__ggml__merges=["t h e"]), "merges 't h e'; must be two of its tokens"),
        (others(tokenizer__ggml__merges=["th er"]), "merges 'th er'; must be two of its tokens"),
        (others(tokenizer__ggml__token_type=[1]), "must have an entry for each token"),
        (others(tokenizer__ggml__add_bos_token=True), "bos_token_id is None; must be from 0 to 95"),
        (without("blk.1.ffn_down.weight"), "has no tensor 'blk.1.ffn_down.weight'"),
        (without("token_embd.weight"), "has no tensor 'token_embd.weight'"),
        (with_tensor("rope_freqs.weight", [1, 2]), "has a tensor 'rope_freqs.weight'"),
        (
            with_tensor("output_norm.weight", np.full(32, np.nan)),
            "norm/scale of layer 0 holds numbers that are not finite",
        ),
    ],
)
def test_other_files_are_refused_in_a_sentence(load, content, said):
    with pytest.raises(ValueError, match=r"model\.gguf'") as error:
        load(*content)
    assert said in str(error.value)
    assert str(error.value).count("model.gguf") == 1
    assert "\n" not in str(error.value)


def test_a_first_token_is_put_before_where_the_file_says_so(load):
    added = {"tokenizer__ggml__add_bos_token": True, "tokenizer__ggml__bos_token_id": 0}
    tokenizer = load(*others(**added)).tokenizer
    assert tokenizer.encode("the er").ids == [0, 94, 92, 95]
    assert tokenizer.decode([0, 94, 92, 95]) == "the er"


def damaged(content, draws):
    """The file with a few bytes changed, cut off, moved or doubled; the header most often."""
    reach = len(content) if draws.random() < 0.1 else content.index(b"token_embd") + 2000
    start = int(draws.integers(reach))
    size = int(draws.integers(1, 9))
    match int(draws.integers(6)):
        case 0:
            return content[:start]
        case 1:
            return content[:start] + content[start + size :]
        case 2:
            return content[:start] + content[start : start + size] + content[start:]
        case 3:
            return content[:start] + draws.bytes(size) + content[start + size :]
        case 4:
            return content[:start] + b"\xff" * size + content[start + size :]
        case _:
            one = content[start] ^ (1 << int(draws.integers(8)))
            return content[:start] + bytes([one]) + content[start + 1 :]


def fuzz(path, count, seed):
    """How many damaged files load, and how many are refused by name in a sentence."""
    model = tiny(layers=1)
    content = files.gguf_file(files.fields(model), files.tensors(model), "Q4_1")
    draws = np.random.default_rng(seed)
    messages = []
    for _ in range(count):
        path.write_bytes(damaged(content, draws))
        try:
            from_gguf(path)
        except ValueError as error:
            messages.append(str(error))
    assert all(said.startswith(repr(str(path))) and "\n" not in said for said in messages)
    return count - len(messages), len(messages)


def test_two_thousand_damaged_files_load_or_are_refused(tmp_path):
    loaded, refused = fuzz(tmp_path / "damaged.gguf", 2000, 0)
    assert loaded > 50
    assert refused > 1000


def tokenizer_json(load):
    return load(files.fields(), files.tensors()).tokenizer.to_str()


@pytest.fixture
def folder(tmp_path, load):
    place = tmp_path / "folder"

    def write(config=None, arrays=None, tokenizer=None, parts=()):
        place.mkdir(exist_ok=True)
        text = config if isinstance(config, str) else json.dumps(files.CONFIG | (config or {}))
        (place / "config.json").write_text(text)
        (place / "tokenizer.json").write_text(tokenizer or tokenizer_json(load))
        arrays = files.hugging_face_arrays() if arrays is None else arrays
        if not parts:
            (place / "model.safetensors").write_bytes(files.safetensors_file(arrays))
        else:
            names = {name: parts[i % len(parts)] for i, name in enumerate(arrays)}
            index = {"weight_map": names}
            (place / "model.safetensors.index.json").write_text(json.dumps(index))
            for part in parts:
                own = {n: a for n, a in arrays.items() if names[n] == part}
                (place / part).write_bytes(files.safetensors_file(own))
        return place

    return write


@pytest.mark.parametrize("parts", [(), ("a.safetensors", "b.safetensors")])
def test_a_folder_of_hugging_face_is_the_same_decoder(folder, parts):
    model, params, tokenizer = from_hugging_face(folder(parts=parts))
    assert model == MODEL
    jax.tree.map(np.testing.assert_array_equal, params, files.params())
    assert tokenizer.encode("the").ids == [94]


ARRAYS = files.hugging_face_arrays()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"config": "{"}, "config.json': is not JSON"),
        ({"config": "[1]"}, "config.json': must hold an object"),
        ({"config": {"model_type": "gemma"}}, "model_type is 'gemma'; must be 'llama'"),
        ({"config": {"rope_scaling": {"rope_type": "llama3"}}}, "rope_scaling is {"),
        ({"config": {"rope_parameters": {"rope_type": "yarn"}}}, "must be of rope_type 'default'"),
        ({"config": {"attention_bias": True}}, "attention_bias is True; must be False"),
        ({"config": {"hidden_act": "gelu"}}, "hidden_act is 'gelu'; must be 'silu'"),
        ({"config": {"hidden_size": "32"}}, "width='32'"),
        ({"config": {"tie_word_embeddings": 1}}, "tie_word_embeddings is 1"),
        ({"config": {"tie_word_embeddings": False}}, "has no array lm_head.weight"),
        (
            {"config": {"intermediate_size": 32}},
            "mlp.gate_proj.weight is [64, 32]; must be [32, 32]",
        ),
        (
            {"config": {"vocab_size": 95}},
            "tokenizer.json': the tokenizer does not fit: it has a token 95",
        ),
        ({"tokenizer": "{}"}, "tokenizer.json': is no tokenizer"),
        ({"arrays": ARRAYS | {"model.bias": np.zeros(1, np.float32)}}, "has an array model.bias"),
        (
            {"arrays": {k: v for k, v in ARRAYS.items() if "norm" not in k}},
            "has no array model.layers.0",
        ),
        ({"parts": ("a/../b.safetensors",)}, "weight_map must name a file of this folder"),
    ],
)
def test_other_folders_are_refused_in_a_sentence(folder, changed, said):
    if "parts" in changed:
        place = folder()
        names = dict.fromkeys(ARRAYS, changed["parts"][0])
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    else:
        place = folder(**changed)
    with pytest.raises(ValueError, match="folder") as error:
        from_hugging_face(place)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
