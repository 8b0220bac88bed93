"""Random dot_generals and convolutions, for hypothesis."""

import numpy as np
from hypothesis import strategies as st

from jaxsim.cores.conv import Conv
from jaxsim.cores.geometry import Dot

small = st.integers(1, 3)


@st.composite
def dots(draw):
    """A `Dot` with any dimension numbers, and the shape of its input."""
    batch, contract = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    shared = [draw(small) for _ in range(batch + contract)]
    sides = []
    for _ in range(2):
        free = [draw(small) for _ in range(draw(st.integers(0, 2)))]
        sizes = [*shared, *free]
        order = draw(st.permutations(range(len(sizes))))
        place = [order.index(i) for i in range(len(sizes))]
        sides.append((tuple(sizes[i] for i in order), place[:batch], place[batch : len(shared)]))
    (x_shape, x_batch, x_contract), (w_shape, w_batch, w_contract) = sides
    geometry = Dot(
        x_contract=tuple(x_contract),
        x_batch=tuple(x_batch),
        w_contract=tuple(w_contract),
        w_batch=tuple(w_batch),
        x_ndim=len(x_shape),
        w_shape=w_shape,
        weight_first=draw(st.booleans()),
    )
    return geometry, x_shape


@st.composite
def convs(draw):
    """A `Conv` with any strides, padding, dilations, groups and layout; and its input's shape."""
    spatial = draw(st.integers(1, 2))
    groups, per_group, features = draw(small), draw(small), draw(small)
    kernel = [draw(small) for _ in range(spatial)]
    size = [draw(st.integers(2, 5)) for _ in range(spatial)]
    lhs, rhs = ([draw(st.integers(1, 2)) for _ in range(spatial)] for _ in range(2))
    padding = []
    for n, k, a, b in zip(size, kernel, lhs, rhs, strict=True):
        spread, span = (n - 1) * a + 1, (k - 1) * b + 1
        lo = draw(st.integers(-1 if spread > 1 else 0, 2))
        least = max(-1, span - spread - lo)
        hi = draw(st.integers(least, max(least, 4 + lo)))
        padding.append((lo, hi))
    specs = [tuple(draw(st.permutations(range(spatial + 2)))) for _ in range(3)]
    x_shape = _laid_out((draw(small), groups * per_group, *size), specs[0])
    geometry = Conv(
        strides=tuple(draw(st.integers(1, 2)) for _ in range(spatial)),
        padding=tuple(padding),
        lhs_dilation=tuple(lhs),
        rhs_dilation=tuple(rhs),
        groups=groups,
        x_spec=specs[0],
        w_spec=specs[1],
        y_spec=specs[2],
        w_shape=_laid_out((groups * features, per_group, *kernel), specs[1]),
    )
    return geometry, x_shape


geometries = st.one_of(dots(), convs())
planes = st.lists(st.integers(1, 3), max_size=2).map(tuple)
seeds = st.integers(0, 2**16)


def integers(seed, shape, lo=-127, hi=127, dtype=np.int8):
    """Random codes."""
    return np.random.default_rng(seed).integers(lo, hi, shape, endpoint=True).astype(dtype)


def _laid_out(sizes, spec):
    shape = [0] * len(sizes)
    for size, axis in zip(sizes, spec, strict=True):
        shape[axis] = size
    return tuple(shape)
