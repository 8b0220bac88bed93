"""The simulated schedule has the bubble of the formula and the order that data allow."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsim.pipeline.plot import gantt
from jaxsim.pipeline.schedule import run_through, simulate, tasks_of

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
