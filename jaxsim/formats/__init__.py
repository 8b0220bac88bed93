"""How numbers are stored: grids, codebooks, short floats, and rules for their ranges."""
