"""Replicas whose links were made anew: what they still run is taken up, the rest is stopped."""

import pytest

from contracts.errors import ErrorInfo
from contracts.policies import SessionPolicy, TenantPolicy
from contracts.scheduling import (
    AnswerCancel,
    AnyCommand,
    AttemptEnded,
    CancelRequested,
    Finish,
    Forget,
    RefuseReplica,
    Reject,
    ReplicaLoading,
    ReplicaLost,
    ReplicaReady,
    RunningAttempt,
    SlotReleased,
    Start,
    Stop,
    TokensProgressed,
)
from contracts.tasks import ReplicaInfo
from orchestrator.core import dispatch
from orchestrator.core.records import TaskRecord
from tests.unit.core.core_kit import MS, TENANT, Core, ended, of, one, queue, replica, replica_set, started

AGAIN = ErrorInfo(code="INTERNAL", message="engine hiccup", retriable=True)
LOST = ReplicaLost("r0", "eof")


def lost(*task_ids: str, slots: int = 1, **over: object) -> Core:
    """Tasks ran on the only replica until its link was cut."""
    core = Core(ready=(replica(slots=slots),))
    for task_id in task_ids or ("t",):
        core.submit(task_id, **over)
    core.tell(LOST)
    return core


def back(
    core: Core, *running: RunningAttempt, end: tuple[AttemptEnded, ...] = (), info: ReplicaInfo | None = None
) -> list[AnyCommand]:
    return core.tell(ReplicaReady(info or replica(), 0, running, end))


def record(core: Core, task_id: str = "t") -> TaskRecord:
    return core.scheduler.state.tasks[task_id]


def stops(commands: list[AnyCommand]) -> list[tuple[str, int, str]]:
    return [(stop.task_id, stop.attempt, stop.reason) for stop in of(commands, Stop)]


def held(core: Core, *replica_ids: str) -> Core:
    """As after a recovery: nothing starts before these were heard of."""
    for replica_id in replica_ids:
        core.scheduler.state.awaited[replica_id] = None
    return core


# ------------------------------------------------------------------------ what goes on


@pytest.mark.req("ORCH-3009")
def test_an_attempt_that_still_runs_goes_on_as_if_nothing_had_been() -> None:
    core = lost()
    assert (core.state_of("t"), record(core).losses) == ("queued", 1)
    commands = back(core, RunningAttempt("t", 1, 6, 99))
    assert not of(commands, Start) + of(commands, Stop)
    assert (core.state_of("t"), record(core).attempt, record(core).losses) == ("running", 1, 0)
    assert (record(core).tokens_out, record(core).tokens_digest) == (6, 99)
    started_view = core.scheduler.started(core.now_ms * MS, "t", TENANT)
    assert started_view is not None
    assert not started_view.failover
    core.tell(TokensProgressed("t", 1, 7, 100))
    assert one(core.tell(ended("t", 1, tokens_out=8)), Finish).outcome.state == "finished"
    assert started(core.submit("next")) == [("next", 1, "r0")]


@pytest.mark.req("ORCH-3009", "ORCH-3026")
def test_one_that_was_started_elsewhere_meanwhile_is_stopped_and_holds_its_slot_until_then() -> None:
    core = lost()
    core.tell(ReplicaReady(replica("r1")))
    assert record(core).attempt == 2
    core.submit("w")
    assert stops(back(core, RunningAttempt("t", 1, 6, 99))) == [("t", 1, "stale")]
    assert core.state_of("w") == "queued"
    assert record(core).slots_held == 2
    assert not core.tell(TokensProgressed("t", 1, 50, 1))
    assert started(core.tell(ended("t", 1, result="stopped"))) == [("w", 1, "r0")]
    assert core.state_of("t") == "running"


@pytest.mark.req("ORCH-3009", "ORCH-3016")
def test_its_timeouts_run_on() -> None:
    core = Core(replica_set(wall_timeout_ms=10_000, idle_timeout_ms=4_000), ready=(replica(),))
    core.submit("t")
    core.pass_ms(3_000)
    core.tell(LOST)
    core.pass_ms(3_000)
    back(core, RunningAttempt("t", 1, 3, 9))
    # It was just heard of, so it is not idle; the wall clock stands where it stood.
    assert not of(core.pass_ms(3_999), Stop)
    assert one(core.pass_ms(1), Stop).reason == "wall"


@pytest.mark.req("ORCH-3009", "ORCH-3016")
def test_one_whose_time_is_up_is_stopped_with_the_next_tick() -> None:
    core = lost()
    core.pass_ms(20_000)
    assert not of(back(core, RunningAttempt("t", 1)), Stop)
    assert one(core.pass_ms(1), Stop).reason == "wall"


