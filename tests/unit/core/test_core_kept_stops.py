"""Stops, failures and fail-overs that a restart comes between: what was meant is still meant (ORCH-3051)."""

from typing import Any

import pytest

from contracts.errors import ErrorInfo
from contracts.policies import PreemptionPolicy
from contracts.pools import NodeInfo, OrderReplica, ReplicaGone
from contracts.scheduling import (
    Finish,
    Pause,
    ReplicaLost,
    ReplicaReady,
    ReplicaUnready,
    RunningAttempt,
    Stop,
    TokensDiverged,
    TokensProgressed,
)
from tests.unit.core.core_kit import MS, TENANT, ended, of, one, queue, replica, replica_set, started
from tests.unit.core.durable_kit import Durable, DurableFleet
from tests.unit.core.pool_kit import pool

pytestmark = pytest.mark.req("ORCH-3051")
BOTH = pytest.mark.parametrize("determinism", ["strict", "best_effort"])
#: How the attempt that was to stop is found after the restart.
FOUND = pytest.mark.parametrize("found", ["stopped", "runs", "gone"])


def stopping(reason: str, determinism: str = "strict", **over: Any) -> Durable:
    """A task is being stopped when the scheduler dies; its replica heard of that."""
    policy = replica_set(**{"wall_timeout_ms": 1_000, "idle_timeout_ms": 900, **over})
    core = Durable(policy, ready=(replica(),))
    core.submit("t", determinism=determinism)
    core.tell(TokensProgressed("t", 1, 3, 3))
    if reason == "cancel":
        core.cancel("t")
    elif reason == "diverged":
        core.tell(TokensDiverged("t", 1))
    else:
        core.pass_ms(500)
        core.tell(TokensProgressed("t", 1, 4, 3))
        core.pass_ms(500)
    assert core.task("t").stop_reason == reason
    core.restart(after_ms=10)
    return core


def found_again(core: Durable, found: str) -> list[Any]:
    if found == "gone":
        return list(core.back(replica()))
    if found == "stopped":
        return list(core.back(replica(), ended=(ended("t", result="stopped", tokens_out=4),)))
    assert of(core.back(replica(), RunningAttempt("t", 1, 4, 3)), Stop)
    return core.tell(ended("t", result="stopped", tokens_out=4))


@pytest.mark.req("ORCH-3017", "ORCH-3016", "ORCH-3045")
@BOTH
@FOUND
@pytest.mark.parametrize(
    ("reason", "state", "code"),
    [
        ("cancel", "canceled", None),
        ("wall", "failed", "DECODE_TIMEOUT"),
        ("diverged", "failed", "WORKER_RESET"),
    ],
)
def test_a_task_that_was_being_stopped_ends_as_that_was_meant(
    reason: str, state: str, code: str | None, determinism: str, found: str
) -> None:
    core = stopping(reason, determinism)
    commands = found_again(core, found)
    outcome = one(commands, Finish).outcome
    assert (outcome.state, outcome.error and outcome.error.code) == (state, code)
    assert reason != "diverged" or (outcome.error is not None and "determinism" in outcome.error.message)
    assert not started(commands)
    # What it stood for is over.
    assert core.task("t").stop_reason is None
    assert started(core.submit("next")) == [("next", 1, "r0")]


@pytest.mark.req("ORCH-3016")
def test_one_that_finished_before_the_stop_reached_it_has_finished() -> None:
    core = stopping("wall")
    assert one(core.back(replica(), ended=(ended("t"),)), Finish).outcome.state == "finished"


@pytest.mark.req("ORCH-3017")
def test_a_cancel_that_comes_while_a_task_is_stopped_for_something_else_is_kept() -> None:
    core = preempted()
    core.cancel("low")
    assert core.task("low").stop_reason == "cancel"
    core.restart(after_ms=10)
    commands = core.back(replica(), ended=(ended("low", result="stopped", tokens_out=3),))
    assert one(commands, Finish).outcome.state == "canceled"
    assert started(commands) == [("high", 1, "r0")]


def preempted() -> Durable:
    """A running task has to make way for one of a higher class when the scheduler dies."""
    policy = replica_set(
        queues=(queue("interactive"), queue("batch")),
        ordering="edf",
        on_time_percent_min=50,
        idle_timeout_ms=9_000,
        preemption=PreemptionPolicy("hard"),
    )
    core = Durable(policy, ready=(replica(interruptible_decode=True),))
    core.submit("low", priority="batch", max_tokens=90)
    assert one(core.submit("high", deadline_ms=300), Stop).for_task == "high"
    assert core.task("low").stop_reason == "preempt"
    return core


