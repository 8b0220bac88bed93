"""Readers that check what they read, and the small data sets that come with the package."""

from jaxsim.data.idx import read_idx

__all__ = ["read_idx"]
