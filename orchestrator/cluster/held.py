"""Messages that wait until what they tell of is durable: one line, in order (ORCH-3051).

While the journal works, whatever is posted behind a waiting message waits too; that takes as long as a commit. While it
does not, only what would overtake a waiting message about the same subject waits, so that refusals, questions and
stops go on. Who asks about such a subject is refused and not put in line (`is_stuck`), so that asking does not lengthen
it.
"""

from collections import deque
from collections.abc import Collection
from typing import Any, NamedTuple, Protocol

import msgspec

from contracts.errors import ErrorInfo
from contracts.messages import Admitted, Failed, StartAttempt


class Receiver(Protocol):
    """Where a message goes."""

    def send(self, message: Any) -> None:
        """Takes it, or drops it if nobody is there any more."""


class _Waiting(NamedTuple):
    sequence: int
    subject: str
    receiver: Receiver
    message: msgspec.Struct


class HeldMessages:
    """The line. A subject is a task's id, or "" for what is in order with nothing."""

    def __init__(self) -> None:
        self._line: deque[_Waiting] = deque()
        self._durable = 0
        self._is_down = False
        #: While the journal does not work: how many messages about a subject wait.
        self._subjects: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._line)

    def post(self, receiver: Receiver, message: msgspec.Struct, subject: str, sequence: int) -> None:
        """Send a message once everything up to `sequence` is durable, and not before those posted earlier."""
        if sequence <= self._durable and (subject not in self._subjects if self._is_down else not self._line):
            receiver.send(message)
            return
        self._line.append(_Waiting(sequence, subject, receiver, message))
        if self._is_down and subject:
            self._subjects[subject] = self._subjects.get(subject, 0) + 1

    def durable(self, sequence: int) -> None:
        """Send what waited for no more than that."""
        self._durable = max(self._durable, sequence)
        line = self._line
        while line and line[0].sequence <= self._durable:
            waiting = line.popleft()
            if self._is_down:
                self._left(waiting.subject)
            waiting.receiver.send(waiting.message)

    def failed(self, undone: Collection[str], error: ErrorInfo) -> None:
        """Nothing becomes durable at present: refuse `undone` admissions, and let pass what need not wait.

        What else was to be told of undone tasks is told: a start that was decided is stopped by the core next.
        """
        line, self._line = self._line, deque()
        self._is_down = True
        self._subjects.clear()
        for waiting in line:
            if waiting.subject in undone:
                admitted = isinstance(waiting.message, Admitted)
                waiting.receiver.send(Failed(waiting.message.req, error) if admitted else waiting.message)  # type: ignore[attr-defined]
            else:
                self.post(waiting.receiver, waiting.message, waiting.subject, waiting.sequence)

    def drop_starts(self, receiver: Receiver) -> None:
        """A replica's engine is down: an attempt that it was to start must not reach the engine that comes next."""
        line, self._line = self._line, deque()
        for waiting in line:
            if waiting.receiver is not receiver or not isinstance(waiting.message, StartAttempt):
                self._line.append(waiting)
            elif self._is_down:
                self._left(waiting.subject)

    def is_stuck(self, subject: str) -> bool:
        """Whether a message about a subject would wait until the journal works again."""
        return subject in self._subjects

    def restored(self) -> None:
        """Commits work again."""
        self._is_down = False
        self._subjects.clear()

    def _left(self, subject: str) -> None:
        count = self._subjects.get(subject, 0)
        if count > 1:
            self._subjects[subject] = count - 1
        else:
            self._subjects.pop(subject, None)
