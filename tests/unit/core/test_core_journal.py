"""Which records a step changes, and that they tell all there is to tell (ORCH-3051)."""

import pytest

from contracts.journal import ForgottenSession, ForgottenTask, KeptAccount, KeptPool, KeptSession, KeptTask, Record
from contracts.policies import PreemptionPolicy, RatePolicy, SessionPolicy, TenantPolicy
from contracts.pools import DrainRequested, NodeInfo, ReloadRequested, ReplicaPlaced
from contracts.scheduling import (
    AnyCommand,
    ReplicaLost,
    ReplicaReported,
    SessionCloseRequested,
    SlotReleased,
    TimerFired,
    TokensProgressed,
)
from tests.unit.core.core_kit import MS, TENANT, ended, queue, replica, replica_set
from tests.unit.core.durable_kit import Durable, DurableFleet, account, everything
from tests.unit.core.pool_kit import pool

pytestmark = pytest.mark.req("ORCH-3051")


def kinds(records: list[Record]) -> list[str]:
    return [type(record).__name__ for record in records]


def test_an_admission_keeps_the_task_and_its_session() -> None:
    core = Durable(ready=(replica(),))
    commands = core.submit("t1")
    assert kinds(core.last) == ["KeptTask", "KeptSession"]
    (kept,) = core.told(KeptTask)
    assert kept.task.task_id == "t1"
    assert kept.told in commands
    assert (kept.attempt, kept.replica, kept.outcome) == (1, replica(), None)
    assert kept.start in commands
    assert kept.admitted_ns == core.now_ms * MS
    (session,) = core.told(KeptSession)
    assert (session.tenant, session.session_id) == (TENANT, "session")
    assert session.until_ns - session.last_ns == 600_000 * MS


def test_a_waiting_task_has_no_attempt_and_a_later_start_is_kept() -> None:
    core = Durable(ready=(replica(),))
    core.submit("t1")
    core.submit("t2")
    assert core.told(KeptTask)[0].attempt == 0
    core.tell(ended("t1"))
    one, two = core.told(KeptTask)
    assert (one.task.task_id, two.task.task_id, two.attempt) == ("t1", "t2", 1)
    assert one.outcome is not None
    assert one.outcome.state == "finished"
    assert two.queue_time_ns is not None


@pytest.mark.req("ORCH-2001")
def test_what_changes_nothing_keeps_nothing() -> None:
    core = Durable(ready=(replica(),))
    core.submit("t1")
    for event in (
        TokensProgressed("t1", 1, 3, 7),
        ReplicaReported("r0", 500),
        SlotReleased("t9", 1, "r0"),
        TimerFired(),
    ):
        core.tell(event)
        assert core.last == []
    core.submit("t1")
    assert core.last == []
    core.submit("t2", model_ref="none")
    assert core.last == []


def test_a_task_that_is_measured_is_not_kept_before_it_is_admitted() -> None:
    core = Durable(ready=(replica(),))
    core.submit("t1", templated=True)
    assert core.last == []
    core.measured("t1", 20)
    assert core.told(KeptTask)[0].prompt_tokens == 20


def test_forgotten_tasks_are_told_as_such_and_not_otherwise() -> None:
    core = Durable(ready=(replica(),), tasks_max=1, ttl_ms=1_000)
    for name in ("t1", "t2"):
        core.submit(name)
    core.tell(ended("t1"))
    core.tell(ended("t2"))
    assert [record.task_id for record in core.told(ForgottenTask)] == ["t1"]
    core.pass_ms(2_000)
    assert core.journal.tasks == {}


def test_a_dropped_transcript_shows_in_the_record() -> None:
    core = Durable(ready=(replica(),), bytes_max=1_000)
    for name in ("t1", "t2"):
        core.submit(name)
        core.tell(ended(name, transcript_bytes=600))
    assert (core.task("t1").transcript_bytes, core.task("t2").transcript_bytes) == (0, 600)


@pytest.mark.req("ORCH-3086", "ORCH-3009")
def test_a_pause_keeps_what_was_made_and_that_the_attempt_is_over() -> None:
    home = replica_set(
        preemption=PreemptionPolicy("hard"), queues=(queue("interactive"), queue("batch")), on_time_percent_min=50
    )
    core = Durable(home, ready=(replica(interruptible_decode=True),))
    core.submit("slow", priority="batch", max_tokens=50)
    core.tell(TokensProgressed("slow", 1, 3, 77))
    core.submit("urgent", deadline_ms=300, max_tokens=5)
    core.tell(ended("slow", result="stopped", tokens_out=4, digest=88))
    kept = core.task("slow")
    assert (kept.attempt, kept.over_attempt, kept.preemptions) == (1, 1, 1)
    assert (kept.resume_tokens, kept.resume_digest) == (4, 88)


@pytest.mark.req("ORCH-3009")
def test_a_loss_is_kept_as_one_and_so_is_what_a_replica_took_along() -> None:
    core = Durable(ready=(replica(),))
    core.submit("t1")
    core.tell(TokensProgressed("t1", 1, 2, 5))
    core.tell(ReplicaLost("r0", "gone"))
    kept = core.task("t1")
    assert (kept.losses, kept.lost_attempt, kept.over_attempt, kept.resume_tokens) == (1, 1, 0, 2)


