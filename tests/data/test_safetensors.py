"""Files that were written by hand, and what is wrong with others."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import numpy as theirs

from jaxsim.data.safetensors import read_safetensors


def file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), start=0, stop=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.fixture
def read(tmp_path):
    def reader(content):
        path = tmp_path / "weights.safetensors"
        path.write_bytes(content)
        return read_safetensors(path)

    return reader


GOOD = file(
    {
        "__metadata__": {"format": "pt"},
        "b": entry("BF16", (1, 2), 8, 12),
        "a": entry(),
        "none": entry("I64", (0, 3), 12, 12),
        "scalar": entry("U8", (), 12, 13),
    },
    np.array([1, -2], "<f4").tobytes() + np.array([3, 4], ml_dtypes.bfloat16).tobytes() + b"\x07",
)


def test_arrays_are_read_by_name(read):
    found = read(GOOD)
    assert list(found) == ["a", "b", "none", "scalar"]
    np.testing.assert_array_equal(found["a"], np.float32([1, -2]))
    assert found["b"].dtype == ml_dtypes.bfloat16
    assert found["b"].tolist() == [[3, 4]]
    assert found["none"].shape == (0, 3)
    assert found["scalar"] == 7
    found["a"][0] = 5


TWICE = json.dumps({"a": entry(), "A": entry("F64", (1,))}).replace("A", "a").encode()
"""Of one place in two ways."""

WRONG = [
    b"",
    b"\xff" * 16,
    file({"a": entry()}, b"\0" * 7),
    file({"a": entry()}, b"\0" * 9),
    file({"a": entry(stop=4)}, b"\0" * 4),
    file({"a": entry(start=8, stop=0)}, b"\0" * 8),
    file({"a": entry(), "b": entry()}, b"\0" * 8),
    file({"a": entry(), "b": entry(start=4, stop=12)}, b"\0" * 12),
    file({"a": entry(start=4, stop=12)}, b"\0" * 12),
    file({"a": entry("F8")}, b"\0" * 8),
    file({"a": entry(["F32"])}, b"\0" * 8),
    file({"a": entry(shape=(-2,))}, b"\0" * 8),
    file({"a": entry(shape=(2.0,))}, b"\0" * 8),
    file({"a": entry(shape=(True, 2))}, b"\0" * 8),
    file({"a": entry(shape=(2**62, 2**62))}, b"\0" * 8),
    file({"a": {**entry(), "data_offsets": [0, 4, 8]}}, b"\0" * 8),
    file({"a": {"dtype": "F32"}}),
    file({"a": [1]}),
    file([1]),
    file(b"{}x"),
    file(b"[" * 100_000),
    file(b'{"a": 1, "a": 2}'),
    file(b'{"\xff": 1}'),
]


@pytest.mark.parametrize("content", WRONG)
def test_what_the_format_does_not_allow_is_refused_with_the_file_s_name(read, content):
    with pytest.raises(ValueError, match=r"weights\.safetensors': .+"):
        read(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (file({"a": entry("F8_E4M3", (4,), stop=4)}, b"\0" * 4), "a is of type 'F8_E4M3'"),
        (file({"a": entry(shape=(1,) * 65, stop=4)}, b"\0" * 4), "a has 65 axes"),
        (file(TWICE, b"\0" * 8), "its header has a twice"),
    ],
)
def test_what_the_format_s_package_lets_pass_and_cannot_be_told_is_named(read, content, said):
    with pytest.raises(ValueError, match=r"weights\.safetensors") as error:
        read(content)
    assert said in str(error.value)


@given(st.integers(0, len(GOOD) - 1))
def test_no_part_of_a_file_is_a_file(tmp_path_factory, size):
    path = tmp_path_factory.getbasetemp() / "part.safetensors"
    path.write_bytes(GOOD[:size])
    with pytest.raises(ValueError, match=r"part\.safetensors"):
        read_safetensors(path)


def test_the_format_s_own_package_writes_what_is_read(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"a{i}": rng.normal(size=(i, 3)).astype(t) for i, t in enumerate("fdefd")}
    theirs.save_file(arrays, tmp_path / "theirs.safetensors")
    found = read_safetensors(tmp_path / "theirs.safetensors")
    assert found.keys() == arrays.keys()
    for name, a in arrays.items():
        assert found[name].dtype == a.dtype
        np.testing.assert_array_equal(found[name], a)
