"""Mobile networks of inverted residuals, in the variant without squeeze and excitation."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
from flax import linen as nn
from jaxtyping import Array, Float


class Stage(NamedTuple):
    """A run of inverted residuals.

    Attributes:
      blocks: Number of blocks, before the depth multiplier.
      kernel: Side of the depthwise filters.
      stride: Stride of the first block; the others have 1.
      expansion: Hidden channels per input channel.
      features: Output channels, before the width multiplier.
    """

    blocks: int
    kernel: int
    stride: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
"""The stages between stem and head."""


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise filters, pointwise projection; a shortcut where shapes agree.

    Attributes:
      features: Output channels.
      kernel: Side of the depthwise filters.
      stride: Stride of the depthwise filters.
      expansion: Hidden channels per input channel; 1 leaves the expansion out.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    expansion: int = 6

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w features"]:
        """The block's output."""
        conv = partial(nn.Conv, use_bias=False, padding="SAME")
        norm = partial(_norm, train=train)
        side, hidden, y = (self.kernel, self.kernel), self.expansion * x.shape[-1], x
        if self.expansion > 1:
            y = nn.relu6(norm("expand_norm")(conv(hidden, (1, 1), name="expand")(y)))
        depthwise = conv(hidden, side, self.stride, feature_group_count=hidden, name="depthwise")
        y = nn.relu6(norm("depthwise_norm")(depthwise(y)))
        y = norm("project_norm")(conv(self.features, (1, 1), name="project")(y))
        return x + y if x.shape == y.shape else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite; lite0 as it stands, made for 224×224 images.

    Padding is that of TensorFlow: one more row and column behind than before where the sum is odd.
    There is no dropout. Lite1 to lite4 have widths 1.0, 1.1, 1.2, 1.4 and depths 1.1, 1.2, 1.4,
    1.8, for images of 240, 260, 280 and 300.

    Attributes:
      width: Multiplier of the channels of every stage, rounded to multiples of 8; stem and head
        keep theirs.
      depth: Multiplier of the blocks of every stage but the first and the last, rounded up.
      classes: Number of outputs.

    Source: Tan and Le (2019), arXiv 1905.11946, with the changes of
      tensorflow/tpu/models/official/efficientnet/lite.
    """

    width: float = 1.0
    depth: float = 1.0
    classes: int = 1000

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], train: bool = False
    ) -> Float[Array, "B classes"]:
        """Logits."""
        conv = partial(nn.Conv, use_bias=False, padding="SAME")
        norm = partial(_norm, train=train)
        x = nn.relu6(norm("stem_norm")(conv(32, (3, 3), 2, name="stem")(x)))
        for stage in STAGES:
            fixed = stage in (STAGES[0], STAGES[-1])
            for block in range(stage.blocks if fixed else math.ceil(stage.blocks * self.depth)):
                stride = stage.stride if block == 0 else 1
                features = _round_to_eight(stage.features * self.width)
                x = InvertedResidual(features, stage.kernel, stride, stage.expansion)(x, train)
        x = nn.relu6(norm("head_norm")(conv(1280, (1, 1), name="head")(x)))
        return nn.Dense(self.classes, name="classifier")(jax.numpy.mean(x, (1, 2)))


def _norm(name: str, *, train: bool) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.99, epsilon=1e-3, name=name)


def _round_to_eight(features: float) -> int:
    """The nearest multiple of 8, at least 8 and not more than a tenth below."""
    near = max(8, int(features + 4) // 8 * 8)
    return near + 8 if near < 0.9 * features else near
