import gzip
import os
import random
import tracemalloc
import zlib
from hashlib import sha256
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsim.data import read_idx
from tests.oracles.idx_writer import CODES, write_idx

PLAIN = write_idx(np.arange(24, dtype=np.int32).reshape(2, 3, 4))


def _bits(array: np.ndarray) -> bytes:
    return array.tobytes()


@given(
    array=st.sampled_from(sorted(CODES)).flatmap(
        lambda name: hnp.arrays(
            np.dtype(name), hnp.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=4)
        )
    ),
    packed=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_round_trip(array: np.ndarray, packed: bool):
    content = write_idx(array)
    result = read_idx(gzip.compress(content, mtime=0) if packed else content)
    assert result.dtype == array.dtype
    assert result.dtype.isnative
    assert result.flags.writeable
    assert result.shape == array.shape
    assert _bits(result) == _bits(array)


@pytest.mark.parametrize("rank", [1, 32, 64])
def test_high_ranks(rank: int):
    array = np.arange(2, dtype=np.int16).reshape((1,) * (rank - 1) + (2,))
    assert np.array_equal(read_idx(write_idx(array)), array)


def test_known_bytes():
    # Written out by hand from the format's description.
    content = bytes.fromhex("00000b0200000001000000020102fffe")
    assert np.array_equal(read_idx(content), np.array([[258, -2]], np.int16))


@pytest.mark.parametrize("as_path", [str, Path])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_reads_files_by_content_not_by_name(tmp_path, as_path, pack):
    path = tmp_path / "array.dat"
    path.write_bytes(pack(PLAIN))
    assert np.array_equal(read_idx(as_path(path)), np.arange(24).reshape(2, 3, 4))


def test_a_gzip_file_of_several_members_is_one_stream():
    packed = gzip.compress(PLAIN[:30], mtime=0) + gzip.compress(PLAIN[30:])
    assert np.array_equal(read_idx(packed), np.arange(24).reshape(2, 3, 4))


def test_sha256_is_that_of_the_unpacked_content():
    digest = sha256(PLAIN).hexdigest()
    read_idx(PLAIN, sha256=digest)
    read_idx(gzip.compress(PLAIN, mtime=0), sha256=digest.upper())
    with pytest.raises(ValueError, match=f"found SHA-256 {digest}; expected {'0' * 64}"):
        read_idx(PLAIN, sha256="0" * 64)


def _header(code: int, *shape: int) -> bytes:
    return bytes([0, 0, code, len(shape)]) + b"".join(d.to_bytes(4, "big") for d in shape)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found 0 bytes; expected a magic number"),
        (b"\0\0\x08", "found 3 bytes; expected a magic number"),
        (b"\x89PNG", "found magic number 0x89504e47; expected it to start with two zero"),
        (_header(0x0A, 1) + b"\0", "found element type 0x0a; expected one of 0x08 \\(uint8\\)"),
        (_header(0x08, *[1] * 65) + b"\0", "found 65 dimensions; expected at most 64"),
        (_header(0x08, 3, 4)[:-3], "found 5 bytes of dimensions; expected 4 for each of 2"),
        (_header(0x0B, 3) + b"\0" * 5, "found 5 bytes of elements; expected 6 for shape \\(3,\\)"),
        (_header(0x0B, 3) + b"\0" * 7, "found (7|more than 6) bytes of elements; expected 6"),
        (_header(0x08, 2**32 - 1, 2**32 - 1), "expected at most max_bytes=1073741824"),
        (_header(0x0E, *[2**32 - 1] * 64), "expected at most max_bytes=1073741824"),
        (_header(0x08, 0, 2**32 - 1, 2**32 - 1), "expected at most max_bytes=1073741824"),
        (_header(0x08, 2**29), "found 0 bytes of elements; expected 536870912"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_bad_content_is_refused_by_name(tmp_path, content, message, pack):
    path = tmp_path / "bad-idx"
    path.write_bytes(pack(content))
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "damaged",
    [
        gzip.compress(PLAIN, mtime=0)[:-9],  # within the deflate stream
        gzip.compress(PLAIN, mtime=0)[:-4],  # within the trailer
        gzip.compress(PLAIN, mtime=0)[:-8] + b"\0" * 8,  # checksum
        gzip.compress(PLAIN, mtime=0) + b"rubbish",
        gzip.compress(PLAIN, mtime=0)[:5],
        b"\x1f\x8b\x07" + gzip.compress(PLAIN, mtime=0)[3:],  # unknown method
    ],
)
def test_damaged_gzip(damaged: bytes):
    with pytest.raises(ValueError, match=r"<bytes>.*damaged gzip"):
        read_idx(damaged)


