"""The simulated schedule has the bubble of the formula and the order that data allow."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsim.pipeline.plot import gantt
from jaxsim.pipeline.schedule import run_through, simulate, tasks_of
from tests.oracles import schedules
from tests.support.printed import header, rows

SCHEDULES = ("gpipe", "1f1b")
sizes = st.integers(1, 9)


@given(st.sampled_from(SCHEDULES), sizes, sizes, st.integers(1, 5), st.integers(1, 5))
def test_the_bubble_of_equal_stages_is_that_of_the_paper(schedule, K, M, forward, backward):
    found = simulate(schedule, M, [forward] * K, [backward] * K, [0] * K, [0] * K)
    assert found.bubble == float(Fraction(K - 1, M + K - 1))
    assert found.ticks == float(Fraction((M + K - 1) * (forward + backward), forward))


@given(
    st.sampled_from(SCHEDULES),
    sizes,
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6),
)
def test_every_task_runs_once_after_what_it_needs_and_alone_on_its_stage(schedule, M, durations):
    K = len(durations)
    tasks = run_through(schedule, M, *zip(*durations, strict=True))
    when = {(t.stage, t.microbatch, t.backward): t for t in tasks}
    assert len(when) == len(tasks) == 2 * K * M
    assert tasks == sorted(tasks, key=lambda t: (t.start, t.stage))
    for (k, m, backward), task in when.items():
        assert task.end - task.start == durations[k][backward]
        before = [(k, m, False), (k + 1, m, True)] if backward else [(k - 1, m, False)]
        assert all(when[b].end <= task.start for b in before if b in when)
    for k in range(K):
        mine = [t for t in tasks if t.stage == k]
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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_stage_goes_forward_before_it_goes_back(schedule):
    for k in range(3):
        tasks = tasks_of(schedule, k, 3, 5)
        assert sorted(m for back, m in tasks if back) == list(range(5))
        assert all(tasks.index((False, m)) < tasks.index((True, m)) for m in range(5))


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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_three_micro_batches_on_two_unequal_stages_are_timed_by_hand(schedule):
    """Forwards of 2 and 3, backwards of 5 and 7: both schedules end at 37."""
    found = simulate(schedule, 3, [2, 3], [5, 7], [11, 13], [17, 19])
    assert [tuple(task) for task in found.tasks] == HAND[schedule]
    assert found.ticks == float(Fraction(37, 3))
    assert found.bubble == float(1 - Fraction(3 * (2 + 5) + 3 * (3 + 7), 2 * 37))
    flights = {"gpipe": (3, 3), "1f1b": (2, 1)}[schedule]
    assert found.in_flight == flights
    assert found.peak_bytes == (flights[0] * 11 + 17, flights[1] * 13 + 19)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("count", "forward", "backward"),
    [
        (5, [4, 3, 2], [5, 6, 7]),  # the slowest forward first, the slowest backward last
        (5, [2, 3, 4], [7, 6, 5]),
        (2, [2, 7, 3, 5], [3, 4, 2, 6]),  # fewer micro-batches than stages
        (4, [3, 2, 5, 4], [9, 8, 7, 6]),  # as many
        (3, [2], [5]),
        (1, [3, 2], [4, 5]),
    ],
)
def test_a_clock_that_ticks_in_ones_sees_the_same_tasks(schedule, count, forward, backward):
    found = simulate(schedule, count, forward, backward, [1] * len(forward), [2] * len(forward))
    expected = schedules.walked(schedule, count, forward, backward)
    times = {(t.stage, t.microbatch, t.backward): (t.start, t.end) for t in found.tasks}
    assert times == expected
    end = max(end for _, end in expected.values())
    assert found.ticks == pytest.approx(end / max(forward))
    work = count * (sum(forward) + sum(backward))
    assert found.bubble == pytest.approx(1 - work / (len(forward) * end))
    if len(forward) > 1:
        assert times != schedules.walked(schedule, count, backward, forward)


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(st.data())
def test_each_stage_does_what_the_papers_say_in_their_order(schedule, data):
    stages, count = data.draw(sizes), data.draw(sizes)
    stage = data.draw(st.integers(0, stages - 1))
    expected = schedules.order(schedule, stage, stages, count)
    assert tasks_of(schedule, stage, stages, count) == expected


def test_the_printed_timeline_says_how_long_each_stage_waits():
    """Of 37, stage 0 works 21 and stage 1 works 30: they wait 43.2 % and 18.9 %."""
    found = simulate("1f1b", 3, [2, 3], [5, 7], [11, 13], [1700, 19])
    assert "one step · 12.33 ticks · bubble 31.1%" in str(found)
    assert header(found) == ["stage", "idle", "in flight", "peak bytes of activations"]
    assert rows(found) == [["0", "43.2%", "2", "1.72 k"], ["1", "18.9%", "1", "32"]]


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
