"""Optimizers that leave weights out while they train."""