@pytest.mark.req("ORCH-3009")
def test_several_go_on_together_and_what_is_not_told_of_starts_again() -> None:
    core = lost("a", "b", "c", slots=3)
    commands = back(core, RunningAttempt("c", 1), RunningAttempt("a", 1), info=replica(slots=3))
    assert started(commands) == [("b", 2, "r0")]
    assert list(core.scheduler.state.replicas["r0"].busy) == [("c", 1), ("a", 1), ("b", 2)]


@pytest.mark.req("ORCH-3009")
def test_a_replica_that_was_not_told_to_be_lost_tells_all_the_same() -> None:
    core = Core(ready=(replica(slots=2),))
    core.submit("a")
    core.submit("b")
    commands = back(core, RunningAttempt("a", 1, 4, 9), info=replica(slots=2))
    assert started(commands) == [("b", 2, "r0")]
    assert (core.state_of("a"), record(core, "a").tokens_out) == ("running", 4)
    # One that tells nothing new is not asked anything.
    assert not back(core, info=replica(slots=2))
    assert core.state_of("a") == "running"


# ------------------------------------------------------------------------ what ended meanwhile


@pytest.mark.req("ORCH-3009")
def test_what_ended_meanwhile_has_ended() -> None:
    core = lost()
    core.submit("w")
    core.pass_ms(5_000)
    end = ended("t", 1, tokens_out=10, slot_free=True, first_token_ns=40 * MS, decode_ns=60 * MS, transcript_bytes=7)
    commands = back(core, end=(end,))
    outcome = one(commands, Finish).outcome
    assert (outcome.state, outcome.tokens_out) == ("finished", 10)
    assert started(commands) == []
    assert started(core.submit("next")) == [("next", 1, "r0")]


@pytest.mark.req("ORCH-3099")
def test_what_is_told_late_took_no_longer_for_it() -> None:
    core = lost()
    core.pass_ms(5_000)
    back(core, end=(ended("t", 1, tokens_out=10, first_token_ns=40 * MS, decode_ns=60 * MS),))
    session = core.scheduler.state.sessions.find(core.now_ms * MS, TENANT, "session")
    assert session is not None
    assert session.used_ns == 100 * MS


@pytest.mark.req("ORCH-3009")
def test_what_failed_meanwhile_is_tried_again_after_what_it_made() -> None:
    core = lost()
    start = one(back(core, end=(ended("t", 1, result="failed", error=AGAIN, tokens_out=3, digest=8),)), Start)
    assert (start.attempt, start.resume_tokens, start.resume_digest) == (2, 3, 8)
    assert record(core).losses == 0


@pytest.mark.req("ORCH-3026")
def test_an_end_that_was_told_before_is_told_in_vain() -> None:
    core = Core(ready=(replica(),))
    core.submit("t")
    end = ended("t", 1, result="failed", error=AGAIN, slot_free=False)
    core.tell(end)
    core.tell(LOST)
    assert started(back(core, end=(end,))) == [("t", 2, "r0")]
    assert record(core).engine_ends == 2
    core.tell(ended("t", 2))
    core.tell(LOST)
    assert not of(back(core, end=(end, ended("t", 2))), Finish)


@pytest.mark.req("ORCH-3019")
def test_the_slot_of_an_attempt_that_is_over_is_taken_until_it_is_released() -> None:
    core = lost()
    commands = back(core, RunningAttempt("t", 1, 10, 9, over=True), end=(ended("t", 1),))
    assert one(commands, Finish).outcome.state == "finished"
    assert not of(commands, Stop)
    assert not of(core.submit("w"), Start)
    assert started(core.tell(SlotReleased("t", 1, "r0"))) == [("w", 1, "r0")]


@pytest.mark.req("ORCH-3019")
def test_an_attempt_that_is_over_and_whose_end_is_known_only_holds_its_slot() -> None:
    core = Core(ready=(replica(),))
    core.submit("t")
    core.tell(ended("t", 1, slot_free=False))
    core.tell(LOST)
    assert not back(core, RunningAttempt("t", 1, 10, 9, over=True))
    core.submit("w")
    assert started(core.tell(SlotReleased("t", 1, "r0"))) == [("w", 1, "r0")]


# ------------------------------------------------------------------------ what nobody waits for


