"""A meta-step of games of skill in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def torch_step(
    dim: int = 200, batch: int = 5, iterations: int = 20, window: int = 5
) -> Callable[[], Any]:
    """The peer: one published meta-step in PyTorch, written for this benchmark."""
    import torch

    torch.manual_seed(0)
    first, rows = torch.nn.Linear(1, 32), torch.nn.GRU(32, 32, batch_first=True)
    whole = torch.nn.GRU(32, 32, batch_first=True)
    head = torch.nn.Sequential(
        torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(),
        torch.nn.Linear(64, 1),
    )  # fmt: skip
    parts = torch.nn.ModuleList([first, rows, whole, head])
    adam = torch.optim.Adam(parts.parameters(), lr=0.01)

    def mixture(payoffs: Any) -> Any:
        each = rows(first(payoffs[..., None]))[1][0]
        every = whole(each[None])[1][0]
        both = torch.cat([each, every.expand(len(each), -1)], 1)
        return torch.softmax(head(both)[:, 0], 0)

    def climb(values: Any, steps: int, rate: float) -> Any:
        logits = (0.2 * torch.randn(dim)).requires_grad_()
        for _ in range(steps):
            worth = torch.softmax(logits, 0) @ values
            (slope,) = torch.autograd.grad(worth, logits, create_graph=True)
            logits = logits + rate * slope
        return torch.softmax(logits, 0)

    def step() -> float:
        adam.zero_grad()
        total = 0.0
        for _ in range(batch):
            w, s = torch.randn(dim, dim), torch.randn(dim, 1)
            game = w - w.T + s - s.T
            agents = torch.softmax(0.2 * torch.randn(2, dim), 1)
            for i in range(iterations):
                if i % window == 0:
                    agents = agents.detach()
                values = game @ (mixture(agents @ game @ agents.T) @ agents)
                agents = torch.cat([agents, climb(values, 5, 25.0)[None]])
                if (i + 1) % window == 0:
                    values = game @ (mixture(agents @ game @ agents.T) @ agents)
                    gain = 2 * climb(values, 20, 10.0) @ values
                    (gain / (batch * iterations // window)).backward()
                    total += gain.item()
        adam.step()
        return total

    return step