@pytest.mark.req("ORCH-3086")
@FOUND
def test_one_that_had_to_make_way_waits_and_goes_on(found: str) -> None:
    core = preempted()
    core.restart(after_ms=10)
    if found == "runs":
        stop = one(core.back(replica(), RunningAttempt("low", 1, 3, 3)), Stop)
        assert (stop.reason, stop.why) == (
            "preempt",
            "preempted: a task of a higher class would miss its deadline otherwise",
        )
        commands = core.tell(ended("low", result="stopped", tokens_out=3))
    elif found == "stopped":
        commands = core.back(replica(), ended=(ended("low", result="stopped", tokens_out=3),))
    else:
        commands = core.back(replica())
    assert started(commands) == [("high", 1, "r0")]
    record = core.scheduler.state.tasks["low"]
    # It is no loss, and no end by the engine.
    assert (record.losses, record.preemptions, record.engine_ends, record.is_open) == (0, 1, 0, False)
    assert started(core.tell(ended("high"))) == [("low", 2, "r0")]
    assert not record.is_failover


# ------------------------------------------------------------------------ stopped by nobody


@pytest.mark.req("ORCH-3009", "ORCH-3040")
def test_an_attempt_that_was_stopped_by_nobody_is_lost() -> None:
    core = Durable(ready=(replica(),))
    core.submit("t")
    core.tell(TokensProgressed("t", 1, 3, 3))
    commands = core.tell(ended("t", result="stopped", tokens_out=4, digest=4))
    assert one(commands, Pause).cause == "lost"
    assert started(commands) == [("t", 2, "r0")]
    record = core.scheduler.state.tasks["t"]
    assert (record.losses, record.engine_ends, record.avoid, record.resume_tokens) == (1, 1, "", 4)


@pytest.mark.req("ORCH-3009")
def test_one_that_cannot_be_repeated_ends_with_it() -> None:
    core = Durable(ready=(replica(),))
    core.submit("t", determinism="best_effort")
    error = one(core.tell(ended("t", result="stopped", tokens_out=4)), Finish).outcome.error
    assert error is not None
    assert (error.code, error.retriable) == ("WORKER_RESET", True)
    assert "not known any more what for" in error.message


# ------------------------------------------------------------------------ what of an attempt is known to be over


@pytest.mark.req("ORCH-3009")
def test_an_attempt_whose_end_was_told_late_is_known_to_be_over_after_the_next_restart() -> None:
    """Its task waits again without a word to anybody."""
    core = Durable(ready=(replica(),))
    core.submit("t", determinism="best_effort")
    core.submit("u", determinism="best_effort", priority="batch")
    core.tell(ReplicaLost("r0", "eof"))
    error = ErrorInfo("WORKER_RESET", "it refused", retriable=True)
    core.scheduler.state.awaited["r9"] = None
    core.back(replica(), ended=(ended("t", result="failed", error=error),))
    assert core.task("t").over_attempt == 1
    core.restart()
    core.back(replica())
    assert core.state_of("t") == "running"


@pytest.mark.req("ORCH-3009")
def test_one_that_was_taken_up_is_judged_by_what_is_known_of_it_then() -> None:
    core = Durable(ready=(replica("r0"), replica("r1")))
    core.submit("t", determinism="best_effort")
    core.submit("u")
    core.restart()
    core.back(replica("r0"), RunningAttempt("t", 1, 0, 0))
    assert core.state_of("t") == "running"
    # Its replica goes again, while another is awaited still: nothing of it was delivered.
    core.tell(ReplicaLost("r0", "eof"))
    commands = core.back(replica("r1"), RunningAttempt("u", 1, 0, 0))
    assert not of(commands, Finish)
    assert started(core.tell(ReplicaReady(replica("r0")))) == [("t", 2, "r0")]


@pytest.mark.req("ORCH-3023")
def test_a_failover_is_told_as_one_after_a_restart_too() -> None:
    core = Durable(ready=(replica(),))
    core.submit("t")
    core.tell(TokensProgressed("t", 1, 3, 3))
    core.tell(ReplicaUnready("r0", "it broke", "exit"))
    core.tell(ReplicaReady(replica()))
    core.restart()
    core.back(replica(), RunningAttempt("t", 2, 3, 3))
    view = core.scheduler.started(core.now_ms * MS, "t", TENANT)
    assert view is not None
    assert (view.attempt, view.failover, view.kv_warmth) == (2, True, False)


# ------------------------------------------------------------------------ replicas


@pytest.mark.req("ORCH-3018")
def test_an_actor_that_is_gone_is_not_awaited_after_a_restart() -> None:
    core = DurableFleet(pool("pool-a", 1))
    core.up("pool-a-0")
    core.lose("pool-a-0")
    core.tell(ReplicaGone("pool-a-0", 1, "actor", "it is dead"))
    assert not core.member("pool-a-0").is_ordered
    core.restart()
    assert one(core.see(NodeInfo("n0")), OrderReplica).order.replica_id == "pool-a-1"
