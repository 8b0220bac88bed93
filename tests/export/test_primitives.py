"""Each primitive in ONNX computes what JAX computes, for batches of other sizes too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jaxsim as js

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from tests.support.onnx_runs import run

ROWS = 4
rng = np.random.default_rng(0)


def example(rows=ROWS):
    """Floats, positive floats, images, whole numbers, and places in a table of seven."""
    x = rng.normal(size=(rows, 6)) * 3
    image = rng.normal(size=(rows, 6, 5, 4))
    n = rng.integers(-9, 9, (rows, 6))
    ids = rng.integers(-8, 9, (rows, 3))
    f32, i32 = np.float32, np.int32
    return x.astype(f32), image.astype(f32), n.astype(i32), ids.astype(i32)


TABLE = jnp.asarray(rng.normal(size=(7, 5)), jnp.float32)
KERNEL = jnp.asarray(rng.normal(size=(3, 2, 4, 6)), jnp.float32)
DEEP = jnp.asarray(rng.normal(size=(3, 3, 1, 8)), jnp.float32)
CUBE = jnp.asarray(rng.normal(size=(6, 2, 3)), jnp.float32)
NHWC = ("NHWC", "HWIO", "NHWC")


def windows(reduce, start, **settings):
    def over(image):
        wide = {"window_dimensions": (1, 3, 2, 1), "window_strides": (1, 2, 1, 1), **settings}
        return lax.reduce_window(image, start, reduce, padding="SAME", **wide)

    return over


X = {
    "abs": jnp.abs,
    "cbrt": jnp.cbrt,
    "ceil": jnp.ceil,
    "cos": jnp.cos,
    "erf": lax.erf,
    "erfc": lax.erfc,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "expm1_small": lambda x: jnp.expm1(x * 1e-4),
    "expm1_large": lambda x: jnp.expm1(x * 50),
    "floor": jnp.floor,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "integer_pow": lambda x: x**3 + x**2 + x**-2,
    "is_finite": lambda x: jnp.isfinite(jnp.where(x > 2, jnp.inf, x)),
    "log": lambda x: jnp.log(jnp.abs(x)),
    "log1p": lambda x: jnp.log1p(jnp.abs(x)),
    "log1p_small": lambda x: jnp.log1p(x * 1e-6),
    "log1p_large": lambda x: jnp.log1p(jnp.abs(x) * 1e38),
    "logistic": jax.nn.sigmoid,
    "neg": lambda x: -x,
    "pow": lambda x: jnp.abs(x) ** 1.7,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "maximum": lambda x: jnp.maximum(x, 1.0),
    "round": jnp.round,
    "round_halves": lambda x: jnp.round(jnp.floor(x) + 0.5),
    "rsqrt": lambda x: lax.rsqrt(jnp.abs(x)),
    "sign": jnp.sign,
    "silu": jax.nn.silu,
    "sin": jnp.sin,
    "softmax": jax.nn.softmax,
    "softplus": jax.nn.softplus,
    "log_softmax": jax.nn.log_softmax,
    "elu": jax.nn.elu,
    "sqrt": lambda x: jnp.sqrt(jnp.abs(x)),
    "square": jnp.square,
    "tan": jnp.tan,
    "tanh": jnp.tanh,
    "clip": lambda x: jnp.clip(x, -1, 2),
    "clip_rows": lambda x: jnp.clip(x, x.mean(1, keepdims=True), jnp.linspace(0, 5, 6)),
    "rem": lambda x: lax.rem(x, jnp.float32(0.7)),
    "broadcast_sum": lambda x: jnp.broadcast_to(x.mean(1, keepdims=True), x.shape).sum(1),
    "broadcast_known": lambda x: jnp.broadcast_to(jnp.arange(6.0), x.shape),
    "reshape": lambda x: x.reshape(-1, 2, 3),
    "transpose": lambda x: jnp.swapaxes(x.reshape(-1, 2, 3), 1, 2),
    "concatenate": lambda x: jnp.concatenate([x, x[:, :2], jnp.zeros_like(x)], 1),
    "split": lambda x: jnp.split(x, [1, 4], 1)[1],
    "slice": lambda x: x[:, 1:5:2],
    "slice_rows": lambda x: x[1:],
    "reverse": lambda x: x[:, ::-1],
    "one": lambda x: x[:, -2],
    "first": lambda x: x[0],
    "cut": lambda x: x[:, 2:5],
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (0, jnp.int32(x[0, 0])), (1, 2)),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2)), constant_values=0.5),
    "squeeze": lambda x: x[:, None].squeeze(1),
    "stack": lambda x: jnp.stack([x, 2 * x], 1),
    "place": lambda x: jax.device_put(x, jax.devices()[0]),
    "place_several": lambda x: sum(jax.device_put([x, 2 * x])),
    "name": lambda x: checkpoint_name(x, "x"),
    "tile": lambda x: jnp.tile(x, (2, 3)),
    "unstack": lambda x: jnp.unstack(x.reshape(-1, 2, 3), axis=1)[1],
    "sum": lambda x: x.sum(1),
    "mean": lambda x: x.mean(),
    "max": lambda x: x.max(0),
    "min": lambda x: x.min(1, keepdims=True),
    "prod": lambda x: x.prod(1),
    "any": lambda x: (x > 4).any(1),
    "all": lambda x: (x > -4).all(1),
    "argmax": lambda x: x.argmax(1),
    "argmin": lambda x: x.argmin(1),
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "cumsum_reversed": lambda x: lax.cumsum(x, 1, reverse=True),
    "iota": lambda x: lax.broadcasted_iota(jnp.int32, x.shape, 0) * jnp.arange(6),
    "variance": lambda x: x.var(1),
    "remat": lambda x: jax.checkpoint(jnp.sin)(x),
    "stop": lambda x: lax.stop_gradient(x) + lax.optimization_barrier(x),
    "matmul": lambda x: x @ jnp.swapaxes(x, 0, 1),
    "batched": lambda x: jnp.einsum("bij,bkj->bik", x.reshape(-1, 2, 3), x.reshape(-1, 2, 3)),
    "heads": lambda x: jnp.einsum("bd,dhk->bhk", x, CUBE),
    "left": lambda x: jnp.einsum("dhk,bd->hkb", CUBE, x),
    "two_sums": lambda x: jnp.einsum("bhk,dhk->bd", x.reshape(-1, 2, 3), CUBE),
    "middle": lambda x: jnp.einsum("bhk,ehk->hbe", x.reshape(-1, 2, 3), CUBE),
}
IMAGE = {
    "conv": lambda x: lax.conv_general_dilated(
        x, KERNEL, (2, 1), ((1, 0), (2, 3)), rhs_dilation=(1, 2), dimension_numbers=NHWC
    ),
    "conv_groups": lambda x: lax.conv_general_dilated(
        x, DEEP, (1, 2), "SAME", dimension_numbers=NHWC, feature_group_count=4
    ),
    "conv_features_first": lambda x: lax.conv_general_dilated(
        jnp.moveaxis(x, 3, 1), jnp.transpose(KERNEL, (3, 2, 0, 1)), (1, 1), "VALID"
    ),
    "max_pool": windows(lax.max, -jnp.inf),
    "max_pool_dilated": windows(lax.max, -jnp.inf, window_dilation=(1, 2, 1, 1)),
    "sum_pool": windows(lax.add, 0.0),
    "sum_pool_features": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 1, 1, 2), (1, 1, 1, 2), "VALID"
    ),
    "mean_spatial": lambda x: x.mean((1, 2)),
}
NUMBERS = {
    "add": lambda n: n + 3 * n - 1,
    "divide": lambda n: lax.div(n, jnp.int32(4)),
    "remainder": lambda n: lax.rem(n, jnp.int32(4)),
    "compare": lambda n: (n == 2) | (n < -3) & ~(n > 4) ^ (n >= 1) | (n <= -8) & (n != -9),
    "select": lambda n: jnp.where(n > 0, n, -n),
    "cast": lambda n: n.astype(jnp.float32) / 2,
    "maximum_numbers": lambda n: jnp.maximum(n, 0),
    "minimum": lambda n: jnp.minimum(n, 2),
    "sum_numbers": lambda n: n.sum(1),
    "one_hot": lambda n: jax.nn.one_hot(n, 4),
}
IDS = {
    "index": lambda i: TABLE[i % 7],
    "take_fill": lambda i: jnp.take(TABLE, i, axis=0),
    "take_clip": lambda i: jnp.take(TABLE, i, axis=0, mode="clip"),
    "take_columns": lambda i: jnp.take(TABLE, i, axis=1, mode="clip"),
    "take_numbers": lambda i: jnp.take(jnp.arange(7), i, mode="fill", fill_value=-5),
}
NAMES = (*X, *IMAGE, *NUMBERS, *IDS)


def model(w, x, image, n, ids):
    said = {name: f(x) for name, f in X.items()}
    said |= {name: f(image) for name, f in IMAGE.items()}
    said |= {name: f(n) for name, f in NUMBERS.items()}
    said |= {name: f(ids) for name, f in IDS.items()}
    return said, x @ w


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    net = js.trace(model, jnp.eye(6), *example())
    return js.export.onnx(net, tmp_path_factory.mktemp("onnx") / "all.onnx")


@pytest.fixture(scope="module")
def answers(graph):
    found = []
    for rows in (ROWS, 2):
        args = example(rows)
        expected = jax.jit(model)(jnp.eye(6), *args)[0]
        found.append((expected, run(graph, *args)))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_primitive_computes_what_it_computes_in_jax(answers, name):
    for expected, given in answers:
        y, z = np.asarray(expected[name]), given[f"output_0/{name}"]
        assert (y.shape, y.dtype) == (z.shape, z.dtype)
        np.testing.assert_allclose(z, y, rtol=4e-6, atol=2e-6)


def of(f):
    return js.trace(lambda w, x: f(x) @ w, jnp.eye(6), example()[0])


@pytest.mark.parametrize(
    ("f", "why"),
    [
        (lambda x: jnp.sort(x, 1), "sort at .*has no form in ONNX here"),
        (lambda x: lax.while_loop(lambda y: y.sum() < 9, lambda y: y + 1, x), "is a loop or a"),
        (lambda x: lax.fori_loop(0, 257, lambda i, y: y * 2, x), "has 257 rounds, and at most 256"),
        (lambda x: lax.map(lambda r: r + r.sum(), x), "scan at .*round for each of batch, a size"),
        (lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), "cond at .*is a loop or a branch"),
        (lambda x: x + jax.random.normal(jax.random.key(jnp.int32(x[0, 0])), (6,)), "random_"),
        (lambda x: lax.round(x), "round at .*rounds halves away from zero"),
        (lambda x: x.at[0].set(0), "scatter at .*has no form"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (-1, 1, 0))), "pad at .*takes entries away"),
        (lambda x: (x.astype(jnp.int32) & 3) * 1.0, "and at .*of the bits"),
        (lambda x: lax.select_n(x.astype(jnp.int32) % 3, x, -x, 2 * x), "chooses among 3"),
        (lambda x: x + x[jnp.arange(2), jnp.int32(x[0, :2])].sum(), "gather at .*other than whole"),
    ],
)
def test_what_has_no_form_is_refused_by_primitive_and_line(f, why, tmp_path):
    with pytest.raises(ValueError, match=why) as refused:
        js.export.onnx(of(f), tmp_path / "net.onnx")
    assert "export.onnx: " in str(refused.value)
    assert __file__.rpartition("/")[2] in str(refused.value)
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"lhs_dilation": (1, 2)}, "zeros between its inputs"),
        ({"padding": ((0, 0), (-1, 2))}, "takes inputs away"),
        ({"batch_group_count": 2}, "groups its batch"),
    ],
)
def test_convolutions_that_onnx_has_not(settings, why, tmp_path):
    told = {
        "window_strides": (1, 1),
        "padding": ((0, 0), (0, 0)),
        "dimension_numbers": NHWC,
        **settings,
    }

    def over(w, image):
        return lax.conv_general_dilated(image, jnp.tanh(image[:2, :2, :4]) * w[:, :1], **told)

    net = js.trace(lambda w, image: (over(w, image), image @ w), jnp.eye(4), example()[1])
    with pytest.raises(ValueError, match=f"conv_general_dilated at .*{why}"):
        js.export.onnx(net, tmp_path / "net.onnx", jax.ShapeDtypeStruct((4, 6, 5, 4), "float32"))
