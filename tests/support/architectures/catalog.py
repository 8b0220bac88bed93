"""Every architecture with inputs, and the matrices in it that nothing multiplies or looks up."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tests.support.architectures import decoders, encoders, images, sequences
from tests.support.models import normal


class Architecture(NamedTuple):
    """A model by layers of either library.

    Attributes:
      build: `(kit, *inputs) -> outputs`.
      inputs: Arrays.
      moved: Sizes of the matrices that are only moved, added or multiplied entry by entry.
    """

    build: Callable[..., Any]
    inputs: tuple[Any, ...]
    moved: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The function's name."""
        return self.build.__name__


def _ids(*shape, below=13, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, below, shape), jnp.int32)


TOKENS, MORE = _ids(2, 6), _ids(2, 4, seed=1)
IMAGE, SMALL, SERIES = normal(2, 8, 8, 3), normal(2, 4, 4, 3), normal(2, 6, 5)
CACHE = normal(2, 2, 6, 2)
EDGES = jnp.asarray([[0, 1, 2, 3, 4, 0], [1, 2, 0, 4, 3, 3]])

ARCHITECTURES = [
    Architecture(decoders.llama, (TOKENS,)),
    Architecture(decoders.llama_step, (TOKENS[:, :1], CACHE, 2 * CACHE, jnp.int32(3))),
    Architecture(decoders.gpt2, (TOKENS,)),
    Architecture(decoders.mixtral, (TOKENS,)),
    Architecture(decoders.switch, (TOKENS,)),
    Architecture(decoders.gathered_experts, (TOKENS,)),
    Architecture(decoders.retention, (TOKENS,)),
    Architecture(decoders.lora, (TOKENS,)),
    Architecture(encoders.bert, (TOKENS, TOKENS % 2)),
    Architecture(encoders.t5, (TOKENS, MORE)),
    Architecture(encoders.whisper, (SERIES, MORE)),
    Architecture(encoders.clip, (IMAGE, MORE)),
    Architecture(encoders.perceiver, (SERIES,)),
    Architecture(encoders.set_transformer, (SERIES,)),
    Architecture(encoders.graph_attention, (normal(5, 4), EDGES)),
    Architecture(encoders.dlrm, (normal(3, 4), _ids(3, 2, below=11))),
    Architecture(encoders.two_towers, (_ids(3, 2, below=11), _ids(3, 4, below=17))),
    Architecture(encoders.conformer, (SERIES,)),
    Architecture(images.vgg, (IMAGE,)),
    Architecture(images.resnet, (SMALL,)),
    Architecture(images.mobilenet, (SMALL,)),
    Architecture(images.densenet, (SMALL,)),
    Architecture(images.convnext, (IMAGE,)),
    Architecture(images.mixer, (IMAGE,)),
    Architecture(images.vit, (IMAGE,), moved=(8,)),
    Architecture(images.swin, (IMAGE,)),
    Architecture(images.unet, (SMALL,)),
    Architecture(images.diffusion_transformer, (IMAGE, jnp.asarray([0.3, 2.0]))),
    Architecture(images.vq_autoencoder, (SMALL,)),
    Architecture(images.field, (normal(5, 3),)),
    Architecture(images.point_net, (normal(2, 5, 3),)),
    Architecture(sequences.lstm, (SERIES,)),
    Architecture(sequences.gru, (SERIES,)),
    Architecture(sequences.wavenet, (SERIES,)),
    Architecture(sequences.mamba_scan, (SERIES,)),
    Architecture(sequences.mamba_associative, (SERIES,)),
    Architecture(sequences.structured, (SERIES,), moved=(32,)),
    Architecture(sequences.layers_by_index, (SERIES,)),
    Architecture(sequences.layers_scanned, (SERIES,)),
]
