"""Matrices of panels whose rows follow rules, made, solved and drawn here.

Facts of the task: Zhang et al. (2019), arXiv 1903.02741 (configurations, attributes, rules); Hu et
al. (2021), arXiv 2002.06838 (choices that tell nothing without the matrix). The code is our own.
"""

from jaxsim.data.rpm.layout import CONFIGURATIONS
from jaxsim.data.rpm.picture import draw
from jaxsim.data.rpm.puzzle import Puzzles, generate
from jaxsim.data.rpm.rule import RULES, Rule
from jaxsim.data.rpm.solver import solve

__all__ = ["CONFIGURATIONS", "RULES", "Puzzles", "Rule", "draw", "generate", "solve"]
