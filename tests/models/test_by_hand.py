"""What models make of numbers that are put in by hand, in NumPy; shapes alone say little."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxsim.models.efficientnet_lite import InvertedResidual
from jaxsim.models.plot import routing_maps
from jaxsim.models.quanv import QDCNN, QuanvConv
from jaxsim.models.reasoner import PanelPixels, Reasoner
from jaxsim.models.resnet import ResNet
from jaxsim.models.vision import Vision


def numbers(model, *args, **kwargs):
    """Variables of a model, none of them alike; statistics above zero."""
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.uniform(0.2, 1.2, s.shape).astype(np.float32), made)


def answer(model, variables, *args, **kwargs):
    return np.asarray(jax.jit(lambda v: model.apply(v, *args, **kwargs))(variables))


def convolved(x, kernel, stride):
    """Taps of three around each place, or the place alone, from the first."""
    side = kernel.shape[0] // 2
    x = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))
    size = [(n - kernel.shape[0]) // stride + 1 for n in x.shape[1:3]]
    y = np.zeros((len(x), *size, kernel.shape[-1]))
    for i, j in np.ndindex(*kernel.shape[:2]):
        taps = x[:, i : i + stride * size[0] : stride, j : j + stride * size[1] : stride]
        y += taps[:, : size[0], : size[1]] @ kernel[i, j]
    return y


def normed(x, params, stats):
    return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]


def relu(x):
    return np.maximum(x, 0)


def test_a_residual_network_is_its_equations():
    """A stem of stride two, a block as it is, and one that halves and projects its shortcut."""
    model = ResNet(stages=(1, 1), features=2, classes=3, stem_stride=2)
    x = np.random.default_rng(1).normal(size=(2, 8, 6, 1)).astype(np.float32)
    variables = numbers(model, x)
    p, s = variables["params"], variables["batch_stats"]
    y = convolved(x, p["Conv_0"]["kernel"], 2)
    y = relu(normed(y, p["BatchNorm_0"], s["BatchNorm_0"]))
    for name, stride in (("Block_0", 1), ("Block_1", 2)):
        q, t = p[name], s[name]
        z = normed(convolved(y, q["Conv_0"]["kernel"], stride), q["BatchNorm_0"], t["BatchNorm_0"])
        z = convolved(relu(z), q["Conv_1"]["kernel"], 1)
        z = normed(z, q["BatchNorm_1"], t["BatchNorm_1"])
        if stride == 2:
            y = convolved(y, q["Conv_2"]["kernel"], 2)
            y = normed(y, q["BatchNorm_2"], t["BatchNorm_2"])
        y = relu(y + z)
    expected = y.mean((1, 2)) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    np.testing.assert_allclose(answer(model, variables, x), expected, rtol=1e-4)


def test_statistics_of_training_move_by_a_tenth():
    model = ResNet(stages=(1,), features=2, classes=3)
    x = np.random.default_rng(1).normal(size=(2, 4, 4, 1)).astype(np.float32)
    variables = numbers(model, x)
    run = jax.jit(lambda v: model.apply(v, x, train=True, mutable=["batch_stats"])[1])
    after = run(variables)["batch_stats"]["BatchNorm_0"]
    stem = convolved(x, variables["params"]["Conv_0"]["kernel"], 1)
    before = variables["batch_stats"]["BatchNorm_0"]
    mean, var = stem.mean((0, 1, 2)), stem.var((0, 1, 2))
    np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * var, rtol=1e-3)


class Weighed(nn.Module):
    """Every token becomes the sum of all, the first once, the next twice and so on."""

    @nn.compact
    def __call__(self, x, grid=None, times=1.0):
        by = times * jnp.arange(1, x.shape[1] + 1)
        return jnp.broadcast_to(jnp.einsum("bnd,n->bd", x, by)[:, None], x.shape), grid


def test_an_image_is_read_as_patches_row_by_row_behind_the_token_of_its_task():
    model = Vision(Weighed(), tasks=(3, 5), patch=2, width=4)
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 3)).astype(np.float32)
    variables = numbers(model, x)
    p = variables["params"]
    cut = [x[:, i : i + 2, j : j + 2].reshape(2, -1) for i in (0, 2) for j in (0, 2, 4)]
    patches = [c @ p["patches"]["kernel"] + p["patches"]["bias"] for c in cut]
    grids = []

    @jax.jit
    def logits(v):
        twice, grid = model.apply(v, x, task=1, routing=True, times=2.0)
        grids.append(grid)
        return model.apply(v, x), model.apply(v, x, task=1), twice

    for task, times, found in zip((0, 1, 1), (1, 1, 2), logits(variables), strict=True):
        y = p["class_tokens"][task] + sum(k * t for k, t in enumerate(patches, 2))
        head = p[f"head_{task}"]
        expected = times * y @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert grids == [(2, 3)]


@pytest.mark.parametrize(
    ("options", "call", "said"),
    [
        ({"patch": 0}, {}, "patch=0: must be an int of at least 1"),
        ({"width": 0}, {}, "width=0: must be an int of at least 1"),
        ({}, {"task": 2}, "task=2: must be an int from 0 to 1"),
        ({}, {"task": -1}, "task=-1: must be an int from 0 to 1"),
        ({"patch": 3}, {}, r"x\[2, 4, 6, 3\]: must be \[B, H, W, C\], both sides multiples of 3"),
        ({"patch": 4}, {}, "both sides multiples of 4"),
    ],
)
def test_images_that_patches_do_not_fill_are_refused(options, call, said):
    model = Vision(Weighed(), **{"tasks": (3, 5), "patch": 2, "width": 4, **options})
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, 4, 6, 3)), **call))


class Panel(nn.Module):
    """A token that is the panel itself."""

    @nn.compact
    def __call__(self, x):
        return x.astype(jnp.float32)


@pytest.mark.parametrize("context", [True, False])
def test_a_choice_is_scored_behind_its_matrix_or_behind_the_others(context):
    model = Reasoner(Weighed(), Panel(), width=3, context=context)
    x = np.random.default_rng(1).normal(size=(2, 16, 3)).astype(np.float32)
    variables = numbers(model, x)
    p = variables["params"]
    expected = np.zeros((2, 8))
    for choice in range(8):
        rest = [*range(8)] if context else [8 + i for i in range(8) if i != choice]
        places = [*range(9)] if context else [0] * 7 + [1]
        y = p["class_token"] + sum(
            k * (x[:, panel] + p["places"][place])
            for k, (panel, place) in enumerate(zip([*rest, 8 + choice], places, strict=True), 2)
        )
        expected[:, choice] = (y @ p["score"]["kernel"] + p["score"]["bias"])[:, 0]
    found, (twice, routed) = jax.jit(
        lambda v: (model.apply(v, x), model.apply(v, x, routing=True, times=2.0))
    )(variables)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(twice, 2 * expected - p["score"]["bias"], rtol=1e-4)
    assert routed is None


def test_a_picture_is_turned_halved_and_normed_in_groups():
    """Black on white is white on black to it; of one convolution with its group of all channels."""
    model = PanelPixels(width=2, features=(4,))
    x = np.random.default_rng(1).uniform(size=(3, 4, 6)).astype(np.float32)
    variables = numbers(model, x)
    p = variables["params"]
    taps = np.pad(1 - x[..., None], ((0, 0), (0, 1), (0, 1), (0, 0)))  # SAME, of even sides
    y = np.zeros((3, 2, 3, 4))
    for i, j in np.ndindex(3, 3):
        y += taps[:, i : i + 3 : 2, j : j + 5 : 2] @ p["Conv_0"]["kernel"][i, j]
    y += p["Conv_0"]["bias"]
    mean, var = (f(y, axis=(1, 2), keepdims=True) for f in (np.mean, np.var))  # a channel a group
    norm = p["GroupNorm_0"]
    y = relu((y - mean) / np.sqrt(var + 1e-6) * norm["scale"] + norm["bias"])
    expected = y.reshape(3, -1) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    np.testing.assert_allclose(answer(model, variables, x), expected, rtol=1e-3)


def test_a_quantum_classifier_averages_its_maps_and_reads_them_by_layers():
    conv = QuanvConv((1, 2), trainable=False, ansatz="basic")
    model = QDCNN(3, conv, pool=2, hidden=(5, 4))
    x = np.random.default_rng(1).uniform(size=(2, 4, 5, 1)).astype(np.float32)
    variables = numbers(model, x)
    maps = np.asarray(conv.apply({}, x))
    assert maps.shape == (2, 4, 4, 2)
    y = maps.reshape(2, 2, 2, 2, 2, 2).mean((2, 4)).reshape(2, -1)
    for i in range(3):
        layer = variables["params"][f"Dense_{i}"]
        y = (relu(y) if i else y) @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(answer(model, variables, x), y, rtol=1e-4)
    plain = QDCNN(3, conv)
    flat = numbers(plain, x)
    layer = flat["params"]["Dense_0"]
    expected = maps.reshape(2, -1) @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(answer(plain, flat, x), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("features", "stride", "expansion"), [(2, 1, 3), (2, 2, 3), (3, 1, 3), (2, 1, 1)]
)
def test_an_inverted_residual_is_added_where_it_keeps_its_shape(features, stride, expansion):
    """Clipped at six after the expansion and the filters, of which each channel has its own."""
    model = InvertedResidual(features, 3, stride, expansion)
    x = np.random.default_rng(1).uniform(0, 4, size=(2, 5, 3, 2)).astype(np.float32)
    variables = numbers(model, x, False)
    p, stats = variables["params"], variables["batch_stats"]

    def norm(y, name):
        q, t = p[name], stats[name]
        return (y - t["mean"]) / np.sqrt(t["var"] + 1e-3) * q["scale"] + q["bias"]

    y = x
    if expansion > 1:
        y = np.clip(norm(convolved(y, p["expand"]["kernel"], 1), "expand_norm"), 0, 6)
    taps = p["depthwise"]["kernel"]  # [3, 3, 1, channels]
    y = convolved(y, taps * np.eye(taps.shape[-1]), stride)
    clipped = np.clip(norm(y, "depthwise_norm"), 0, 6)
    assert (clipped == 6).any()
    y = norm(convolved(clipped, p["project"]["kernel"], 1), "project_norm")
    expected = x + y if (features, stride) == (2, 1) else y
    np.testing.assert_allclose(answer(model, variables, x, False), expected, rtol=1e-3)


def test_patches_have_the_color_of_their_function_by_how_sure_it_is(monkeypatch, tmp_path):
    """Of two functions: three quarters is half of the way from an even share to all of it."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    drawn, titles = [], []
    monkeypatch.setattr(Axes, "imshow", lambda self, a, **_: drawn.append(np.asarray(a)))
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **_: titles.append(text))
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: path.write_bytes(b"png"))
    first = np.array([0.9, 1.0, 0.75, 0.5, 0.25])  # a class token and four patches
    affinity = np.stack([[first, 1 - first], [1 - first, first]])[:, :, None]
    routing_maps(tmp_path / "new" / "a.png", np.zeros((1, 4, 4)), affinity)
    blue, orange = np.array([[31, 119, 180], [255, 127, 14]]) / 255
    half = [(1 + c) / 2 for c in (blue, orange)]
    assert titles == ["iteration 1", "iteration 2"]
    np.testing.assert_allclose(drawn[1], [[blue, half[0]], [[1, 1, 1], half[1]]], atol=1e-6)
    np.testing.assert_allclose(drawn[2], [[orange, half[1]], [[1, 1, 1], half[0]]], atol=1e-6)
    assert (tmp_path / "new" / "a.png").read_bytes() == b"png"
    with pytest.raises(ValueError, match="images: 2 of them for affinities of 1"):
        routing_maps(tmp_path / "a.png", np.zeros((2, 4, 4)), affinity)
