"""Sparsity: what may be left out, and what that saves."""
