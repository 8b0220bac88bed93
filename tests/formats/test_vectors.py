"""Vectors as codes beside NumPy's, and what no vector on its own can have."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.formats.vectors import vector_form
from tests.oracles import vectors as oracle

X = np.random.default_rng(0).normal(size=(3, 2, 64)).astype(np.float32) * 4
FORMS = {
    "8": js.Grid(8, per="token"),
    "4": js.Grid(4, per="token"),
    "3 in groups": js.Grid(3, per="group", rows=16),
    "4 affine": js.Grid(4, per="group", rows=32, symmetric=False),
    "mx": js.mx("e2m1"),
    "nvfp4": js.nvfp4(),
    "e3m2": js.mx("e3m2"),
    "int8": js.mx("int8"),
    "Q4_1": js.BlockGrid("Q4_1"),
    "Q8_0": js.BlockGrid("Q8_0"),
    "float8": js.Floating("float8_e4m3fn"),
    "bfloat16": js.Floating("bfloat16"),
}
BITS = {
    **{"8": 8 + 32 / 64, "4": 4 + 32 / 64, "3 in groups": 4 + 32 / 16, "4 affine": 4 + 40 / 32},
    **{"mx": 4 + 8 / 32, "nvfp4": 4 + 8 / 16 + 32 / 64, "e3m2": 8 + 8 / 32, "int8": 8 + 8 / 32},
    **{"Q4_1": 4 + 32 / 32, "Q8_0": 8 + 16 / 32, "float8": 8 + 32 / 64, "bfloat16": 16 + 32 / 64},
}
EXPECTED = {
    "8": lambda: oracle.even(X, 8, 64, True),
    "4": lambda: oracle.even(X, 4, 64, True),
    "3 in groups": lambda: oracle.even(X, 3, 16, True),
    "4 affine": lambda: oracle.even(X, 4, 32, False),
    "mx": lambda: oracle.e2m1(X, 32, "e8m0"),
    "nvfp4": lambda: oracle.e2m1(X, 16, "e4m3"),
}


@pytest.mark.parametrize("name", FORMS)
def test_vectors_come_back_within_their_steps_and_in_their_bits(name):
    form = vector_form(FORMS[name], 64)
    held = jax.jit(form.encode)(X)
    back = np.asarray(jax.jit(form.decode)(held))
    assert back.dtype == np.float32
    if name in EXPECTED:
        np.testing.assert_allclose(back, EXPECTED[name](), rtol=2e-6, atol=1e-7)
    error = np.abs(back - X).max() / np.abs(X).max()
    assert 0 < error < (0.3 if BITS[name] < 7 or name == "e3m2" else 0.05)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(held))
    assert 8 * size == BITS[name] * X.size


@pytest.mark.parametrize("name", FORMS)
def test_each_vector_is_stored_on_its_own(name):
    form = vector_form(FORMS[name], 64)
    whole = form.encode(jnp.asarray(X))
    others = form.encode(jnp.asarray(X).at[0].mul(1e3))
    for some, same in zip(jax.tree.leaves(whole), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(np.asarray(some)[1:], np.asarray(same)[1:])
    zeros = form.decode(form.encode(jnp.zeros((2, 64))))
    np.testing.assert_array_equal(zeros, np.zeros((2, 64)))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("int4", "form='int4': must be a Grid, mx"),
        (js.Grid(4), "a vector has its own range: per='token' or 'group'"),
        (js.Grid(4, per="channel"), "a vector has its own range"),
        (js.Grid(4, per="token", clip=js.clipping.percentile(99.0)), "no clip"),
        (js.Grid(4, per="token", average=0.5), "no average"),
        (js.Grid(4, per="token", rounding="stochastic"), "must round to the nearest"),
        (js.Grid(4, per="group", rows=48), "blocks of 48 do not divide vectors of 64"),
        (js.Grid(9, per="token"), "bits=9"),
        (js.BlockGrid("Q8_0", scale=np.ones(2)), "give the kind alone"),
        (js.Floating(per="channel"), "a vector has its own scale"),
    ],
)
def test_what_no_vector_has_is_refused(form, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        vector_form(form, 64)
    with pytest.raises(ValueError, match="blocks of 32 do not divide vectors of 24"):
        vector_form(js.mx(), 24)
