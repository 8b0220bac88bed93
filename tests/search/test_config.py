"""Configurations of blocks: every one there is, and what it makes of a site."""

import itertools

import pytest

import jaxsim as js
from jaxsim.search.config import Choice, Config, configs, configure
from tests.support.networks import stack


def test_candidates_keep_all_or_fewer_blocks_of_either_operand():
    """Codes of 5 bits have 4 magnitude bits: of blocks of 3 two, of which all or one is kept."""
    sides = [(None, "exact"), (1, "dynamic"), (1, "static")]
    expected = [
        Config(3, x, w, (mode, other), "trunc")
        for (x, mode), (w, other) in itertools.product(sides, sides)
    ]
    assert configs((3,), bits=5, rounding="trunc") == tuple(expected)
    assert configs((4,), bits=5) == (Config(4),)  # one block, nothing to leave out


@pytest.mark.parametrize(("K", "blocks"), [(2, 4), (3, 3), (4, 2), (7, 1)])
def test_as_many_blocks_as_a_code_of_8_bits_has(K, blocks):
    kept = {c.n_x for c in configs((K,))} - {None}
    assert kept == set(range(1, blocks))
    assert {c.rounding for c in configs((K,))} == {"rounded"}


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        (Config(3), "K=3: all × all"),
        (Config(2, 1, 3, ("dynamic", "static")), "K=2: 1 dynamic × 3 static"),
        (Config(4, None, 1, ("exact", "static")), "K=4: all × 1 static"),
    ],
)
def test_a_configuration_says_what_it_keeps(config, shown):
    assert str(config) == shown


def test_each_site_gets_its_own_configuration():
    net = js.quantize(8, 8)(stack())
    by_site = {
        "w": Config(3, 2, 1, ("dynamic", "static"), "trunc"),
        "head": Config(2, None, 3, ("exact", "dynamic")),
    }
    for made in (configure(net, by_site), Choice(by_site, 0.5, 1, 2, 3)(net)):
        assert made.focus == net.focus
        found = {name: made.cores[name][-1].settings["blocks"] for name in by_site}
        assert [int(found[n].K) for n in ("w", "head")] == [3, 2]
        assert [int(found[n].products) for n in ("w", "head")] == [2, 4 * 3]
        assert [bool(found[n].w_dynamic) for n in ("w", "head")] == [False, True]
        assert [bool(found[n].x_dynamic) for n in ("w", "head")] == [True, False]
