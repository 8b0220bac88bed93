"""Parameters that may take the place of others, and those that may not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.network.leaves import check_like, check_params, is_array, path_name
from jaxsim.network.network import Network

MINE = {"a": {"w": jnp.ones((2, 3)), "n": jnp.arange(3)}, "b": jnp.ones(4, jnp.bfloat16)}


def changed(**leaves):
    a = {**MINE["a"], **{k: v for k, v in leaves.items() if k in MINE["a"]}}
    return {"a": a, "b": leaves.get("b", MINE["b"])}


def test_parameters_of_the_same_tree_and_shapes_are_taken():
    check_like(MINE, MINE)
    check_like(MINE, changed(w=np.zeros((2, 3)), b=jnp.zeros(4, jnp.float32)))
    check_like(MINE, changed(n=jnp.ones(3)))  # floats may stand where integers do
    check_like(MINE, jax.eval_shape(lambda: MINE))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (changed(w=jnp.ones((3, 2))), r"params: a/w is \[3, 2\], the network's is \[2, 3\]"),
        (changed(w=jnp.ones((2, 3), int)), "params: a/w is int32 and has no gradient"),
        ({"a": MINE["a"]}, "params: not the tree .* but one without b"),
        ({**MINE, "c": MINE["b"]}, "but one with c"),
        ({"a": {"w": MINE["a"]["w"]}, "c": MINE["b"]}, "but one without a/n"),
        ({"a": [MINE["a"]["n"], MINE["a"]["w"]], "b": MINE["b"]}, "but one without a/n"),
    ],
)
def test_other_parameters_are_refused_by_the_first_path(given, said):
    with pytest.raises(ValueError, match=said):
        check_like(MINE, given)


def test_a_tree_of_another_type_with_the_same_paths_is_refused():
    with pytest.raises(ValueError, match="but one of another type"):
        check_like([MINE["b"]], (MINE["b"],))


BAD = {"a": {"w": jnp.array([1.0, jnp.nan]), "v": jnp.array([jnp.inf])}, "c": 3.0}


def test_parameters_that_are_no_finite_arrays_are_refused():
    check_params(MINE)
    check_params(BAD, only=["b"])
    for only, said in (
        (["a/w"], "variables: a/w holds NaN or infinite values"),
        (["a/v"], "variables: a/v holds NaN or infinite values"),
        (["c"], "variables: c=3.0 is not an array"),
        (None, "variables: a/v holds"),
    ):
        with pytest.raises(ValueError, match=said):
            check_params(BAD, only=only)


def test_what_cannot_be_looked_at_passes():
    check_params(jax.eval_shape(lambda: BAD["a"]))
    jax.jit(lambda p: check_params(p))(BAD["a"])


def test_arrays_of_every_kind_are_traced_and_nothing_else():
    for leaf in (jnp.ones(2), np.ones(2), np.float32(1), jax.ShapeDtypeStruct((), jnp.float32)):
        assert is_array(leaf)
    for leaf in (1.0, True, None, "x", [jnp.ones(2)]):
        assert not is_array(leaf)


def test_paths_are_written_with_slashes():
    tree = {"a": [1, {"value": 2}], "value": 3}
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert names == ["a/0", "a/1", "value"]
    assert path_name(()) == "params"
    whole = jax.tree_util.tree_leaves_with_path(Network.__dataclass_fields__["params"].name)
    assert path_name(whole[0][0]) == "params"
