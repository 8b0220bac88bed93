"""What masks leave empty goes, and what it still emits goes into the layers behind it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.models import normal
from tests.support.networks import run
from tests.support.variables import initial

X = normal(2, 6, 6, 3)


def net_of(module, x=X, scale=1.0):
    def moved(p):
        return jnp.asarray(p + scale * np.abs(normal(*p.shape, seed=p.size)))

    variables = jax.tree.map(np.asarray, initial(module, x))
    return js.trace(module, jax.tree.map(moved, variables), x)


def masked(net, **empty):
    """The network with the outputs of kernels masked: module and indices of its channels."""
    masks = {}
    for name, channels in empty.items():
        mask = np.ones(net.params[name]["kernel"].shape, bool)
        mask[..., channels] = False
        masks[f"{name}/kernel"] = jnp.asarray(mask)
    return dataclasses.replace(net, masks=masks)


def close(small, net, x=X):
    for inputs in (x, 3 * x - 1):
        y, z = (np.asarray(run(n, inputs)) for n in (net, small))
        assert np.abs(y - z).max() <= 2e-5 * np.abs(y).max()


class Inverted(nn.Module):
    """As in EfficientNet-lite: expansion, depthwise, projection, each before a batch norm."""

    @nn.compact
    def __call__(self, x):
        def norm(x):
            return nn.BatchNorm(use_running_average=True)(x)

        x = nn.relu6(norm(nn.Conv(8, (1, 1), use_bias=False, name="expand")(x)))
        x = nn.relu6(
            norm(nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False, name="depth")(x))
        )
        x = norm(nn.Conv(4, (1, 1), use_bias=False, name="project")(x))
        return nn.Dense(3)(x.mean((1, 2)))


def test_an_empty_depthwise_channel_goes_though_the_kernel_before_it_is_live():
    net = net_of(Inverted())
    loud = net.params["BatchNorm_1"] | {"bias": jnp.linspace(2.0, 5.0, 8)}
    net = masked(dataclasses.replace(net, params=net.params | {"BatchNorm_1": loud}), depth=[1, 6])
    small = js.shrink()(net)
    assert small.params["depth"]["kernel"].shape == (3, 3, 1, 6)
    assert small.params["expand"]["kernel"].shape == (1, 1, 3, 6)
    assert small.params["project"]["kernel"].shape == (1, 1, 6, 4)
    close(small, net)
    # a control: its constant is not nothing
    bare = js.shrink(keep={"expand/kernel:3": [0, 2, 3, 4, 5, 7]})(net)
    y, z = (np.asarray(run(n, X)) for n in (net, bare))
    assert np.abs(z - y).max() > 1e-3 * np.abs(y).max()


def test_the_bias_of_an_empty_channel_goes_into_the_next_one():
    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(6, name="a")(x.reshape(len(x), -1)))
            return nn.Dense(3, name="b")(x)

    net = masked(net_of(Mlp()), a=[0, 4])
    small = js.shrink()(net)
    assert small.params["a"]["kernel"].shape == (108, 4)
    emitted = np.maximum(np.asarray(net.params["a"]["bias"])[[0, 4]], 0)
    kernel, bias = (np.asarray(net.params["b"][k]) for k in ("kernel", "bias"))
    np.testing.assert_allclose(
        small.params["b"]["bias"], bias + emitted @ kernel[[0, 4]], rtol=1e-5
    )
    close(small, net)


def test_a_constant_that_padding_cuts_off_stays_and_says_so():
    class Padded(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(6, (3, 3), name="a")(x))
            return nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3), name="b")(x)).mean((1, 2)))

    whole = net_of(Padded())
    net = masked(whole, a=[2], b=[1])
    with pytest.warns(UserWarning, match=r"a/kernel:3\[2\] are empty and stay"):
        small = js.shrink()(net)
    assert small.params["a"]["kernel"].shape[-1] == 6
    assert small.params["b"]["kernel"].shape[-1] == 3
    close(small, net)
    assert js.shrink(exact=False)(net).params["a"]["kernel"].shape[-1] == 5
    # without a bias it emits nothing, and goes
    bias = whole.params["a"]["bias"].at[2].set(0)
    params = {**whole.params, "a": {**whole.params["a"], "bias": bias}}
    quiet = masked(dataclasses.replace(whole, params=params), a=[2], b=[1])
    small = js.shrink()(quiet)
    assert small.params["a"]["kernel"].shape[-1] == 5
    close(small, quiet)


def test_a_channel_that_a_sum_keeps_alive_stays():
    class Sum(nn.Module):
        @nn.compact
        def __call__(self, x):
            a, b = (nn.Conv(6, (1, 1), name=name)(x) for name in "ab")
            return nn.Dense(3)(nn.relu(a + b).mean((1, 2)))

    net = masked(net_of(Sum()), a=[0, 1], b=[1, 2])
    small = js.shrink()(net)
    assert small.params["a"]["kernel"].shape[-1] == 5
    close(small, net)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize(("share", "left"), [(0.5, 4), (0.25, 6), (0.75, 2)])
def test_a_convolution_in_groups_keeps_the_share_that_is_asked_for(groups, share, left):
    """Torch-Pruning's answer at a half: 4 of 8."""

    class Grouped(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (1, 1), name="before")(x))
            x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=groups, name="grouped")(x))
            return nn.Dense(3)(nn.Conv(4, (1, 1), name="after")(x).mean((1, 2)))

    net = net_of(Grouped())
    small = js.shrink(share, groups=["before*", "grouped*"])(net)
    assert small.params["grouped"]["kernel"].shape[-1] == left
    assert small.params["before"]["kernel"].shape[-1] == left
    assert small.params["after"]["kernel"].shape[2] == left
    assert np.isfinite(small(X)).all()


def test_a_size_that_switches_the_models_own_shortcut_on_is_not_taken():
    class Shortcut(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x.reshape(len(x), -1)[:, :8]
            y = nn.relu(nn.Dense(16, name="a")(x))
            if y.shape == x.shape:
                y = y + x
            return nn.Dense(3, name="b")(y)

    net = net_of(Shortcut())
    small = js.shrink(0.5)(net)
    size = small.params["a"]["kernel"].shape[-1]
    assert size in (7, 9)
    found = js.dependencies(net)
    assert not next(g for g in found.groups if g.size == 16).reason
    assert js.shrink(0.25)(net).params["a"]["kernel"].shape[-1] == 12
    with pytest.raises(ValueError, match="outputs would change"):
        js.shrink(keep={"a/kernel:1": range(8)})(net)
