"""Questions of an ingress that wait for the scheduler's answer.

They outlive the link: a question is sent again on the next one, since asking twice is the same as asking once. A
session that is not there when it is to be closed again was closed the first time. Each question waits for a bounded
time, and a shorter one while there is no scheduler.
"""

import asyncio
from typing import Any, Final

from contracts.base import Frame
from contracts.control_messages import DrainPool, PromotePool, ReloadPool, RollbackPool
from contracts.errors import ErrorInfo, OrchError
from contracts.messages import CloseSession, Done, Failed

REQUEST_TIMEOUT_S: Final = 30.0
#: How long a question waits while there is no scheduler.
SCHEDULER_WAIT_S: Final = 10.0
PENDING_MAX: Final = 10_000

NO_SCHEDULER: Final = ErrorInfo(
    "POOL_UNAVAILABLE", "the scheduler cannot be reached; try again shortly", retriable=True, retry_after_ms=1000
)
_MAYBE_DONE: Final = ErrorInfo(
    "POOL_UNAVAILABLE",
    "the scheduler was lost before it answered; look at the pool's health to see whether this was taken on",
    retriable=True,
    retry_after_ms=1000,
)
_OVERLOADED: Final = ErrorInfo(
    "ADMISSION_REJECT",
    f"this ingress has {PENDING_MAX} requests waiting for the scheduler; try again shortly",
    retriable=True,
    retry_after_ms=1000,
    policy_label="reject",
)
#: Orders about pools: to give one twice is not the same as once.
_ONCE: Final = (DrainPool, ReloadPool, PromotePool, RollbackPool)


class _Asked:
    """A question and when it is given up."""

    __slots__ = ("again", "future", "gives_up_s", "question", "sent", "timer")

    def __init__(self, question: Frame, future: "asyncio.Future[Any]", gives_up_s: float) -> None:
        self.question = question
        self.future = future
        self.gives_up_s = gives_up_s
        self.sent = self.again = False
        self.timer: asyncio.TimerHandle | None = None


class Questions:
    """Pending questions by number, oldest first.

    Askers may be canceled at any await (clients hang up): answers to futures that are already done are dropped.
    """

    def __init__(self) -> None:
        self._pending: dict[int, _Asked] = {}

    def add(self, req: int, question: Frame, *, sent: bool) -> "asyncio.Future[Any]":
        """Begin to wait for an answer, which the future returned will have. Raises OrchError: too many wait."""
        if len(self._pending) >= PENDING_MAX:
            raise OrchError(_OVERLOADED)
        loop = asyncio.get_running_loop()
        asked = _Asked(question, loop.create_future(), loop.time() + REQUEST_TIMEOUT_S)
        asked.sent = sent
        self._pending[req] = asked
        self._set_timer(asked, linked=sent)
        return asked.future

    def drop(self, req: int) -> None:
        """Nobody waits for the answer any more."""
        asked = self._pending.pop(req, None)
        if asked is not None and asked.timer is not None:
            asked.timer.cancel()

    def answered(self, req: int, reply: Any) -> None:
        """An answer is here."""
        asked = self._pending.get(req)
        if asked is not None and not asked.future.done():
            asked.future.set_result(Done(req) if asked.again and _was_done(asked.question, reply) else reply)

    def linked(self) -> list[Frame]:
        """There is a new link: what is to be sent on it, in the order it was asked."""
        again = []
        for asked in self._pending.values():
            if not asked.future.done():
                asked.sent, asked.again = True, asked.sent
                self._set_timer(asked, linked=True)
                again.append(asked.question)
        return again

    def unlinked(self) -> None:
        """The link broke."""
        for asked in self._pending.values():
            if asked.sent and isinstance(asked.question, _ONCE):
                _refuse(asked.future, _MAYBE_DONE)
            self._set_timer(asked, linked=False)

    def _set_timer(self, asked: _Asked, *, linked: bool) -> None:
        if asked.timer is not None:
            asked.timer.cancel()
        loop = asyncio.get_running_loop()
        at_s = asked.gives_up_s if linked else min(asked.gives_up_s, loop.time() + SCHEDULER_WAIT_S)
        asked.timer = loop.call_at(at_s, _refuse, asked.future, NO_SCHEDULER)


def _was_done(question: Frame, reply: Any) -> bool:
    """Whether what was asked for again is so, since the link broke before the first answer came."""
    return isinstance(question, CloseSession) and isinstance(reply, Failed) and reply.error.code == "NOT_FOUND"


def _refuse(future: "asyncio.Future[Any]", error: ErrorInfo) -> None:
    if not future.done():
        future.set_exception(OrchError(error))
