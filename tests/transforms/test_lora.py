import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsim as js
from jaxsim.train import adapter_marks, fit, only
from tests.support.models import normal
from tests.support.networks import X, attention, cnn, run, stack

KEY = jax.random.key(0)
ROWS = normal(6, 4, seed=9)


def filled(net, seed=3):
    """A network whose adapters are not zero."""
    held = js.adapters(net).items()
    drawn = {n: normal(*a.shape, seed=seed + i) / 4 for i, (n, a) in enumerate(held)}
    return js.with_adapters(net, drawn)


@functools.cache
def stacked():
    return js.lora(2, KEY)(stack())


def test_at_first_a_network_computes_what_it_did():
    coded = js.quantize(4, 8)(stack())
    np.testing.assert_array_equal(run(js.lora(2, KEY)(coded), ROWS), run(coded, ROWS))
    # in floats XLA may sum in another order
    np.testing.assert_allclose(run(stacked(), ROWS), run(stack(), ROWS), rtol=1e-5, atol=1e-7)


def test_each_slice_of_a_stack_has_its_own_product_of_low_rank():
    net = filled(stacked())
    held, x = js.adapters(net), np.asarray(ROWS)
    assert held["w down"].shape == (3, 1, 4, 2)
    assert held["w up"].shape == (3, 1, 2, 4)
    added = {n: np.asarray(held[f"{n} down"] @ held[f"{n} up"]) for n in ("w", "head")}
    for i in range(3):
        x = np.tanh(x @ (np.asarray(stack().params["w"][i]) + added["w"][i, 0]))
    expected = x @ (np.asarray(stack().params["head"]) + added["head"][0])
    np.testing.assert_allclose(run(net, ROWS), expected, rtol=1e-4, atol=1e-5)


def test_convolutions_have_adapters_and_merging_gives_the_same_network():
    net = filled(js.lora(2, KEY)(cnn()))
    merged = js.merge_adapters(net)
    assert not js.adapters(merged)
    np.testing.assert_array_equal(
        merged.params["Conv_0"]["kernel"], cnn().params["Conv_0"]["kernel"]
    )
    exact = run(net, X)
    assert np.abs(exact - run(cnn(), X)).max() > 0.01
    np.testing.assert_allclose(run(merged, X), exact, rtol=1e-4, atol=1e-5)
    again = js.merge_adapters(filled(stacked()))
    np.testing.assert_allclose(run(again, ROWS), run(filled(stacked()), ROWS), rtol=1e-4, atol=1e-5)
    # what is merged is then stored as any weight
    fine = js.deploy(js.quantize(8, None)(again))
    np.testing.assert_allclose(run(fine, ROWS), run(again, ROWS), atol=0.05)


