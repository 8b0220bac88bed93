"""Readers that check what they read, and the small data sets that come with the package."""

from jaxsim.data.fashion_mnist import Images, fashion_mnist
from jaxsim.data.idx import read_idx
from jaxsim.data.torch_weights import read_torch_weights

__all__ = ["fashion_mnist", "Images", "read_idx", "read_torch_weights"]
