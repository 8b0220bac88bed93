"""Bytes and operations of unequal stages, counted by hand.

Micro-batches of 6 rows through x[6, 3] @ a[3, 5] | sin(· @ b[5, 4]) @ c[4, 2] | · @ d[2, 7].
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.network.stages import StageParams
from jaxsim.pipeline import memory
from jaxsim.pipeline.memory import MemoryTable, StageMemory, StageRow, StageTable, nbytes
from tests.support.printed import header, rows

ONE = jax.devices()[:1]


def pipe(microbatches=4, **settings):
    def model(p, x):
        return jnp.sin(x @ p["a"] @ p["b"]) @ p["c"] @ p["d"]

    shapes = {"a": (3, 5), "b": (5, 4), "c": (4, 2), "d": (2, 7)}
    net = js.trace(
        model, {name: jnp.ones(shape) for name, shape in shapes.items()}, jnp.ones((24, 3))
    )
    settings = {"balance": ["b", "d"], **settings}
    return js.pipeline_shard(3, microbatches, devices=ONE * 3, **settings)(net)


def test_stages_are_what_the_hand_counts():
    """A product of [6, K] and [K, N] is 12 K N operations, a sine one an entry."""
    assert pipe().stages == StageTable(
        (
            StageRow("a", 1, 12 * 3 * 5, 3 * 5, 4 * 6 * 3, tuple(ONE)),
            StageRow("b", 3, 12 * 5 * 4 + 6 * 4 + 12 * 4 * 2, 5 * 4 + 4 * 2, 4 * 6 * 5, tuple(ONE)),
            StageRow("d", 1, 12 * 2 * 7, 2 * 7, 4 * 6 * 2, tuple(ONE)),
        ),
        micro=6,
    )


# Beyond its inputs the middle stage keeps the sine, which c multiplies, and its derivative, the
# cosine: 2 · 4 · 6 · 4 bytes; with a policy that saves products, b's alone.
ENTER, INSIDE, PRODUCT = (72, 120, 48), (0, 192, 0), (0, 96, 0)
FLOPS = (180, 360, 168)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(
    ("remat", "times", "kept", "inside"),
    [
        ("boundary", 3, ENTER, INSIDE),
        ("none", 2, tuple(map(sum, zip(ENTER, INSIDE, strict=True))), (0, 0, 0)),
        (
            jax.checkpoint_policies.dots_saveable,
            3,
            tuple(map(sum, zip(ENTER, PRODUCT, strict=True))),
            (0, 0, 0),
        ),
    ],
)
def test_a_simulated_step_takes_the_times_and_bytes_of_its_stages(
    schedule, remat, times, kept, inside
):
    found = js.simulate_schedule(pipe(schedule=schedule, remat=remat))
    flights = {"gpipe": (4, 4, 4), "1f1b": (3, 2, 1)}[schedule]
    assert found.in_flight == flights
    assert found.peak_bytes == tuple(
        n * k + i for n, k, i in zip(flights, kept, inside, strict=True)
    )
    lasting = {(t.stage, t.backward): t.end - t.start for t in found.tasks}
    forward = {(k, False): n for k, n in enumerate(FLOPS)}
    assert lasting == {**forward, **{(k, True): times * n for k, n in enumerate(FLOPS)}}


def test_a_simulated_step_follows_the_batch_given():
    """Of 8 rows, micro-batches have 2: a third of the bytes and operations."""
    found = js.simulate_schedule(pipe(), jnp.ones((8, 3)))
    assert found.peak_bytes == tuple(
        4 * e // 3 + i // 3 for e, i in zip(ENTER, INSIDE, strict=True)
    )
    assert found.tasks[0].end == 60


def test_a_stage_without_operations_takes_a_moment():
    """Products without a width are none: a forward of one and its backward of three."""
    net = js.trace(
        lambda p, x: x @ p[0] @ p[1], [jnp.ones((3, 0)), jnp.ones((0, 2))], jnp.ones((4, 3))
    )
    timeline = js.simulate_schedule(js.pipeline_shard(1, 1, devices=ONE)(net))
    assert [t.end - t.start for t in timeline.tasks] == [1, 3]


@pytest.mark.parametrize(
    ("first", "second", "larger"),
    [
        ((1000, 1), (10, 1), (1000, 168)),
        ((10, 1), (1000, 1), (1000, 72)),
        ((5, 1), (90, 1), (5, 168)),
    ],
)
def test_memory_is_of_the_larger_program_with_what_it_returns(monkeypatch, first, second, larger):
    """The forward returns 168 bytes, and keeps 40 beyond the 72 that enter; the backward 72.

    With temporaries of 5 and 90 bytes the forward's 173 beat the backward's 162.
    """

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, np.float32)

    def program(temporary, out):
        compiled = types.SimpleNamespace(
            memory_analysis=lambda: types.SimpleNamespace(temp_size_in_bytes=temporary)
        )
        return types.SimpleNamespace(out_info=out, compile=lambda: compiled)

    keep = program(first[0], ([shape(6, 7)], [shape(10)]))
    backward = program(second[0], ({"a": shape(3, 5)}, [shape(6, 3)]))
    own = StageParams({"a": shape(3, 5), "b": shape(2)}, {}, (), {}, {})
    inputs = types.SimpleNamespace(live=[shape(6, 2)], arguments=[shape(6)])
    monkeypatch.setattr(memory, "input_shapes", lambda net, cut, program, taps: (own, inputs))
    stage = types.SimpleNamespace(
        differentiated=(0,),
        keep=types.SimpleNamespace(lower=lambda *given: keep),
        backward=types.SimpleNamespace(lower=lambda *given: backward),
        zeros=lambda own: {"adapters": jnp.zeros(9)},
    )
    found = memory.stage_memory(None, None, stage, 5)
    assert found == StageMemory(68, 36, 72 + 40, 5, *larger)


def test_compiled_stages_have_the_parameters_and_boundaries_of_the_hand():
    table = pipe(schedule="1f1b").memory()
    assert (table.microbatches, table.micro) == (4, 6)
    assert [row.params for row in table.rows] == [60, 112, 56]
    assert [row.gradients for row in table.rows] == [60, 112, 56]
    assert [row.kept for row in table.rows] == [*ENTER]
    assert [row.in_flight for row in table.rows] == [3, 2, 1]
    into, back = (120, 48, 168), (0, 120, 48)
    assert all(row.results in ends for row, *ends in zip(table.rows, into, back, strict=True))


def test_one_program_has_no_stages_to_measure():
    import dataclasses

    made = pipe()
    layout = made.layout._replace(engine="spmd")
    with pytest.raises(ValueError, match="engine='spmd' has one program and no stages of its own"):
        dataclasses.replace(made, layout=layout).memory()


ROWS = (StageMemory(2, 3, 5, 7, 11, 13), StageMemory(1700, 19, 23, 29, 31, 37))


def test_the_peak_is_of_everything_and_of_the_largest_stage():
    assert [row.activations for row in ROWS] == [5 * 7 + 11 + 13, 23 * 29 + 31 + 37]
    assert [row.peak for row in ROWS] == [2 + 3 + 59, 1700 + 19 + 735]
    assert MemoryTable(ROWS, 4, 6).peak == MemoryTable(ROWS[::-1], 4, 6).peak == 2454


def test_the_printed_memory_says_each_number_in_its_column():
    shown = str(MemoryTable(ROWS, 4, 6))
    assert "bytes of one step · 4 micro-batches of 6" in shown
    names = ["params", "gradients", "kept", "in flight", "temporary", "results", "peak"]
    assert header(shown) == ["stage", *names]
    assert rows(shown) == [
        ["0", "2", "3", "5", "7", "11", "13", "64"],
        ["1", "1.7 k", "19", "23", "29", "31", "37", "2.45 k"],
    ]


def test_the_printed_stages_say_each_number_in_its_column():
    table = StageTable(
        (StageRow("a", 2, 3000, 5, 7, ("x", "y")), StageRow("b", 11, 13, 17, 19, ("z",))), 6
    )
    assert "stages · micro-batches of 6" in str(table)
    columns = ["begins with", "equations", "FLOPs", "params", "boundary bytes", "devices"]
    assert header(table) == columns
    assert rows(table) == [["a", "2", "3 k", "5", "7", "x, y"], ["b", "11", "13", "17", "19", "z"]]


@pytest.mark.parametrize(
    ("dtype", "each"), [("float32", 4), ("bfloat16", 2), ("int8", 1), ("bool", 1), ("complex64", 8)]
)
def test_bytes_are_those_of_the_type(dtype, each):
    assert nbytes(jax.ShapeDtypeStruct((2, 3, 5), jnp.dtype(dtype))) == 30 * each
    assert nbytes(jax.ShapeDtypeStruct((), jnp.dtype(dtype))) == each


def test_a_random_key_takes_eight_bytes():
    assert nbytes(jax.random.split(jax.random.key(0), 3)) == 24