@pytest.mark.req("ORCH-3026")
def test_what_was_given_up_is_not_taken_up_again() -> None:
    core = Core(ready=(replica(),))
    core.submit("t")
    core.cancel("t")
    # The stop goes unanswered, which ends the task; its replica never heard of it.
    core.pass_ms(2_000)
    core.tell(LOST)
    assert stops(back(core, RunningAttempt("t", 1, 5, 9))) == [("t", 1, "stale")]
    assert core.state_of("t") == "canceled"


@pytest.mark.req("ORCH-3024")
def test_an_attempt_of_a_forgotten_task_holds_its_slot_and_its_id() -> None:
    core = Core(ready=(replica(),), ttl_ms=1_000)
    core.submit("w")
    core.tell(ended("w"))
    core.tell(LOST)
    commands = back(core, RunningAttempt("gone", 3, 5, 9))
    assert stops(commands) == [("gone", 3, "stale")]
    assert core.state_of("gone") is None
    assert not one(core.cancel("gone"), AnswerCancel).found
    assert one(core.submit("gone"), Reject).error.code == "TASK_ID_CONFLICT"
    core.submit("next")
    commands = core.tell(ended("gone", 3, result="stopped"))
    assert [forget.task_id for forget in of(commands, Forget)] == ["gone"]
    assert started(commands) == [("next", 1, "r0")]
    assert not of(core.submit("gone"), Reject)


@pytest.mark.req("ORCH-3024")
def test_attempts_of_one_forgotten_task_may_hold_slots_of_several_replicas() -> None:
    core = Core(ready=(replica("r1"),))
    back(core, RunningAttempt("gone", 1))
    assert stops(core.tell(ReplicaReady(replica("r2"), 0, (RunningAttempt("gone", 2),)))) == [("gone", 2, "stale")]
    assert not of(core.tell(ended("gone", 1, result="stopped")), Forget)
    # A replica that is lost takes its slots along.
    assert of(core.tell(ReplicaLost("r2", "eof")), Forget)


@pytest.mark.req("ORCH-3010")
@pytest.mark.parametrize(
    ("running", "reason"),
    [
        ((RunningAttempt("x", 1), RunningAttempt("y", 1), RunningAttempt("z", 1)), "3 attempts on 2 slots"),
        ((RunningAttempt("x", 1), RunningAttempt("x", 1)), "attempt 1 of x twice"),
        ((RunningAttempt("t", 1), RunningAttempt("u", 1)), "182 KV tokens, its cache holds 100"),
    ],
)
def test_a_replica_that_contradicts_itself_must_not_serve(running: tuple[RunningAttempt, ...], reason: str) -> None:
    core = Core(ready=(replica("r0", slots=2, kv_tokens=100), replica("r1", slots=2, kv_tokens=100)))
    core.submit("t", max_tokens=90)
    core.submit("u", max_tokens=90)
    core.tell(ReplicaLost("r0", "eof"))
    core.tell(ReplicaLost("r1", "eof"))
    refused = one(back(core, *running, info=replica(slots=2, kv_tokens=100)), RefuseReplica)
    assert reason in refused.reason
    assert core.state_of("t") == "queued"


@pytest.mark.req("ORCH-3010")
def test_a_replica_of_another_set_or_engine_takes_nothing_up() -> None:
    core = lost()
    commands = back(core, RunningAttempt("t", 1), info=replica(sampler_profile_version="v2"))
    assert of(commands, RefuseReplica)
    assert core.state_of("t") == "queued"


@pytest.mark.req("ORCH-3036")
def test_what_is_being_stopped_uses_up_the_quota_of_its_tenant() -> None:
    core = Core(ready=(replica(),), tenants=(TenantPolicy(TENANT, max_concurrent=1),))
    core.submit("b")
    core.submit("c")
    core.tell(LOST)
    core.tell(ReplicaReady(replica("r1")))
    assert stops(back(core, RunningAttempt("b", 1))) == [("b", 1, "stale")]
    assert record(core, "b").quota.running == 2
    assert not of(core.tell(ended("b", 2, "r1")), Start)
    assert [start[0] for start in started(core.tell(ended("b", 1, result="stopped")))] == ["c"]


@pytest.mark.req("ORCH-3036")
def test_one_that_would_exceed_the_quota_is_stopped_and_waits_on() -> None:
    core = Core(ready=(replica(),), tenants=(TenantPolicy(TENANT, max_concurrent=1),))
    core.submit("a")
    core.submit("b", priority="batch")
    core.tell(LOST)
    held(core, "r9")
    core.tell(ReplicaReady(replica("r1")))
    # Taken out of turn, so that the tenant's only place is taken when `a` comes back.
    other = record(core, "b")
    core.scheduler.state.begin_step(core.now_ms * MS)
    other.home.take(other)
    dispatch.start(core.scheduler.state, other, core.scheduler.state.replicas["r1"], warm=False)
    assert stops(back(core, RunningAttempt("a", 1, 2, 3))) == [("a", 1, "stale")]
    assert (core.state_of("a"), record(core, "a").quota.running) == ("queued", 2)


