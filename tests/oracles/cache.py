"""A decoder's cache in codes, token by token: which vectors are what at each call."""

import numpy as np


def seen(vectors, steps, stored, first, latest):
    """What each call reads of the vectors of a sequence.

    Args:
      vectors: [S, ..., d], each token's as it was computed.
      steps: Numbers of tokens of the calls.
      stored: From vectors to what their codes stand for.
      first: Number of first tokens that stay.
      latest: Number of latest tokens that stay.

    Returns:
      Before each call but the first, the vectors of the tokens before it.
    """
    found, coded = [], np.zeros(len(vectors), bool)
    for end in np.cumsum(steps)[:-1]:
        for token in range(end):
            if first <= token < end - latest:
                coded[token] = True
        held = np.array(vectors[:end])
        held[coded[:end]] = stored(held[coded[:end]])
        found.append(held)
    return found
