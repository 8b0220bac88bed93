import gzip
import hashlib
import http.client
import importlib
import io
import shutil
import urllib.error
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from jaxsim.data import fashion_mnist, read_idx
from tests.oracles.idx_writer import write_idx

# The package exports a function of the module's name, so `import ... as` would give that.
module = importlib.import_module("jaxsim.data.fashion_mnist")
make_subset = importlib.import_module("jaxsim.data.make_subset")

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_debian = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)


class Official(NamedTuple):
    """Stand-ins for the official files of a split, with what they hold."""

    images: np.ndarray
    labels: np.ndarray
    contents: dict[str, bytes]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Nothing of this machine is found, and the network is out of bounds."""

    def refuse(url: str, **options: object):
        raise AssertionError(f"unasked for download of {url}")

    for name in ("JAXSIM_DATA", "JAXSIM_FASHION_MNIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(module, "DEBIAN_FOLDER", tmp_path / "no-debian")
    monkeypatch.setattr(module.urllib.request, "urlopen", refuse)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "xdg" / "jaxsim" / "fashion_mnist"


@pytest.fixture
def official(monkeypatch) -> Official:
    """Five images, and the table of checksums to match."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, 5, dtype=np.uint8)
    contents: dict[str, bytes] = {}
    files = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        pair = []
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = write_idx(array)
            contents[f"{stem}-{name}-ubyte"] = content
            pair.append(module.IdxFile(f"{stem}-{name}-ubyte", hashlib.sha256(content).hexdigest()))
        files[split] = module.SplitFiles(*pair)
    monkeypatch.setattr(module, "FILES", files)
    return Official(images, labels, contents)


def _fill(folder: Path, official: Official, packed: bool = True) -> Path:
    folder.mkdir(parents=True)
    for name, content in official.contents.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def _check(result: module.Images, official: Official):
    assert result.images.shape == (5, 28, 28, 1)
    assert result.images.dtype == np.float32
    assert result.labels.dtype == np.int32
    # The division back is exact: float32 tells 256 levels of [0, 1] apart.
    assert np.array_equal(np.rint(result.images[..., 0] * 255).astype(np.uint8), official.images)
    assert np.array_equal(result.labels, official.labels)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("source", ["auto", "env"])
def test_the_folder_in_the_environment_is_used(
    monkeypatch, tmp_path, official, split, packed, source
):
    folder = _fill(tmp_path / "data" / "fashion_mnist", official, packed)
    monkeypatch.setenv("JAXSIM_DATA", str(tmp_path / "data"))
    result = fashion_mnist(split, source=source)
    _check(result, official)
    assert result.source == f"env: {folder}, all 5 images"


def test_any_folder_can_be_named(tmp_path, official):
    folder = _fill(tmp_path / "mine", official)
    result = fashion_mnist("test", source=folder)
    _check(result, official)
    assert result.source.startswith(f"folder: {folder}")


def test_what_auto_stands_for_can_be_said(monkeypatch, official, cache):
    assert module.fashion_mnist("test").source.startswith("subset")
    monkeypatch.setenv("JAXSIM_FASHION_MNIST", "cache")
    with pytest.raises(FileNotFoundError, match="cache"):
        fashion_mnist("test")
    assert fashion_mnist("test", source="subset").source.startswith("subset")
    monkeypatch.setenv("JAXSIM_FASHION_MNIST", "web")
    with pytest.raises(ValueError, match="source is 'web'"):
        fashion_mnist("test")


def test_auto_goes_through_the_places_in_order(monkeypatch, tmp_path, official, cache):
    assert fashion_mnist("test").source.startswith("subset: ")
    _fill(cache, official)
    assert fashion_mnist("test").source.startswith("cache: ")
    monkeypatch.setattr(module, "DEBIAN_FOLDER", _fill(tmp_path / "debian", official))
    assert fashion_mnist("test").source.startswith("debian: ")
    _fill(tmp_path / "data" / "fashion_mnist", official)
    monkeypatch.setenv("JAXSIM_DATA", str(tmp_path / "data"))
    assert fashion_mnist("test").source.startswith("env: ")
    # Each can also be had by name, whatever comes before it.
    for source in ("env", "debian", "cache", "subset"):
        assert fashion_mnist("test", source=source).source.startswith(f"{source}: ")


@pytest.mark.parametrize("root", ["", "elsewhere"])
def test_an_environment_without_the_set_is_passed_over(monkeypatch, root):
    monkeypatch.setenv("JAXSIM_DATA", root)
    assert fashion_mnist("test").source.startswith("subset: ")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["env", "debian", "cache"])
