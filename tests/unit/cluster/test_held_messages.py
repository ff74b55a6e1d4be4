"""Messages wait until what they tell of is durable, in order; while nothing becomes durable, only what must."""

import pytest

from contracts.api import Admission
from contracts.errors import ErrorInfo
from contracts.messages import Admitted, Done, Failed, StartAttempt, StopAttempt
from orchestrator.cluster.held import HeldMessages

pytestmark = pytest.mark.req("ORCH-3051")

REFUSED = ErrorInfo("ADMISSION_REJECT", "the disk is full", retriable=True, policy_label="reject")


class Inbox:
    def __init__(self) -> None:
        self.got: list[object] = []

    def send(self, message: object) -> None:
        self.got.append(message)

    def take(self) -> list[object]:
        got, self.got = self.got, []
        return got


def admitted(req: int, task_id: str) -> Admitted:
    return Admitted(req, Admission(task_id, 0, 0, 0))


def test_what_needs_nothing_goes_at_once_and_what_follows_a_waiting_one_waits_too() -> None:
    held, inbox = HeldMessages(), Inbox()
    held.post(inbox, Done(1), "", 0)
    held.post(inbox, Done(2), "a", 1)
    held.post(inbox, Done(3), "b", 0)
    held.post(inbox, Done(4), "c", 2)
    assert inbox.take() == [Done(1)]
    held.durable(1)
    assert inbox.take() == [Done(2), Done(3)]
    held.post(inbox, Done(5), "d", 1)
    held.durable(3)
    assert inbox.take() == [Done(4), Done(5)]
    held.post(inbox, Done(6), "e", 3)
    assert inbox.take() == [Done(6)]
    assert len(held) == 0


def test_a_failure_refuses_what_was_undone_and_lets_pass_what_need_not_wait() -> None:
    held, inbox = HeldMessages(), Inbox()
    start = StartAttempt("new", 1, b"")
    held.post(inbox, admitted(1, "new"), "new", 1)
    held.post(inbox, start, "new", 1)
    held.post(inbox, Done(2), "old", 1)
    held.post(inbox, Done(3), "old", 0)
    held.post(inbox, Done(4), "", 0)
    held.post(inbox, Done(5), "other", 0)
    assert inbox.take() == []
    held.failed({"new"}, REFUSED)
    assert inbox.take() == [Failed(1, REFUSED), start, Done(4), Done(5)]
    # What is about a subject stays in order, everything else goes on.
    stop = StopAttempt("old", 1, "cancel")
    held.post(inbox, stop, "old", 0)
    held.post(inbox, Done(6), "refused", 0)
    held.post(inbox, Done(7), "ended", 2)
    held.post(inbox, Done(8), "ended", 0)
    assert inbox.take() == [Done(6)]
    held.durable(2)
    assert inbox.take() == [Done(2), Done(3), stop, Done(7), Done(8)]
    held.post(inbox, Done(9), "old", 0)
    held.restored()
    held.post(inbox, Done(10), "x", 3)
    held.post(inbox, Done(11), "", 0)
    assert inbox.take() == [Done(9)]
    held.durable(3)
    assert inbox.take() == [Done(10), Done(11)]
