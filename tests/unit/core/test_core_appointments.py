"""Appointments: who is refused by a full queue and comes when told gets in (ORCH-3005)."""

from itertools import pairwise

import pytest

from contracts.scheduling import Admit, Reject
from orchestrator.core.appointments import GRACE_NS, HORIZON_NS, Appointments
from tests.unit.core.core_kit import MS, Core, ended, of, one, queue, replica, replica_set


def full(capacity: int = 2) -> Core:
    """One runs, and as many wait as may."""
    policy = replica_set(
        queues=(queue("interactive", capacity), queue("batch", capacity)),
        capacity=capacity,
        wall_timeout_ms=600_000,
        idle_timeout_ms=600_000,
    )
    core = Core(policy, ready=(replica(),))
    for n in range(capacity + 1):
        assert of(core.submit(f"in{n}"), Admit)
    return core


def retry_ms(core: Core, task_id: str) -> int:
    error = one(core.submit(task_id), Reject).error
    assert (error.code, error.policy_label, error.retriable) == ("ADMISSION_REJECT", "reject", True)
    assert error.message == f"the queue is full, 2 tasks wait (reject); try again in {error.retry_after_ms} ms"
    assert error.retry_after_ms is not None
    return error.retry_after_ms


@pytest.mark.req("ORCH-3005", "ORCH-3004")
def test_who_comes_when_told_gets_the_place_that_a_newcomer_does_not() -> None:
    core = full()
    wait_ms = retry_ms(core, "back")
    core.pass_ms(wait_ms)
    core.tell(ended("in0"))
    # A place is free, and it is held.
    assert of(core.submit("newcomer"), Reject)
    assert of(core.submit("back"), Admit)


@pytest.mark.req("ORCH-3005")
def test_who_does_not_come_loses_the_place_to_anyone() -> None:
    core = full()
    wait_ms = retry_ms(core, "back")
    core.tell(ended("in0"))
    core.pass_ms(wait_ms + GRACE_NS // MS)
    assert of(core.submit("newcomer"), Admit)


@pytest.mark.req("ORCH-3005", "ORCH-3004")
def test_an_appointment_does_not_break_the_bounds() -> None:
    core = full()
    core.pass_ms(retry_ms(core, "back"))
    # No place has become free meanwhile.
    error = one(core.submit("back"), Reject).error
    assert (error.retry_after_ms or 0) >= 1
    assert core.scheduler.queue_depth("set-a", "interactive") == 2


@pytest.mark.req("ORCH-3005")
def test_who_comes_too_early_is_told_the_same_time_again() -> None:
    core = full()
    wait_ms = retry_ms(core, "back")
    core.pass_ms(wait_ms // 2)
    assert retry_ms(core, "back") == wait_ms - wait_ms // 2


def test_the_same_place_is_not_promised_twice() -> None:
    appointments = Appointments(40)
    instants = [appointments.book(5_000 * MS, f"t{n}", 100 * MS) for n in range(20)]
    assert instants[0] == 5_100 * MS
    # At most every second departure is promised.
    assert all(later - earlier >= 200 * MS for earlier, later in pairwise(instants))


def test_places_are_held_around_the_time_told_and_only_then() -> None:
    appointments = Appointments(40)
    at_ns = appointments.book(0, "t", 1_000 * MS)
    appointments.book(0, "u", 1_000 * MS)
    at_ns = appointments.book(0, "v", 1_000 * MS)
    lead_ns = 4_000 * MS
    assert not appointments.is_due(at_ns - lead_ns - 1, "v")
    assert appointments.is_due(at_ns - lead_ns, "v")
    assert appointments.is_due(at_ns + GRACE_NS - 1, "v")
    assert not appointments.is_due(at_ns + GRACE_NS, "v")
    assert appointments.held(at_ns + GRACE_NS) == 0
    assert len(appointments) == 0


def test_at_most_a_quarter_of_the_queue_is_held_and_the_book_is_bounded() -> None:
    appointments = Appointments(16)
    # 10_000 are refused, with a departure a millisecond.
    for n in range(10_000):
        appointments.book(n * MS // 100, f"t{n}", MS)
        assert appointments.held(n * MS // 100) <= 4 + 1
    assert len(appointments) <= 2 * HORIZON_NS // (GRACE_NS // 4)


def test_beyond_the_horizon_nothing_is_promised() -> None:
    appointments = Appointments(4)
    told = [appointments.book(0, f"t{n}", 20_000 * MS) for n in range(5)]
    assert max(told) == HORIZON_NS
    assert len(appointments) < 5


def test_claiming_gives_the_place_back() -> None:
    appointments = Appointments(8)
    at_ns = appointments.book(0, "t", MS)
    assert appointments.held(at_ns) == 1
    appointments.claim("t")
    appointments.claim("t")
    assert (appointments.held(at_ns), len(appointments)) == (0, 0)
