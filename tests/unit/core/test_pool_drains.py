"""Drains: nothing new, what was admitted is finished, and at the deadline the rest moves or ends."""

import pytest

from contracts.policies import PreemptionPolicy
from contracts.pools import ReplicaFaulted
from contracts.scheduling import Pause, ReplicaLost, Stop
from tests.unit.core.core_kit import of
from tests.unit.core.fleet_kit import Fleet, managed, pool


def two_pools(**over: object) -> Fleet:
    return Fleet(managed(pool("pool-a"), pool("pool-b"), **over))


@pytest.mark.req("ORCH-2101", "OC-CTRL-2002", "ORCH-3018")
def test_the_last_pool_of_a_set_serves_what_it_admitted_and_takes_nothing_new() -> None:
    fleet = Fleet()
    for n in range(3):
        fleet.submit(f"t{n}")
    assert fleet.drain(60_000) is None
    assert fleet.core.scheduler.readiness() == {"pool-a": "draining"}
    fleet.submit("late")
    refused = fleet.refusals["late"]
    assert (refused.code, refused.retriable) == ("POOL_UNAVAILABLE", True)
    assert refused.retry_after_ms
    assert refused.message.startswith("pool pool-a is being drained; try again in")
    assert fleet.health().draining
    fleet.pass_ms(300)
    assert [fleet.outcomes[f"t{n}"].state for n in range(3)] == ["finished"] * 3
    health = fleet.health()
    assert (health.drained, health.draining, health.live, health.replicas) == (True, False, False, [])
    assert fleet.core.scheduler.readiness() == {"pool-a": "drained"}
    assert not fleet.orders
    assert fleet.notes() == ["drain_started", "drained"]
    fleet.submit("later")
    assert fleet.refusals["later"].code == "POOL_UNAVAILABLE"


@pytest.mark.req("ORCH-2101")
def test_a_drained_pool_stays_down() -> None:
    fleet = Fleet()
    fleet.drain(0)
    fleet.pass_ms(120_000)
    assert fleet.phases() == {}
    assert fleet.drain(1_000) is None
    assert fleet.notes() == ["drain_started", "drained"]


@pytest.mark.req("ORCH-2101")
def test_with_another_pool_in_the_set_the_drained_one_takes_no_new_task() -> None:
    fleet = two_pools()
    fleet.service_ms = None
    fleet.submit("t0")
    fleet.submit("t1")
    drained = fleet.running["t0"].replica_id.rsplit("-", 1)[0]
    fleet.drain(60_000, drained)
    fleet.submit("t2")
    assert fleet.core.state_of("t2") == "queued"
    fleet.finish("t0")
    assert fleet.core.state_of("t2") == "queued"
    assert fleet.health(drained).drained
    fleet.finish("t1")
    assert not fleet.running["t2"].replica_id.startswith(drained)
    assert not fleet.refusals


@pytest.mark.req("ORCH-2101")
def test_while_no_other_pool_is_ready_a_draining_one_serves_on() -> None:
    fleet = two_pools()
    fleet.broken["small"] = "bad file"
    fleet.tell(ReplicaLost("pool-b-0", "gone"))
    for n in range(3):
        fleet.submit(f"t{n}")
    fleet.drain(60_000, "pool-a")
    fleet.pass_ms(400)
    assert [fleet.outcomes[f"t{n}"].state for n in range(3)] == ["finished"] * 3
    assert fleet.health("pool-a").drained


@pytest.mark.req("ORCH-2101", "ORCH-3024")
def test_at_the_deadline_running_tasks_go_on_in_the_same_set_where_they_were() -> None:
    fleet = two_pools()
    fleet.service_ms = None
    fleet.submit("strict")
    fleet.submit("loose", determinism="best_effort")
    for task_id, replica_id in (("strict", "pool-a-0"), ("loose", "pool-b-0")):
        assert fleet.running[task_id].replica_id == replica_id
        fleet.progress(task_id, 3, digest=33)
    fleet.drain(5_000, "pool-a")
    fleet.pass_ms(4_999)
    assert not of(fleet.said, Stop)
    fleet.pass_ms(2)
    (stop,) = of(fleet.said, Stop)
    assert (stop.task_id, stop.reason, stop.why) == (
        "strict",
        "drain",
        "replica pool-a-0 is drained and its deadline is over",
    )
    (pause,) = of(fleet.said, Pause)
    assert (pause.task_id, pause.cause) == ("strict", "drain")
    status = fleet.core.scheduler.status(0, "strict", "acme")
    assert status is not None
    assert (status.state, status.preempted, status.resumable) == ("queued", False, True)
    assert status.why is not None
    assert status.why.startswith("moved off a drained replica")
    assert fleet.health("pool-a").drained
    fleet.finish("loose")
    again = fleet.running["strict"]
    assert (again.replica_id, again.attempt, again.resume_tokens, again.resume_digest) == ("pool-b-0", 2, 3, 33)


