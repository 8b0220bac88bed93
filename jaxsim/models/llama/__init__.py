"""Llama decoders, with loaders of the files that they are published in."""

from jaxsim.models.llama.cache import Cache
from jaxsim.models.llama.decoder import Llama, tiny

__all__ = ["Cache", "Llama", "tiny"]
