"""A copy of a network is the network: it computes the same bits and compiles nothing anew."""

import copy
import dataclasses
import functools
import pickle
import subprocess
import sys
from pathlib import Path

import cloudpickle
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsim as js
from jaxsim.adaptive.rule import Rule
from jaxsim.values.value import same
from tests.support import encoders
from tests.support.compilations import compilations
from tests.support.models import NnxCnn, normal
from tests.support.networks import X, cnn, stack

KEY = jax.random.key(0)
IMAGES = normal(8, 8, 8, 3)


def twice(params, x):
    return jnp.tanh(x @ params["a"]) @ params["a"].T


@functools.cache
def plain(fn=twice):
    return js.trace(fn, {"a": normal(6, 6)}, normal(8, 6))


def quantized(net, x):
    return js.deploy(js.quantize(8, 8)(net), calibrate=x)


# a network of each kind, and inputs of a call
KINDS = {
    "linen": lambda: (cnn(), (X,)),
    "linen with functions": lambda: (module_of_functions(), (normal(8, 6),)),
    "nnx": lambda: (js.trace(NnxCnn(nnx.Rngs(0)), None, IMAGES), (IMAGES,)),
    "function": lambda: (plain(), (normal(8, 6),)),
    "lambda": lambda: (plain(lambda p, x: x @ p["a"]), (normal(8, 6),)),
    "scan": lambda: (stack(), (normal(5, 4),)),
    "composed": lambda: (js.compose(js.prune(0.5), js.quantize(4, 8))(cnn()), (X,)),
    "nnx composed": lambda: (js.quantize(4, 8)(KINDS["nnx"]()[0]), (IMAGES,)),
    "codebooks": lambda: (js.quantize(js.Codebook(size=4), None)(cnn()), (X,)),
    "deployed": lambda: (quantized(cnn(), X), (X,)),
    "analog": lambda: (
        js.deploy(
            js.compose(js.quantize(8, 8), js.analog(cells=js.cells.proportional(0.02), adc=8))(
                cnn()
            ),
            key=KEY,
            calibrate=X,
        ),
        (X,),
    ),
    "early exit": lambda: (js.exit_early(2)(cnn()), (X,)),
    "pipeline": lambda: (
        js.pipeline_shard(2, 2, devices=jax.devices()[:1] * 2)(cnn()),
        (X,),
    ),
    "integers": lambda: (js.integer_only(quantized(cnn(), X)), (X,)),
    "shrunk": lambda: (js.shrink(0.5)(cnn()), (X,)),
    "shrunk nnx": lambda: (js.shrink(0.5, exact=False)(KINDS["nnx"]()[0]), (IMAGES,)),
    "pyramid": lambda: (
        js.magic_pyramid(0.02, Rule(0.5), heads=encoders.heads())(encoders.network()),
        encoders.sequences(4),
    ),
}


def module_of_functions():
    """A module whose settings are functions made at run time, as Flax's initializers are."""
    model = nn.Dense(4, kernel_init=nn.initializers.normal(0.1))
    x = normal(8, 6)
    return js.quantize(8, 8)(js.trace(model, model.init(KEY, x), x))


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "cloudpickle": lambda net: cloudpickle.loads(cloudpickle.dumps(net)),
    "tree.map": lambda net: jax.tree.map(lambda leaf: leaf, net),
    "replace": dataclasses.replace,
}


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_the_network(kind):
    net, args = KINDS[kind]()
    jitted = jax.jit(lambda net, *args: net(*args))
    static = jax.jit(lambda *args, net: net(*args), static_argnames="net")
    expected = bits((net(*args), jitted(net, *args)))
    with compilations() as compiled:  # jax compiles a loop that is not jitted at every call
        net(*args), jitted(net, *args)
        anew = list(compiled)
    alone = bits(static(*args, net=net)) if kind in ("deployed", "function") else None
    for how, make in COPIES.items():
        other = make(net)
        assert jax.tree.structure(other) == jax.tree.structure(net), how
        assert other == net, how
        assert hash(other) == hash(net), how
        with compilations() as compiled:
            found = bits((other(*args), jitted(other, *args)))
            if alone is not None:
                assert bits(static(*args, net=other)) == alone
        assert found == expected, how
        assert compiled == anew, how


@pytest.mark.parametrize("kind", ["linen", "nnx", "function", "deployed", "early exit", "integers"])
def test_a_pickle_is_the_network(kind):
    net, args = KINDS[kind]()
    expected = bits(net(*args))
    other = pickle.loads(pickle.dumps(net))
    with compilations() as compiled:
        assert bits(other(*args)) == expected
    assert other == net
    assert not compiled


def test_a_network_reloaded_from_disk_compiles_nothing_anew(tmp_path):
    for kind in ("linen", "composed", "deployed"):
        net, args = KINDS[kind]()
        jitted = jax.jit(lambda net, *args: net(*args))
        expected = bits(jitted(net, *args))
        js.save(tmp_path / kind, net)
        like = js.quantize(8, 8)(cnn()) if kind == "deployed" else net
        other = js.load(tmp_path / kind, like=like)
        with compilations() as compiled:
            assert bits(jitted(other, *args)) == expected
        assert not compiled, kind


