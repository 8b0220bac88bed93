"""Figures show the numbers that they are given, with their standard errors."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from jaxsim.evaluate.plot import Curve, accuracy_bars, accuracy_curves


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, and how finely."""
    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, dpi: figures.append((self, dpi, path.touch()))
    )
    return figures


ONE = Curve([1.0, 2.0, 4.0], np.array([[0.5], [0.25], [0.75]]))
THREE = Curve([1.0, 3.0], np.array([[0.2, 0.4, 0.6], [0.7, 0.7, 0.7]]))


def test_curves_are_means_in_percent_with_standard_errors(tmp_path, drawn):
    path = tmp_path / "new" / "curves.png"
    panels = {"sigma": {"one": ONE, "three": THREE}, "bits": {"again": THREE}}
    accuracy_curves(path, panels, reference=0.8, title="a title", baseline="plain")
    assert path.exists()
    ((figure, dpi, _),) = drawn
    assert dpi == 150
    assert figure.get_suptitle() == "a title"
    assert figure.get_size_inches().tolist() == [10.4, 4.0]
    first, second = figure.axes
    assert [ax.get_xlabel() for ax in figure.axes] == ["sigma", "bits"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["accuracy, %", ""]
    assert first.get_ylim() == second.get_ylim()
    one, three = first.containers
    assert one.lines[0].get_xydata().tolist() == [[1, 50], [2, 25], [4, 75]]
    np.testing.assert_allclose(three.lines[0].get_xydata(), [[1, 40], [3, 70]])
    # of 20, 40 and 60: a standard deviation of 20 (two degrees of freedom) over sqrt(3)
    (bars,) = three.lines[2]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    half = 20 / np.sqrt(3)
    np.testing.assert_allclose(ends, [[40 - half, 40 + half], [70, 70]], atol=1e-9)
    (still,) = one.lines[2]
    assert all(np.ptp(segment[:, 1]) == 0 for segment in still.get_segments())
    assert [c.lines[0].get_marker() for c in (one, three)] == ["o", "s"]
    assert one.lines[0].get_markersize() == 4
    for ax, names in ((first, ["one", "three"]), (second, ["again"])):
        assert {t.get_text() for t in ax.get_legend().get_texts()} == {*names, "plain"}
        across = next(line for line in ax.lines if line.get_label() == "plain")
        assert set(across.get_ydata()) == {80}
        assert across.get_linestyle() == ":"
        assert across.get_color() == "0.5"
        assert not ax.get_legend().get_frame_on()


def test_more_curves_than_markers_begin_again(tmp_path, drawn):
    curves = {str(i): ONE for i in range(8)}
    accuracy_curves(tmp_path / "c.png", {"x": curves}, reference=0.5, title="")
    ((figure, *_),) = drawn
    markers = [c.lines[0].get_marker() for c in figure.axes[0].containers]
    assert markers == [*"os^DvPX", "o"]
    assert "float" in [t.get_text() for t in figure.axes[0].get_legend().get_texts()]


def test_bars_stand_side_by_side_at_their_condition(tmp_path, drawn):
    groups = {
        "chip": {"cold, dry": [0.2, 0.4, 0.6], "hot": [0.5]},
        "other": {"hot": [0.7, 0.9], "wet": [0.1]},
    }
    accuracy_bars(tmp_path / "new" / "b.png", groups, reference=0.8, title="t", baseline="plain")
    ((figure, dpi, _),) = drawn
    (ax,) = figure.axes
    assert dpi == 150
    assert figure.get_size_inches().tolist() == pytest.approx([1.6 + 1.5 * 3, 4.4])
    assert figure.get_suptitle() == "t"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["cold,\ndry", "hot", "wet"]
    assert [*ax.get_xticks()] == [0, 1, 2]
    assert ax.get_ylabel() == "accuracy, %"
    bars = [c for c in ax.containers if hasattr(c, "patches")]
    places = [
        [(round(bar.get_x() + bar.get_width() / 2, 6), round(bar.get_height(), 6)) for bar in group]
        for group in bars
    ]
    # two bars of a width of 0.4 around each condition
    assert places == [[(-0.2, 40), (0.8, 50)], [(1.2, 80), (2.2, 10)]]
    assert {round(bar.get_width(), 6) for group in bars for bar in group} == {0.4}
    ends = [
        [np.ptp(s[:, 1]) / 2 for s in group.errorbar.lines[2][0].get_segments()] for group in bars
    ]
    # of 20, 40, 60: 20 / sqrt(3); of 70 and 90: sqrt(200) / sqrt(2); of one none
    np.testing.assert_allclose(ends, [[20 / np.sqrt(3), 0], [10, 0]], atol=1e-9)
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {"chip", "other", "plain"}
    across = next(line for line in ax.lines if line.get_label() == "plain")
    assert set(across.get_ydata()) == {80}
    assert across.get_linestyle() == ":"
    assert to_rgba(across.get_color()) == to_rgba("0.5")
    assert not ax.get_legend().get_frame_on()