@pytest.mark.req("ORCH-2101")
def test_a_task_that_cannot_be_made_again_byte_for_byte_ends_at_the_deadline() -> None:
    fleet = two_pools()
    fleet.service_ms = None
    fleet.submit("delivered", determinism="best_effort")
    fleet.submit("other")
    fleet.progress("delivered", 3)
    fleet.drain(0, "pool-a")
    fleet.pass_ms(5)
    outcome = fleet.outcomes["delivered"]
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.retriable, outcome.tokens_out) == ("POOL_UNAVAILABLE", True, 3)
    assert outcome.error.message.startswith("the pool was drained: the task was stopped on pool-a-0 at the deadline;")


@pytest.mark.req("ORCH-2101")
def test_a_loose_task_that_delivered_nothing_is_tried_elsewhere() -> None:
    fleet = two_pools()
    fleet.service_ms = None
    fleet.submit("silent", determinism="best_effort")
    fleet.drain(0, "pool-a")
    fleet.pass_ms(5)
    assert fleet.running["silent"].replica_id == "pool-b-0"


@pytest.mark.req("ORCH-2101")
def test_the_shorter_of_two_deadlines_wins() -> None:
    fleet = Fleet()
    fleet.service_ms = None
    fleet.submit("t")
    assert fleet.drain(60_000) is None
    assert fleet.drain(90_000) is None
    assert fleet.drain(2_000) is None
    fleet.pass_ms(2_005)
    assert fleet.outcomes["t"].state == "failed"
    assert fleet.health().drained
    assert fleet.notes() == ["drain_started", "drained"]


@pytest.mark.req("ORCH-2101")
def test_a_deadline_of_zero_stops_at_once() -> None:
    fleet = Fleet()
    fleet.service_ms = None
    fleet.submit("runs")
    fleet.submit("waits")
    fleet.drain(0)
    assert fleet.outcomes["waits"].state == "failed"
    assert [stop.task_id for stop in of(fleet.said, Stop)] == ["runs"]
    fleet.pass_ms(2)
    error = fleet.outcomes["runs"].error
    assert error is not None
    assert error.code == "POOL_UNAVAILABLE"
    assert fleet.health().drained


@pytest.mark.req("ORCH-2101")
def test_a_task_that_is_measured_when_its_pool_is_drained_at_once_is_refused() -> None:
    fleet = Fleet()
    fleet.submit("t", templated=True)
    fleet.drain(0)
    assert fleet.refusals["t"].code == "POOL_UNAVAILABLE"
    fleet.pass_ms(10)
    assert fleet.health().drained


@pytest.mark.req("ORCH-2101")
def test_a_replica_that_never_answers_its_stops_goes_all_the_same() -> None:
    fleet = Fleet()
    fleet.service_ms = None
    fleet.submit("t")
    fleet.running.clear()
    fleet.drain(1_000)
    fleet.pass_ms(6_000)
    assert fleet.health().drained
    assert fleet.outcomes["t"].state == "failed"


@pytest.mark.req("ORCH-2101")
def test_a_drain_of_an_unknown_pool_or_by_a_negative_deadline_is_refused() -> None:
    fleet = Fleet()
    unknown, negative = fleet.drain(0, "pool-z"), fleet.drain(-1)
    assert unknown is not None
    assert negative is not None
    assert (unknown.code, negative.code) == ("NOT_FOUND", "INVALID_PARAMS")
    assert not fleet.notes()


@pytest.mark.req("ORCH-2101", "ORCH-3086")
def test_a_slot_that_was_taken_for_a_task_is_not_given_to_it_on_a_draining_replica() -> None:
    fleet = two_pools(preemption=PreemptionPolicy("hard"), on_time_percent_min=50)
    fleet.service_ms = None
    for task_id in ("low0", "low1"):
        fleet.submit(task_id, priority="batch", max_tokens=90)
    fleet.submit("high", deadline_ms=300)
    (stop,) = of(fleet.said, Stop)
    assert stop.for_task == "high"
    pool_id = stop.replica_id.rsplit("-", 1)[0]
    fleet.drain(60_000, pool_id)
    fleet.pass_ms(5)
    assert "high" not in fleet.running
    assert fleet.health(pool_id).drained
    fleet.finish("low1" if stop.task_id == "low0" else "low0")
    assert fleet.running["high"].replica_id != stop.replica_id


