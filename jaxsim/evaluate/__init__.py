"""How accurate a network is, and what it costs in energy, cycles and area."""

from jaxsim.evaluate.comparison import Comparison, classify, compare
from jaxsim.evaluate.crossbar import Crossbar
from jaxsim.evaluate.plot import Curve, accuracy_bars, accuracy_curves
from jaxsim.evaluate.systolic import Hardware

__all__ = [
    "Comparison",
    "Crossbar",
    "Curve",
    "Hardware",
    "accuracy_bars",
    "accuracy_curves",
    "classify",
    "compare",
]
