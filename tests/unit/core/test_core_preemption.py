"""Hard preemption: who is stopped for whom, what becomes of both, and what bounds it (ORCH-3086)."""

from typing import Any

import pytest

from contracts.errors import ErrorInfo
from contracts.policies import PoolPolicy, PreemptionPolicy
from contracts.scheduling import (
    Admit,
    AnswerCancel,
    Finish,
    Pause,
    Reject,
    ReplicaLost,
    SlotReleased,
    Start,
    Stop,
    TokensProgressed,
)
from contracts.tasks import ReplicaInfo
from tests.unit.core.core_kit import MS, Core, ended, of, one, queue, replica, replica_set

#: Time to make the 10 tokens of a task at 10 ms each, and to be sure of it.
SURE_MS = 300


def core(*ready: ReplicaInfo, mode: Any = "hard", **preemption: Any) -> Core:
    """A set with three classes under EDF, whose replica can be interrupted."""
    policy = replica_set(
        queues=(queue("interactive"), queue("batch"), queue("idle")),
        fairness="wfq",
        ordering="edf",
        on_time_percent_min=50,
        wall_timeout_ms=60_000,
        idle_timeout_ms=60_000,
        preemption=PreemptionPolicy(mode, **preemption),
    )
    return Core(policy, ready=ready or (replica(interruptible_decode=True),))


def busy(**over: Any) -> Core:
    """One batch task runs that would hold the only slot for nearly a second, and has made 4 tokens."""
    made = core(**over)
    made.submit("low", priority="batch", max_tokens=90)
    made.tell(TokensProgressed("low", 1, 4, 77))
    return made


def urgent(made: Core, task_id: str = "high", **over: Any) -> list[Any]:
    return made.submit(task_id, deadline_ms=SURE_MS, **over)


def served(made: Core, task_id: str) -> list[Any]:
    """The task makes its 10 tokens in 100 ms."""
    made.pass_ms(100)
    return made.tell(ended(task_id, tokens_in=1, first_token_ns=10 * MS, decode_ns=90 * MS))


@pytest.mark.req("ORCH-3086")
def test_a_running_task_of_a_lower_class_gives_its_slot_to_one_that_would_be_late() -> None:
    made = busy()
    commands = urgent(made)
    stop = one(commands, Stop)
    assert (stop.task_id, stop.attempt, stop.reason, stop.for_task) == ("low", 1, "preempt", "high")
    assert stop.why == "preempted: high of a higher class would miss its deadline otherwise"
    assert one(commands, Admit).task_id == "high"
    commands = made.tell(ended("low", result="stopped", tokens_out=6, digest=99))
    assert [type(c) for c in commands[:2]] == [Pause, Start]
    pause, start = one(commands, Pause), one(commands, Start)
    assert (pause.task_id, pause.attempt) == ("low", 1)
    assert pause.why.startswith("preempted, waits again; resumes in about ")
    assert (start.task_id, start.placement) == ("high", "handed-over")
    assert start.why.startswith("handed-over: r0 with 0 of 1 slots taken")
    assert made.state_of("low") == "queued"
    resumed = one(served(made, "high"), Start)
    assert (resumed.task_id, resumed.attempt, resumed.resume_tokens, resumed.resume_digest) == ("low", 2, 6, 99)
    assert one(made.tell(ended("low", 2, tokens_out=90)), Finish).outcome.state == "finished"


@pytest.mark.req("ORCH-3086")
def test_what_was_made_is_what_the_furthest_attempt_made() -> None:
    made = busy()
    urgent(made)
    made.tell(ended("low", result="stopped", tokens_out=6, digest=99))
    assert one(served(made, "high"), Start).resume_tokens == 6
    # The second attempt is stopped before it has made as much again.
    made.tell(TokensProgressed("low", 2, 2, 11))
    urgent(made, "high2")
    made.tell(ended("low", 2, result="stopped", tokens_out=3, digest=12))
    resumed = one(served(made, "high2"), Start)
    assert (resumed.attempt, resumed.resume_tokens, resumed.resume_digest) == (3, 6, 99)


@pytest.mark.req("ORCH-3086")
@pytest.mark.parametrize(
    ("over", "submit"),
    [
        ({"mode": "soft"}, {}),
        ({"mode": "off"}, {}),
        ({"protect": ("batch",)}, {}),
        ({}, {"priority": "batch"}),
        ({}, {"priority": "idle"}),
        ({"per_task_max": 0}, {}),
    ],
)
def test_nothing_is_stopped_where_it_must_not_be(over: dict[str, Any], submit: dict[str, Any]) -> None:
    made = busy(**over)
    commands = urgent(made, **submit)
    assert not of(commands, Stop)
    assert one(commands, Reject).error.code == "DEADLINE_UNMET"


