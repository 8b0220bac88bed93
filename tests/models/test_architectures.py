"""Models have the layers of their papers, with the constants that those print."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsim.models import efficientnet_lite as lite
from jaxsim.models.reasoner import PanelPixels, PanelSymbols
from jaxsim.models.relative_position import RelativePosition
from jaxsim.models.resnet import ResNet
from jaxsim.models.transformer import Transformer
from tests.oracles import transformer as oracle


def test_stages_are_those_of_the_paper():
    """Tan and Le (2019), arXiv 1905.11946, table 1: blocks, side, stride, expansion, channels."""
    assert [tuple(stage) for stage in lite.STAGES] == [
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    ]


@pytest.mark.parametrize(
    ("width", "channels"),
    [
        # lite0 to lite4, as tensorflow/tpu rounds them
        (1.0, [16, 24, 40, 80, 112, 192, 320]),
        (1.1, [16, 24, 48, 88, 120, 208, 352]),
        (1.2, [24, 32, 48, 96, 136, 232, 384]),
        (1.4, [24, 32, 56, 112, 160, 272, 448]),
    ],
)
def test_channels_are_rounded_to_eight(width, channels):
    assert [lite._round_to_eight(stage.features * width) for stage in lite.STAGES] == channels


@pytest.mark.parametrize(
    ("features", "rounded"),
    [(1, 8), (8, 8), (11.9, 16), (12, 16), (17.7, 16), (17.8, 24), (19, 24), (20, 24), (83, 80)],
)
def test_no_channel_count_loses_a_tenth(features, rounded):
    """16 is 0.904 of 17.7 and 0.899 of 17.8."""
    assert lite._round_to_eight(features) == rounded


def test_statistics_are_those_of_tensorflow():
    norm = lite._norm("n", train=False)
    assert (norm.momentum, norm.epsilon, norm.use_running_average) == (0.99, 1e-3, True)
    assert not lite._norm("n", train=True).use_running_average


def shapes(model, *args, **kwargs):
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs))
    return jax.tree.map(lambda s: s.shape, made["params"])


def test_lite_networks_widen_and_deepen_all_but_their_ends():
    found = shapes(lite.EfficientNetLite(1.2, 1.4, 7), jnp.zeros((1, 32, 32, 3)))
    blocks = [found[f"InvertedResidual_{i}"] for i in range(24)]
    assert "InvertedResidual_24" not in found
    outputs = [b["project"]["kernel"][-1] for b in blocks]
    # 1, then 3, 3, 5, 5 and 6 of 1.4 times as many, then 1
    assert outputs == [24] + [32] * 3 + [48] * 3 + [96] * 5 + [136] * 5 + [232] * 6 + [384]
    assert found["stem"]["kernel"] == (3, 3, 3, 32)
    assert found["head"]["kernel"] == (1, 1, 384, 1280)
    assert found["classifier"]["kernel"] == (1280, 7)
    assert "expand" not in blocks[0]
    assert blocks[1]["expand"]["kernel"] == (1, 1, 24, 144)
    assert blocks[4]["depthwise"]["kernel"] == (5, 5, 1, 192)


def test_residual_networks_double_their_channels_where_they_halve_the_image():
    model = ResNet(stages=(1, 2), features=6, classes=5, stem_stride=2)
    x = jnp.zeros((2, 16, 16, 3))
    found = shapes(model, x)
    assert found["Conv_0"]["kernel"] == (3, 3, 3, 6)
    assert "Conv_2" not in found["Block_0"]
    assert [found["Block_1"][f"Conv_{i}"]["kernel"] for i in range(3)] == [
        (3, 3, 6, 12),
        (3, 3, 12, 12),
        (1, 1, 6, 12),
    ]
    assert "Conv_2" not in found["Block_2"]
    assert found["Dense_0"]["kernel"] == (12, 5)
    run = lambda v: model.apply(v, x, capture_intermediates=True, mutable=["intermediates"])  # noqa: E731
    seen = jax.eval_shape(lambda: run(model.init(jax.random.key(0), x)))[1]["intermediates"]
    places = [seen[f"Block_{i}"]["__call__"][0].shape[1:3] for i in range(3)]
    assert places == [(8, 8), (4, 4), (4, 4)]


def filled(model, *args, **kwargs):
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), jnp.float32), made)


@pytest.mark.parametrize("grid", [None, (2, 3)])
def test_a_transformer_is_its_equations(grid):
    """Two heads of three numbers over a token and six patches, in two layers."""
    model = Transformer(layers=2, heads=2, ratio=3)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7, 6)), jnp.float32)
    params = filled(model, x, grid=grid)
    found, routing = jax.jit(lambda v: model.apply(v, x, grid=grid))(params)
    assert routing is None
    np.testing.assert_allclose(found, oracle.transformer(params, x, 2, grid), atol=2e-4)
    without = Transformer(layers=2, heads=2, ratio=3, positions=False)
    assert "position" not in shapes(without, x, grid=grid)["layer_0"]


def test_places_are_told_by_rows_and_columns_between_patches():
    model = RelativePosition(heads=2, width=3)
    params = filled(model, (2, 3), 8)
    found = model.apply(params, (2, 3), 8)
    np.testing.assert_allclose(found[0], oracle.bias(params["params"], (2, 3), 8), atol=1e-5)
    assert shapes(model, (2, 3), 6)["row"] == (3, 3)
    with pytest.raises(ValueError, match="tokens=5: must be at least the 2 × 3 patches"):
        model.init(jax.random.key(0), (2, 3), 5)


def test_settings_of_transformers_have_edges():
    x = jnp.zeros((1, 2, 6))
    for options, told in (
        ({"layers": 0}, "layers=0"),
        ({"heads": 0}, "heads=0"),
        ({"ratio": 0}, "ratio=0"),
        ({"heads": 4}, "a multiple of 4"),
    ):
        with pytest.raises(ValueError, match=told):
            jax.eval_shape(lambda o=options: Transformer(**o).init(jax.random.key(0), x))
    with pytest.raises(ValueError, match=r"must be \[B, N, d\]"):
        jax.eval_shape(lambda: Transformer(heads=2).init(jax.random.key(0), x[0]))


def test_panels_become_tokens():
    """Pixels are turned and halved three times; symbols are looked up in a table of each place."""
    found = shapes(PanelPixels(10, (4, 8)), jnp.zeros((3, 8, 12)))
    assert found["Conv_0"]["kernel"] == (3, 3, 1, 4)
    assert found["Conv_1"]["kernel"] == (3, 3, 4, 8)
    assert found["Dense_0"]["kernel"] == (2 * 3 * 8, 10)
    model = PanelSymbols(width=2, levels=3)
    x = jnp.array([[[0, 1, 2, 0], [1, 1, 0, 2]]])
    table = jnp.arange(48.0).reshape(24, 2)
    found = model.apply({"params": {"Embed_0": {"embedding": table}}}, x)
    rows = [0, 3 + 1, 6 + 2, 9 + 0, 12 + 1, 15 + 1, 18 + 0, 21 + 2]
    np.testing.assert_array_equal(found, table[jnp.array(rows)].sum(0)[None])
