"""Attempts that a replica still runs and that nobody waits for: of an earlier task of the id, or given up there."""

from typing import Any

import pytest

from contracts.policies import TenantPolicy
from contracts.scheduling import (
    Finish,
    JournalFailed,
    JournalRestored,
    RefuseReplica,
    Reject,
    ReplicaLoading,
    ReplicaLost,
    ReplicaReady,
    ReplicaUnready,
    RunningAttempt,
    SlotReleased,
    Stop,
    TokensProgressed,
)
from tests.unit.core.core_kit import TENANT, Core, ended, of, one, replica, started
from tests.unit.core.durable_kit import Durable

LOST = ReplicaLost("r0", "eof")
TWO = replica(slots=2)


def stops(commands: list[Any]) -> list[tuple[str, int, str]]:
    return [(stop.task_id, stop.attempt, stop.reason) for stop in of(commands, Stop)]


def undone() -> Durable:
    """Task z ran on r0 beside x and could not be kept; then the link to r0 was cut. Another task runs on r1."""
    core = Durable(ready=(TWO, replica("r1")))
    for task_id in ("x", "y", "z"):
        core.submit(task_id)
    core.tell(JournalFailed("disk full", ("z",)))
    core.tell(LOST)
    core.tell(JournalRestored())
    assert (core.state_of("x"), core.state_of("y"), core.state_of("z")) == ("queued", "running", None)
    return core


@pytest.mark.req("ORCH-3024", "ORCH-3009", "ORCH-3051")
def test_a_task_sent_again_does_not_turn_a_replica_away_that_runs_the_one_before() -> None:
    core = undone()
    core.submit("z")
    commands = core.back(TWO, RunningAttempt("x", 1, 2, 2), RunningAttempt("z", 1, 2, 2))
    assert not of(commands, RefuseReplica)
    assert stops(commands) == [("z", 1, "stale")]
    assert (core.state_of("x"), core.state_of("z")) == ("running", "queued")
    # The old one lets go of its slot; the new one starts under another number, and that is no end of its own.
    core.tell(TokensProgressed("z", 1, 9, 9))
    assert core.scheduler.state.tasks["z"].tokens_out == 0
    assert started(core.tell(ended("z", 1, result="stopped"))) == [("z", 2, "r0")]
    record = core.scheduler.state.tasks["z"]
    assert (record.engine_ends, record.losses, record.preemptions, record.is_failover) == (1, 0, 0, False)
    assert core.task("z").skipped == 1
    core.restart()
    assert core.scheduler.state.tasks["z"].engine_ends == 1


def elsewhere() -> Durable:
    """The new task z runs on r1."""
    core = undone()
    core.tell(ended("y", 1, "r1"))
    core.tell(ended("x", 2, "r1"))
    assert started(core.submit("z")) == [("z", 1, "r1")]
    return core


@pytest.mark.req("ORCH-3024")
def test_one_that_runs_elsewhere_goes_on() -> None:
    core = elsewhere()
    assert stops(core.back(TWO, RunningAttempt("z", 3, 2, 2))) == [("z", 3, "stale")]
    assert core.state_of("z") == "running"
    # Never a number that was used before.
    assert started(core.tell(ReplicaLost("r1", "eof"))) == [("z", 4, "r0")]
    assert not core.tell(ended("z", 3, result="finished"))
    assert one(core.tell(ended("z", 4)), Finish).outcome.state == "finished"


@pytest.mark.req("ORCH-3024")
def test_one_that_is_over_stays_known() -> None:
    core = elsewhere()
    core.tell(ended("z", 1, "r1"))
    assert stops(core.back(TWO, RunningAttempt("z", 2, 2, 2))) == [("z", 2, "stale")]
    assert not core.tell(ended("z", 2, result="finished"))
    assert core.state_of("z") == "finished"


@pytest.mark.req("ORCH-3024", "ORCH-3015")
def test_one_that_is_being_measured_is_refused_and_may_come_again() -> None:
    core = undone()
    core.submit("z", templated=True)
    assert core.state_of("z") == "measuring"
    commands = core.back(TWO, RunningAttempt("z", 1, 2, 2))
    error = one(commands, Reject).error
    assert (error.code, error.retriable, error.policy_label) == ("ADMISSION_REJECT", True, "reject")
    assert core.state_of("z") is None
    assert not core.measured("z", 5)
    core.tell(ended("z", 1, result="stopped"))
    core.submit("z")
    assert core.state_of("z") in ("queued", "running")


