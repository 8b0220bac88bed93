"""Llama decoders, with loaders of the files that they are published in."""

from jaxsim.models.llama.cache import Cache
from jaxsim.models.llama.decoder import Llama, tiny
from jaxsim.models.llama.depth import with_layers
from jaxsim.models.llama.gguf import from_gguf, gguf_codes, gguf_grids
from jaxsim.models.llama.hugging_face import from_hugging_face
from jaxsim.models.llama.pretrained import Pretrained

__all__ = [
    "Cache",
    "Llama",
    "Pretrained",
    "from_gguf",
    "from_hugging_face",
    "gguf_codes",
    "gguf_grids",
    "tiny",
    "with_layers",
]