def memory(transform, layers, width):
    """Bytes of a step of adapters of a stack of layers, beside what it is given."""
    w = normal(layers, width, width) / width**0.5

    def model(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    x = normal(2, width)
    net = js.lora(2, KEY)(transform(js.trace(model, w, x)))
    chip = js.deploy(net, calibrate=x, keep_floats=False)

    def loss(held):
        return jnp.sum(js.with_adapters(chip, held)(x) ** 2)

    compiled = jax.jit(jax.grad(loss)).lower(js.adapters(chip)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("forms", [(4, None), (8, 8), (js.nf4(), None), (js.nvfp4(), js.nvfp4())])
def test_a_step_keeps_no_floats_of_a_stack_of_codes(forms):
    """A layer more takes its activations and slopes of its adapters, not its weight."""
    transform = js.quantize(*forms)
    few, many = (memory(transform, layers, 64) for layers in (2, 8))
    assert many - few < 6 * 64 * 64 * 4 / 2


def test_a_step_that_keeps_what_a_derivative_reads_keeps_floats(monkeypatch):
    """The control."""
    monkeypatch.setattr("jaxsim.network.site_call._is_short", lambda state: False)
    few, many = (memory(js.quantize(4, None), layers, 48) for layers in (2, 8))
    assert many - few > 6 * 48 * 48 * 4


def loss(y, target):
    return jnp.mean((y - target) ** 2)


TARGET = np.asarray(normal(6, 2, seed=11))
TRAIN = {"epochs": 20, "key": KEY, "batch_size": 6, "loss": loss, "quiet": True}


def test_over_codes_adapters_train_and_codes_stay():
    chip = js.deploy(js.lora(2, KEY)(js.quantize(4, None)(stack())), keep_floats=False)
    assert set(chip.unheld) == {"w", "head"}
    found = fit(chip, ROWS, TARGET, optimizer=optax.adam(0.02), **TRAIN)
    for a, b in zip(jax.tree.leaves(chip.states), jax.tree.leaves(found.states), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loss(run(found, ROWS), TARGET) < 0.5 * loss(run(chip, ROWS), TARGET)


def test_in_floats_adapters_alone_train_where_that_is_asked_and_else_all():
    net = js.lora(2, KEY)(js.quantize(4, None)(stack()))
    found = fit(net, ROWS, TARGET, optimizer=only(optax.adam(0.02), adapter_marks(net)), **TRAIN)
    for a, b in zip(jax.tree.leaves(net.params), jax.tree.leaves(found.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loss(run(found, ROWS), TARGET) < 0.5 * loss(run(net, ROWS), TARGET)
    both = fit(net, ROWS, TARGET, optimizer=optax.adam(0.02), **{**TRAIN, "epochs": 1})
    assert (both.params["w"] != net.params["w"]).any()
    assert (js.adapters(both)["w up"] != 0).any()


def test_quantizing_behind_adapters_leaves_them_floats_and_so_do_arrays():
    first = js.analog()(js.quantize(8, 8)(filled(stacked())))
    last = filled(js.lora(2, KEY)(js.analog()(js.quantize(8, 8)(stack()))))
    for net in (first, last):
        assert js.adapters(net).keys() == js.adapters(stacked()).keys()
        chip = js.deploy(net, calibrate=ROWS)
        np.testing.assert_allclose(run(chip, ROWS), run(filled(stacked()), ROWS), atol=0.2)


def test_adapters_of_other_numbers_share_a_program():
    traced = []

    @jax.jit
    def call(net, x):
        traced.append(1)
        return net(x)

    answers = [call(filled(stacked(), seed), ROWS) for seed in (3, 5, 7)]
    assert len(traced) == 1
    assert np.abs(answers[0] - answers[1]).max() > 0.01


def test_pruning_and_gptq_compose_with_adapters():
    net = js.round_weights(js.rounding.gptq(), normal(20, 4))(
        js.quantize(4, None)(js.prune(0.25)(stacked()))
    )
    assert js.adapters(net).keys() == js.adapters(stacked()).keys()
    assert float(net.masks["w"].mean()) < 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: js.lora(0, KEY), "rank=0"),
        (lambda: js.lora(1.5, KEY), "rank=1.5"),
        (lambda: js.lora(1, None), "key=None"),
        (lambda: js.lora(1, KEY)(stacked()), "has an adapter already"),
        (lambda: js.lora(1, KEY, sites="dynamic*")(attention()), "no weight to add to"),
        (lambda: js.lora(1, KEY)(js.deploy(js.quantize(8, None)(stack()))), "cannot follow deploy"),
        (lambda: js.with_adapters(stacked(), {}), "values: expected"),
        (lambda: js.merge_adapters(stack()), "no adapters"),
        (lambda: js.merge_adapters(js.quantize(8, None)(stacked())), "holds its weights"),
        (lambda: adapter_marks(stack()), "no adapters"),
        (
            lambda: fit(
                js.deploy(js.quantize(8, None)(stack())),
                ROWS,
                TARGET,
                optimizer=optax.sgd(1),
                **TRAIN,
            ),
            "js.lora",
        ),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
