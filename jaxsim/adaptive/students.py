"""Distilled classifiers of a pyramid, taught by its last layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int, Key

from jaxsim.adaptive.heads import fit_students
from jaxsim.adaptive.passes import pass_all
from jaxsim.adaptive.pyramid import Pyramid
from jaxsim.numerics.renamed import old_names


def distill_students(
    net: Pyramid,
    ids: Int[np.ndarray, "N n"],
    lengths: Int[np.ndarray, " N"],
    key: Key[Any, ""],
    **options: Any,
) -> Pyramid:
    """Fits classifiers after each layer to what the last one says of the tokens that are left.

    Args:
      net: Pyramid, at the levels it is to run with.
      ids: Token ids [N, n], padded at the end; no labels are needed.
      lengths: Number of tokens of each row, [N].
      key: Random key for the order of the rows.
      **options: Keyword arguments of `fit_students`.

    Raises:
      ValueError: As `Pyramid.simulate` or `fit_students` raises.
    """
    passed = pass_all(net, ids, lengths)
    features = [passed.features[:, i] for i in range(len(net.encoder.attention) - 1)]
    heads = fit_students(features, passed.logits[:, -1], key, **options) if features else ()
    return dataclasses.replace(net, heads=heads)


__getattr__ = old_names(__name__, {"distil_students": distill_students})