@pytest.mark.req("ORCH-3038")
def test_a_task_stopped_on_a_faulty_replica_goes_on_when_its_engine_is_back() -> None:
    fleet = Fleet(managed(pool(drain_ms=2_000)))
    fleet.service_ms = None
    fleet.submit("t")
    fleet.progress("t", 2, digest=5)
    fleet.tell(ReplicaFaulted("pool-a-0", "ecc", "GPU 0 counted 3 uncorrected errors"))
    assert fleet.phases() == {"pool-a-0": "draining"}
    fleet.pass_ms(2_010)
    assert fleet.core.state_of("t") == "queued"
    fleet.pass_ms(1_000)
    assert (fleet.running["t"].replica_id, fleet.running["t"].resume_tokens) == ("pool-a-0", 2)
    error = fleet.health().last_error
    assert error is not None
    assert error.kind == "ecc"


@pytest.mark.req("ORCH-3038", "ORCH-2101")
def test_a_fault_leaves_a_replica_that_drains_no_more_time_than_any_other() -> None:
    fleet = Fleet(managed(pool("pool-a", drain_ms=300_000), pool("pool-b")))
    fleet.service_ms = None
    fleet.submit("t0")
    fleet.submit("t1")
    fleet.drain(300_000, "pool-a")
    fleet.tell(ReplicaFaulted("pool-a-0", "ecc", "double-bit error"))
    fleet.pass_ms(29_999)
    assert not of(fleet.said, Stop)
    fleet.pass_ms(10)
    assert [stop.replica_id for stop in of(fleet.said, Stop)] == ["pool-a-0"]
    # It goes as it was to go: no engine is launched on that GPU once more.
    fleet.pass_ms(60_000)
    assert fleet.health("pool-a").drained


@pytest.mark.req("ORCH-3038", "ORCH-2101")
def test_a_replica_that_drains_for_a_fault_goes_with_its_pool_and_at_its_deadline() -> None:
    for deadline_ms in (0, 5_000):
        fleet = Fleet(managed(pool(drain_ms=300_000)))
        fleet.service_ms = None
        fleet.submit("t")
        fleet.tell(ReplicaFaulted("pool-a-0", "ecc", "double-bit error"))
        fleet.drain(deadline_ms)
        fleet.pass_ms(deadline_ms + 5)
        assert [stop.task_id for stop in of(fleet.said, Stop)] == ["t"]
        assert fleet.health().drained
        error = fleet.outcomes["t"].error
        assert error is not None
        assert error.code == "POOL_UNAVAILABLE"
        fleet.pass_ms(60_000)
        assert fleet.phases() == {}


@pytest.mark.req("ORCH-2101")
def test_a_loose_task_whose_replica_never_told_what_it_delivered_is_not_tried_elsewhere() -> None:
    fleet = two_pools()
    fleet.service_ms = None
    fleet.submit("silent", determinism="best_effort")
    assert fleet.running.pop("silent").replica_id == "pool-a-0"
    fleet.drain(0, "pool-a")
    fleet.pass_ms(10_000)
    assert "silent" not in fleet.running
    error = fleet.outcomes["silent"].error
    assert error is not None
    assert (error.code, error.retriable) == ("POOL_UNAVAILABLE", True)


@pytest.mark.req("ORCH-2101")
def test_the_deadline_of_a_drain_also_binds_replicas_that_a_reload_left_behind() -> None:
    fleet = Fleet()
    fleet.service_ms = None
    fleet.submit("old")
    fleet.reload("small")
    fleet.pass_ms(fleet.load_ms)
    assert fleet.phases() == {"pool-a-1": "ready", "pool-a-0": "draining"}
    fleet.drain(1_000)
    fleet.pass_ms(999)
    assert not of(fleet.said, Stop)
    assert fleet.phases() == {"pool-a-0": "draining"}
    assert not fleet.health().drained
    fleet.pass_ms(5)
    assert [stop.task_id for stop in of(fleet.said, Stop)] == ["old"]
    assert fleet.health().drained
