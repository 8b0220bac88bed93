"""Which blocks a layer or a network multiplies."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jaxsim.cores.blocked import Rounding
from jaxsim.network.network import Network
from jaxsim.network.transform import Transform
from jaxsim.transforms.block import Mode, block


class Config(NamedTuple):
    """Arguments of `block`.

    Attributes:
      K: Bits of a block.
      n_x, n_w: Number of blocks of an input and of a weight to keep, at least 1; None for all.
      mode: How they are chosen, for (inputs, weights).
      rounding: What happens to what is not kept.

    Examples:
      >>> from jaxsim.search import Config
      >>> str(Config(4, n_x=1, mode=("dynamic", "exact")))
      'K=4: 1 dynamic × all'
    """

    K: int
    n_x: int | None = None
    n_w: int | None = None
    mode: tuple[Mode, Mode] = ("exact", "exact")
    rounding: Rounding = "rounded"

    def __str__(self) -> str:
        sides = zip((self.n_x, self.n_w), self.mode, strict=True)
        return f"K={self.K}: " + " × ".join("all" if n is None else f"{n} {m}" for n, m in sides)

    def transform(self) -> Transform:
        """Makes the transform that chooses these blocks."""
        return block(self.K, self.n_x, self.n_w, self.mode, rounding=self.rounding)


def configs(
    K: Iterable[int] = (2, 3, 4), *, bits: int = 8, rounding: Rounding = "rounded"
) -> tuple[Config, ...]:
    """Lists every way to keep all, or any number of static or dynamic blocks, of either operand.

    Args:
      K: Bits of a block, one or several widths.
      bits: Width of the codes, in bits.
      rounding: What happens to what is not kept.

    Examples:
      >>> from jaxsim.search import configs
      >>> len(configs((4,))), str(configs((4,))[0])
      (9, 'K=4: all × all')
    """
    found: list[Config] = []
    for k in K:
        kept = range(1, -(-(bits - 1) // k))
        modes: tuple[Mode, Mode] = ("dynamic", "static")
        sides: list[tuple[int | None, Mode]] = [(None, "exact"), *itertools.product(kept, modes)]
        found += [
            Config(k, n_x, n_w, (x, w), rounding)
            for (n_x, x), (n_w, w) in itertools.product(sides, sides)
        ]
    return tuple(found)


class Choice(NamedTuple):
    """A configuration of each site. Calling it is the transform: it follows `quantize`.

    Attributes:
      by_site: What each site multiplies.
      accuracy: What `evaluate` returned.
      energy: Energy of one call in pJ, by the analytic model.
      energy_gain, speed_gain: Factors over 8-bit multiplication, by the analytic model.
    """

    by_site: dict[str, Config]
    accuracy: float
    energy: float
    energy_gain: float
    speed_gain: float

    def __call__(self, net: Network) -> Network:
        """Chooses these blocks in a network.

        Args:
          net: Network, quantized and not deployed.
        """
        return configure(net, self.by_site)


def configure(net: Network, by_site: Mapping[str, Config]) -> Network:
    """Chooses a configuration at each site of a quantized network.

    Args:
      net: Quantized network.
      by_site: Configuration by the name of a site.
    """
    made = {config: config.transform() for config in by_site.values()}
    focus, cores = net.focus, dict(net.cores)
    for config, transform in made.items():
        names = tuple(n for n, c in by_site.items() if c == config)
        done = transform(dataclasses.replace(net, focus=names))
        cores.update({n: done.cores[n] for n in names})
    return dataclasses.replace(net, cores=cores, focus=focus)
