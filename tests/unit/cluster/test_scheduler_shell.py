"""What the scheduler's shell makes of the core's commands: preemption, sessions, plans, reasons."""

import io
import logging
from typing import Any

import msgspec
import pytest
import structlog

from contracts import messages as wire
from contracts import scheduling as ev
from contracts.api import Admission, Metrics, Session
from contracts.errors import ErrorInfo
from contracts.tasks import Budgets, Outcome
from orchestrator.cluster import decisions
from orchestrator.core.view import SessionView
from tests.unit.cluster.scripted import task
from tests.unit.cluster.scripted_core import ENDPOINT, Peer, Shell, started_view, status

TASK = task("a", priority="batch", deadline_ms=30_000, correlation_id="c-1")
ADMIT = ev.Admit("set", 1, "a", 3, 420, 10, on_time_probability=0.91234, budgets=Budgets(100, 2500, 30_000))
START = ev.Start("set", "a", 1, "pool-0", busy=1, slots=2)
PAUSE = ev.Pause("set", "a", 1, 250)
RESUME = ev.Start("set", "a", 2, "pool-0", resume_tokens=2, resume_digest=77)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell(monkeypatch)
    shell.core.views["a"] = started_view(TASK)
    return shell


def run(shell: Shell) -> None:
    """Have the task admitted and watched, and started."""
    shell.core.views.pop("a")
    shell.tell(shell.ingress, wire.Submit(1, TASK, b"payload", watch=True), ADMIT)
    shell.core.views["a"] = started_view(TASK)
    shell.tell(shell.replica, ev.SlotReleased("x", 1, "pool-0"), START)


def preempt(shell: Shell) -> ev.AttemptEnded:
    transcript = msgspec.msgpack.encode(["t0", "t1"])
    shell.tell(shell.replica, wire.AttemptTranscript("a", 1, transcript))
    ended = ev.AttemptEnded("a", 1, "pool-0", "stopped", slot_free=False, tokens_out=2, digest=77)
    shell.tell(shell.replica, ended, PAUSE)
    return ended


@pytest.mark.req("ORCH-3081", "ORCH-3099", "OC-CORE-1024")
def test_an_admission_tells_chance_and_budgets(shell: Shell) -> None:
    shell.tell(shell.ingress, wire.Submit(1, TASK, b"payload"), ADMIT)
    assert shell.ingress.take() == [wire.Admitted(1, Admission("a", 3, 420, 10, 0.912, 100, 2500, 0.03))]


@pytest.mark.req("ORCH-3100", "ORCH-3009", "ORCH-3023", "OC-CTRL-2023")
def test_a_start_comes_with_what_a_client_plans_by(shell: Shell) -> None:
    run(shell)
    assert shell.replica.take() == [wire.StartAttempt("a", 1, b"payload")]
    started = shell.ingress.take()[-1]
    assert isinstance(started, wire.TaskStarted)
    assert (started.kv_warmth, started.resume_tokens, started.queue_position) == (True, 0, 3)
    assert msgspec.to_builtins(started.metrics) == {
        "queue_depth": 4,
        "on_time_probability": 0.988,
        "deadline_remaining_ms": 29_000,
        "kv_warmth": True,
        "kv_migrated": False,
        "tokens_budget_remaining": 100,
        "cost_budget_remaining": 0.25,
    }


@pytest.mark.req("ORCH-3086")
def test_a_preempted_task_is_paused_and_then_resumed_where_it_was(shell: Shell) -> None:
    run(shell)
    shell.ingress.take()
    preempt(shell)
    assert shell.ingress.take() == [
        wire.TaskPaused("a", 1, Metrics(predicted_start_ms=250, preempted=True, resumable=True))
    ]
    shell.replica.take()
    shell.core.views["a"] = started_view(TASK, 2, preempted=True)
    shell.tell(shell.replica, ev.SlotReleased("y", 1, "pool-0"), RESUME)
    assert shell.replica.take() == [wire.StartAttempt("a", 2, b"payload", 2, 77)]
    (resumed,) = shell.ingress.take()
    assert isinstance(resumed, wire.TaskStarted)
    assert (resumed.attempt, resumed.resume_tokens) == (2, 2)
    assert (resumed.metrics.preempted, resumed.metrics.resumed, resumed.metrics.resumable) == (True, True, None)


