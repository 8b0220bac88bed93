"""Functions come and go: rows of their own for each script and each part of a function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.models.functions import add_functions, add_task, new_parameter_mask, remove_functions
from jaxsim.models.neural_interpreter import NeuralInterpreter
from jaxsim.models.vision import Vision

WIDE = 300
MODEL = NeuralInterpreter(functions=3, scripts=2, code_width=WIDE, type_width=WIDE)


def params(functions=3):
    """Row u of script s is 10 s + u in signatures, and a hundred more in codes."""
    rows = np.arange(functions)[:, None] * np.ones(WIDE)
    return {
        f"script_{s}": {
            "signatures": jnp.asarray(rows + 10 * s),
            "codes": jnp.asarray(rows + 10 * s + 100),
            "other": jnp.ones(2),
        }
        for s in (0, 1)
    }


def test_random_functions_are_normal_and_drawn_apart():
    model, more = add_functions(MODEL, params(), 2, jax.random.key(0))
    assert model.functions == 5
    new = {f"{s}/{n}": np.asarray(more[s][n][3:]) for s in more for n in ("signatures", "codes")}
    assert all(rows.shape == (2, WIDE) for rows in new.values())
    drawn = np.concatenate(list(new.values()))
    assert np.abs(np.corrcoef(drawn)[np.triu_indices(8, 1)]).max() < 4.5 / np.sqrt(WIDE)
    assert drawn.std() == pytest.approx(1, rel=4 / np.sqrt(2 * drawn.size))
    for s in more:
        for n in ("signatures", "codes"):
            np.testing.assert_array_equal(more[s][n][:3], params()[s][n])
        np.testing.assert_array_equal(more[s]["other"], [1, 1])
    again = add_functions(MODEL, params(), 2, jax.random.key(0))[1]
    np.testing.assert_array_equal(again["script_1"]["codes"], more["script_1"]["codes"])


def test_mirrored_functions_are_whole_ones_and_chosen_apart():
    chosen = []
    for key in range(8):
        _, more = add_functions(MODEL, params(), 2, jax.random.key(key), init="mirror")
        for s in (0, 1):
            rows = more[f"script_{s}"]
            source = np.asarray(rows["signatures"][3:, 0]) - 10 * s
            np.testing.assert_array_equal(rows["codes"][3:, 0] - 10 * s - 100, source)
            chosen.append(tuple(source.astype(int).tolist()))
    assert all(0 <= u < 3 for pair in chosen for u in pair)
    assert {u for pair in chosen for u in pair} == {0, 1, 2}
    assert any(a != b for a, b in zip(chosen[::2], chosen[1::2], strict=True))


def test_functions_that_go_leave_the_others_in_their_order():
    model, less = remove_functions(MODEL, params(), [1])
    assert model.functions == 2
    assert less["script_1"]["codes"][:, 0].tolist() == [110, 112]
    assert remove_functions(MODEL, params(), [0, 2])[1]["script_0"]["codes"][:, 0].tolist() == [101]
    for told, call in {
        r"functions=\[0, 1, 2\]: at least one": lambda: remove_functions(
            MODEL, params(), [0, 1, 2]
        ),
        "functions=3": lambda: remove_functions(MODEL, params(), [3]),
        "functions=-1": lambda: remove_functions(MODEL, params(), [-1]),
        "count=0": lambda: add_functions(MODEL, params(), 0, jax.random.key(0)),
        "init='copy'": lambda: add_functions(MODEL, params(), 1, jax.random.key(0), init="copy"),
        "has no functions": lambda: remove_functions(object(), params(), [0]),
        "script_0 has 4 functions, the model 3": lambda: remove_functions(MODEL, params(4), [0]),
        "1 scripts, the model has 2": lambda: remove_functions(
            MODEL, {"script_0": params()["script_0"]}, [0]
        ),
    }.items():
        with pytest.raises(ValueError, match=told):
            call()


def test_a_task_has_the_mean_of_tokens_and_a_head_of_its_own():
    model = Vision(MODEL, tasks=(3, 4), width=2)
    before = {"class_tokens": jnp.array([[1.0, 2], [3, 6]]), "head_0": {}, "head_1": {}}
    more_model, more = add_task(model, before, 5, jax.random.key(0))
    assert more_model.tasks == (3, 4, 5)
    assert more["class_tokens"].tolist() == [[1, 2], [3, 6], [2, 4]]
    assert more["head_2"]["kernel"].shape == (2, 5)
    assert not np.any(more["head_2"]["bias"])
    with pytest.raises(ValueError, match="classes=0"):
        add_task(model, before, 0, jax.random.key(0))
    marked = new_parameter_mask(more, before)
    assert marked["class_tokens"].tolist() == [[0, 0], [0, 0], [1, 1]]
    assert np.all(marked["head_2"]["kernel"] == 1)


def test_only_rows_may_be_new():
    old = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(())}
    assert new_parameter_mask(old, old)["a"].tolist() == [[0] * 3] * 2
    for new, told in (
        ({"a": jnp.zeros((1, 3)), "b": old["b"]}, r"a is \[1, 3\] and was \[2, 3\]"),
        ({"a": jnp.zeros((3, 4)), "b": old["b"]}, "only rows may be added"),
        ({"a": old["a"], "b": jnp.zeros(1)}, None),
    ):
        if told is None:
            assert new_parameter_mask(new, old)["b"].tolist() == [1]
            continue
        with pytest.raises(ValueError, match=told):
            new_parameter_mask(new, old)
