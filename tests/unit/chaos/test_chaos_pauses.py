"""Pause arithmetic of the chaos suite: what counts as a pause, which fault it belongs to, which bounds hold."""

import pytest

from tests.chaos.history import Attach, FaultRecord, Reference, TaskHistory
from tests.chaos.pauses import Pause, bounds, by_kind, overlapping, pauses, quantile, reattach_times
from tests.chaos.plan import TaskPlan

#: Ten tokens a second, the first after half a second.
REFERENCE = {0: Reference(tuple("abcdefgh"), "length", 0.5, 0.1, 0.15)}


def task(*at_s: float, **changes: object) -> TaskHistory:
    made = TaskHistory("t", 0, admitted_s=0.0, attaches=[Attach(0.0, -1, "own", 0.0, "end", 99.0)])
    made.arrivals = [(0, i, "abcdefgh"[i], at) for i, at in enumerate(at_s)]
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def plan(**changes: object) -> TaskPlan:
    return TaskPlan(0, 0.0, 0, "one_call", "own", **changes)  # type: ignore[arg-type]


def fault(kind: str, at_s: float, back_s: float = -1.0, until_s: float = -1.0) -> FaultRecord:
    return FaultRecord(kind, kind, at_s, until_s, back_s)


def pause(began_s: float, ended_s: float, *, rerun_s: float = 1.0, moved: bool = False) -> Pause:
    return Pause(0, began_s, ended_s, ended_s - began_s, rerun_s, moved, False)


def test_a_steady_stream_has_no_pause() -> None:
    assert pauses([plan()], [task(0.5, 0.6, 0.7, 0.8)], REFERENCE) == []


def test_a_pause_is_what_is_longer_than_the_longest_undisturbed_gap() -> None:
    (found,) = pauses([plan()], [task(0.5, 0.6, 2.75)], REFERENCE)
    assert (found.began_s, found.ended_s) == (0.6, 2.75)
    assert found.over_s == pytest.approx(2.0)
    # Two tokens again: the time to the first, and two of the usual gaps.
    assert found.rerun_s == pytest.approx(0.7)
    assert not found.moved
    assert not found.reattached


def test_time_that_a_client_stayed_away_is_no_pause() -> None:
    away = task(0.5, 0.6, 2.6, 2.7)
    away.attaches = [Attach(0.0, -1, "own", 0.0, "left", 0.6), Attach(2.5, 1, "own", 2.5, "end", 3.0)]
    away.arrivals = [(0, 0, "a", 0.5), (0, 1, "b", 0.6), (1, 2, "c", 2.6), (1, 3, "d", 2.7)]
    assert pauses([plan(leave_after=1, away_ms=1900)], [away], REFERENCE) == []
    (found,) = pauses([plan(leave_after=1, away_ms=500)], [away], REFERENCE)
    assert found.reattached


def test_slow_readers_are_left_out() -> None:
    assert pauses([plan(slow_ms=50)], [task(0.5, 9.0)], REFERENCE) == []


def test_a_pause_belongs_to_every_fault_that_was_made_or_lasted_in_it() -> None:
    faults = [
        fault("kill engine", 4.0),
        fault("kill scheduler", 5.5),
        fault("stop replica", 3.0, until_s=5.2),
        fault("kill ingress", 6.5),
    ]
    stood = pause(5.0, 6.0)
    assert [each.kind for each in overlapping(stood, faults)] == ["kill scheduler", "stop replica"]
    assert set(by_kind([stood], faults)) == {"kill scheduler", "stop replica"}
    assert set(by_kind([pause(20.0, 21.0)], faults)) == {"none"}


def test_quantiles_are_of_what_was_measured() -> None:
    assert quantile([], 0.5) == 0
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([3, 1, 2], 0.99) == 3
    assert quantile(list(range(1, 101)), 0.99) == 99


def held(found: list[Pause], faults: list[FaultRecord], histories: list[TaskHistory]) -> list[bool]:
    return [bound.held for bound in bounds(found, faults, histories)]


