"""Slopes of scales: values stay, and a value that grows takes its error with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores.step_slopes import step_slopes
from jaxsim.cores.wrapper import Wrapper
from tests.support.models import normal

X = normal(6, 32)
FORMS = [
    (js.Grid(4, per="channel"), js.Grid(4, per="token")),
    (js.Grid(3), js.Grid(4)),
    (js.Grid(4, symmetric=False, per="channel"), js.Grid(3, symmetric=False, per="token")),
    (js.Grid(3, per="group", rows=12, symmetric=False), None),
    (None, js.Grid(3, symmetric=False, dynamic=True)),
    (js.nvfp4(), js.nvfp4()),
]


def layer(weights, inputs, *, sloped=True):
    net = js.trace(lambda p, x: x @ p["w"], {"w": normal(32, 5, seed=1)}, X)
    chip = js.quantize(weights, inputs)(net)
    if not sloped:
        return chip
    *before, coded = chip.cores["w"]
    slopes = Wrapper.of(step_slopes, weights=weights, inputs=inputs)
    return chip.__class__(**{**vars(chip), "cores": {"w": (*before, slopes, coded)}})


def grown(chip, of):
    """The product, and how it changes where weights or inputs grow in proportion."""

    def product(by):
        x = X * by if of == "inputs" else X
        params = {"w": chip.params["w"] * (by if of == "weights" else 1)}
        return chip.__class__(**{**vars(chip), "params": params})(x)

    return jax.jvp(product, (jnp.float32(1),), (jnp.float32(1),))


@pytest.mark.parametrize("forms", FORMS, ids=str)
def test_products_grow_as_their_operands_do(forms):
    """Rounding by ranges that follow the values is homogeneous, so by Euler the slope is it."""
    for of, form in zip(("weights", "inputs"), forms, strict=True):
        y, slope = jax.jit(grown, static_argnums=1)(layer(*forms), of)
        np.testing.assert_allclose(slope, y, rtol=1e-4, atol=1e-4)
        plain, wrong = jax.jit(grown, static_argnums=1)(layer(*forms, sloped=False), of)
        np.testing.assert_allclose(y, plain, rtol=1e-6, atol=1e-6)
        if form is not None:  # the known wrong slope, straight through
            assert np.abs(wrong - y).max() > 0.05


def test_ranges_that_are_set_have_no_slope():
    form = js.Grid(4, per="channel", clip=js.clipping.fixed(-1.0, 1.0))
    ones = [
        jax.jit(grown, static_argnums=1)(layer(form, None, sloped=s), "weights") for s in (0, 1)
    ]
    np.testing.assert_array_equal(*(slope for _, slope in ones))
