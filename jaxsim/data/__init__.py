"""Readers that check what they read, and the small data sets that come with the package."""

from jaxsim.data.fashion_mnist import Images, fashion_mnist
from jaxsim.data.idx import read_idx

__all__ = ["fashion_mnist", "Images", "read_idx"]