def test_a_wrong_checksum_is_an_error_not_a_fallback(
    monkeypatch, tmp_path, official, cache, place, packed
):
    folders = {"env": tmp_path / "data" / "fashion_mnist", "debian": tmp_path / "d", "cache": cache}
    contents = dict(official.contents)
    wrong = bytearray(contents["t10k-labels-idx1-ubyte"])
    wrong[-1] ^= 1
    contents["t10k-labels-idx1-ubyte"] = bytes(wrong)
    folder = _fill(folders[place], official._replace(contents=contents), packed)
    if place == "env":
        monkeypatch.setenv("JAXSIM_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(module, "DEBIAN_FOLDER", folders["debian"])
    with pytest.raises(ValueError, match=r"found SHA-256 .*; expected") as caught:
        fashion_mnist("test")
    assert str(folder / "t10k-labels-idx1-ubyte") in str(caught.value)


def test_half_a_set_is_named(monkeypatch, tmp_path, official):
    folder = _fill(tmp_path / "data" / "fashion_mnist", official)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setenv("JAXSIM_DATA", str(tmp_path / "data"))
    with pytest.raises(FileNotFoundError, match=r"neither t10k-labels-idx1-ubyte\.gz nor"):
        fashion_mnist("test")


@pytest.mark.parametrize("source", ["debian", "cache"])
def test_a_place_asked_for_by_name_must_have_the_set(source):
    with pytest.raises(FileNotFoundError, match=f"source '{source}': found neither t10k-images"):
        fashion_mnist("test", source=source)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"split is 'valid'; expected one of \('train', 'test'\)"):
        fashion_mnist("valid")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"source is '/data'; expected one of .*Path"):
        fashion_mnist("test", source="/data")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"source is 'env' and \$JAXSIM_DATA is not set"):
        fashion_mnist("test", source="env")
    for source in ("env", "debian", "subset", Path("x")):
        with pytest.raises(ValueError, match="expected 'auto' or 'cache'"):
            fashion_mnist("test", source=source, download=True)


class Server(NamedTuple):
    """A stand-in for urlopen, with the addresses it was asked for."""

    asked: list[str]
    contents: dict[str, bytes]

    def open(self, url: str, timeout: float) -> io.BytesIO:
        assert 0 < timeout < 120
        self.asked.append(url)
        return io.BytesIO(self.contents[url.rpartition("/")[2]])


@pytest.fixture
def server(monkeypatch, official) -> Server:
    contents = {f"{n}.gz": gzip.compress(content) for n, content in official.contents.items()}
    server = Server([], contents)
    monkeypatch.setattr(module.urllib.request, "urlopen", server.open)
    return server


@pytest.mark.parametrize("source", ["auto", "cache"])
def test_download_is_kept_and_not_repeated(official, server, cache, source):
    result = fashion_mnist("test", source=source, download=True)
    _check(result, official)
    assert result.source.startswith(f"cache: {cache}")
    base = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/"
    assert all(url.startswith(base) for url in server.asked)
    assert [url.rpartition("/")[2] for url in server.asked] == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ]
    assert sorted(path.name for path in cache.iterdir()) == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ]
    fashion_mnist("test", source=source, download=True)
    _check(fashion_mnist("test"), official)
    assert len(server.asked) == 2


def test_a_download_cut_off_between_files_is_resumed(official, server, cache):
    fashion_mnist("test", download=True)
    (cache / "t10k-labels-idx1-ubyte.gz").unlink()
    assert fashion_mnist("test").source.startswith("subset: ")
    _check(fashion_mnist("test", download=True), official)
    assert len(server.asked) == 3


def test_nothing_is_fetched_that_this_machine_has(monkeypatch, tmp_path, official, server):
    monkeypatch.setattr(module, "DEBIAN_FOLDER", _fill(tmp_path / "debian", official))
    assert fashion_mnist("test", download=True).source.startswith("debian: ")
    assert server.asked == []


