import csv
import os
from pathlib import Path

import numpy as np
import pytest

from jaxsim.sparsity.efficiency import hardness_normalized, parameter_efficiency

ROOT = Path(__file__).parent.parent.parent
DATA = Path(os.environ.get("JAXSIM_DATA", ROOT.parent / "shared/data")) / "sparsity"


def test_plain_efficiency_is_accuracy_per_parameter_and_prefers_the_collapsed_network():
    assert parameter_efficiency(0.9, 1000) == 0.9 / 1000
    assert parameter_efficiency(0.1, 1) > parameter_efficiency(0.9, 1000)


def test_a_dense_network_is_worth_one_and_half_of_it_with_the_same_score_two():
    dense = [(1e3, 0.5), (1e4, 0.8), (1e5, 0.9)]
    for size, score in dense:
        assert hardness_normalized(score, int(size), dense) == pytest.approx(1)
        assert hardness_normalized(score, int(size) // 2, dense) == pytest.approx(2)
    between = hardness_normalized(0.85, 10_000, dense)
    assert 1 < between < 10
    assert np.isnan(hardness_normalized(0.95, 100, dense))
    assert np.isnan(hardness_normalized(0.1, 100, dense))


def test_the_last_points_count_more():
    dense = [(1e3, 0.5), (1e4, 0.8), (1e6, 0.9)]
    gains = [hardness_normalized(a, 10_000, dense) for a in (0.8, 0.85, 0.9)]
    assert gains[1] / gains[0] > 2
    assert gains[2] / gains[1] > 2


def test_what_dense_networks_need_is_read_between_the_logarithms_of_their_sizes():
    """Two of them make a line: half way from 100 to 10000 is 1000, a quarter is 316.2."""
    dense = [(10_000, 0.9), (100, 0.5)]
    assert hardness_normalized(0.7, 250, dense) == pytest.approx(4)
    assert hardness_normalized(0.6, 1, dense) == pytest.approx(100 * 10**0.5)
    assert hardness_normalized(0.5, 50, dense) == pytest.approx(2)
    assert hardness_normalized(0.9, 50, dense) == pytest.approx(200)
    assert np.isnan(hardness_normalized(0.499, 50, dense))
    assert np.isnan(hardness_normalized(0.901, 50, dense))
    assert parameter_efficiency(1, 4) == 0.25
    assert parameter_efficiency(0, 1) == 0


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data/sparsity is missing")
def test_sparse_language_models_are_worth_more_than_their_size_and_less_than_their_shape():
    with (DATA / "t5-data.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items() if k} for row in csv.DictReader(file)]
    longest = max(row["steps"] for row in rows)
    rows = [row for row in rows if row["steps"] == longest]
    dense = [(1e9 * r["scale"], -r["val-loss"]) for r in rows if r["sparsity"] == 0]
    worth = []
    for row in rows:
        nonzeros = int(1e9 * row["scale"] * (1 - row["sparsity"]))
        if row["sparsity"] > 0:
            worth.append((row["sparsity"], hardness_normalized(-row["val-loss"], nonzeros, dense)))
    known = [(s, w) for s, w in worth if np.isfinite(w)]
    assert len(known) >= 4
    assert all(1 < w < 1 / (1 - s) for s, w in known)


def test_references_that_say_nothing_are_errors():
    with pytest.raises(ValueError, match="two pairs"):
        hardness_normalized(0.5, 10, [(10, 0.5)])
    with pytest.raises(ValueError, match="must rise"):
        hardness_normalized(0.5, 10, [(10, 0.5), (20, 0.4)])
    for bad in ([(10, 0.5), (10, 0.6)], [(10, 0.5), (20, 0.5)], [(0, 0.5), (20, 0.6)]):
        with pytest.raises(ValueError, match="must rise"):
            hardness_normalized(0.5, 10, bad)
    for bad in (
        [],
        [(10, 0.5, 1), (20, 0.6, 1)],
        [(10, 0.5), (np.inf, 0.6)],
        [(10, 0.5), (11, np.nan)],
    ):
        with pytest.raises(ValueError, match="at least two pairs"):
            hardness_normalized(0.5, 10, bad)
    with pytest.raises(ValueError, match="nonzeros=0"):
        hardness_normalized(0.5, 0, [(10, 0.5), (20, 0.6)])
    with pytest.raises(ValueError, match=r"accuracy=-0\.1"):
        parameter_efficiency(-0.1, 10)
    with pytest.raises(ValueError, match="nonzeros"):
        parameter_efficiency(0.5, 0)
    with pytest.raises(ValueError, match="accuracy"):
        parameter_efficiency(1.5, 10)
