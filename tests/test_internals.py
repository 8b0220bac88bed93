"""What is read of JAX has one form on every version; nothing else reads it."""

import re
import types
from pathlib import Path

import jax
import jax.extend.core.primitives as prims
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsim
import jaxsim as js
from jaxsim import internals

PACKAGE = Path(jaxsim.__file__).parent


def equation(fn, *args):
    """The only equation of a function."""
    (eqn,) = jax.make_jaxpr(fn)(*args).jaxpr.eqns
    return eqn


class _Tree:
    """Operands in groups, as jax 0.11 and later describes those of a scan."""

    def __init__(self, *sizes):
        self.sizes = sizes

    def unpack(self):
        return tuple((None,) * n for n in self.sizes)


@pytest.mark.parametrize(
    "params",
    [
        {"num_consts": 2, "num_carry": 3, "length": 5, "reverse": True, "unroll": 2},
        {"ft_in": _Tree(2, 3, 1), "length": 5, "reverse": True, "unroll": 2},
    ],
    ids=["jax 0.10", "jax 0.12"],
)
def test_a_scan_of_every_version_reads_alike(params):
    eqn = types.SimpleNamespace(params=params, primitive=prims.scan_p)
    assert internals.scan(eqn) == internals.Scan(2, 3, 5, True, 2)
    assert internals.scan(eqn).first_slice == 5


@pytest.mark.parametrize("reverse", [False, True])
def test_what_a_scan_of_this_version_is_told(reverse):
    a, b, carry, xs = jnp.ones(2), jnp.ones(2), (jnp.ones(2), jnp.ones(3)), jnp.ones((4, 2))

    def loop(a, b, carry, xs):
        def body(carry, x):
            return (carry[0] * a + x + b, carry[1] + 1), x

        return lax.scan(body, carry, xs, reverse=reverse, unroll=2)

    scan = internals.scan(equation(loop, a, b, carry, xs))
    assert scan == internals.Scan(2, 2, 4, reverse, 2)
    assert internals.inner_jaxprs(equation(loop, a, b, carry, xs))[0][0].invars[4].aval.shape == (
        2,
    )


def test_what_a_while_loop_of_this_version_is_told():
    def loop(limit, step, x):
        return lax.while_loop(lambda x: x.sum() < limit, lambda x: x + step + step, x)

    eqn = equation(loop, jnp.float32(9), jnp.ones(2), jnp.ones(2))
    assert internals.while_loop(eqn) == internals.While(1, 1)
    assert len(internals.inner_jaxprs(eqn)) == 2


@pytest.mark.parametrize(
    ("fn", "primitive"),
    [
        (jax.jit(lambda x: jnp.sin(x) + 1), "jit"),
        (jax.checkpoint(lambda x: jnp.sin(x) + 1), "remat"),
        (jax.nn.relu, "custom_jvp_call"),
        (lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), "cond"),
    ],
    ids=["jit", "remat", "custom_jvp", "cond"],
)
def test_jaxprs_inside_an_equation_compute_what_it_does(fn, primitive):
    x = jnp.arange(3.0)
    *_, eqn = jax.make_jaxpr(fn)(x).jaxpr.eqns
    inner = internals.inner_jaxprs(eqn)
    assert len(inner) == (2 if primitive == "cond" else 1)
    if primitive != "cond":
        ((jaxpr, consts),) = inner
        (out,) = jax.core.eval_jaxpr(jaxpr, consts, x)
        assert (out == fn(x)).all()
        assert (internals.bind(eqn, [x])[0] == fn(x)).all()


def test_an_unknown_parameter_names_both_versions():
    eqn = types.SimpleNamespace(params={"new": 1}, primitive=prims.scan_p)
    with pytest.raises(internals.UnknownPrimitiveError) as caught:
        internals.scan(eqn)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    for part in (f"jax=={jax.__version__}", "scan", "'ft_in'", "new", *internals.TESTED):
        assert part in message
    assert re.search(r"jaxsim \d", message)


def test_no_other_file_reads_parameters_or_private_names_of_jax():
    private = re.compile(
        r"eqn\.params|jex\.Jaxpr\(|jax\._src|_cache_size|source_info_util|get_bind_params"
    )
    readers = [path.name for path in PACKAGE.rglob("*.py") if private.search(path.read_text())]
    assert readers == ["internals.py"]


def test_a_jaxpr_of_some_equations_keeps_its_constants():
    table = np.arange(300.0, dtype=np.float32)
    closed = jax.make_jaxpr(lambda x: jnp.sin(x * table) + 1)(table)
    whole, constants = closed.jaxpr, dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    first, *_ = whole.eqns
    part = internals.jaxpr_of(constants, whole.invars, first.outvars, [first], whole)
    assert (len(part.constvars), len(part.invars)) == (1, 1)
    (y,) = jax.core.eval_jaxpr(part, list(constants.values()), table)
    np.testing.assert_array_equal(y, table * table)


def test_operands_that_outputs_depend_on_are_found_in_loops_and_calls():
    @jax.custom_jvp
    def first(a, b):
        return a + 0 * b

    first.defjvps(None, None)
    unread = jax.jit(lambda a, b, c: (a * 2, b * c))

    def model(a, b, c, d, e, f):
        def turn(carry, x):
            one, other, count = carry
            return (one + other, other, count + d), x * one + 0 * e

        (one, _, _), ys = jax.lax.scan(turn, (a, b, c), jnp.arange(3.0))
        return unread(one, f, c)[0], first(ys[0], f)

    ones = (jnp.ones(()),) * 6
    jaxpr = jax.make_jaxpr(model)(*ones).jaxpr
    # b reaches one through the carry; c and d reach only a count that nothing reads
    assert internals.live_operands(jaxpr) == [True, True, False, False, True, True]
    assert internals.live_operands(jaxpr, [True, False]) == [True, True, False, False, False, False]


def test_programs_are_counted():
    double = jax.jit(lambda x: x * 2)
    triple = jax.jit(lambda x: x * 3)
    double(jnp.ones(2)), double(jnp.ones(2)), double(jnp.ones(3)), triple(jnp.ones(2))
    assert internals.compile_count(double, triple) == 3


@pytest.mark.parametrize("name", ["constraints-lowest.txt", "constraints-newest.txt"])
def test_the_tested_versions_are_those_that_are_installed_for_it(name):
    pins = (PACKAGE.parent / name).read_text()
    version = internals.TESTED[name == "constraints-newest.txt"]
    assert f"\njax=={version}\n" in pins


def test_a_model_with_a_scan_traces():
    params = {"w": jnp.ones((3, 4, 4)) / 4}
    net = js.trace(
        lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"])[0],
        params,
        jnp.ones((2, 4)),
    )
    assert [(s.name, s.stack) for s in net.sites] == [("w", (3,))]
