"""Before the service ends, and while nothing can be made durable (ORCH-3051)."""

import pytest

from contracts.journal import ForgottenTask, KeptSession
from contracts.scheduling import (
    Admit,
    AnswerShutdown,
    Finish,
    Forget,
    JournalFailed,
    JournalRestored,
    Reject,
    ReplicaLost,
    ReplicaReady,
    ShutdownRequested,
    Start,
    Stop,
)
from tests.unit.core.core_kit import TENANT, ended, of, one, replica, started
from tests.unit.core.durable_kit import Durable

pytestmark = pytest.mark.req("ORCH-3051")


def refused(core: Durable, task_id: str, **over: object) -> tuple[str, bool | None, int | None]:
    error = one(core.submit(task_id, **over), Reject).error
    return error.code, error.retriable, error.retry_after_ms


# ------------------------------------------------------------------------ shutdown


@pytest.mark.req("ORCH-3025")
def test_what_runs_ends_and_what_waits_is_left_to_the_next_start() -> None:
    core = Durable(ready=(replica(),))
    core.submit("run")
    core.submit("wait")
    assert of(core.tell(ShutdownRequested(7, 10_000)), AnswerShutdown) == []
    assert refused(core, "new") == ("POOL_UNAVAILABLE", True, 5_000)
    assert one(core.submit("wait"), Admit).replayed
    commands = core.tell(ended("run"))
    assert of(commands, Start) == []
    assert one(commands, AnswerShutdown) == AnswerShutdown("", 7, running=0, waiting=1)
    core.restart()
    assert started(core.back(replica())) == [("wait", 1, "r0")]


def test_with_nothing_to_wait_for_it_is_answered_at_once() -> None:
    core = Durable(ready=(replica(),))
    assert one(core.tell(ShutdownRequested(1, 0)), AnswerShutdown).running == 0


def test_at_the_deadline_it_is_answered_whatever_runs() -> None:
    core = Durable(ready=(replica(),))
    core.submit("run")
    core.tell(ShutdownRequested(1, 700))
    assert of(core.pass_ms(699), AnswerShutdown) == []
    assert one(core.pass_ms(1), AnswerShutdown).running == 1
    # What runs goes on, and is taken up by the next start.
    assert core.state_of("run") == "running"
    assert of(core.pass_ms(5_000), AnswerShutdown) == []


def test_the_earlier_deadline_wins_and_everybody_is_answered() -> None:
    core = Durable(ready=(replica(),))
    core.submit("run")
    core.tell(ShutdownRequested(1, 900))
    core.tell(ShutdownRequested(2, 300))
    core.tell(ShutdownRequested(3, 800))
    assert [each.request for each in of(core.pass_ms(300), AnswerShutdown)] == [1, 2, 3]


@pytest.mark.req("ORCH-2001")
def test_a_task_that_is_measured_is_refused() -> None:
    core = Durable(ready=(replica(),))
    core.submit("m", templated=True)
    error = one(core.tell(ShutdownRequested(1, 100)), Reject).error
    assert (error.code, error.retriable) == ("POOL_UNAVAILABLE", True)


def test_an_attempt_that_is_lost_meanwhile_is_not_begun_again() -> None:
    core = Durable(ready=(replica("r0"), replica("r1")))
    core.submit("run")
    core.tell(ShutdownRequested(1, 10_000))
    commands = core.tell(ReplicaLost("r0", "gone"))
    assert of(commands, Start) == []
    assert one(commands, AnswerShutdown).waiting == 1


# ------------------------------------------------------------------------ a journal that fails


@pytest.mark.req("OC-CTRL-2010", "ORCH-3025")
def test_nothing_is_accepted_while_nothing_can_be_kept() -> None:
    core = Durable(ready=(replica(),))
    core.submit("run")
    core.submit("wait")
    core.tell(JournalFailed("no space left on device"))
    error = one(core.submit("new"), Reject).error
    assert (error.code, error.policy_label, error.retriable, error.retry_after_ms) == (
        "ADMISSION_REJECT",
        "reject",
        True,
        1_000,
    )
    assert "no space left on device" in error.message
    assert one(core.submit("run"), Admit).replayed
    # What runs goes on; the next one would wait for its record anyway.
    commands = core.tell(ended("run"))
    assert one(commands, Finish).outcome.state == "finished"
    assert of(commands, Start) == []
    assert started(core.tell(JournalRestored())) == [("wait", 1, "r0")]
    assert one(core.submit("new"), Admit)


def test_a_prompt_that_is_measured_meanwhile_is_refused() -> None:
    core = Durable(ready=(replica(),))
    core.submit("m", templated=True)
    core.tell(JournalFailed("full"))
    assert one(core.measured("m", 5), Reject).error.code == "ADMISSION_REJECT"


@pytest.mark.req("ORCH-3036", "ORCH-3099")
def test_what_nobody_was_told_of_is_as_if_it_had_never_come() -> None:
    core = Durable(ready=(replica(),))
    for name in ("over", "run", "wait"):
        core.submit(name)
    core.tell(ended("over"))
    commands = core.tell(JournalFailed("full", ("over", "run", "wait", "never-seen")))
    assert [each.task_id for each in of(commands, Forget)] == ["over", "wait"]
    assert one(commands, Finish).task_id == "wait"
    assert one(commands, Stop).task_id == "run"
    assert {each.task_id for each in core.told(ForgottenTask)} == {"over", "wait"}
    # Until its slot is free the id cannot be used again.
    assert refused(core, "run") == ("ADMISSION_REJECT", True, 1_000)
    core.tell(JournalRestored())
    assert refused(core, "run") == ("ADMISSION_REJECT", True, 1_000)
    commands = core.tell(ended("run", result="stopped", slot_free=False))
    assert one(commands, Finish).outcome.state == "canceled"
    commands = core.tell(ended("run", result="stopped"))
    assert one(commands, Forget).task_id == "run"
    assert core.journal.tasks == {}
    assert started(core.submit("run")) == [("run", 1, "r0")]
    quota = core.scheduler.state.quotas.tenant(TENANT)
    assert quota is not None
    assert (quota.live, quota.running) == (1, 1)


def test_the_books_of_its_session_are_kept() -> None:
    core = Durable()
    core.tell(ReplicaReady(replica()))
    core.submit("a")
    core.submit("b", session_id="other")
    core.tell(JournalFailed("full", ("b",)))
    assert [each.session_id for each in core.told(KeptSession)] == ["other"]


def test_a_second_failure_gives_up_more() -> None:
    core = Durable(ready=(replica(),))
    core.submit("a")
    core.submit("b")
    core.tell(JournalFailed("full"))
    core.tell(JournalFailed("still full", ("b",)))
    assert core.state_of("b") is None
    assert "still full" in one(core.submit("c"), Reject).error.message
