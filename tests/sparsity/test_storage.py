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