@pytest.mark.req("ORCH-3077", "ORCH-3006")
def test_accounts_are_kept_where_there_is_a_bucket() -> None:
    rate = RatePolicy(10.0, 2)
    core = Durable(
        replica_set(queues=(queue("interactive", rate=rate), queue("batch"))),
        ready=(replica(),),
        tenants=(TenantPolicy(TENANT, rate=rate, tokens_per_min=6_000),),
        clients={"key": rate},
    )
    core.submit("t1", client="key")
    assert {(each.kind, each.name) for each in core.told(KeptAccount)} == {
        ("tenant", TENANT),
        ("client", "key"),
        ("class", "set-a interactive"),
    }
    before = account(core, "tenant", TENANT)
    assert before.requests_full_ns == core.now_ms * MS + 100 * MS
    core.tell(ended("t1", tokens_in=2, tokens_out=3))
    assert account(core, "tenant", TENANT).tokens_full_ns < before.tokens_full_ns
    core.submit("t2", tenant="other", priority="batch")
    assert core.told(KeptAccount) == []


@pytest.mark.req("ORCH-3021", "ORCH-3099")
def test_sessions_are_kept_until_they_are_closed_expired_or_dropped() -> None:
    core = Durable(ready=(replica(),), sessions=SessionPolicy(ttl_ms=1_000, sessions_max=2))
    core.submit("t1", session_id="one")
    core.tell(SessionCloseRequested(9, "one", TENANT))
    assert core.told(KeptSession)[0].closing
    core.tell(ended("t1"))
    assert ForgottenSession(TENANT, "one") in core.last
    core.submit("t2", session_id="two")
    core.tell(ended("t2", tokens_in=4, tokens_out=3))
    assert core.told(KeptSession)[0].used_tokens == 7
    core.tell(SessionCloseRequested(10, "two", TENANT))
    assert core.last == [ForgottenSession(TENANT, "two")]
    for n in range(4):
        core.submit(f"s{n}", session_id=f"s{n}")
        core.tell(ended(f"s{n}"))
    assert len(core.journal.kept().sessions) == 2
    core.pass_ms(5_000)
    core.submit("late", session_id="late")
    assert [each.session_id for each in core.journal.kept().sessions] == ["late"]


@pytest.mark.req("ORCH-3018", "ORCH-3031")
def test_pools_are_kept_as_they_change() -> None:
    core = DurableFleet(pool(replicas=2))
    (kept,) = core.journal.kept().pools
    assert (kept.pool_id, kept.model_ref, kept.desired, kept.ordinal) == ("pool-a", "small", 2, 2)
    assert [(each.replica_id, each.incarnation, each.node_id) for each in kept.replicas] == [
        ("pool-a-0", 1, "n0"),
        ("pool-a-1", 1, "n0"),
    ]
    core.up("pool-a-0", "pool-a-1")
    core.tell(DrainRequested(1, "pool-a", 1_000))
    (kept,) = core.journal.kept().pools
    assert (kept.drained, kept.replicas) == (True, ())


@pytest.mark.req("ORCH-3008")
def test_where_a_replica_was_placed_is_kept() -> None:
    core = DurableFleet(pool(replicas=1), nodes=())
    assert core.journal.kept().pools[0].replicas[0].node_id == ""
    state = core.scheduler.state
    state.pools.nodes["n7"] = NodeInfo("n7")
    core.tell(ReplicaPlaced("pool-a-0", 1, "n7"))
    assert core.journal.kept().pools[0].replicas[0].node_id == "n7"


@pytest.mark.req("ORCH-3031")
def test_a_reload_is_kept_once_it_is_done() -> None:
    core = DurableFleet(pool(replicas=1), models={"llamacpp": ("small", "big")})
    core.up("pool-a-0")
    core.tell(ReloadRequested(1, "pool-a", "big"))
    assert core.journal.kept().pools[0].model_ref == "small"
    core.up("pool-a-1")
    (kept,) = core.journal.kept().pools
    assert (kept.model_ref, kept.configured_ref, [each.replica_id for each in kept.replicas]) == (
        "big",
        "small",
        ["pool-a-1"],
    )


def test_one_record_of_each_subject_and_all_of_them_up_to_date() -> None:
    """Whatever happened, the journal is what a look at everything would tell."""
    core = Durable(ready=(replica(slots=2),), tasks_max=3, bytes_max=500)
    steps: list[list[AnyCommand]] = []
    for n in range(40):
        steps.append(core.submit(f"t{n}", session_id=f"s{n % 5}"))
        assert len({repr(record)[:60] for record in core.last}) == len(core.last)
        if n % 2:
            task_id = next(c for c in core.scheduler.state.sets[0].running["interactive"])
            core.tell(ended(task_id, tokens_in=3, transcript_bytes=n * 9))
        if n % 7 == 3:
            core.cancel(f"t{n - 1}")
    tasks, sessions, _ = everything(core.scheduler)
    kept = core.journal.kept()
    assert sorted(kept.tasks, key=lambda each: each.order) == sorted(tasks, key=lambda each: each.order)
    assert sorted(map(repr, kept.sessions)) == sorted(map(repr, sessions))


def test_pools_are_the_last_thing_told_of_a_step() -> None:
    core = DurableFleet(pool(replicas=1))
    core.up("pool-a-0")
    core.lose("pool-a-0")
    assert [type(record) for record in core.last] == [KeptPool]
