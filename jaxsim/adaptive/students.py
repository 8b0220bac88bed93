"""Classifiers of a pyramid, taught by its own last layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int, Key

from jaxsim.adaptive.heads import fit_students
from jaxsim.adaptive.passes import pass_all
from jaxsim.adaptive.pyramid import Pyramid


def distil_students(
    net: Pyramid,
    ids: Int[np.ndarray, "N n"],
    lengths: Int[np.ndarray, " N"],
    key: Key[Any, ""],
    **options: Any,
) -> Pyramid:
    """Classifiers after each layer, drawn to what the last one says of the tokens that are left.

    Args:
      net: its levels are those it is to run with.
      ids: of the tokens, padded behind; no labels are needed.
      lengths: how many of each row are there.
      key: for the order of the rows.
      **options: of `fit_students`.

    Raises:
      ValueError: what `Pyramid.simulate` or `fit_students` raises.
    """
    passed = pass_all(net, ids, lengths)
    features = [passed.features[:, i] for i in range(len(net.encoder.attention) - 1)]
    heads = fit_students(features, passed.logits[:, -1], key, **options) if features else ()
    return dataclasses.replace(net, heads=heads)