def test_bounds_hold_when_nothing_is_noticed() -> None:
    assert held([], [fault("kill scheduler", 1.0, 3.0)], [task(0.5)]) == [True, True, True, True]


@pytest.mark.parametrize(("took_s", "good"), [(2.4, True), (2.6, False)])
def test_a_lost_replica_may_cost_the_prefix_again_and_a_second(took_s: float, good: bool) -> None:
    found = [pause(1.0, 1.0 + took_s, moved=True)]
    assert held(found, [fault("kill replica", 1.0)], [])[0] is good
    assert held(found, [fault("kill engine", 1.0)], [])[0]
    assert held([pause(1.0, 1.0 + took_s)], [fault("kill replica", 1.0)], [])[0]
    # Whatever else was broken is no excuse.
    assert held(found, [fault("kill replica", 1.0), fault("stop ingress", 0.5, 1.5)], [])[0] is good


@pytest.mark.parametrize(("took_s", "good"), [(0.9, True), (1.1, False)])
def test_a_lost_scheduler_may_not_stop_streams(took_s: float, good: bool) -> None:
    faults = [fault("kill scheduler", 1.2, 3.0)]
    assert held([pause(1.0, 1.0 + took_s)], faults, [])[1] is good
    # Another fault that is not made good yet explains it as well.
    faults.append(fault("kill engine", 0.5, 1.5))
    assert held([pause(1.0, 1.0 + took_s)], faults, [])[1]


@pytest.mark.parametrize(("admitted_s", "good"), [(6.4, True), (6.6, False)])
def test_a_lost_scheduler_delays_admissions_by_five_seconds_at_most(admitted_s: float, good: bool) -> None:
    late = task(first_asked_s=1.5, admitted_s=admitted_s)
    assert held([], [fault("kill scheduler", 1.0, 3.0)], [late])[2] is good
    assert held([], [fault("kill scheduler", 2.0, 3.0)], [late])[2]
    assert held([], [fault("kill scheduler", 1.0, 1.1)], [late])[2] is good  # it is felt for a while
    assert held([], [fault("kill scheduler", -1.0, 1.0)], [late])[2]
    assert held([], [fault("kill scheduler", 1.0, 3.0), fault("disk full", 5.0, 6.0)], [late])[2]
    assert held([], [fault("kill scheduler", 1.0, 3.0), fault("disk full", 0.5, 1.2)], [late])[2] is good
    assert held([], [fault("kill scheduler", 1.0, 3.0), fault("kill ingress", 2.0, 5.0)], [late])[2] is good


@pytest.mark.parametrize(("answered_s", "good"), [(1.9, True), (2.1, False)])
def test_a_broken_stream_is_answered_again_within_a_second(answered_s: float, good: bool) -> None:
    broken = task(0.5)
    broken.attaches = [
        Attach(0.0, -1, "own", 0.0, "broken", 1.0),
        Attach(1.1, 0, "own", 1.2, "503", 1.2),
        Attach(answered_s - 0.1, 0, "own", answered_s, "end", 3.0),
    ]
    ((broken_s, gap_s),) = reattach_times([broken])
    assert (broken_s, gap_s) == (1.0, pytest.approx(answered_s - 1.0))
    assert held([], [fault("kill ingress", 0.9)], [broken])[3] is good
    assert held([], [fault("kill haproxy", 0.9), fault("kill ingress", 1.1)], [broken])[3]
    assert held([], [fault("kill ingress", 0.9), fault("kill scheduler", 0.5, 1.2)], [broken])[3]
    assert held([], [fault("kill ingress", 0.9), fault("kill scheduler", 0.1, 0.8)], [broken])[3] is good


def test_a_connection_that_its_client_left_did_not_break() -> None:
    left = task(0.5)
    left.attaches = [Attach(0.0, -1, "own", 0.0, "left", 1.0), Attach(3.0, 0, "own", 3.0, "end", 4.0)]
    assert list(reattach_times([left])) == []
