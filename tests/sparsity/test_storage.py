import math

import numpy as np
import pytest
from scipy import sparse

from jaxsim.sparsity import storage
from jaxsim.sparsity.storage import decode, encode, lower_bound, storage_bits

FORMATS = {
    "dense": storage.dense(),
    "bitmap": storage.bitmap(),
    "coo": storage.coo(),
    "csr": storage.csr(),
    "bsr": storage.bsr(4, 2),
    "delta": storage.delta(4),
    "delta, short": storage.delta(1),
    "2:4": storage.nm(2, 4),
}


def drawn(seed, name="csr"):
    """A mask, and values of some type."""
    rng = np.random.default_rng(seed)
    shape = [(8, 12), (3, 4, 6), (4, 2), (24, 10)][seed % 4]
    shape = (*shape[:-2], 4 * shape[-2], shape[-1])
    if name == "2:4":
        groups = np.argsort(rng.random((math.prod(shape) // 4, 4)), 1) < rng.integers(0, 3)
        mask = groups.reshape(-1, math.prod(shape[:-1])).T.reshape(shape)
    else:
        mask = rng.random(shape) < [0.0, 1.0, 0.5, 0.03, 0.2][seed % 5]
    dtype = [np.float32, np.int8, np.float16][seed % 3]
    values = rng.normal(0, 40, shape).astype(dtype)
    return mask, values


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(10))
def test_bytes_are_as_long_as_the_formula_says_and_hold_the_weights(name, seed):
    mask, values = drawn(seed, name)
    content = encode(mask, values, FORMATS[name])
    bits = storage_bits(mask, FORMATS[name], 8 * values.itemsize)
    assert len(content) == -(-bits // 8)
    found = decode(content, values.shape, values.dtype, FORMATS[name])
    np.testing.assert_array_equal(found, np.where(mask, values, 0))
    assert name == "dense" or bits >= lower_bound(mask, 8 * values.itemsize)


@pytest.mark.parametrize("seed", range(10))
def test_bits_are_those_of_the_oracles(seed):
    mask, _ = drawn(seed)
    flat = mask.reshape(-1, mask.shape[-1])
    (n, k), (rows, columns) = (mask.size, int(mask.sum())), flat.shape
    packed = 8 * len(np.packbits(mask))
    assert packed - 7 <= storage_bits(mask, storage.bitmap(), 32) - 32 * k <= packed
    theirs = sparse.csr_array(flat.astype(np.int8))
    assert storage_bits(mask, storage.csr(), 32) == theirs.nnz * (
        32 + math.ceil(math.log2(columns))
    ) + len(theirs.indptr) * math.ceil(math.log2(theirs.nnz + 1))
    blocks = sparse.bsr_array(flat.astype(np.int8), blocksize=(4, 2))
    blocks.eliminate_zeros()
    held = len(blocks.indices)
    assert storage_bits(mask, storage.bsr(4, 2), 16) == held * (
        8 * 16 + math.ceil(math.log2(columns // 2))
    ) + (rows // 4 + 1) * math.ceil(math.log2(held + 1))
    assert storage_bits(mask, storage.coo(), 8) == k * (8 + math.ceil(math.log2(n)))
    gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    pad = sum(int(g) // 16 for g in gaps)
    assert storage_bits(mask, storage.delta(4), 8) == (k + pad) * (8 + 4)


def test_two_of_four_take_two_index_bits_a_value():
    mask = np.tile([[True], [False], [True], [False]], (4, 8))
    assert storage_bits(mask, storage.nm(2, 4), 8) == mask.sum() * (8 + 2)


@pytest.mark.parametrize("bits", [8, 16])
def test_formats_cross_where_they_must(bits):
    """Bitmap beats dense below 1 - 1/b, and COO above 1/⌈log2 n⌉, whatever b is."""
    n = 1024

    def cost(k, form):
        return storage_bits(np.arange(n).reshape(32, 32) < k, form, bits)

    edge = n - n // bits
    assert cost(edge, storage.bitmap()) == cost(edge, storage.dense())
    assert cost(edge - 1, storage.bitmap()) < cost(edge - 1, storage.dense())
    assert cost(102, storage.coo()) < cost(102, storage.bitmap()) < cost(103, storage.bitmap())
    assert cost(103, storage.coo()) > cost(103, storage.bitmap())


def test_the_bound_is_exact_and_holds_for_large_tensors_too():
    assert lower_bound(np.arange(8) < 3, 4) == math.ceil(math.log2(56)) + 12
    assert lower_bound(np.ones(5, bool), 4) == 20
    big = np.arange(2**15) < 2**13
    exact = (math.comb(2**15, 2**13) - 1).bit_length()
    assert lower_bound(big, 1) == exact + 2**13


def test_what_a_format_cannot_hold_is_an_error():
    ones = np.ones((6, 6), bool)
    with pytest.raises(ValueError, match="do not tile"):
        storage_bits(ones, storage.bsr(4, 2))
    with pytest.raises(ValueError, match="do not tile"):
        storage_bits(ones, storage.nm(2, 4))
    with pytest.raises(ValueError, match="more than 1 values"):
        storage_bits(ones, storage.nm(1, 2))
    with pytest.raises(ValueError, match="from 1 to 32"):
        storage.delta(0)
    with pytest.raises(ValueError, match="from 1 to 4"):
        storage.nm(5, 4)
    with pytest.raises(ValueError, match="value_bits"):
        storage_bits(ones, storage.csr(), 0)
    with pytest.raises(ValueError, match="shape"):
        encode(ones, np.ones(3), storage.csr())
    for form in (storage.dense(), storage.bitmap(), storage.csr()):
        with pytest.raises(ValueError, match="content"):
            decode(b"\x80", (6, 6), np.float32, form)


# rows 0 0 3 0 / 0 0 0 0 / -1 0 0 5 of bytes 03, ff and 05
BYTES = np.array([[0, 0, 3, 0], [0, 0, 0, 0], [-1, 0, 0, 5]], np.int8)


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        # one bit a place
        (storage.bitmap(), "001000001001"),
        # places 2, 8 and 11 of 12, four bits each
        (storage.coo(), "001010001011"),
        # rows begin at 0, 1, 1, 3, two bits each; columns 2, 0 and 3
        (storage.csr(), "00010111100011"),
        # two zeros, then five, then two: of two bits a filler is at place 6
        (storage.delta(3), "010101010"),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_bytes_are_places_and_then_values(form, fields):
    bits = fields + "000000111111111100000101"
    content = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    assert encode(BYTES != 0, BYTES, form) == content
    assert storage_bits(BYTES != 0, form, 8) == len(bits)
    np.testing.assert_array_equal(decode(content, BYTES.shape, np.int8, form), BYTES)


def test_fillers_stand_where_a_number_of_zeros_ends():
    """Two bits tell of three zeros: of five, a filler after three, and one zero more."""
    form = storage.delta(2)
    bits = "10110110" + "00000011000000001111111100000101"
    content = int(bits, 2).to_bytes(5, "big")
    assert encode(BYTES != 0, BYTES, form) == content
    np.testing.assert_array_equal(decode(content, BYTES.shape, np.int8, form), BYTES)
    # exactly four zeros are a filler and none, eight two fillers
    for zeros, count in ((3, 1), (4, 2), (7, 2), (8, 3)):
        mask = np.arange(zeros + 1) == zeros
        assert storage_bits(mask, form, 8) == count * 10


def test_blocks_and_groups_are_stored_whole():
    """Blocks of 1 × 2: (0, 1), (2, 0) and (2, 1); begins of two bits, columns of one."""
    form = storage.bsr(1, 2)
    values = "000000110000000011111111000000000000000000000101"
    bits = "00010111" + "101" + values
    content = int(bits.ljust(64, "0"), 2).to_bytes(8, "big")
    assert encode(BYTES != 0, BYTES, form) == content
    np.testing.assert_array_equal(decode(content, BYTES.shape, np.int8, form), BYTES)
    # one of three rows in a column: row 2, row 0 for want of one, row 0, row 2
    form = storage.nm(1, 3)
    bits = "10000010" + "11111111000000000000001100000101"
    content = int(bits, 2).to_bytes(5, "big")
    assert encode(BYTES != 0, BYTES, form) == content
    np.testing.assert_array_equal(decode(content, BYTES.shape, np.int8, form), BYTES)


def test_bits_of_unlike_factors_by_hand():
    """6 rows, 10 columns, 7 values of 16 bits; blocks of 2 × 5 hold 3 of 6."""
    mask = np.zeros((6, 10), bool)
    mask[0, :3], mask[1, 6:8], mask[4, :2] = True, True, True
    expected = {
        "dense": 60 * 16,
        "bitmap": 60 + 7 * 16,
        "COO": 7 * (16 + 6),
        "CSR": 7 * (16 + 4) + 7 * 3,
        "BSR 2×5": 3 * (10 * 16 + 1) + 4 * 2,
        "delta 3 bits": (7 + 1 + 2) * (16 + 3),  # of 8 zeros each: one of 13, and two of 22
        "3:6": 10 * 3 * (16 + 3),
    }
    forms = (
        *(storage.dense(), storage.bitmap(), storage.coo(), storage.csr(), storage.bsr(2, 5)),
        *(storage.delta(3), storage.nm(3, 6)),
    )
    found = {form.name: storage_bits(mask, form, 16) for form in forms}
    assert found == expected
    assert storage_bits(mask, storage.csr()) == storage_bits(mask, storage.csr(), 32)
    assert lower_bound(mask, 16) == math.ceil(math.log2(math.comb(60, 7))) + 7 * 16


def test_rows_are_all_axes_but_the_last_and_a_vector_is_one_row():
    mask = np.ones((2, 3, 4), bool)
    assert storage_bits(mask, storage.csr(), 8) == 24 * (8 + 2) + 7 * 5
    assert storage_bits(np.ones(4, bool), storage.csr(), 8) == 4 * (8 + 2) + 2 * 3


def test_contents_of_another_length_are_refused():
    for form in (storage.bitmap(), storage.dense(), storage.csr()):
        content = encode(BYTES != 0, BYTES, form)
        with pytest.raises(ValueError, match="content"):
            decode(content[:-1], BYTES.shape, np.int8, form)
    # rows that begin at 0, 1, 0: no order, or a count that is not theirs
    with pytest.raises(ValueError, match="are not those of such blocks"):
        decode(bytes([0b01010111, 0, 0, 0, 0]), (3, 4), np.int8, storage.csr())


@pytest.mark.parametrize(
    ("message", "make"),
    {
        "rows=0": lambda: storage.bsr(0, 1),
        "columns=0": lambda: storage.bsr(1, 0),
        "bits=33": lambda: storage.delta(33),
        "m=1": lambda: storage.nm(1, 1),
        "n=0": lambda: storage.nm(0, 2),
    }.items(),
)
def test_sizes_of_formats_have_edges(message, make):
    with pytest.raises(ValueError, match=message):
        make()
    assert storage.bsr(1, 1).name == "BSR 1×1"
    assert (storage.delta(32).name, storage.nm(2, 2).name) == ("delta 32 bits", "2:2")


def test_nothing_is_stored_of_nothing():
    none = np.zeros((3, 4), bool)
    for form in (storage.coo(), storage.delta(4)):
        assert storage_bits(none, form) == 0
    assert storage_bits(none, storage.bitmap()) == 12
    assert storage_bits(none, storage.csr()) == 0
    assert lower_bound(none) == 0
