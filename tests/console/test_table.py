"""Numbers in printed tables."""

import pytest

from jaxsim.console.table import si


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (0.0125, "0.0125"),
        (999, "999"),
        (1000, "1 k"),
        (999_000, "999 k"),
        (1_000_000, "1 M"),
        (2_345_678, "2.35 M"),
        (1e9, "1 G"),
        (5.5e11, "550 G"),
        (1e12, "1 T"),
        (7.5e15, "7.5e+03 T"),
    ],
)
def test_counts_have_three_digits_and_their_prefix(number, shown):
    assert si(number) == shown