# ------------------------------------------------------------------------ while replicas are awaited


@pytest.mark.req("ORCH-3026", "ORCH-3017")
def test_a_cancel_of_a_task_that_may_run_waits_for_its_replica_and_stops_it() -> None:
    core = held(lost(), "r0", "r1")
    assert not core.cancel("t")
    assert not core.tell(CancelRequested(77, "t", TENANT))
    assert stops(back(core, RunningAttempt("t", 1, 2, 3))) == [("t", 1, "cancel")]
    commands = core.tell(ended("t", 1, result="stopped", tokens_out=4))
    assert one(commands, Finish).outcome.state == "canceled"
    assert len(of(commands, AnswerCancel)) == 2


@pytest.mark.req("ORCH-3026")
@pytest.mark.parametrize(
    ("result", "state"), [("finished", "finished"), ("stopped", "canceled"), ("failed", "canceled")]
)
def test_a_cancel_of_a_task_that_ended_meanwhile_is_answered_with_its_end(result: str, state: str) -> None:
    core = held(lost(), "r0")
    core.cancel("t")
    commands = back(core, end=(ended("t", 1, result=result, error=AGAIN if result == "failed" else None),))
    assert one(commands, Finish).outcome.state == state
    assert one(commands, AnswerCancel).found
    assert not of(commands, Start)


@pytest.mark.req("ORCH-3026")
@pytest.mark.parametrize("event", [ReplicaReady(replica()), ReplicaLoading("r0", "pool-a")])
def test_a_cancel_is_answered_once_its_replica_does_not_have_the_task(event: ReplicaReady | ReplicaLoading) -> None:
    core = held(lost(), "r0")
    core.cancel("t")
    commands = core.tell(event)
    assert one(commands, Finish).outcome.state == "canceled"
    assert one(commands, AnswerCancel).found


@pytest.mark.req("ORCH-3017")
def test_a_task_that_nobody_can_run_is_canceled_at_once() -> None:
    core = held(lost(), "r7")
    assert one(core.cancel("t"), AnswerCancel).found


@pytest.mark.req("ORCH-3009")
def test_the_deadline_of_a_task_that_may_run_waits_for_its_replica() -> None:
    core = held(lost("t", "w", deadline_ms=2_000), "r0")
    assert [finish.task_id for finish in of(core.pass_ms(2_500), Finish)] == ["w"]
    assert not of(back(core, RunningAttempt("t", 1, 2, 3)), Finish)
    assert one(core.tell(ended("t", 1)), Finish).outcome.state == "finished"


@pytest.mark.req("ORCH-3009")
def test_nothing_starts_before_the_last_one_was_heard_of() -> None:
    core = held(lost(), "r0", "r1")
    assert not of(back(core), Start)
    assert started(core.tell(ReplicaLoading("r1", "pool-a"))) == [("t", 2, "r0")]


@pytest.mark.req("ORCH-3009")
def test_an_attempt_that_ran_when_the_scheduler_was_lost_counts_as_lost_when_another_starts() -> None:
    core = lost()
    found = record(core)
    # As recovered: that it ran is all that is known.
    found.losses, found.lost_attempt = 0, 0
    back(core)
    assert (found.attempt, found.losses, found.is_failover, found.over_attempt) == (2, 1, True, 1)


def test_sessions_and_policies_are_untouched_by_a_cut_link() -> None:
    core = Core(
        replica_set(queues=(queue("interactive"),), fairness="wfq", ordering="edf"),
        ready=(replica(slots=2),),
        sessions=SessionPolicy(),
    )
    core.submit("a", session_id="s1")
    core.submit("b", session_id="s2")
    before = core.scheduler.shares()
    core.tell(LOST)
    back(core, RunningAttempt("a", 1, 2, 3), RunningAttempt("b", 1, 2, 3), info=replica(slots=2))
    assert [share[:3] for share in core.scheduler.shares()] == [share[:3] for share in before]
    for task_id in ("a", "b"):
        assert one(core.tell(ended(task_id)), Finish).outcome.state == "finished"
    assert core.scheduler.state.sets[0].running_tokens == 0