def test_a_missing_file_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")


def test_what_is_not_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "file" / "below", "nul\0", "x" * 5000, 3):
        with pytest.raises(ValueError, match="expected"):
            read_idx(path)  # pyright: ignore[reportArgumentType]


def test_max_bytes_bounds_file_and_content():
    array = np.zeros(1000, np.uint8)
    assert read_idx(write_idx(array), max_bytes=1008).shape == (1000,)
    with pytest.raises(ValueError, match="found 1008 bytes; expected at most max_bytes=1007"):
        read_idx(write_idx(array), max_bytes=1007)
    with pytest.raises(ValueError, match="1008 bytes; expected at most max_bytes=1007"):
        read_idx(gzip.compress(write_idx(array)), max_bytes=1007)
    with pytest.raises(ValueError, match="max_bytes=-1"):
        read_idx(PLAIN, max_bytes=-1)


def _bomb(header: bytes, size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    block = bytes(1 << 20)
    parts = [packer.compress(header), *(packer.compress(block) for _ in range(size >> 20))]
    return b"".join([*parts, packer.flush()])


def _peak_bytes(content: bytes, **options: int) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="bytes"):
            read_idx(content, **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_gzip_bombs_are_refused_unopened():
    unannounced = _bomb(_header(0x08, 10), 256 << 20)
    assert len(unannounced) < 1 << 20
    assert _peak_bytes(unannounced) < 1 << 20
    announced = _bomb(_header(0x08, 256 << 20), 256 << 20)
    assert _peak_bytes(announced, max_bytes=1 << 26) < 1 << 20


def test_an_announced_size_is_not_allocated_before_it_arrives():
    assert _peak_bytes(gzip.compress(_header(0x08, 2**30 - 8))) < 1 << 20


def _mutated(content: bytes, rng: random.Random) -> bytes:
    mutant = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        action = rng.choice(["flip", "set", "cut", "extend", "insert", "delete"])
        at = rng.randrange(len(mutant)) if mutant else 0
        if action == "extend" or not mutant:
            mutant += rng.randbytes(rng.randint(1, 9))
        elif action == "flip":
            mutant[at] ^= 1 << rng.randrange(8)
        elif action == "set":
            # The header is where lengths are read from, so it gets half of the blows.
            mutant[rng.choice([at, at % 16])] = rng.choice([0, 1, 255, rng.randrange(256)])
        elif action == "cut":
            del mutant[at:]
        elif action == "insert":
            mutant[at:at] = rng.randbytes(rng.randint(1, 4))
        else:
            del mutant[at]
    return bytes(mutant)


@pytest.mark.parametrize("packed", [False, True])
def test_fuzz(packed: bool):
    rng = random.Random(20170825)
    arrays = [
        np.arange(12).astype(name).reshape(shape)
        for name in sorted(CODES)
        for shape in [(12,), (3, 4), (1, 2, 2, 3)]
    ]
    refused = unnamed = 0
    tracemalloc.start()
    try:
        for _ in range(6000):
            array = rng.choice(arrays)
            content = write_idx(array)
            mutant = _mutated(gzip.compress(content, mtime=0) if packed else content, rng)
            try:
                result = read_idx(mutant)
            except ValueError as error:
                refused += 1
                unnamed += "<bytes>" not in str(error)
                continue
            # What is accepted must be exactly what the content says: gzip's checksum leaves only
            # the original, and a plain file only the bytes that were read.
            assert write_idx(result) == (content if packed else mutant)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert refused > 3000
    assert unnamed == 0
