"""An encoder's counts and checks."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.adaptive import encoder as encoders
from jaxsim.adaptive.encoder import (
    Encoder,
    check_ids,
    deploy_layers,
    first_token,
    flops_layer,
    flops_of_rows,
    mean_token,
)


def test_a_layer_costs_what_the_hand_counts():
    """5 tokens of width 7 go in, 3 of them on to a hidden width of 11."""
    projections = 4 * (2 * 5 * 7 * 7)
    scores_and_mixtures = 2 * (2 * 5 * 5 * 7)
    perceptron = 2 * (2 * 3 * 7 * 11)
    assert flops_layer(5, 3, 7, 11) == projections + scores_and_mixtures + perceptron == 3584


def test_a_row_costs_its_layers_until_the_one_that_did_not_run():
    sizes = types.SimpleNamespace(width=7, hidden=11)
    found = flops_of_rows(sizes, np.array([[5, 3], [6, 2]]), np.array([[3, 2], [2, 0]]))
    first, second = 3584, 8 * 3 * 49 + 4 * 9 * 7 + 4 * 2 * 77
    other = 8 * 6 * 49 + 4 * 36 * 7 + 4 * 2 * 77
    assert found.tolist() == [first + second, other]


def test_pools_read_the_first_token_or_the_mean_of_those_present():
    x = jnp.arange(2 * 3 * 2.0).reshape(2, 3, 2)
    valid = jnp.array([[True, True, False], [True, True, True]])
    assert first_token(x, valid).tolist() == [[0, 1], [6, 7]]
    np.testing.assert_allclose(mean_token(x, valid), [[1, 2], [8, 9]])


LIMITS = types.SimpleNamespace(positions=4, vocabulary=6)
IDS = np.array([[0, 5, 1, 2], [3, 4, 0, 0]])


@pytest.mark.parametrize(
    ("ids", "lengths"),
    [(IDS, [1, 4]), (IDS[:, :1], [1, 1]), (jnp.asarray(IDS), jnp.array([4, 2]))],
)
def test_sequences_at_their_limits_are_taken(ids, lengths):
    check_ids(LIMITS, ids, np.asarray(lengths))


@pytest.mark.parametrize(
    ("ids", "lengths", "message"),
    [
        (IDS[0], [1, 2], r"ids\[4\], lengths\[2\]: must be \[B, n\] and \[B\]"),
        (IDS, [1], r"ids\[2, 4\], lengths\[1\]"),
        (IDS, [[1], [2]], r"lengths\[2, 1\]"),
        (IDS * 1.0, [1, 2], "ids: of type float"),
        (IDS, [1.0, 2.0], "lengths: of type float"),
        (IDS[:, :0], [1, 1], r"ids\[…, 0\]: must hold from 1 to 4 tokens"),
        (np.zeros((2, 5), int), [1, 1], r"ids\[…, 5\]: must hold from 1 to 4 tokens"),
        (IDS, [2, 0], "lengths: 0 among them; each must be from 1 to 4"),
        (IDS, [5, 1], "lengths: 5 among them"),
        (IDS[:, :3], [2, 4], "lengths: 4 among them; each must be from 1 to 3"),
        (IDS - 1, [1, 2], "ids: -1 among them; each must be below 6"),
        (IDS + 1, [1, 2], "ids: 6 among them"),
    ],
)
def test_sequences_beyond_their_limits_are_refused_by_name(ids, lengths, message):
    with pytest.raises(ValueError, match=message):
        check_ids(LIMITS, ids, np.asarray(lengths))


def test_of_traced_sequences_only_the_shapes_are_checked():
    jax.jit(lambda ids, n: (check_ids(LIMITS, ids, n), ids)[1])(IDS + 1, np.array([9, 9]))
    with pytest.raises(ValueError, match="must hold from 1 to 4"):
        jax.jit(lambda ids, n: (check_ids(LIMITS, ids, n), ids)[1])(
            np.ones((1, 5), int), np.ones(1, int)
        )


def test_each_half_of_each_layer_is_programmed_with_a_key_of_its_own(monkeypatch):
    """Layers are one network with other weights: their keys alone tell their errors apart."""
    used = []

    def deployed(net, *, key, calibrate):
        used.append(None if key is None else tuple(jax.random.key_data(key).tolist()))
        return net

    monkeypatch.setattr(encoders, "deploy", deployed)
    encoder = Encoder(
        embed=lambda ids: ids,
        attention=(lambda x, valid: (x, valid),) * 3,
        feed_forward=(lambda y: y,) * 3,
        head={},
        pool=first_token,
        vocabulary=6,
        positions=4,
        width=2,
        hidden=2,
    )
    for key in (jax.random.key(0), jax.random.key(0), jax.random.key(1), None):
        deploy_layers(encoder, IDS, np.array([1, 4]), key=key)
    first, again, other, none = (used[i : i + 6] for i in range(0, 24, 6))
    assert first == again
    assert len({*first, *other}) == 12
    assert none == [None] * 6