@pytest.mark.req("ORCH-3086", "ORCH-2002")
def test_a_client_that_comes_during_the_pause_hears_of_it(shell: Shell) -> None:
    run(shell)
    preempt(shell)
    shell.core.views["a"] = started_view(TASK, preempted=True)
    shell.core.statuses["a"] = status(TASK, "queued", queue_position=0, preempted=True, resumable=True)
    shell.ingress.take()
    shell.tell(shell.ingress, wire.Watch(2, "a", "acme"))
    found, started, paused = shell.ingress.take()
    assert found == wire.Task(2, TASK)
    assert isinstance(started, wire.TaskStarted)
    assert (started.attempt, started.metrics.preempted, started.metrics.resumed) == (1, True, None)
    assert isinstance(paused, wire.TaskPaused)
    assert (paused.metrics.queue_position, paused.metrics.resumable) == (0, True)


@pytest.mark.req("ORCH-3086", "ORCH-2002")
def test_the_transcript_of_a_resumed_task_keeps_the_tokens_that_clients_have(shell: Shell) -> None:
    run(shell)
    preempt(shell)
    shell.core.views["a"] = started_view(TASK, 2, preempted=True)
    shell.tell(shell.replica, ev.SlotReleased("y", 1, "pool-0"), RESUME)
    # The same text; this time the engine put its first two tokens into one chunk.
    shell.tell(shell.replica, wire.AttemptTranscript("a", 2, msgspec.msgpack.encode(["", "t0t1", "t2"])))
    shell.ingress.take()
    shell.tell(shell.ingress, wire.FetchTranscript(9, "a", "acme"))
    assert shell.ingress.take() == [wire.Transcript(9, msgspec.msgpack.encode(["t0", "t1", "t2"]))]


@pytest.mark.req("ORCH-3025", "ORCH-3024")
def test_a_transcript_that_cannot_be_sent_now_or_ever_is_answered_with_which_it_is(shell: Shell) -> None:
    def asked() -> ErrorInfo:
        shell.ingress.take()
        shell.tell(shell.ingress, wire.FetchTranscript(9, "a", "acme"))
        (failed,) = shell.ingress.take()
        assert isinstance(failed, wire.Failed)
        return failed.error

    run(shell)
    assert (asked().code, asked().retriable) == ("NOT_FOUND", True)
    preempt(shell)
    shell.ingress.room = 1
    assert (asked().code, asked().retriable, asked().policy_label) == ("ADMISSION_REJECT", True, "reject")
    shell.core.outcomes["a"] = Outcome("failed", tokens_out=2)
    shell.tell(shell.replica, ev.SlotReleased("a", 1, "pool-0"), ev.DropTranscript("set", "a"))
    assert (asked().code, asked().retriable) == ("NOT_FOUND", False)


@pytest.mark.req("ORCH-3100", "ORCH-3099", "ORCH-3081")
def test_a_waiting_task_is_told_position_chance_and_budgets(shell: Shell) -> None:
    run(shell)
    shell.core.statuses["a"] = status(
        TASK, "queued", queue_position=2, predicted_start_ms=80, on_time_probability=0.5, preempted=True, resumable=True
    )
    shell.core.sessions["s"] = SessionView(1000, 1, 0, True, Budgets(time_ms=700))
    shell.ingress.take()
    shell.now_ns += 10_000_000_000
    shell.tell(shell.ingress, wire.GetPlan(5, "a", "acme"))
    expected = Metrics(
        queue_depth=5,
        queue_position=2,
        predicted_start_ms=80,
        on_time_probability=0.5,
        deadline_remaining_ms=20_000,
        kv_warmth=True,
        time_budget_remaining_ms=700,
        preempted=True,
        resumable=True,
    )
    assert shell.ingress.take() == [wire.TaskPlan(5, "a", expected)]


