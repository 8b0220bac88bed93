import jax
import numpy as np
import pytest

from benchmarks.common.cifar import DATA, pictures, resnet
from jaxsim.data import read_torch_weights

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="shared/data/analog is not there")


@pytest.fixture(scope="module")
def images():
    return pictures()


def in_torch(torch, weights, x):
    """The network as PyTorch's functions compute it from the file's own tensors."""
    F = torch.nn.functional
    w = {name: torch.tensor(array) for name, array in weights.items()}

    def norm(x, name, eps=1e-5):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(w[f"{name}.{n}"] for n in names), eps=eps)

    x = F.relu(norm(F.conv2d(x, w["conv1.weight"], padding=1), "bn1", 1e-3))
    for name in dict.fromkeys(k.rsplit(".", 2)[0] for k in w if k.startswith("res")):
        if name.endswith("downsample"):
            continue
        first = name.startswith(("res2.0", "res3.0"))
        stride = 2 if first else 1
        y = F.conv2d(x, w[f"{name}.conv1.weight"], stride=stride, padding=1)
        y = F.conv2d(F.relu(norm(y, f"{name}.bn1")), w[f"{name}.conv2.weight"], padding=1)
        y = norm(y, f"{name}.bn2")
        if first:
            x = F.conv2d(x, w[f"{name}.downsample.0.weight"], stride=stride)
            x = norm(x, f"{name}.downsample.1")
        x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), w["classifier.2.weight"], w["classifier.2.bias"])


@pytest.mark.parametrize(("depth", "right"), [(14, 795), (20, 807)])
def test_trained_networks_classify_as_they_do_in_torch(images, depth, right):
    """So what they lose against their published accuracy lies in the images, not in the port."""
    y = np.asarray(jax.jit(resnet(depth))(images.images))
    assert np.sum(y.argmax(-1) == images.labels) == right
    torch = pytest.importorskip("torch")
    weights = read_torch_weights(DATA / f"resnet{depth}_cifar10.pth")
    with torch.no_grad():
        theirs = in_torch(torch, weights, torch.tensor(images.images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(y, theirs.numpy(), atol=5e-5)
