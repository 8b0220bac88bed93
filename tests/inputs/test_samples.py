"""Labels that no class has and inputs that are no numbers are named before anything is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim import collaborative as jcol
from jaxsim.adaptive.heads import fit_students
from jaxsim.evaluate.comparison import classify, compare
from jaxsim.inputs.samples import check_finite, check_labels
from jaxsim.staged.speed import sweep
from jaxsim.train.loop import fit
from jaxsim.train.losses import cross_entropy, distillation, distillation_targets

N, C = 8, 4
X = np.asarray(np.random.default_rng(0).normal(size=(N, 5)), np.float32)
Y = np.arange(N) % C
NET = js.trace(lambda p, x: x @ p["w"], {"w": np.ones((5, C), "f")}, X)
TWO = js.trace(lambda p, x: x @ p["v"] @ p["w"], {"v": np.eye(5), "w": np.ones((5, C), "f")}, X)
TWO_EXITS = js.exit_early(["w"])(TWO)


def changed(array, value, at=2):
    array = np.array(array, np.result_type(array, type(value)))
    array.reshape(-1)[at] = value
    return array


def trained(x=X, y=Y, **more):
    given = {"epochs": 1, "optimizer": optax.sgd(0.1), "key": jax.random.key(0), "batch_size": 3}
    return fit(NET, x, y, **given, **more, quiet=True)


def stage(x=X, y=Y):
    return jcol.fit_stages([jcol.Stage(x, y, None, None, steps=1, learning_rate=0.1)], None)


LOGITS = np.zeros((N, C), "f")

OF_LABELS = {
    "fit": ("labels", lambda y: trained(y=y)),
    "sweep": ("labels", lambda y: sweep(TWO_EXITS, X, y)),
    "cross_entropy": ("labels", lambda y: cross_entropy(LOGITS, y)),
    "taught": ("labels", lambda y: distillation_targets(LOGITS, y)),
    "compare": (r"data\[1\]", lambda y: compare(NET, {}, (X, y))),
    "batch_logits": ("labels", lambda y: jcol.batch_logits(X, y, C, 0.1, 1.0)),
    "make_dictionary": ("labels", lambda y: jcol.make_dictionary(X, y, C, 0.1)),
    "leave_one_out_entropy": ("labels", lambda y: jcol.leave_one_out_entropy(jnp.array(LOGITS), y)),
}
NO_CLASS = (100, C, -1)


@pytest.mark.parametrize("name", OF_LABELS)
@pytest.mark.parametrize("value", NO_CLASS)
@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_a_label_that_no_class_has_is_named(name, value, place):
    argument, call = OF_LABELS[name]
    with pytest.raises(ValueError, match=rf"{argument}\[2\]={value}: must be a class from 0 to 3"):
        call(place(changed(Y, value)))


@pytest.mark.parametrize("name", OF_LABELS)
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (Y.astype("f"), r"float32\[8\]"),
        (Y > 1, r"bool\[8\]"),
        (np.eye(C, dtype="f")[Y], r"float32\[8, 4\]|\[8, 4\]"),
    ],
)
def test_labels_of_another_kind_are_told_what_is_expected(name, wrong, told):
    argument, call = OF_LABELS[name]
    with pytest.raises(ValueError, match=rf"({argument}|data).*({told})"):
        call(wrong)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("images", lambda x: trained(x)),
        (r"data\[0\]", lambda x: compare(NET, {}, (x, Y))),
        ("inputs", lambda x: classify(NET, x)),
        (r"stages\[0\].images", lambda x: stage(x)),
        ("features", lambda x: fit_students([x], LOGITS, jax.random.key(0))),
        ("teacher", lambda x: fit_students([LOGITS], x, jax.random.key(0))),
        ("logits", lambda x: distillation_targets(x, Y)),
        ("labels", lambda x: trained(y=x, loss=lambda z, y: jnp.mean((z - y[:, :C]) ** 2))),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_inputs_that_are_no_numbers_are_named(argument, call, value, place):
    with pytest.raises(ValueError, match=rf"{argument}.*\[0, 2\]={value}: must be finite"):
        call(place(changed(X, value)))


def test_samples_of_each_class_are_of_classes():
    for wrong, told in ((changed(Y, -1), r"labels\[2\]=-1"), (Y.astype("f"), "expected classes")):
        with pytest.raises(ValueError, match=told):
            jcol.balanced_rows(wrong, 1, jax.random.key(0))
        with pytest.raises(ValueError, match=told):
            stage(y=wrong)


def test_what_is_right_passes_whatever_holds_it():
    for labels in (Y, Y.astype(np.uint8), jnp.asarray(Y), Y.tolist(), np.zeros(0, int)):
        check_labels("labels", labels, C)
    for inputs in (X, X.astype(np.float16), jnp.asarray(X, jnp.bfloat16), X > 0, {"a": [X, 1.0]}):
        check_finite("inputs", inputs)
    assert trained(y=Y.astype(np.uint8)).params["w"].shape == (5, C)
    assert float(distillation()(jnp.array(LOGITS), jnp.array(distillation_targets(LOGITS, Y)))) > 0
    jax.jit(lambda x, y: (check_finite("x", x), check_labels("y", y, C)))(X, Y)
    with pytest.raises(ValueError, match=r"inputs\['b'\]\[1\]\[3\]=nan"):
        check_finite("inputs", {"a": X, "b": [1, jnp.full(4, jnp.nan).at[:3].set(0)]})
    with pytest.raises(ValueError, match=r"inputs.*bfloat16|inputs\[0\]=nan"):
        check_finite("inputs", jnp.full(4, jnp.nan, jnp.bfloat16))
