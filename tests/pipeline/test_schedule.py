"""The simulated schedule has the bubble of the formula and the order that data allow."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsim.pipeline.plot import gantt
from jaxsim.pipeline.schedule import Durations, Step, run_through, simulate, steps_of
from tests.oracles import schedules
from tests.support.printed import header, rows

WHOLE = ("gpipe", "1f1b")
"""Those whose devices run one stage and whose backwards are one task."""
KINDS = {"gpipe": 1, "1f1b": 1, "zb-h1": 1, "interleaved": 2}
"""All, with the stages that a device runs here."""
sizes = st.integers(1, 9)


@given(st.sampled_from(WHOLE), sizes, sizes, st.integers(1, 5), st.integers(1, 5))
def test_the_bubble_of_equal_stages_is_that_of_the_paper(schedule, K, M, forward, backward):
    found = simulate(schedule, M, [forward] * K, [backward] * K, [0] * K, [0] * K)
    assert found.bubble == float(Fraction(K - 1, M + K - 1))
    assert found.ticks == float(Fraction((M + K - 1) * (forward + backward), forward))


@given(sizes, st.integers(2, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_devices_of_several_stages_wait_as_much_less_as_they_have(D, chunks, rounds, f, b):
    """(D - 1) / V forwards and backwards of a device, of M (Narayanan et al. 2021, section 2.2)."""
    K, M = D * chunks, D * rounds
    found = simulate("interleaved", M, [f] * K, [b] * K, [0] * K, [0] * K, chunks=chunks)
    assert found.devices == D
    assert found.bubble == float(Fraction(D - 1, M * chunks + D - 1))
    assert found.ticks == float(Fraction((M * chunks + D - 1) * (f + b), f))


@given(sizes, sizes, st.integers(1, 4))
def test_backwards_in_two_halves_wait_for_one_of_three(K, more, unit):
    """(K - 1)(F + B - W) where 1F1B waits (K - 1)(F + B + W), in no more memory: table 1 of the
    paper, for halves as long as a forward, its assumption."""
    M, none = K - 1 + more, [0] * K
    forward, backward = [unit] * K, [2 * unit] * K
    found = simulate("zb-h1", M, forward, backward, none, none)
    early = simulate("1f1b", M, forward, backward, none, none)
    assert found.bubble == float(Fraction(K - 1, 3 * M + K - 1))
    assert early.bubble == float(Fraction(3 * (K - 1), 3 * M + 3 * (K - 1)))
    assert max(found.in_flight) == max(early.in_flight) == min(K, M)
    assert found.in_flight == (min(K, M),) * K


stage_durations = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3)).map(
    lambda d: (d[0], d[1] + d[2], d[2])
)


@given(st.data())
@pytest.mark.parametrize("schedule", KINDS)
def test_every_task_runs_once_after_what_it_needs_and_alone_on_its_device(schedule, data):
    chunks = KINDS[schedule]
    D = data.draw(st.integers(1, 4))
    K = D * chunks
    M = data.draw(sizes) * (D if chunks > 1 else 1)
    durations = Durations(*zip(*(data.draw(stage_durations) for _ in range(K)), strict=True))
    tasks = run_through(schedule, M, durations, chunks)
    when = {(t.stage, t.microbatch, t.backward, t.part): t for t in tasks}
    parts = ("inputs", "weights") if schedule == "zb-h1" else ("all",)
    assert len(when) == len(tasks) == (1 + len(parts)) * K * M
    assert tasks == sorted(tasks, key=lambda t: (t.start, t.stage))
    for (k, m, backward, part), task in when.items():
        forward, whole, weights = (d[k] for d in durations)
        lasts = {"all": whole, "inputs": whole - weights, "weights": weights}[part]
        assert task.end - task.start == (lasts if backward else forward)
        before = [(k - 1, m, False, "all")]
        if backward:
            before = [(k, m, False, "all"), (k + 1, m, True, parts[0])]
        if part == "weights":
            before = [(k, m, True, "inputs")]
        assert all(when[b].end <= task.start for b in before if b in when)
    for d in range(D):
        mine = [t for t in tasks if t.stage % D == d]
        assert all(a.end <= b.start for a, b in itertools.pairwise(mine))


@given(sizes, sizes)
def test_gpipe_keeps_all_micro_batches_and_1f1b_those_of_the_stages_after(K, M):
    ones, none = [1] * K, [0] * K
    bytes_kept = [10 * (k + 1) for k in range(K)]
    gpipe = simulate("gpipe", M, ones, ones, bytes_kept, [3] * K)
    early = simulate("1f1b", M, ones, ones, bytes_kept, none)
    assert gpipe.in_flight == (M,) * K
    assert gpipe.peak_bytes == tuple(M * b + 3 for b in bytes_kept)
    assert early.in_flight == tuple(min(M, K - k) for k in range(K))


def test_a_slow_stage_makes_the_others_wait():
    even = simulate("gpipe", 8, [2, 2], [4, 4], [0, 0], [0, 0])
    odd = simulate("gpipe", 8, [1, 3], [2, 6], [0, 0], [0, 0])
    assert odd.bubble > even.bubble
    assert "bubble" in str(odd)


def test_a_gantt_chart_is_drawn(tmp_path):
    gantt(tmp_path / "out" / "step.png", simulate("1f1b", 6, [1] * 3, [2] * 3, [1] * 3, [1] * 3))
    assert (tmp_path / "out" / "step.png").read_bytes().startswith(b"\x89PNG")


HAND = {
    "gpipe": [
        (0, 0, False, 0, 2),
        (0, 1, False, 2, 4),
        (1, 0, False, 2, 5),
        (0, 2, False, 4, 6),
        (1, 1, False, 5, 8),
        (1, 2, False, 8, 11),
        (1, 2, True, 11, 18),
        (0, 2, True, 18, 23),
        (1, 1, True, 18, 25),
        (0, 1, True, 25, 30),
        (1, 0, True, 25, 32),
        (0, 0, True, 32, 37),
    ],
    "1f1b": [
        (0, 0, False, 0, 2),
        (0, 1, False, 2, 4),
        (1, 0, False, 2, 5),
        (1, 0, True, 5, 12),
        (0, 0, True, 12, 17),
        (1, 1, False, 12, 15),
        (1, 1, True, 15, 22),
        (0, 2, False, 17, 19),
        (0, 1, True, 22, 27),
        (1, 2, False, 22, 25),
        (1, 2, True, 25, 32),
        (0, 2, True, 32, 37),
    ],
}


@pytest.mark.parametrize("schedule", WHOLE)
def test_three_micro_batches_on_two_unequal_stages_are_timed_by_hand(schedule):
    """Forwards of 2 and 3, backwards of 5 and 7: both schedules end at 37."""
    found = simulate(schedule, 3, [2, 3], [5, 7], [11, 13], [17, 19])
    assert [tuple(task)[:5] for task in found.tasks] == HAND[schedule]
    assert found.ticks == float(Fraction(37, 3))
    assert found.bubble == float(1 - Fraction(3 * (2 + 5) + 3 * (3 + 7), 2 * 37))
    flights = {"gpipe": (3, 3), "1f1b": (2, 1)}[schedule]
    assert found.in_flight == flights
    assert found.peak_bytes == (flights[0] * 11 + 17, flights[1] * 13 + 19)


def test_halves_of_a_backward_are_timed_by_hand():
    """Two micro-batches, forwards of 2 and 3, backwards of 5 and 7, of them 3 and 4 by weights."""
    found = simulate("zb-h1", 2, [2, 3], [5, 7], [1, 1], [0, 0], weights=[3, 4])
    assert [tuple(task) for task in found.tasks] == [
        (0, 0, False, 0, 2, "all"),
        (0, 1, False, 2, 4, "all"),
        (1, 0, False, 2, 5, "all"),
        (1, 0, True, 5, 8, "inputs"),
        (0, 0, True, 8, 10, "inputs"),
        (1, 1, False, 8, 11, "all"),
        (0, 0, True, 10, 13, "weights"),
        (1, 1, True, 11, 14, "inputs"),
        (0, 1, True, 14, 16, "inputs"),
        (1, 0, True, 14, 18, "weights"),
        (0, 1, True, 16, 19, "weights"),
        (1, 1, True, 18, 22, "weights"),
    ]
    assert found.bubble == float(1 - Fraction(2 * (2 + 5) + 2 * (3 + 7), 2 * 22))
    assert found.in_flight == (2, 2)


@pytest.mark.parametrize("schedule", KINDS)
@pytest.mark.parametrize(
    ("count", "durations"),
    [
        # the slowest forward first, the slowest backward last
        (4, [(4, 5, 2), (3, 6, 3), (2, 7, 1), (2, 8, 4)]),
        (4, [(2, 8, 4), (2, 7, 1), (3, 6, 3), (4, 5, 2)]),
        (2, [(2, 3, 1), (7, 4, 3), (3, 2, 1), (5, 6, 2)]),  # fewer micro-batches than stages
        (6, [(3, 9, 5), (2, 8, 3), (5, 7, 4), (4, 6, 1)]),
        (3, [(2, 5, 4), (3, 7, 2)]),
        (1, [(3, 4, 2), (2, 5, 3)]),
    ],
)
def test_a_clock_that_ticks_in_ones_sees_the_same_tasks(schedule, count, durations):
    chunks = KINDS[schedule]
    forward, backward, weights = zip(*durations, strict=True)
    K = len(forward)
    found = simulate(
        schedule, count, forward, backward, [1] * K, [2] * K, weights=weights, chunks=chunks
    )
    expected = schedules.walked(schedule, count, (forward, backward, weights), chunks)
    times = {(t.stage, t.microbatch, t.backward, t.part): (t.start, t.end) for t in found.tasks}
    assert times == expected
    end = max(end for _, end in expected.values())
    assert found.ticks == pytest.approx(end / max(forward))
    work = count * (sum(forward) + sum(backward))
    assert found.bubble == pytest.approx(1 - work / (K // chunks * end))
    assert times != schedules.walked(schedule, count, (backward, forward, weights), chunks)


@pytest.mark.parametrize("schedule", KINDS)
@given(st.data())
def test_each_device_does_what_the_papers_say_in_their_order(schedule, data):
    chunks = KINDS[schedule] + data.draw(st.integers(0, 2)) * (schedule == "interleaved")
    devices = data.draw(sizes)
    count = data.draw(sizes) * (devices if chunks > 1 else 1)
    device = data.draw(st.integers(0, devices - 1))
    expected = schedules.order(schedule, device, devices, count, chunks)
    assert steps_of(schedule, device, devices, count, chunks) == [Step(*step) for step in expected]


def test_the_printed_timeline_says_how_long_each_stage_waits():
    """Of 37, stage 0 works 21 and stage 1 works 30: they wait 43.2 % and 18.9 %."""
    found = simulate("1f1b", 3, [2, 3], [5, 7], [11, 13], [1700, 19])
    assert "one step · 12.33 ticks · bubble 31.1%" in str(found)
    assert header(found) == ["stage", "idle", "in flight", "peak bytes of activations"]
    assert rows(found) == [["0", "43.2%", "2", "1.72 k"], ["1", "18.9%", "1", "32"]]


def test_devices_of_two_stages_are_told_apart_from_stages(tmp_path):
    """Two devices of two stages work 16 of 20 ticks each; the chart has a row a device."""
    found = simulate("interleaved", 2, [1] * 4, [3] * 4, [5] * 4, [0] * 4, chunks=2)
    assert found.ticks == 20.0
    assert [row[:3] for row in rows(found)] == [
        ["0", "20.0%", "2"],
        ["1", "20.0%", "2"],
        ["2", "20.0%", "2"],
        ["3", "20.0%", "1"],
    ]
    gantt(tmp_path / "step.png", found)


def test_a_gantt_chart_shows_each_task_in_ticks_on_its_stage(tmp_path, monkeypatch):
    """A tick is the slowest forward, 3 units: the last backward of stage 0 is 5/3 wide."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    timeline = simulate("gpipe", 3, [2, 3], [5, 7], [1, 1], [1, 1])
    gantt(tmp_path / "step.png", timeline)
    gantt(tmp_path / "step.png", timeline, title="a step")
    axes, titled = (figure.axes[0] for figure in figures)
    bars = {
        (round(bar.get_y() + bar.get_height() / 2), container.get_label() == "backward",
         round(3 * bar.get_x()), round(3 * bar.get_width()))
        for container in axes.containers
        for bar in container
    }  # fmt: skip
    assert bars == {(k, back, start, end - start) for k, _, back, start, end in HAND["gpipe"]}
    middles = {(text.get_text(), round(6 * text.get_position()[0]), text.get_position()[1])
               for text in axes.texts}  # fmt: skip
    assert middles == {(str(m), start + end, k) for k, m, _, start, end in HAND["gpipe"]}
    assert [*axes.get_yticks()] == [0, 1]
    assert axes.get_ylim() == (1.5, -0.5)
    assert axes.get_title(loc="left") == "12.33 ticks, 31.1% idle"
    assert titled.get_title(loc="left") == "a step"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["forward", "backward"]  # and no kind that there is none of
