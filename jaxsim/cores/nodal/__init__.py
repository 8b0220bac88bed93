"""Currents of resistor networks shaped like a memory array.

One network for all functions here: a cell of conductance `g[i, j]` joins row wire i to column wire
j. Row i is driven by `v[i]` at its left end and open at its right end; column j is open at its top
and held at zero at its bottom, where its current is read. `row[j]` is the resistance of a row wire
between the cells j - 1 and j, from the source for j = 0; `column[i]` that of a column wire between
the cells i and i + 1, to ground for the last i. Resistances may be zero. Conductances are in units
of the largest one and resistances in units of its inverse.
"""

from jaxsim.cores.nodal.conjugate import Solution, solve
from jaxsim.cores.nodal.joined import transfer
from jaxsim.cores.nodal.one_pass import norton

__all__ = ["Solution", "norton", "solve", "transfer"]
