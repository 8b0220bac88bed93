"""Stages hand on their backbone, and learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxsim.collaborative as jcol
from jaxsim.models.coconet import CoCoNet, CollaborativeHead


class Softmax(nn.Module):
    """A dense layer on a backbone."""

    backbone: nn.Module
    classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes)(self.backbone(x))


def entropy(model, variables, x, y):
    logits = model.apply(variables, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def collaborative(model, variables, x, y):
    return jcol.leave_one_out_entropy(model.apply(variables, x, y), y)


def data(classes, count, seed):
    """Classes around centers of their own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(classes * count) % classes
    centres = rng.normal(size=(classes, 6))
    return (centres[labels] + 0.5 * rng.normal(size=(len(labels), 6))).astype(np.float32), labels


def stage(model, loss, seed=0, **settings):
    images, labels = data(3, 10, seed)
    return jcol.Stage(
        images, labels, model, loss, **{"steps": 30, "learning_rate": 0.02, **settings}
    )


BACKBONE = nn.Dense(8)
FIRST = stage(Softmax(BACKBONE, 3), entropy)
HEAD = CoCoNet(BACKBONE, CollaborativeHead(3))


def test_two_stages_learn_one_after_the_other():
    second = stage(HEAD, collaborative, seed=1, per_class=5)
    variables = jcol.fit_stages([FIRST, second], jax.random.key(0))
    assert len(variables) == 2
    for fitted, part in zip(variables, (FIRST, second), strict=True):

        @jax.jit
        def losses(fitted, images, part=part):
            start = part.model.init(jax.random.key(0), images)
            return [part.loss(part.model, v, images, part.labels) for v in (start, fitted)]

        before, after = losses(fitted, part.images)
        assert after < 0.7 * before


def test_a_frozen_backbone_is_the_one_before():
    frozen = stage(HEAD, collaborative, seed=1, freeze=True, weight_decay=0.1)
    first, second = jcol.fit_stages([FIRST, frozen], jax.random.key(0))
    assert jax.tree.all(
        jax.tree.map(jnp.array_equal, first["params"]["backbone"], second["params"]["backbone"])
    )
    assert (
        second["params"]["head"]["lam"]
        != jax.jit(HEAD.init)(jax.random.key(0), frozen.images)["params"]["head"]["lam"]
    )


def test_one_stage_begins_where_it_is_told():
    given = jax.jit(FIRST.model.init)(jax.random.key(9), FIRST.images)["params"]["backbone"]
    still = stage(HEAD, collaborative, freeze=True)
    (variables,) = jcol.fit_stages([still], jax.random.key(0), backbone=given)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, variables["params"]["backbone"], given))


def test_a_key_decides_a_run():
    runs = [
        jcol.fit_stages([stage(HEAD, collaborative, per_class=4)], jax.random.key(k))[0]["params"]
        for k in (0, 0, 1)
    ]
    kernels = [run["backbone"]["kernel"] for run in runs]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_balanced_rows_have_as_many_of_each_class():
    labels = np.array([0] * 50 + [1] * 5 + [2] * 20)
    rows = jcol.balanced_rows(labels, 5, jax.random.key(0))
    assert len(set(rows.tolist())) == 15
    assert np.bincount(labels[rows]).tolist() == [5, 5, 5]


BAD = {
    r"stages=\[\]": lambda: jcol.fit_stages([], jax.random.key(0)),
    r"stages\[0\].steps=0": lambda: jcol.fit_stages(
        [stage(HEAD, collaborative, steps=0)], jax.random.key(0)
    ),
    r"stages\[0\].learning_rate=0": lambda: jcol.fit_stages(
        [stage(HEAD, collaborative, learning_rate=0)], jax.random.key(0)
    ),
    r"stages\[0\].weight_decay=-1": lambda: jcol.fit_stages(
        [stage(HEAD, collaborative, weight_decay=-1)], jax.random.key(0)
    ),
    "no part of it is named 'backbone'": lambda: jcol.fit_stages(
        [stage(nn.Dense(3), entropy)], jax.random.key(0)
    ),
    "per_class=11: class 0 has 10 samples": lambda: jcol.fit_stages(
        [stage(HEAD, collaborative, per_class=11)], jax.random.key(0)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
