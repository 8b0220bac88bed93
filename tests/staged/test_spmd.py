"""One program for all devices, which here is one; `test_devices.py` has several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.models import normal
from tests.support.pipelines import furthest

ONE = jax.devices()[:1]


@functools.cache
def net():
    """A layer, two equal ones that read a row of numbers each and one for all, and an end."""

    def model(p, bias, scale, x):
        x = jnp.sin(x @ p["first"])
        for w in p["equal"]:
            x = jnp.tanh(x @ w * scale + bias)
        return {"rows": (x @ p["last"]) * scale + bias[:, :2], "across": x.T, "mean": x.mean()}

    params = {
        "first": normal(3, 5, seed=1),
        "equal": [normal(5, 5, seed=i) for i in (2, 3)],
        "last": normal(5, 2, seed=6),
    }
    return js.trace(model, params, *inputs())


def inputs():
    return normal(12, 5, seed=7), jnp.float32(0.7), normal(12, 3, seed=8)


def pipe(microbatches, **settings):
    return js.pipeline_shard(1, microbatches, engine="spmd", devices=ONE, **settings)(net())


def test_outputs_are_the_networks_along_any_axis():
    found, expected = pipe(3)(*inputs()), net()(*inputs())
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def squares(y, target):
    return jnp.mean((y["rows"] - target) ** 2) + jnp.mean(y["across"] ** 2)


def test_losses_of_micro_batches_are_added():
    """Three of equal size: their sum is three times their mean."""
    target = normal(12, 2, seed=9)
    step = js.pipeline_value_and_grad(pipe(3, remat="none"), squares, reduction="sum")
    found = step(net().params, (inputs(), target))

    def whole(params):
        return 3 * squares(net().fn(params, net().buffers, *inputs()), target)

    expected = jax.value_and_grad(whole)(net().params)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    assert furthest(found[1], expected[1]) < 1e-5


def test_a_policy_says_what_blocks_keep():
    asked: list[str] = []

    def policy(primitive, *_, **__):
        asked.append(primitive.name)
        return False

    target = normal(12, 2, seed=9)
    found, expected = (
        js.pipeline_value_and_grad(pipe(3, remat=remat), squares)(net().params, (inputs(), target))
        for remat in (policy, "none")
    )
    assert {"dot_general", "tanh"} <= {*asked}
    assert furthest(found[1], expected[1]) < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "1f1b"}, "schedule='1f1b': engine='spmd' differentiates its forward"),
        ({"devices": ONE * 2, "stages": 2}, "needs as many different devices as it uses"),
    ],
)
def test_what_one_program_cannot_do_is_refused_by_name(settings, message):
    settings = {"stages": 1, "devices": ONE, "microbatches": 3, **settings}
    with pytest.raises(ValueError, match=message):
        js.pipeline_shard(engine="spmd", **settings)(net())


def test_keys_are_refused():
    with pytest.raises(ValueError, match=r"engine='spmd' takes no key and no mutable="):
        pipe(3)(*inputs(), key=jax.random.key(0))


def test_blocks_of_other_hardware_are_refused():
    mixed = js.quantize(8, None, sites="equal/1")(net())
    made = js.pipeline_shard(1, 3, engine="spmd", devices=ONE)(mixed)
    with pytest.raises(ValueError, match="the blocks differ in their hardware"):
        made(*inputs())
