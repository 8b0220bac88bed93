"""Residual networks for small images."""

from __future__ import annotations

from functools import partial

import jax
from flax import linen as nn
from jaxtyping import Array, Float


class Block(nn.Module):
    """Two 3×3 convolutions with a shortcut, projected where the shape changes.

    Attributes:
      features: Output channels.
      stride: Stride of the first convolution.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w features"]:
        """The block's output."""
        conv = partial(nn.Conv, use_bias=False, padding=((1, 1), (1, 1)))
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        y = norm()(conv(self.features, (3, 3), strides=self.stride)(x))
        y = norm()(conv(self.features, (3, 3))(nn.relu(y)))
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), strides=self.stride, use_bias=False)(x)
            x = norm()(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network with a 3×3 stem and no pooling before the end.

    Attributes:
      stages: Blocks in each stage; every stage after the first halves the image and doubles the
        channels.
      features: Channels of the first stage.
      classes: Number of outputs.
      stem_stride: Stride of the first convolution.

    Source: He et al. (2016), arXiv 1512.03385, §4.2, with projections as shortcuts.
    """

    stages: tuple[int, ...] = (1, 1, 1)
    features: int = 16
    classes: int = 10
    stem_stride: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool = False
    ) -> Float[Array, "B classes"]:
        """Logits."""
        x = nn.Conv(
            self.features, (3, 3), self.stem_stride, padding=((1, 1), (1, 1)), use_bias=False
        )(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Block(self.features * 2**stage, stride)(x, train)
        return nn.Dense(self.classes)(jax.numpy.mean(x, (1, 2)))
