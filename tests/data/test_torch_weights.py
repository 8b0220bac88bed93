import os
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common.cifar import DATA
from jaxsim.data import read_torch_weights
from tests.oracles import torch_writer as writer

X = np.arange(24, dtype=np.float32)
N = np.array([7], np.int64)


def content(layout="zipped", **kwargs):
    """A matrix, its transpose in the same storage, and a counter."""
    is_older = layout == "older"
    tensors = {
        "a.weight": writer.tensor("float32", "0", 24, 0, (4, 6), (6, 1), older=is_older),
        "b.weight": writer.tensor("float32", "0", 24, 1, (6, 3), (1, 6), older=is_older),
        "steps": writer.tensor("int64", "1", 1, 0, (), (), older=is_older),
    }
    body, data = writer.state(tensors), {"0": X.tobytes(), "1": N.tobytes()}
    if is_older:
        return writer.older(body, data, {"0": 24, "1": 1})
    return writer.zipped(body, data, **kwargs)


def read(tmp_path, data):
    path = tmp_path / "net.pth"
    path.write_bytes(data)
    return read_torch_weights(path)


@pytest.mark.parametrize("layout", ["zipped", "older"])
def test_tensors_come_back_with_their_strides_applied(tmp_path, layout):
    found = read(tmp_path, content(layout))
    assert list(found) == ["a.weight", "b.weight", "steps"]
    np.testing.assert_array_equal(found["a.weight"], X.reshape(4, 6))
    np.testing.assert_array_equal(found["b.weight"], X.reshape(4, 6)[:3].T + 1)
    assert found["steps"] == 7
    assert found["steps"].dtype == np.int64


@pytest.mark.parametrize("kind", sorted(writer.TYPES))
def test_every_type_of_number_is_read(tmp_path, kind):
    values = np.arange(5).astype(kind)
    body = writer.state({"x": writer.tensor(kind, "0", 5, 0, (5,), (1,))})
    found = read(tmp_path, writer.zipped(body, {"0": values.tobytes()}))["x"]
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"cos\nsystem\n(" + writer.text("true") + b"tR", "calls 'os system'"),
        (b"cbuiltins\neval\n" + writer.text("1") + b"\x85R", "calls 'builtins eval'"),
        (b"(cos\nsystem\no", "uses OBJ"),
        (writer.tensor("float32", "0", 24, 0, (24,), (1,)), "no dictionary"),
        (writer.state({"x": writer.tensor("float32", "0", 24, 0, (25,), (1,))}), "shape"),
        (writer.state({"x": writer.tensor("float32", "0", 24, 23, (2,), (1,))}), "beyond"),
        (writer.state({"x": writer.tensor("float32", "0", 24, -1, (2,), (1,))}), "offset -1"),
        (writer.state({"x": writer.tensor("float32", "0", 24, 0, (2,), (-1,))}), "strides"),
        (writer.state({"x": writer.tensor("float32", "0", 25, 0, (2,), (1,))}), "cut short"),
        (writer.state({5: writer.tensor("float32", "0", 24, 0, (2,), (1,))}), "is named 5"),
        (writer.state({"x": writer.tensor("float32", "9", 24, 0, (2,), (1,))}), "data/9"),
    ],
)
def test_a_pickle_that_asks_for_more_than_its_tensors_is_refused(tmp_path, body, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, writer.zipped(body, {"0": X.tobytes()}))


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    with pytest.raises(ValueError, match="compressed"):
        read(tmp_path, content(compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("data", [b"", b"PK\x05\x06" + bytes(18), b"\x80\x02}.", b"not a file"])
def test_other_files_are_refused_by_name(tmp_path, data):
    with pytest.raises(ValueError, match=r"path='.*net\.pth': not a file of PyTorch weights"):
        read(tmp_path, data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mutated")


@pytest.mark.parametrize("layout", ["zipped", "older"])
@given(st.data())
def test_a_damaged_file_gives_arrays_or_a_value_error(folder, layout, data):
    whole = bytearray(content(layout))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)) | st.just(len(whole)))
    path = folder / f"{os.getpid()}.pth"
    path.write_bytes(whole[:cut])
    try:
        found = read_torch_weights(path)
    except ValueError:
        return
    assert all(isinstance(array, np.ndarray) for array in found.values())


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data/analog is not there")
@pytest.mark.parametrize(("depth", "parameters"), [(14, 176_393), (20, 274_063)])
def test_real_weights_are_read_as_torch_reads_them(depth, parameters):
    path = DATA / f"resnet{depth}_cifar10.pth"
    found = read_torch_weights(path)
    assert sum(array.size for array in found.values()) == parameters
    torch = pytest.importorskip("torch")
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    assert list(found) == list(theirs)
    for name, array in found.items():
        np.testing.assert_array_equal(array, theirs[name].numpy())
