"""Pairs of cells that are read as one product: what two products would be."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.cores import cells
from jaxsim.cores.bit_sliced import bit_sliced
from jaxsim.cores.conductance import conductance
from jaxsim.cores.dac import capacitive, drivers
from jaxsim.cores.mapping import differential
from jaxsim.cores.op import Op
from jaxsim.cores.quantized import quantized
from jaxsim.cores.tiled import tiled
from jaxsim.formats.grid import Grid
from tests.support import sites
from tests.support.networks import X, cnn

KEY = jax.random.key(3)
CODES = (quantized, {"weights": Grid(6), "inputs": Grid(5)})
APART = (differential, {"apart": True})
TILES = (tiled, {"rows": 7})

DRAWN_TWICE = {
    "measured": cells.sonos()._replace(noise=None),
    "verified": cells.verified(cells.independent(0.1), tolerance=0.05, pulses=3),
    "stuck": cells.stuck(cells.proportional(0.0), low=0.1, high=0.1),
    "exact": cells.Device(lambda g, key: g, on_off=7.0),
}
"""Devices whose errors are not drawn at once: the difference is that of the same two draws."""


def held(device):
    return (conductance, {"device": device})


def both(pieces, geometry, key=None):
    """Reads of a chip whose pairs are joined and of one whose pairs are not, and their states."""
    x, w = sites.operands(geometry)
    return [
        (
            np.asarray(sites.read_deployed(chain, geometry, x, w, key)),
            sites.deployed(chain, geometry, x, w, key),
        )
        for chain in (
            [CODES, *pieces],
            [CODES, *(APART if piece is differential else piece for piece in pieces)],
        )
    ]


@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
@pytest.mark.parametrize("slices", [(), ((bit_sliced, {"bits": 2}),)], ids=["whole", "sliced"])
def test_codes_without_cells_read_the_same_integers(geometry, slices):
    (joined, state), (apart, twice) = both([*slices, TILES, differential], geometry)
    np.testing.assert_array_equal(joined, apart)
    sizes = [sum(a.size for a in jax.tree.leaves(s.inner)) for s in (state, twice)]
    assert sizes[1] == 2 * sizes[0]


@pytest.mark.parametrize("name", DRAWN_TWICE)
@pytest.mark.parametrize("geometry", [sites.DENSE, sites.CONV])
def test_cells_that_are_drawn_one_by_one_read_the_same(name, geometry):
    pieces = [(bit_sliced, {"bits": 3}), TILES, differential, held(DRAWN_TWICE[name])]
    (joined, _), (apart, _) = both(pieces, geometry, KEY)
    np.testing.assert_allclose(joined, apart, rtol=1e-4, atol=1e-5 * np.abs(apart).max())
    (other, _), _ = both(pieces, geometry, jax.random.key(4))
    assert name == "exact" or np.abs(other - apart).max() > 1e-2 * np.abs(apart).max()


def test_drivers_that_differ_from_chip_to_chip_drive_the_difference():
    pieces = [differential, (drivers, {"dac": capacitive(mismatch=0.2)}), held(cells.sonos())]
    pieces[-1] = held(DRAWN_TWICE["measured"])
    (joined, _), (apart, _) = both(pieces, sites.DENSE, KEY)
    np.testing.assert_allclose(joined, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [cells.independent, cells.proportional, cells.inverse])
def test_gradients_are_those_of_two_products(kind):
    """Without errors the draws do not count; the derivative with respect to their size does."""
    x, w = (jnp.asarray(a) for a in sites.operands(sites.DENSE))
    pull = jax.random.normal(jax.random.key(8), (5, 6))

    @partial(jax.jit, static_argnums=3)
    def loss(x, w, sigma, apart, key):
        pair = APART if apart else differential
        chain = [CODES, TILES, pair, held(kind(sigma, on_off=5.0))]
        y = sites.read(chain, sites.DENSE, x, w, key, integer=False)
        return (y * pull).sum()

    slope = jax.grad(loss, argnums=(0, 1))
    for mine, theirs in zip(slope(x, w, 0.0, False, KEY), slope(x, w, 0.0, True, KEY), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
        assert np.abs(theirs).max() > 0.1
    keys = jax.random.split(KEY, 3000)
    of_size = jax.grad(loss, argnums=2)
    many = [jax.vmap(lambda key, a=a: of_size(x, w, 0.1, a, key))(keys) for a in (False, True)]
    assert np.std(many[0]) == pytest.approx(float(np.std(many[1])), rel=0.06)


def test_a_weight_of_zero_has_a_slope():
    """Of the absolute value at zero there is none, and most codes of few bits are zero."""
    w = jnp.zeros((20, 6)).at[0].set(1.0)
    x = jnp.ones((2, 20))

    def total(w):
        chain = [(quantized, {"weights": Grid(4), "inputs": None}), differential]
        chain.append(held(cells.proportional(0.1)))
        return sites.read(chain, sites.DENSE, x, w, KEY, integer=False).sum()

    assert (np.abs(jax.grad(total)(w)[1:]) > 0.5).all()


def products(chip):
    """Products in a compiled call, by whether they are matrix products."""
    call = jax.jit(lambda chip, x, key: chip(x, key=key))
    jaxpr = str(jax.make_jaxpr(call)(chip, X, KEY))
    return len(re.findall(r"dot_general|conv_general_dilated", jaxpr))


READ = {
    "codes": (None, 1),
    "errors": (cells.independent(0.1), 1),
    "noise": (cells.independent(0.1, noise=0.1), 2),
    "drift": (cells.drifting(cells.independent(0.1), exponent=0.05), 1),
}


@pytest.mark.parametrize("name", READ)
def test_a_read_is_one_product_for_a_site_and_one_for_its_noise(name):
    device, each = READ[name]
    net = js.compose(js.quantize(8, 8), js.analog(8, device))(cnn())
    chip = js.deploy(net, key=KEY, calibrate=X)
    assert products(chip) == each * len(net.cores)


def test_what_is_counted_is_both_cells():
    x, w = sites.operands(sites.DENSE)
    found = []
    for pair in (differential, APART):
        core = sites.core_of(CODES, TILES, pair, held(cells.independent(0.1)))
        op = dataclasses.replace(Op(sites.DENSE), meter={})
        core.read(op, core.write(op, jnp.asarray(w), KEY), jnp.asarray(x), KEY)
        found.append(op.meter)
    assert found[0] == found[1]
    assert found[0]["cells"] == 2 * 21 * 6  # three tiles of seven rows
    assert found[0]["macs"] == 2 * 5 * 21 * 6


@pytest.mark.parametrize("kind", [cells.independent, cells.proportional])
def test_read_noise_of_a_pair_has_the_variance_of_both(kind):
    """By hand; the variance of one of the two, a control, is far off."""
    device = kind(0.0, noise=0.1, on_off=4.0)
    x, w = sites.operands(sites.DENSE)
    x = jnp.tile(x[:1], (6000, 1))
    grid = {"weights": Grid(6, per="channel"), "inputs": None}
    y = sites.read([(quantized, grid), differential, held(device)], sites.DENSE, x, w, KEY)
    top = np.abs(w).max(0)
    level = np.abs(np.round(w / top * 31)) / 31
    g = 0.25 + 0.75 * np.stack([level, 0 * level])
    sigma = 0.1 * (g if kind is cells.proportional else np.ones_like(g)) / 0.75 * top
    law = np.sqrt(np.einsum("k,pkn->n", np.square(x[0]), np.square(sigma)))
    single = np.sqrt(np.einsum("k,kn->n", np.square(x[0]), np.square(sigma[0])))
    np.testing.assert_allclose(np.std(y, axis=0), law, rtol=0.04)
    assert (np.abs(single / law - 1) > 0.04).all()
