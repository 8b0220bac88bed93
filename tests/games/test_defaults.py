"""Arguments that are left out have the values that the documentation shows."""

import pytest

import jaxsim.games as jg
from tests.support.defaults import defaults

DEFAULTS = {
    "kuhn_poker": {"cards": 3},
    "lotto": {"customers": 9, "servers": 500},
    "matching_pennies": {"rounds": 50},
    "rps_mixture": {"modes": 7},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_left_out_is_as_documented(name):
    assert defaults(getattr(jg, name)) == DEFAULTS[name]
