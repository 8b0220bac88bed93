"""Which rows run when: batches by hand, and the noise that each draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import jaxsim as js
from jaxsim.network.arguments import call_arguments
from jaxsim.staged import exit_queue
from jaxsim.staged.passes import at_exits


def net():
    """Three stages of a row of numbers each; classifiers that say nothing."""
    params = {n: jnp.eye(3) for n in "abc"}

    def model(p, x):
        for n in "abc":
            x = jnp.tanh(x @ p[n])
        return x

    return js.exit_early(["b", "c"])(js.trace(model, params, jnp.ones((4, 3))))


def ran(monkeypatch, rows, buckets, gone=lambda at, ids: np.zeros(len(ids), bool)):
    """The stages and rows of each step, where a function of them says who leaves."""
    steps, made = [], exit_queue.stepper

    def stepper(*given):
        step = made(*given)

        def recorded(at, which, *given):
            steps.append((at, [int(i) for i in which]))
            out = step(at, which, *given)
            return out._replace(answer=out.answer._replace(leave=gone(at, which)))

        return recorded

    monkeypatch.setattr(exit_queue, "stepper", stepper)
    x = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3) / (3 * rows)
    return steps, net().run(x, buckets=js.Buckets(**buckets)), x


def test_the_latest_full_batch_runs_first_and_the_rest_in_order(monkeypatch):
    """Ten rows in batches of four, of which none leaves: four to the end, four more, then two."""
    steps, out, _ = ran(monkeypatch, 10, {"batch": 2, "max_batch": 4})
    first, second, rest = [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]
    assert steps == [(at, ids) for ids in (first, second, rest) for at in range(3)]
    assert out.layer.tolist() == [3] * 10


def test_rows_wait_for_a_full_batch_and_are_filled_up_at_the_end(monkeypatch):
    """Odd rows leave at the first exit: two steps of three there fill one of the second.

    Of batches of at most 4 in buckets of 3 there is one size, 3.
    """
    steps, out, x = ran(
        monkeypatch,
        9,
        {"batch": 3, "max_batch": 4},
        lambda at, ids: ids % 2 == (1 if at == 0 else 2),
    )
    assert steps == [
        (0, [0, 1, 2]),
        (0, [3, 4, 5]),
        (1, [0, 2, 4]),
        (2, [0, 2, 4]),
        (0, [6, 7, 8]),
        (1, [6, 8, 6]),
        (2, [6, 8, 6]),
    ]
    assert out.layer.tolist() == [3, 1] * 4 + [3]
    np.testing.assert_allclose(out.logits[::2], np.tanh(np.tanh(np.tanh(x[::2]))), atol=1e-6)
    assert np.isnan(out.uncertainty[1::2, 1:]).all()
    assert not np.isnan(out.uncertainty[::2]).any()


def test_where_no_batch_is_full_the_first_stage_goes_on(monkeypatch):
    """Three rows and two: those of the first batch that stay wait for one of the second."""

    def odd(at, ids):
        return (ids % 2 == 1) & (at == 0)

    steps, _, _ = ran(monkeypatch, 5, {"batch": 3, "max_batch": 3}, odd)
    assert steps == [(0, [0, 1, 2]), (0, [3, 4, 3]), (1, [0, 2, 4]), (2, [0, 2, 4])]


def test_a_stage_that_all_leave_sends_nothing_on(monkeypatch):
    steps, out, _ = ran(
        monkeypatch, 3, {"batch": 2, "max_batch": 2}, lambda at, ids: np.ones(len(ids), bool)
    )
    assert steps == [(0, [0, 1]), (0, [2, 2])]
    assert out.layer.tolist() == [1, 1, 1]


def test_batches_draw_read_noise_of_their_own():
    """Equal rows in two batches: their errors differ, and the key alone decides them."""
    made = js.compose(
        js.quantize(8, None, sites="b"),
        js.analog(cells=js.cells.independent(0.0, noise=0.2), sites="b"),
    )(net())
    x = np.tile(np.float32([0.3, -0.2, 0.5]), (4, 1))
    chip = js.deploy(made, key=jax.random.key(0), calibrate=x)
    buckets = js.Buckets(batch=2, max_batch=2)
    first, again, other = (
        np.asarray(chip.run(x, buckets=buckets, key=jax.random.key(i)).logits) for i in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first[:2] - first[2:]).max() > 1e-3
    told, again, other = (
        at_exits(chip, call_arguments((x,), {}), 2, jax.random.key(i))[-1] for i in (1, 1, 2)
    )
    np.testing.assert_array_equal(told, again)
    assert np.abs(told - other).max() > 1e-3
    assert np.abs(told[:2] - told[2:]).max() > 1e-3


def test_a_threshold_is_read_at_each_call():
    made = net()
    x = jnp.ones((2, 3))
    for threshold, layer in ((0.5, 3), (1.5, 1)):
        faster = dataclasses.replace(made, threshold=threshold)
        assert faster.run(x, buckets=js.Buckets(batch=2, max_batch=2)).layer.tolist() == [layer] * 2
