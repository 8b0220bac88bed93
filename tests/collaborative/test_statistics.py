"""Paired tests are scipy's, corrections are Holm's."""

import numpy as np
import pytest
from scipy import stats

import jaxsim.collaborative as jcol


def test_a_paired_comparison():
    rng = np.random.default_rng(0)
    a = rng.normal(1, 1, 20)
    b = a - rng.normal(0.3, 0.5, 20)
    found = jcol.paired_test(a, b)
    ours = stats.ttest_1samp(a - b, 0)
    interval = ours.confidence_interval(0.95)
    assert np.isclose(found.t_p, ours.pvalue)
    assert np.isclose(found.mean - found.half_width, interval.low)
    assert np.isclose(found.mean + found.half_width, interval.high)
    assert np.isclose(found.wilcoxon_p, stats.wilcoxon(a, b).pvalue)
    assert found.wins == (a > b).sum()
    assert jcol.paired_test(a, a) == (0, 0, 1, 1, 0, 20)


def test_holms_correction():
    """By its definition: the smallest times m, the next times m - 1, never falling."""
    np.testing.assert_allclose(jcol.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(jcol.holm([0.9, 0.6]), [1, 1])


BAD = {
    r"a\[2\], b\[3\]": lambda: jcol.paired_test([1, 2], [1, 2, 3]),
    "at least 2": lambda: jcol.paired_test([1], [2]),
    "hold NaN": lambda: jcol.paired_test([1, np.nan], [1, 2]),
    "p_values=": lambda: jcol.holm([0.5, 1.5]),
    r"p_values=\[\]": lambda: jcol.holm([]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
