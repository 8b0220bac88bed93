"""What a classifier reads of what crosses a cut."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.adaptive.features import first_token, pooled

X = jnp.arange(2 * 3 * 5.0).reshape(2, 3, 5)
OTHERS = (jnp.ones((2, 3), int), jnp.ones(2), jnp.ones((2, 3), bool))


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 5), (2, 3, 4, 5)])
def test_a_feature_is_the_mean_over_all_places(shape):
    x = jnp.arange(np.prod(shape), dtype=float).reshape(shape)
    expected = np.asarray(x).reshape(2, -1, 5).mean(1)
    np.testing.assert_allclose(pooled((OTHERS[0], x, *OTHERS[1:])), expected)


def test_the_first_token_is_the_first_of_each_row():
    np.testing.assert_array_equal(first_token((*OTHERS, X)), X[:, 0])


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 4, 5)])
def test_what_has_no_tokens_has_no_first(shape):
    with pytest.raises(ValueError, match="has no tokens"):
        first_token((jnp.ones(shape),))


@pytest.mark.parametrize(
    ("live", "message"),
    [(OTHERS, "feature: no float"), ((X, X[:, 0]), r"feature: \[2, 3, 5\], \[2, 5\] are live")],
)
@pytest.mark.parametrize("feature", [pooled, first_token])
def test_none_or_several_activations_need_a_function(feature, live, message):
    with pytest.raises(ValueError, match=message):
        feature(live)
