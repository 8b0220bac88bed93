"""Numbers just inside of what is allowed, and just outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.numerics import memory
from jaxsim.numerics.checks import (
    check_called,
    check_range,
    check_share,
    checked_count,
    checked_int,
    checked_seed,
    is_whole,
)

NAN = float("nan")


@pytest.mark.parametrize(
    "call",
    [
        lambda: check_range("x", 0, 0),
        lambda: check_range("x", 1.0, 0, 1),
        lambda: check_range("x", np.float32(1e-9), 0, above=True),
        lambda: check_range("x", np.array(3), 0, 3, whole=True),
        lambda: check_range("x", np.uint8(3), 0, 3, whole=True),
        lambda: check_share("x", 0),
        lambda: check_share("x", 0.999),
        lambda: jax.jit(lambda v: check_range("x", v, 5))(1.0),
        lambda: jax.jit(lambda v: check_share("x", v))(2.0),
    ],
)
def test_what_is_allowed_is_taken(call):
    assert call() is None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: check_range("x", -1e-9, 0), "x=-1e-09: must be a number of at least 0$"),
        (lambda: check_range("x", 0, 0, above=True), "x=0: must be a number above 0$"),
        (lambda: check_range("x", 1.001, 0, 1), "x=1.001: must be .* and at most 1$"),
        (lambda: check_range("x", 2.0, 0, whole=True), "x=2.0: must be an int of at least 0"),
        (lambda: check_range("x", True, 0), "x=True"),
        (lambda: check_range("x", NAN, 0), "x=nan"),
        (lambda: check_range("x", np.inf, 0), "x=inf"),
        (lambda: check_range("x", np.ones(1), 0), r"x=\[1.\]"),
        (lambda: check_range("x", "1", 0), "x=1"),
        (lambda: check_share("x", 1.0), "x=1.0: must be below 1"),
        (lambda: check_share("x", -0.1), "x=-0.1: must be a number of at least 0"),
    ],
)
def test_what_is_not_is_refused_by_name(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_whole_numbers_of_every_kind_become_ints():
    for value in (3, np.int64(3), np.array(3), jax.numpy.int32(3)):
        found = checked_int("n", value, 3, 3)
        assert found == 3
        assert type(found) is int
    assert checked_int("n", 10**12, 1) == 10**12


@pytest.mark.parametrize("value", [2, 5, 3.0, True, np.ones(1, int), "3", None, np.float32(3)])
def test_what_is_no_whole_number_in_range_is_refused(value):
    with pytest.raises(ValueError, match=r"n=.*: must be an int from 3 to 4"):
        checked_int("n", value, 3, 4)
    with pytest.raises(ValueError, match="n=2: must be an int of at least 3"):
        checked_int("n", 2, 3)


def test_loops_count_in_31_bits_and_seeds_have_32():
    assert len(checked_count("n", 2**31 - 1)) == 2**31 - 1
    assert len(checked_count("n", 0, 0)) == 0
    assert checked_seed(0) == 0
    assert checked_seed(2**32 - 1) == 2**32 - 1
    for call in (
        lambda: checked_count("n", 2**31),
        lambda: checked_count("n", 0),
        lambda: checked_seed(2**32),
        lambda: checked_seed(-1),
    ):
        with pytest.raises(ValueError, match=r"(n|seed)="):
            call()


def test_memory_up_to_the_limit_is_given_and_a_byte_more_is_not(monkeypatch):
    assert memory.LIMIT == 4 * 2**30
    monkeypatch.setattr(memory, "LIMIT", 2**30)
    memory.check("a table", 2**30, "lower n")
    with pytest.raises(MemoryError, match=r"a table needs 1\.5 GiB; allowed: 1\.0 GiB .*; lower n"):
        memory.check("a table", 3 * 2**29, "lower n")
    with pytest.raises(MemoryError):
        memory.check("a table", 2**30 + 1, "lower n")


def test_a_function_in_place_of_what_it_makes_is_named_with_its_call():
    import jaxsim as js
    from jaxsim.cores import cells

    check_called("cells", cells.independent(0.1))
    check_called("f", lambda v: v)
    check_called("f", max)
    check_called("f", js.float_core)
    with pytest.raises(ValueError, match=r"cells=cells.independent: .* cells.independent\(…\)"):
        check_called("cells", cells.independent)
    with pytest.raises(ValueError, match=r"cells=cells.sonos: .* cells.sonos\(\)"):
        check_called("cells", cells.sonos)
    with pytest.raises(ValueError, match=r"weights=js.Grid: .* js.Grid\(\)"):
        check_called("weights", js.Grid)
    with pytest.raises(ValueError, match=r"weights=js.quantize"):
        check_called("weights", js.quantize)


def test_a_traced_integer_is_no_whole_number_that_is_known():
    found = []
    jax.jit(lambda x: found.append(is_whole(x)))(jnp.int32(3))
    assert found == [False]
    assert is_whole(jnp.int32(3))
    assert not is_whole(jnp.float32(3))
    assert not is_whole(np.array([3]))
