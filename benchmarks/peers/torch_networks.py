"""Networks in PyTorch, and what Torch-Pruning makes of them: a peer, imported where it is there."""

from __future__ import annotations

import time
from typing import Any


def small() -> tuple[Any, tuple[int, ...]]:
    """The network of `benchmarks.shrink`, and the shape of its input."""
    import torch
    from torch import nn

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pairs = ((1, 16), (16, 32), (32, 32), (32, 32))
            strides = (2, 2, 1, 1)
            self.convs = nn.ModuleList(
                nn.Conv2d(i, o, 3, stride, 1, bias=False)
                for (i, o), stride in zip(pairs, strides, strict=True)
            )
            self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o in pairs)
            self.hidden, self.head = nn.Linear(1568, 64), nn.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            for i in (0, 1):
                x = torch.relu(self.norms[i](self.convs[i](x)))
            y = torch.relu(self.norms[2](self.convs[2](x)))
            x = torch.relu(x + self.norms[3](self.convs[3](y)))
            return self.head(torch.relu(self.hidden(x.flatten(1))))

    return Small(), (1, 1, 28, 28)


def resnet() -> tuple[Any, tuple[int, ...]]:
    """`jaxsim.models.resnet.ResNet` as it stands, for images of three channels."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, i: int, o: int, stride: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(i, o, 3, stride, 1, bias=False)
            self.second = nn.Conv2d(o, o, 3, 1, 1, bias=False)
            self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _ in range(2))
            self.side = None
            if i != o:
                side = nn.Conv2d(i, o, 1, stride, bias=False)
                self.side = nn.Sequential(side, nn.BatchNorm2d(o))

        def forward(self, x: Any) -> Any:
            y = torch.relu(self.norms[0](self.first(x)))
            y = self.norms[1](self.second(y))
            return torch.relu(y + (x if self.side is None else self.side(x)))

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
            self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
            self.head = nn.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))

    return ResNet(), (1, 3, 16, 16)


def depthwise() -> tuple[Any, tuple[int, ...]]:
    """A depthwise separable block between a convolution and a dense layer."""
    import torch
    from torch import nn

    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
            self.deep, self.point = nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.Conv2d(24, 48, 1)
            self.head = nn.Linear(48, 10)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.deep(torch.relu(self.norm(self.first(x)))))
            return self.head(torch.relu(self.point(x)).mean((2, 3)))

    return Depthwise(), (1, 3, 16, 16)


def halved(model: Any, shape: tuple[int, ...]) -> tuple[int, int, float]:
    """Parameters before and after half of all channels go, and seconds to find what goes together.

    Args:
      model: its last layer is called `head`.
      shape: of its input.
    """
    import torch
    import torch_pruning

    x = torch.randn(shape)
    before = sum(p.numel() for p in model.parameters())
    began = time.perf_counter()
    torch_pruning.DependencyGraph().build_dependency(model, x)
    seconds = time.perf_counter() - began
    pruner = torch_pruning.pruner.BasePruner(
        model,
        x,
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[model.head],
    )
    pruner.step()
    return before, sum(p.numel() for p in model.parameters()), seconds
