"""Where the rows of a batch lie, and what they cost up to each exit."""

import functools

import jax.numpy as jnp
import pytest

import jaxsim as js
from jaxsim.adaptive.features import pooled
from jaxsim.network.arguments import call_arguments
from jaxsim.staged.exit_layout import exit_layout, trace_batch_pair

WIDTHS = (3, 5, 4, 7, 2)


def layers(p, x):
    for name in "abcd":
        x = jnp.tanh(x @ p[name])
    return x


@functools.cache
def net():
    """Layers of widths 3, 5, 4 and 7 and logits of two classes."""
    shapes = zip("abcd", WIDTHS, WIDTHS[1:], strict=False)
    return js.trace(layers, {n: jnp.ones((a, b)) for n, a, b in shapes}, jnp.ones((6, 3)))


def layout(net, names, x=None, feature=pooled):
    x = jnp.ones((6, 3)) if x is None else x
    return exit_layout(net, call_arguments((x,), {}), (True,), names, feature)


def test_an_exit_costs_what_runs_up_to_it_and_the_classifiers_on_the_way():
    """Products 3·5, 5·4, 4·7 and 7·2, classifiers of 5·2 and 7·2, two operations each."""
    found = layout(net(), ["b", "d"])
    assert found.axes == ((0,), (0,))
    assert found.widths == (5, 7)
    assert found.classes == 2
    assert found.dtype == "float32"
    first = 2 * 15 + 2 * 10
    second = first + 2 * (20 + 28) + 2 * 14
    assert found.flops == (first, second, second + 2 * 14)


def test_pairs_of_cells_multiply_twice():
    chip = js.compose(js.quantize(8, 8), js.analog())(net())
    first, last = layout(chip, ["c"]).flops
    assert first == 2 * 2 * (15 + 20) + 2 * 8
    assert last == first + 2 * 2 * (28 + 14)


def test_rows_may_lie_on_any_axis_and_some_values_have_none():
    def model(p, x):
        shared = jnp.tanh(p["b"] @ x.sum(0))  # of all rows
        x = (x @ p["a"]).T
        return (x.T @ p["c"]) * shared

    params = {"a": jnp.ones((3, 5)), "b": jnp.ones((2, 3)), "c": jnp.ones((5, 2))}
    made = js.trace(model, params, jnp.ones((6, 3)))
    found = layout(made, ["c"], feature=lambda live: live[0])
    assert sorted(found.axes[0], key=str) in ([0, None], [1, None])


def test_rows_mixed_with_another_axis_are_refused():
    def flat(p, x):
        y = jnp.tanh(x @ p["a"]).reshape(-1, 1)
        return (y @ p["b"]).reshape(x.shape[0], -1)[:, :2]

    params = {"a": jnp.ones((3, 3)), "b": jnp.ones((1, 2))}
    made = js.trace(flat, params, jnp.ones((6, 3)))
    with pytest.raises(ValueError, match=r"is \[6, 1\] for 2 rows and \[9, 1\] for 3"):
        layout(made, ["b"])


@pytest.mark.parametrize(
    "model",
    [
        lambda w, x: jnp.tanh(x @ w) @ w[:, :1],
        lambda w, x: (jnp.tanh(x @ w) @ w)[:, 0],
        lambda w, x: (jnp.tanh(x @ w) @ w, x),
        lambda w, x: jnp.tanh(x @ w).T @ x @ w,
    ],
)
def test_outputs_other_than_logits_are_refused(model):
    made = js.trace(model, jnp.ones((3, 3)), jnp.ones((6, 3)))
    name = [cut.name for cut in trace_batch_pair(
        made, call_arguments((jnp.ones((6, 3)),), {}), (True,), leaving=False
    ).places][:1]  # fmt: skip
    with pytest.raises(ValueError, match=r"not logits \[B, C\]"):
        layout(made, name)


def test_two_classes_are_enough():
    made = js.trace(lambda p, x: jnp.tanh(x @ p[0]) @ p[1], [jnp.ones((3, 3)), jnp.ones((3, 2))],
                    jnp.ones((6, 3)))  # fmt: skip
    assert layout(made, ["1"]).classes == 2


@pytest.mark.parametrize(
    ("feature", "shown"), [(lambda live: live[0][:1], [1, 5]), (lambda live: live[0][:, 0], [2])]
)
def test_features_other_than_a_row_each_are_refused(feature, shown):
    with pytest.raises(ValueError, match=r"feature: gives .* for 2 rows at b") as error:
        layout(net(), ["b"], feature=feature)
    assert str(shown) in str(error.value)


def test_what_a_value_crosses_it_is_live_at():
    """A skip from the first stage to the last crosses both cuts."""

    def model(p, x):
        skip = jnp.tanh(x @ p["a"])
        y = jnp.tanh(skip @ p["b"])
        return (skip + y) @ p["c"]

    params = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 5)), "c": jnp.ones((5, 2))}
    made = js.trace(model, params, jnp.ones((6, 3)))
    found = layout(made, ["b", "c"], feature=lambda live: live[-1])
    assert [len(axes) for axes in found.axes] == [1, 1]
