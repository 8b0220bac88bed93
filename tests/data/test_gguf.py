"""Files written field by field, the package's reader beside ours, and what is wrong with others."""

import struct

import numpy as np
import pytest

pytest.importorskip("gguf", reason="gguf is not installed")
from gguf import GGUFReader, GGUFWriter, dequantize, quantize
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from jaxsim.data.gguf import codes_of, read_gguf
from jaxsim.data.gguf import dequantize as ours
from tests.support.llama_files import field, gguf_file, text

CODED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
MATRIX = np.random.default_rng(0).normal(size=(3, 2, 64)).astype(np.float32)


@pytest.fixture
def read(tmp_path):
    def reader(content):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return read_gguf(path)

    return reader


@pytest.mark.parametrize("kind", [*CODED, "F16", "F32", "BF16"])
def test_numbers_are_those_of_the_package_bit_by_bit(read, kind):
    file = read(gguf_file({}, {"w": MATRIX}, kind))
    tensor, of = file.tensors["w"], GGMLQuantizationType[kind]
    assert (tensor.kind, tensor.shape) == (kind, (3, 2, 64))
    expected = dequantize(quantize(MATRIX, of), of)
    np.testing.assert_array_equal(ours(tensor).view("i4"), expected.view("i4"))
    assert np.abs(expected - MATRIX).max() < 0.5


@pytest.mark.parametrize("kind", CODED)
def test_codes_and_steps_make_the_numbers_bit_by_bit(read, kind):
    tensor = read(gguf_file({}, {"w": MATRIX}, kind)).tensors["w"]
    codes, bits = codes_of(tensor), int(kind[1])
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if kind.endswith("_1"):
        low, high = 0, 2**bits - 1
    assert codes.kind == kind
    assert (codes.minimum is None) == kind.endswith("_0")
    assert codes.codes.shape == MATRIX.shape
    assert codes.scale.shape == (3, 2, 2)
    assert low <= codes.codes.min() < codes.codes.max() <= high
    assert codes.codes.dtype in (np.int8, np.uint8)
    numbers = codes.scale.repeat(32, -1) * codes.codes
    if codes.minimum is not None:
        numbers = numbers + codes.minimum.repeat(32, -1)
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(numbers.view("i4"), ours(tensor).view("i4"))


@pytest.mark.parametrize("kind", ["Q2_K", "Q4_K", "Q6_K", "IQ4_NL", "MXFP4"])
def test_other_types_are_decoded_too_and_have_no_codes(read, kind):
    of = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[of]
    data = np.random.default_rng(0).integers(0, 60, 4 * size, np.uint8)  # scales are small
    file = read(gguf_file({}, {"w": (of, (2, 2 * block), data.tobytes())}))
    expected = dequantize(data.reshape(2, -1), of)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(ours(file.tensors["w"]).view("i4"), expected.view("i4"))
    assert codes_of(file.tensors["w"]) is None


def test_types_that_the_package_cannot_decode_are_refused(read):
    data = np.zeros(32, np.uint8).tobytes()
    tensor = read(gguf_file({}, {"w": (GGMLQuantizationType.I8, (32,), data)})).tensors["w"]
    with pytest.raises(ValueError, match="type I8: the package gguf cannot decode it"):
        ours(tensor)


def test_files_of_the_package_read_as_it_reads_them(tmp_path):
    path = tmp_path / "theirs.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("a", 7)
    writer.add_int64("b", -(2**40))
    writer.add_float32("c", 0.1)
    writer.add_float64("d", 0.1)
    writer.add_bool("e", True)
    writer.add_string("f", "ä")
    writer.add_array("g", ["x", "yz"])
    writer.add_array("h", [1, -2])
    writer.add_custom_alignment(64)
    writer.add_tensor("m", MATRIX)
    writer.add_tensor("v", np.arange(3, dtype=np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
    ):
        write()
    writer.close()
    found, theirs = read_gguf(path), GGUFReader(path)
    assert {k: v for k, v in found.fields.items() if len(k) == 1} == {
        "a": 7,
        "b": -(2**40),
        "c": float(np.float32(0.1)),
        "d": 0.1,
        "e": True,
        "f": "ä",
        "g": ["x", "yz"],
        "h": [1, -2],
    }
    assert type(found.fields["e"]) is bool
    assert found.fields["general.architecture"] == "llama"
    for tensor in theirs.tensors:
        np.testing.assert_array_equal(ours(found.tensors[tensor.name]), tensor.data)


def head(*, version=3, tensors=0, fields=0, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest


def described(name="w", shape=(32,), kind=0, place=0, axes=None):
    count = len(shape) if axes is None else axes
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, place)


GOOD = gguf_file({"a": 1}, {"w": MATRIX[0]})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"GG", "cut short: the mark takes 4 bytes at byte 0 of 2"),
        (b"lmgg" + GOOD[4:], "does not begin with 'GGUF'"),
        (head(version=1), "version 1; must be one of"),
        (head(version=3 << 24), "version 50331648"),
        (GOOD[:20], "cut short: the counts"),
        (GOOD[:-1], "cut short: tensor 'w' ends at byte"),
        (head(fields=2**62), "cut short: the length of key 0"),
        (head(tensors=2**62), "cut short: the length of the name of tensor 0"),
        (head(fields=1, rest=struct.pack("<Q", 2**40)), "key 0 is 1099511627776 bytes long"),
        (head(fields=1, rest=struct.pack("<Q", 1) + b"\xff"), "key 0 is not UTF-8"),
        (head(fields=1, rest=text("k") + struct.pack("<I", 13)), "'k' is of type 13"),
        (head(fields=1, rest=field("k", struct.pack("<IIQ", 9, 9, 1))), "array of arrays"),
        (
            head(fields=1, rest=field("k", struct.pack("<IIQ", 9, 8, 2**60))),
            "1152921504606846976 strings",
        ),
        (head(fields=1, rest=field("k", struct.pack("<IIQ", 9, 4, 2**62))), "'k' takes"),
        (head(fields=2, rest=2 * field("k", 1)), "says 'k' twice"),
        (head(fields=1, rest=field("k" * 60_000, struct.pack("<I", 13))), "… kkk"),
        (head(fields=1, rest=field("general.alignment", 24)), "general.alignment is 24"),
        (head(fields=1, rest=field("general.alignment", "32")), "general.alignment is '32'"),
        (head(tensors=1, rest=described(axes=0)), "has 0 axes"),
        (head(tensors=1, rest=described(axes=2**31)), "axes; must be from 1 to 4"),
        (head(tensors=1, rest=described(kind=5)), "quantization type 5, not known"),
        (head(tensors=1, rest=described(shape=(31,), kind=2)), "the last a multiple of 32"),
        (head(tensors=1, rest=described(shape=(0,))), "must be of at least 1"),
        (head(tensors=1, rest=described(shape=(2**63, 2**63))), "cut short: tensor 'w' ends"),
        (head(tensors=1, rest=described(place=8)), "begins at byte 8"),
        (head(tensors=2, rest=2 * described(shape=(1,)) + b"\0" * 64), "two tensors 'w'"),
    ],
)
def test_other_files_are_refused_in_a_sentence(read, content, said):
    with pytest.raises(ValueError, match=r"model\.gguf'") as error:
        read(content)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
