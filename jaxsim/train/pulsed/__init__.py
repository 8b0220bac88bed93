"""Training in the array: weights that are changed by pulses on the cells that hold them."""

from jaxsim.train.pulsed.agad import agad
from jaxsim.train.pulsed.cells import Cells, constant_step, linear_step, power_step, soft_bounds
from jaxsim.train.pulsed.sgd import sgd
from jaxsim.train.pulsed.tiki_taka import buffered_tiki_taka, chopped_tiki_taka, tiki_taka
from jaxsim.train.pulsed.transfer import Rule, transfer

__all__ = [
    "Cells",
    "Rule",
    "agad",
    "buffered_tiki_taka",
    "chopped_tiki_taka",
    "constant_step",
    "linear_step",
    "power_step",
    "sgd",
    "soft_bounds",
    "tiki_taka",
    "transfer",
]
