"""Collaborative convolutional networks: a head that explains an image by labeled images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxsim.collaborative.dictionary import Dictionary, checksum, make_dictionary
from jaxsim.collaborative.head import Readout, batch_logits, dictionary_logits, unit
from jaxsim.network.network import Network
from jaxsim.numerics.checks import check_range, checked_int, is_traced


class CollaborativeHead(nn.Module):
    """Logits from a collaborative representation of features, for any Flax model.

    With labels, every sample of the batch is explained by the others: that is training. Without,
    it is explained by a dictionary in the collection "dictionary", which `refresh_dictionary`
    makes. A dictionary knows the parameters it was made with. Read with others, it raises
    ValueError, or under `jit`, where nothing can be raised, gives NaN for every logit.

    Attributes:
      num_classes: Number of classes C.
      lam_init: λ to begin with; softplus keeps it positive while it is learned.
      temp_init: Scale of the logits to begin with; exp keeps it positive.
      readout: "residual" or "ridge".
      leave_one_out: Whether a sample is left out of its own dictionary while training.
      guard: Whether calls check the dictionary against the parameters of the whole model. The check
        reads all of them: in a pipeline, that makes the last stage hold them too.
    """

    num_classes: int
    lam_init: float = 0.1
    temp_init: float = 10.0
    readout: Readout = "residual"
    leave_one_out: bool = True
    guard: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B d"],
        labels: Int[Array, " B"] | None = None,
        *,
        refresh: bool = False,
    ) -> Float[Array, "B C"]:
        """Logits.

        Args:
          x: Features.
          labels: Classes of the batch; None to read the dictionary.
          refresh: Whether to make the dictionary of this batch and return logits by it.

        Raises:
          ValueError: A setting out of range, no dictionary, or a stale one.
        """
        checked_int("num_classes", self.num_classes, 1)
        check_range("lam_init", self.lam_init, 0, above=True)
        check_range("temp_init", self.temp_init, 0, above=True)
        if self.readout not in ("residual", "ridge"):
            raise ValueError(f"readout={self.readout!r}: must be 'residual' or 'ridge'")
        if x.ndim != 2:
            raise ValueError(f"x{list(x.shape)}: must be [B, d]")
        rho = self.param("lam", nn.initializers.constant(math.log(math.expm1(self.lam_init))), ())
        log_scale = self.param("temp", nn.initializers.constant(math.log(self.temp_init)), ())
        lam, scale = jax.nn.softplus(rho), jnp.exp(log_scale)
        x = unit(x)
        if self.is_initializing():
            return jnp.zeros((len(x), self.num_classes), x.dtype)
        if labels is not None and not refresh:
            return batch_logits(
                x,
                labels,
                self.num_classes,
                lam,
                scale,
                readout=self.readout,
                leave_one_out=self.leave_one_out,
            )
        if refresh:
            if labels is None:
                raise ValueError("labels=None: a dictionary needs the classes of its samples")
            made = make_dictionary(x, labels, self.num_classes, lam)
            self.put_variable("dictionary", "samples", made._asdict())
            self.put_variable("dictionary", "mark", self._mark())
        elif not self.has_variable("dictionary", "samples"):
            raise ValueError("dictionary: there is none; refresh_dictionary makes it")
        samples = Dictionary(**self.get_variable("dictionary", "samples"))
        logits = dictionary_logits(samples, x, scale, readout=self.readout)
        if not self.guard:
            return logits
        fresh = self.get_variable("dictionary", "mark") == self._mark()
        if not is_traced(fresh) and not fresh:
            raise ValueError(
                "dictionary: stale, its parameters have changed; refresh_dictionary makes it anew"
            )
        return jnp.where(fresh, logits, jnp.nan)

    def _mark(self) -> Array:
        """Checksum of the variables of the whole model."""
        assert self.scope is not None
        variables = self.scope.root.variables()
        return checksum({k: v for k, v in variables.items() if k != "dictionary"})


def mean_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B C"]:
    """Averages a feature map over places.

    Args:
      x: Feature maps.
    """
    return x.mean((1, 2))


class CoCoNet(nn.Module):
    """A backbone and a collaborative head.

    Attributes:
      backbone: Any module that gives [B, H, W, C] or [B, d]. Norms over the batch make queries and
        dictionary differ; those of groups or instances do not.
      head: The collaborative head.
      pool: From a map to features; `bilinear_pool` for second-order ones.

    Source: Chakraborti et al. (2020), doi 10.1109/IVCNZ51579.2020.9290677. Training by
      leave-one-out codes, the learned λ and the scale of the logits are not the paper's.
    """

    backbone: nn.Module
    head: CollaborativeHead
    pool: Callable[[Array], Array] = mean_pool

    def __call__(
        self,
        x: Float[Array, "B ..."],
        labels: Int[Array, " B"] | None = None,
        *,
        refresh: bool = False,
    ) -> Float[Array, "B C"]:
        """Logits; arguments as in `CollaborativeHead`."""
        return self.head(self.features(x), labels, refresh=refresh)

    def features(self, x: Float[Array, "B ..."]) -> Float[Array, "B d"]:
        """Features that the head reads."""
        out: Any = self.backbone(x)
        return self.pool(out) if out.ndim == 4 else out


def refresh_dictionary(net: Network, x: Any, labels: Int[Array, " N"]) -> Network:
    """Makes the dictionary of a network with its present parameters and cores.

    A Linen model does the same by `model.apply(variables, x, labels, refresh=True,
    mutable=["dictionary"])`.

    Args:
      net: Network of a model that ends in a `CollaborativeHead`; composed and deployed, if need
        be, so that the samples pass through the hardware that queries will.
      x: Samples.
      labels: Classes of the samples, 0 to C - 1.

    Returns:
      The network with its dictionary.

    Raises:
      ValueError: labels outside [0, C) or of another number than the samples.
    """
    if len(labels) != len(x):
        raise ValueError(f"labels: {len(labels)} of them for {len(x)} samples")
    _, updates = net(x, np.asarray(labels), refresh=True, mutable=["dictionary"])
    return dataclasses.replace(net, buffers={**net.buffers, **updates})
