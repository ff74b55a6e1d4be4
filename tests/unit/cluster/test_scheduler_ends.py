"""Ends that are told to everybody whom they concern, and leave nothing behind."""

from typing import Any

import pytest
from msgspec.structs import replace

from contracts import messages as wire
from contracts import scheduling as ev
from contracts.errors import ErrorInfo
from contracts.tasks import Outcome
from tests.unit.cluster.scripted import task
from tests.unit.cluster.scripted_core import ENDPOINT, REPLICA, Peer, Shell, started_view

TASK = task("a")
ADMIT = ev.Admit("set", 1, "a", 0, 0, 0)
START = ev.Start("set", "a", 1, "pool-0")
FINISHED = Outcome("finished", tokens_out=3, finish_reason="stop")
CONFLICT = ErrorInfo("TASK_ID_CONFLICT", "another request has this id", retriable=False)
TOO_LONG = ErrorInfo("INVALID_PARAMS", "the prompt is too long", retriable=False)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(monkeypatch)


@pytest.mark.req("ORCH-3024")
def test_a_conflict_with_a_task_that_has_ended_leaves_no_payload_behind(shell: Shell) -> None:
    shell.tell(shell.ingress, wire.Submit(1, TASK, b"p"), ADMIT, START)
    ended = ev.AttemptEnded("a", 1, "pool-0", "finished", slot_free=True, tokens_out=3)
    shell.tell(shell.replica, ended, ev.Finish("set", "a", FINISHED))
    shell.core.outcomes["a"] = FINISHED
    other = replace(TASK, body_digest=b"other")
    shell.tell(shell.ingress, wire.Submit(2, other, b"P" * 1000), ev.Reject("set", 2, "a", CONFLICT))
    assert shell.ingress.take()[-1] == wire.Failed(2, CONFLICT)
    assert shell.service._live == {}


@pytest.mark.req("ORCH-3024")
def test_a_conflict_with_a_live_task_leaves_that_alone(shell: Shell) -> None:
    shell.tell(shell.ingress, wire.Submit(1, TASK, b"p", watch=True), ADMIT)
    shell.tell(shell.ingress, wire.Submit(2, TASK, b"other"), ev.Reject("set", 2, "a", CONFLICT))
    assert shell.service._live["a"].payload == b"p"
    assert shell.service._switchboard.watchers("a") == [shell.ingress]


@pytest.mark.req("ORCH-2002")
def test_who_attached_while_a_task_was_measured_hears_that_it_was_refused(shell: Shell) -> None:
    shell.tell(shell.ingress, wire.Submit(1, TASK, b"p"), ev.MeasurePrompt("set", "a", 1, "pool-0"))
    late: Any = Peer("ingress", "late")
    shell.tell(late, wire.Watch(2, "a", "acme"))
    del shell.core.tasks["a"]
    shell.tell(shell.replica, ev.PromptMeasured("a", 1, 99_999), ev.Reject("set", 1, "a", TOO_LONG))
    assert late.take() == [wire.Task(2, TASK), wire.TaskEnded("a", Outcome("failed", error=TOO_LONG))]
    assert shell.ingress.take() == [wire.Failed(1, TOO_LONG)]
    assert shell.service._switchboard.watchers("a") == []
    assert shell.service._live == {}


@pytest.mark.req("ORCH-3009", "ORCH-3029")
def test_who_attached_while_an_attempt_was_lost_is_told_its_start_before_its_end(shell: Shell) -> None:
    shell.core.views["a"] = started_view(TASK)
    shell.tell(shell.ingress, wire.Submit(1, TASK, b"p", watch=True), ADMIT, START)
    shell.core.commands[ev.ReplicaLost] = (ev.Pause("set", "a", 1, 0, "lost"),)
    shell.service._closed(shell.replica)  # type: ignore[arg-type]
    late, left = Peer("ingress", "late"), Peer("ingress", "left")
    for peer in (late, left):
        shell.tell(peer, wire.Watch(5, "a", "acme"))
    shell.tell(left, wire.Unwatch("a"))
    shell.ingress.take(), late.take(), left.take()
    back = Peer("replica", "pool-0")
    shell.tell(back, wire.RegisterReplica("pool-0", "pool", ENDPOINT))
    ended = ev.AttemptEnded("a", 1, "pool-0", "finished", slot_free=True, tokens_out=3)
    shell.tell(back, ev.ReplicaReady(REPLICA, 0, (), (ended,)), ev.Finish("set", "a", FINISHED))
    started, end = late.take()
    assert isinstance(started, wire.TaskStarted)
    assert (started.attempt, end) == (1, wire.TaskEnded("a", FINISHED))
    assert shell.ingress.take() == [end]  # it knows
    assert left.take() == []