@pytest.mark.req("ORCH-3100")
def test_a_running_task_is_told_its_chance_and_an_ended_or_foreign_one_nothing(shell: Shell) -> None:
    run(shell)
    shell.ingress.take()
    shell.core.statuses["a"] = status(TASK, "running", on_time_probability=0.9)
    shell.tell(shell.ingress, wire.GetPlan(5, "a", "acme"))
    (plan,) = shell.ingress.take()
    assert isinstance(plan, wire.TaskPlan)
    assert (plan.metrics.on_time_probability, plan.metrics.queue_position) == (0.988, None)
    shell.tell(shell.ingress, wire.GetPlan(6, "a", "rival"))
    shell.core.statuses["a"] = status(TASK, "measuring")
    shell.tell(shell.ingress, wire.GetPlan(7, "a", "acme"))
    shell.tell(shell.ingress, wire.Cancel(8, "a", "acme"))
    shell.tell(shell.replica, ev.SlotReleased("y", 1, "pool-0"), ev.Finish("set", "a", Outcome("canceled")))
    shell.ingress.take()
    shell.tell(shell.ingress, wire.GetPlan(9, "a", "acme"))
    assert shell.ingress.take() == []


@pytest.mark.req("ORCH-2004", "ORCH-2005", "OC-CORE-1024")
def test_sessions_are_looked_at_and_closed(shell: Shell) -> None:
    shell.core.sessions["s"] = SessionView(9000, 3, 46_080, True, Budgets(tokens=7))
    shell.tell(shell.ingress, wire.GetSession(1, "s", "acme"))
    shell.tell(shell.ingress, wire.GetSession(2, "s", "rival"))
    found, missing = shell.ingress.take()
    assert found == wire.SessionFound(1, Session(9000, 3, 46_080, True, tokens_budget_remaining=7))
    assert isinstance(missing, wire.Failed)
    assert (missing.req, missing.error.code) == (2, "NOT_FOUND")
    shell.tell(shell.ingress, wire.CloseSession(3, "s", "acme"), ev.AnswerClose("", 1, found=True))
    shell.tell(shell.ingress, wire.CloseSession(4, "s", "acme"), ev.AnswerClose("", 2, found=False))
    closed, gone = shell.ingress.take()
    assert closed == wire.Done(3)
    assert isinstance(gone, wire.Failed)
    assert "session" in gone.error.message
    assert shell.core.events[-1] == ev.SessionCloseRequested(2, "s", "acme")


@pytest.mark.req("ORCH-3022")
def test_the_core_is_told_how_full_a_replicas_kv_cache_is(shell: Shell) -> None:
    shell.tell(shell.replica, wire.EngineGauges("pool-0", 0.3336))
    assert shell.core.events[-1] == ev.ReplicaReported("pool-0", 334)
    count = len(shell.core.events)
    shell.tell(shell.replica, wire.EngineGauges("pool-0", None))
    assert len(shell.core.events) == count


def test_a_replica_may_not_ask_what_ingresses_may(shell: Shell) -> None:
    shell.tell(shell.replica, wire.GetMetrics(1))
    assert shell.replica.closed


def page(shell: Shell) -> str:
    shell.ingress.take()
    shell.tell(shell.ingress, wire.GetMetrics(1))
    (answer,) = shell.ingress.take()
    assert isinstance(answer, wire.MetricsText)
    return answer.text.decode()