@pytest.mark.req("ORCH-3086")
def test_an_engine_that_cannot_be_interrupted_is_left_alone() -> None:
    made = core(replica())
    made.submit("low", priority="batch", max_tokens=90)
    assert one(urgent(made), Reject).error.code == "DEADLINE_UNMET"


@pytest.mark.req("ORCH-3086")
@pytest.mark.parametrize(("tokens", "stopped"), [(0, True), (1, False)])
def test_what_cannot_be_repeated_is_stopped_only_while_nothing_was_delivered(tokens: int, stopped: bool) -> None:
    made = core()
    made.submit("low", priority="batch", max_tokens=90, determinism="best_effort")
    made.tell(TokensProgressed("low", 1, tokens, 5))
    assert bool(of(urgent(made), Stop)) == stopped


@pytest.mark.req("ORCH-3086")
def test_a_repeated_task_that_cannot_be_repeated_again_keeps_its_slot() -> None:
    made = core()
    made.submit("low", priority="batch", max_tokens=90, determinism="best_effort")
    urgent(made)
    # Progress lags: the attempt turns out to have delivered something when it is stopped.
    made.tell(ended("low", result="stopped", tokens_out=2, digest=3))
    assert one(served(made, "high"), Start).resume_tokens == 2
    assert one(urgent(made, "high2"), Reject).error.code == "DEADLINE_UNMET"


@pytest.mark.req("ORCH-3086")
def test_one_that_can_wait_waits() -> None:
    made = busy()
    assert not of(made.submit("patient", deadline_ms=60_000), Stop)


@pytest.mark.req("ORCH-3086")
def test_one_that_would_be_late_even_with_a_slot_gets_none() -> None:
    made = busy()
    assert one(made.submit("hopeless", deadline_ms=20), Reject).error.code == "DEADLINE_UNMET"


@pytest.mark.req("ORCH-3086")
def test_the_lowest_class_and_the_latest_started_go_first() -> None:
    made = core(replica(slots=3, interruptible_decode=True))
    made.submit("batch", priority="batch", max_tokens=90)
    made.submit("idle1", priority="idle", max_tokens=90)
    made.submit("idle2", priority="idle", max_tokens=90)
    assert [one(urgent(made, f"h{n}"), Stop).task_id for n in range(3)] == ["idle2", "idle1", "batch"]


@pytest.mark.req("ORCH-3086")
def test_so_many_a_minute() -> None:
    made = core(replica(slots=3, interruptible_decode=True), max_per_min=2)
    for n in range(3):
        made.submit(f"low{n}", priority="batch", max_tokens=90)
    assert of(urgent(made, "h0"), Stop)
    assert of(urgent(made, "h1"), Stop)
    assert one(urgent(made, "h2"), Reject).error.code == "DEADLINE_UNMET"


@pytest.mark.req("ORCH-3086")
def test_so_many_in_a_tasks_life() -> None:
    made = busy(per_task_max=2)
    for n in range(2):
        assert of(urgent(made, f"h{n}"), Stop)
        made.tell(ended("low", n + 1, result="stopped", tokens_out=5, digest=9))
        assert one(served(made, f"h{n}"), Start).task_id == "low"
    assert one(urgent(made, "h2"), Reject).error.code == "DEADLINE_UNMET"


@pytest.mark.req("ORCH-3086", "ORCH-3017")
def test_what_finished_before_the_stop_reached_it_has_finished() -> None:
    made = busy()
    urgent(made)
    commands = made.tell(ended("low", tokens_out=90))
    assert one(commands, Finish).outcome.state == "finished"
    assert not of(commands, Pause)
    assert one(commands, Start).task_id == "high"


@pytest.mark.req("ORCH-3086")
def test_the_slot_is_handed_over_when_it_is_free_and_not_before() -> None:
    made = busy()
    urgent(made)
    commands = made.tell(ended("low", result="stopped", tokens_out=5, digest=9, slot_free=False))
    assert of(commands, Pause)
    assert not of(commands, Start)
    start = one(made.tell(SlotReleased("low", 1, "r0")), Start)
    assert (start.task_id, start.placement) == ("high", "handed-over")