# ------------------------------------------------------------------------ given up


@pytest.mark.req("ORCH-3036", "ORCH-3051")
@pytest.mark.parametrize("determinism", ["strict", "best_effort"])
def test_one_that_its_quota_stopped_says_so(determinism: str) -> None:
    core = Durable(ready=(replica("r0"), replica("r1")), tenants=(TenantPolicy(TENANT, max_concurrent=2),))
    core.submit("a")
    core.submit("b", determinism=determinism)
    core.restart(tenants=(TenantPolicy(TENANT, max_concurrent=1),))
    core.back(replica("r0"), RunningAttempt("a", 1, 1, 1))
    commands = core.back(replica("r1"), RunningAttempt("b", 1, 1, 1))
    assert stops(commands) == [("b", 1, "stale")]
    if determinism == "best_effort":
        error = one(commands, Finish).outcome.error
        assert error is not None
        assert (error.code, error.retriable) == ("WORKER_RESET", True)
        assert f"quota of tenant {TENANT}" in error.message
        assert "did not come back" not in error.message
        return
    assert core.task("b").over_attempt == 1


@pytest.mark.req("ORCH-3036", "ORCH-3026")
def test_a_link_that_is_cut_again_does_not_bring_it_back() -> None:
    core = Durable(ready=(replica("r0"), replica("r1")), tenants=(TenantPolicy(TENANT, max_concurrent=2),))
    core.submit("a")
    core.submit("b")
    core.restart(tenants=(TenantPolicy(TENANT, max_concurrent=1),))
    core.back(replica("r0"), RunningAttempt("a", 1, 1, 1))
    core.back(replica("r1"), RunningAttempt("b", 1, 1, 1))
    core.tell(ReplicaLost("r1", "eof"))
    core.tell(ReplicaLost("r0", "eof"))
    # There is room for it in the quota now, but it is stopping.
    assert stops(core.back(replica("r1"), RunningAttempt("b", 1, 1, 1))) == [("b", 1, "stale")]
    assert core.state_of("b") == "queued"
    assert core.scheduler.state.tasks["b"].losses == 1


# ------------------------------------------------------------------------ suspects


@pytest.mark.req("ORCH-3025")
@pytest.mark.parametrize("how", ["unanswered", "confirmed"])
def test_a_suspect_starts_as_soon_as_the_one_before_it_is_over(how: str) -> None:
    """Even if that one's slot is not free yet, and another is."""
    core = Core(ready=(TWO,))
    core.submit("a")
    core.submit("b")
    core.tell(ReplicaUnready("r0", "crash", "exit"))
    assert started(core.tell(ReplicaReady(TWO))) == [("a", 2, "r0")]
    core.cancel("a")
    commands = (
        core.pass_ms(2_000) if how == "unanswered" else core.tell(ended("a", 2, result="stopped", slot_free=False))
    )
    assert started(commands) == [("b", 2, "r0")]
    assert not started(core.tell(SlotReleased("a", 2, "r0")))


# ------------------------------------------------------------------------ ends behind a replica that loads


@pytest.mark.req("ORCH-3009", "ORCH-3026")
@pytest.mark.parametrize("determinism", ["strict", "best_effort"])
@pytest.mark.parametrize("is_restarted", [True, False])
def test_what_ended_before_its_engine_did_has_ended(determinism: str, is_restarted: bool) -> None:
    core = Durable(ready=(replica(),))
    core.submit("t", determinism=determinism)
    if is_restarted:
        core.restart()
    else:
        core.tell(LOST)
    commands = core.tell(ReplicaLoading("r0", "pool-a", 0, (ended("t", transcript_bytes=7), ended("gone", 4))))
    outcome = one(commands, Finish).outcome
    assert (outcome.state, outcome.tokens_out, core.task("t").transcript_bytes) == ("finished", 10, 7)
    core.tell(ReplicaReady(replica()))
    assert started(core.submit("next")) == [("next", 1, "r0")]