@pytest.mark.req("ORCH-3087", "ORCH-3028", "ORCH-3040")
def test_preemptions_and_resumptions_are_counted(shell: Shell) -> None:
    run(shell)
    preempt(shell)
    assert 'preemptions_total{engine="llamacpp",mode="hard"} 1.0' in page(shell)
    assert "resumptions_total{" not in page(shell)
    shell.tell(shell.replica, ev.SlotReleased("y", 1, "pool-0"), RESUME)
    shell.tell(shell.replica, wire.ResumeMismatch("a", 2, "pool-0"))
    shed = ErrorInfo("ADMISSION_REJECT", "gave way", "llamacpp", policy_label="shed-low-priority")
    shell.tell(shell.replica, ev.SlotReleased("z", 1, "pool-0"), ev.Finish("set", "a", Outcome("dropped", error=shed)))
    text = page(shell)
    for line in (
        'preemptions_total{engine="llamacpp",mode="hard"} 1.0',
        'preemptions_total{engine="llamacpp",mode="soft"} 1.0',
        'resumptions_total{engine="llamacpp"} 1.0',
        'determinism_mismatches_total{engine="llamacpp"} 1.0',
        'admission_share{priority="batch",tenant="acme"} 1.0',
        'breaker_state{engine="llamacpp",pool_id="pool",priority="batch",state="half-open"} 1.0',
        'breaker_state{engine="llamacpp",pool_id="pool",priority="batch",state="open"} 0.0',
    ):
        assert line in text.splitlines()


@pytest.mark.req("ORCH-3094")
def test_each_decision_is_one_log_line_with_its_reason(shell: Shell) -> None:
    late = ErrorInfo("DEADLINE_UNMET", "its time was over before it could start", "llamacpp")
    with structlog.testing.capture_logs() as logs:
        run(shell)
        shell.tell(
            shell.replica,
            ev.SlotReleased("w", 1, "pool-0"),
            ev.Stop("set", "a", 1, "pool-0", "preempt", for_task="urgent"),
        )
        preempt(shell)
        shell.tell(shell.replica, ev.SlotReleased("y", 1, "pool-0"), RESUME)
        shell.tell(
            shell.replica, ev.SlotReleased("z", 1, "pool-0"), ev.Finish("set", "a", Outcome("failed", error=late))
        )
    lines: list[Any] = [line for line in logs if line["event"].startswith("decision.")]
    assert [(line["event"], line["log_level"], line["preempted"]) for line in lines] == [
        ("decision.admit", "debug", False),
        ("decision.start", "debug", False),
        ("decision.stop", "info", False),
        ("decision.pause", "info", True),
        ("decision.start", "info", True),
        ("decision.finish", "info", True),
    ]
    for line in lines:
        assert (line["job_id"], line["tenant_id"], line["priority"], line["weight"]) == ("a", "acme", "batch", 3)
        assert (line["deadline_ms"], line["correlation_id"]) == (30_000, "c-1")
        assert line["on_time_probability"] == pytest.approx(0.91234)
    assert "1 of 2 slots taken" in lines[1]["why"]
    assert "urgent" in lines[2]["why"]
    assert lines[-1]["why"] == late.message


@pytest.mark.req("ORCH-3094")
def test_the_usual_way_of_a_task_costs_no_log_line(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    as_deployed = structlog.wrap_logger(
        structlog.PrintLogger(written),
        processors=[structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    monkeypatch.setattr(decisions, "_log", as_deployed)
    run(shell)
    shell.tell(
        shell.replica,
        ev.SlotReleased("z", 1, "pool-0"),
        ev.Finish("set", "a", Outcome("finished", finish_reason="stop")),
    )
    assert written.getvalue() == ""
    another = Shell(monkeypatch)
    another.core.views["a"] = started_view(TASK)
    run(another)
    preempt(another)
    assert '"decision.pause"' in written.getvalue()


@pytest.mark.req("ORCH-3026", "ORCH-3024")
def test_what_another_replica_tells_of_an_attempt_of_that_number_is_of_an_earlier_task(shell: Shell) -> None:
    run(shell)
    other = Peer("replica", "pool-1")
    shell.tell(other, wire.RegisterReplica("pool-1", "pool", ENDPOINT))
    mine, stale = ev.TokensProgressed("a", 1, 3, 3), ev.TokensProgressed("a", 1, 9, 9)
    shell.tell(other, stale)
    shell.tell(shell.replica, mine)
    assert [event for event in shell.core.events if isinstance(event, ev.TokensProgressed)] == [mine]
    shell.tell(other, wire.AttemptTranscript("a", 1, b"theirs"))
    assert shell.service._transcripts == {}
    shell.tell(shell.replica, wire.AttemptTranscript("a", 1, b"mine"))
    assert shell.service._transcripts == {"a": b"mine"}