@pytest.mark.req("ORCH-3086", "ORCH-3017")
def test_a_stop_that_is_not_confirmed_lets_the_task_wait_and_keeps_the_slot() -> None:
    made = core()
    made.submit("low", priority="batch", max_tokens=90)
    made.tell(TokensProgressed("low", 1, 4, 77))
    made.submit("high", deadline_ms=SURE_MS, max_tokens=1)
    commands = made.pass_ms(2_000)
    assert one(commands, Pause).task_id == "low"
    assert not of(commands, Start)
    # It comes after all: the slot is free, and what the late report says of tokens is not taken over.
    start = one(made.tell(ended("low", result="stopped", tokens_out=9, digest=9)), Start)
    assert (start.task_id, start.resume_tokens, start.resume_digest) == ("low", 4, 77)


@pytest.mark.req("ORCH-3086")
def test_if_the_heir_is_gone_the_stopped_task_goes_on() -> None:
    made = busy()
    urgent(made)
    made.cancel("high")
    commands = made.tell(ended("low", result="stopped", tokens_out=5, digest=9))
    start = one(commands, Start)
    assert (start.task_id, start.attempt, start.resume_tokens, start.placement) == ("low", 2, 5, "least-loaded")


@pytest.mark.req("ORCH-3086", "ORCH-3017", "ORCH-3026")
def test_a_cancel_turns_the_stop_into_the_end() -> None:
    made = busy()
    urgent(made)
    assert not of(made.cancel("low"), AnswerCancel)
    commands = made.tell(ended("low", result="stopped", tokens_out=5))
    assert one(commands, Finish).outcome.state == "canceled"
    assert one(commands, AnswerCancel).found
    assert one(commands, Start).task_id == "high"


@pytest.mark.req("ORCH-3086")
def test_a_preempted_task_that_waits_can_be_canceled_with_what_it_delivered() -> None:
    made = busy()
    urgent(made)
    made.tell(ended("low", result="stopped", tokens_out=5, digest=9))
    outcome = one(made.cancel("low"), Finish).outcome
    assert (outcome.state, outcome.tokens_out) == ("canceled", 5)


@pytest.mark.req("ORCH-3086")
def test_a_replica_lost_while_it_stops_lets_the_task_wait_for_another() -> None:
    made = core(replica(interruptible_decode=True), replica("r1", interruptible_decode=True))
    made.submit("low", priority="batch", max_tokens=90)
    made.submit("other", priority="batch", max_tokens=90)
    made.tell(TokensProgressed("other", 1, 4, 77))
    stop = one(urgent(made), Stop)
    assert stop.task_id == "other"
    commands = made.tell(ReplicaLost(stop.replica_id, "gone"))
    assert one(commands, Pause).task_id == "other"
    assert not of(commands, Finish)
    assert made.state_of("high") == "queued"


@pytest.mark.req("ORCH-3086")
def test_a_resumed_attempt_that_differs_ends_its_task() -> None:
    made = busy()
    urgent(made)
    made.tell(ended("low", result="stopped", tokens_out=5, digest=9))
    served(made, "high")
    differs = ErrorInfo(code="WORKER_RESET", message="the tokens made again differ", retriable=False)
    outcome = one(made.tell(ended("low", 2, result="failed", error=differs)), Finish).outcome
    assert (outcome.state, outcome.error and outcome.error.code) == ("failed", "WORKER_RESET")


@pytest.mark.req("ORCH-3086", "OC-CORE-1013")
def test_a_session_of_the_main_pools_takes_no_slot_of_a_canary() -> None:
    policy = replica_set(
        queues=(queue("interactive"), queue("batch")),
        fairness="wfq",
        ordering="edf",
        on_time_percent_min=50,
        pools=(PoolPolicy("pool-a"), PoolPolicy("pool-c", canary_percent=50)),
        preemption=PreemptionPolicy("hard"),
    )
    made = Core(policy, ready=(replica(), replica("c0", pool_id="pool-c", interruptible_decode=True)))
    # crc32 of "s2" lies in the canary's half, that of "s1" does not.
    sides = {"s2": "c0", "s1": "r0"}
    for session_id, replica_id in sides.items():
        start = one(made.submit(session_id, session_id=session_id, priority="batch", max_tokens=90), Start)
        assert start.replica_id == replica_id
    assert one(urgent(made, session_id="s1"), Reject).error.code == "DEADLINE_UNMET"