def test_a_model_traced_again_compiles_nothing_anew():
    def traced(features):
        model, x = nn.Dense(features), normal(8, 6)
        return js.quantize(8, 8)(js.trace(model, model.init(KEY, x), x))

    x = normal(8, 6)
    expected = bits(traced(4)(x))
    again = traced(4)
    with compilations() as compiled:
        assert bits(again(x)) == expected
    assert not compiled
    assert jax.tree.structure(traced(5)) != jax.tree.structure(again)


def test_networks_of_other_processes_compute_the_same(tmp_path):
    names = ("linen with functions", "lambda", "nnx composed", "deployed", "integers", "pyramid")
    nets = {name: KINDS[name]() for name in names}
    (tmp_path / "nets").write_bytes(cloudpickle.dumps(nets))
    script = """
        import sys, cloudpickle, pathlib
        from tests.values.test_value import bits
        folder = pathlib.Path(sys.argv[1])
        nets = cloudpickle.loads((folder / "nets").read_bytes())
        found = {name: bits(net(*args)) for name, (net, args) in nets.items()}
        (folder / "found").write_bytes(cloudpickle.dumps(found))
    """
    lines = "\n".join(line.strip() for line in script.splitlines())
    subprocess.run([sys.executable, "-c", lines, str(tmp_path)], check=True, cwd=Path.cwd())
    found = cloudpickle.loads((tmp_path / "found").read_bytes())
    for name, (net, args) in nets.items():
        assert len(found[name]) == len(bits(net(*args)))
        for a, b in zip(found[name], jax.tree.leaves(net(*args)), strict=True):
            np.testing.assert_allclose(np.frombuffer(a, b.dtype), np.ravel(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: lambda x: x + 1, lambda: lambda x: x + 2),
        (lambda: functools.partial(twice, x=1), lambda: functools.partial(twice, x=2)),
        (lambda n=1: lambda x: x + n, lambda n=2: lambda x: x + n),
        (lambda: np.arange(3.0), lambda: np.arange(3)),
        (lambda: nn.Dense(3), lambda: nn.Dense(4)),
        (lambda: [1, (2, {"a": 3})], lambda: [1, (2, {"a": 4})]),
        (lambda: jnp.float32(0.0), lambda: jnp.float32(-0.0)),
    ],
)
def test_what_holds_the_same_is_the_same(make, other):
    assert same(make(), make())
    assert not same(make(), other())


REBOUND = {
    "global": "f = lambda w, x: s * (x @ w)",
    "closure": "f = (lambda s: lambda w, x: s * (x @ w))(s)",
    "array": """
import numpy
f = (lambda s: lambda w, x: s * (x @ w))(numpy.full(2, s))
""",
    "cell": """
def make():
    global bind
    s = 0.0
    def bind(value):
        nonlocal s
        s = value
    return lambda w, x: s * (x @ w)
if "first" not in globals():
    first = make()
    import types
bind(s)
f = types.FunctionType(first.__code__, first.__globals__, closure=first.__closure__)
""",
    "helper": """
if "helper" not in globals():
    helper = None
helper = eval("lambda y: s * y")
f = lambda w, x: helper(x @ w)
""",
    "partial": "import functools; f = functools.partial(lambda w, x: s * (x @ w))",
}


@pytest.mark.parametrize("kind", REBOUND)
def test_a_name_that_is_bound_anew_makes_another_network(kind):
    """As a loop of a notebook does: the same code, which names what is another number now."""
    names, made, x = {"s": 1.0}, {}, jnp.ones((2, 3))
    for s in (1.0, 2.0, 1.0):
        names["s"] = s
        exec(compile(REBOUND[kind], "notebook", "exec"), names)
        net = js.quantize(8, 8)(js.trace(names["f"], jnp.ones((3, 2)), x))
        assert float(net(x)[0, 0]) == pytest.approx(3 * s)
        made.setdefault(s, []).append(net)
    (first, third), (second,) = made[1.0], made[2.0]
    assert jax.tree.structure(first) == jax.tree.structure(third)
    assert jax.tree.structure(first) != jax.tree.structure(second)
    with compilations() as compiled:
        third(x)
    assert not compiled


def test_what_a_wrapper_copies_of_a_function_is_not_its_own():
    def scaled(s):
        inner = js.trace(lambda w, x: x @ w, jnp.eye(3), jnp.ones((1, 3))).fn.function
        return functools.wraps(inner)(lambda w, x: s * (x @ w))

    assert same(scaled(1.0), scaled(1.0))
    assert not same(scaled(1.0), scaled(2.0))


def test_networks_that_differ_are_not_equal():
    net = cnn()
    moved = dataclasses.replace(net, params=jax.tree.map(lambda p: p + 1, net.params))
    assert net != moved
    assert jax.tree.structure(net) == jax.tree.structure(moved)
    assert net != js.quantize(8, 8)(net)
    assert js.quantize(8, js.Grid(8))(net) == js.quantize(8, 8)(net)
    assert net not in ("network", None)
    assert jax.jit(lambda a: a == a and a != moved)(net)