@pytest.mark.parametrize("damage", ["other", "cut", "page"])
def test_a_wrong_download_leaves_no_file(server, cache, damage):
    name = "t10k-labels-idx1-ubyte.gz"
    server.contents[name] = {
        "other": gzip.compress(write_idx(np.zeros(5, np.uint8))),
        "cut": server.contents[name][:-12],
        "page": b"<html>Sign in to this network</html>",
    }[damage]
    with pytest.raises(ValueError, match=rf"download of https:.*{name} is not the official file"):
        fashion_mnist("test", download=True)
    assert [path.name for path in cache.iterdir()] == ["t10k-images-idx3-ubyte.gz"]


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("no route to host"),
        TimeoutError("timed out"),
        http.client.IncompleteRead(b""),
    ],
)
def test_no_network_is_said_plainly(monkeypatch, cache, failure):
    def fail(url: str, timeout: float):
        raise failure

    monkeypatch.setattr(module.urllib.request, "urlopen", fail)
    with pytest.raises(ConnectionError, match=r"download of https:.* failed \(.*download=True"):
        fashion_mnist("test", download=True)
    assert not cache.exists()


@pytest.mark.parametrize(("split", "per_class"), [("train", 700), ("test", 200)])
def test_the_subset_is_balanced(split, per_class):
    result = fashion_mnist(split, source="subset")
    assert result.source == f"subset: {10 * per_class} {split} images that come with jaxsim"
    assert result.images.shape == (10 * per_class, 28, 28, 1)
    assert result.images.dtype == np.float32
    assert result.images.min() == 0.0
    assert result.images.max() == 1.0
    assert result.labels.dtype == np.int32
    assert np.bincount(result.labels).tolist() == [per_class] * 10
    assert len(result.classes) == 10
    # Classes come mixed, so that a head of the set is a sample too.
    assert len(np.unique(result.labels[:100])) == 10


def test_loading_is_deterministic():
    first, second = (fashion_mnist("train", source="subset") for _ in range(2))
    assert first.images.tobytes() == second.images.tobytes()
    assert first.labels.tobytes() == second.labels.tobytes()


def test_a_tampered_subset_is_refused(monkeypatch):
    monkeypatch.setattr(module, "SUBSET_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"fashion_mnist_subset\.npz: found SHA-256 556b"):
        fashion_mnist("test")


def test_the_subset_is_small_and_licensed():
    folder = Path(module.__file__).parent
    assert (folder / module.SUBSET).stat().st_size <= 4_000_000
    assert "Zalando SE" in (folder / "LICENSE-fashion-mnist").read_text()


@needs_debian
def test_the_debian_package_is_the_official_set(monkeypatch):
    monkeypatch.setattr(module, "DEBIAN_FOLDER", DEBIAN)
    result = fashion_mnist("test")
    assert result.source == f"debian: {DEBIAN}, all 10000 images"
    assert np.bincount(result.labels).tolist() == [1000] * 10
    # The first test image is an ankle boot, the second a pullover.
    assert [result.classes[label] for label in result.labels[:2]] == ["Ankle boot", "Pullover"]


@needs_debian
@pytest.mark.parametrize(("split", "stem"), [("train", "train"), ("test", "t10k")])
def test_the_subset_is_made_of_official_rows(split, stem):
    images = read_idx(DEBIAN / f"{stem}-images-idx3-ubyte.gz")
    labels = read_idx(DEBIAN / f"{stem}-labels-idx1-ubyte.gz")
    with np.load(Path(module.__file__).parent / module.SUBSET, allow_pickle=False) as subset:
        rows = subset[f"{split}_rows"]
        assert len(np.unique(rows)) == len(rows)
        assert np.array_equal(subset[f"{split}_images"], images[rows])
        assert np.array_equal(subset[f"{split}_labels"], labels[rows])


@needs_debian
def test_making_the_subset_again_gives_the_packaged_one(tmp_path):
    packaged = Path(module.__file__).parent / module.SUBSET
    digests = [make_subset.make_subset(DEBIAN, tmp_path / f"{run}.npz") for run in range(2)]
    assert digests[0] == digests[1]
    # Compressed bytes depend on the zlib at hand; what they hold does not.
    with (
        np.load(tmp_path / "0.npz", allow_pickle=False) as made,
        np.load(packaged, allow_pickle=False) as kept,
    ):
        assert made.files == kept.files
        assert all(np.array_equal(made[name], kept[name]) for name in kept.files)


@needs_debian
def test_the_maker_refuses_other_files(tmp_path):
    shutil.copytree(DEBIAN, tmp_path / "copy")
    (tmp_path / "copy" / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(write_idx(np.zeros(60000, np.uint8)))
    )
    with pytest.raises(ValueError, match="found SHA-256"):
        make_subset.make_subset(tmp_path / "copy", tmp_path / "subset.npz")
    assert not (tmp_path / "subset.npz").exists()
