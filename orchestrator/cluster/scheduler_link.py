"""An ingress's link to the scheduler: questions with answers, updates, and a new link when it breaks."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from contracts import messages as wire
from contracts.base import Frame
from contracts.errors import OrchError
from contracts.scheduling import TokensDiverged
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.questions import Questions
from orchestrator.cluster.relink import Caller, Locate, stay_linked

#: Alarms that wait for a link; of more, the latest.
ALARMS_MAX: Final = 1000

Answer = TypeVar("Answer")
Update = wire.TaskStarted | wire.TaskPaused | wire.TaskPlan | wire.TaskEnded


class SchedulerLink:
    """Asks the scheduler and hands its updates on; `on_linked` is told when there is a new link.

    What is asked waits for the next link where there is none, in bounds of time and number.
    """

    def __init__(
        self,
        secret: bytes,
        locate: Locate,
        node_id: str,
        peer_id: str,
        on_update: Callable[[Update], None],
        on_linked: Callable[[], None],
    ) -> None:
        self._caller = Caller("ingress", peer_id, node_id, secret, wire.ToIngress)
        self._locate = locate
        self._on_update = on_update
        self._on_linked = on_linked
        self._connection: Connection | None = None
        self._questions = Questions()
        self._alarms: deque[TokensDiverged] = deque(maxlen=ALARMS_MAX)
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect; must be called on the event loop that serves requests."""
        self._keeper = asyncio.get_running_loop().create_task(
            stay_linked(self._caller, self._locate, self._received, self._begun, self._ended)
        )

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._connection is not None:
            self._connection.close()

    def send(self, message: Frame) -> None:
        """Send what needs no answer; dropped while there is no link."""
        if self._connection is not None:
            self._connection.send(message)

    def alarm(self, message: TokensDiverged) -> None:
        """Send what must not be missed: where there is no link, it waits for the next."""
        if self._connection is not None:
            self._connection.send(message)
        else:
            self._alarms.append(message)

    async def ask(self, question: Frame, req: int, answer: type[Answer]) -> Answer:
        """Send a question and wait for its answer. Raises OrchError."""
        connection = self._connection
        future = self._questions.add(req, question, sent=connection is not None)
        try:
            if connection is not None:
                connection.send(question)
            reply = await future
        finally:
            self._questions.drop(req)
        if isinstance(reply, wire.Failed):
            raise OrchError(reply.error)
        if not isinstance(reply, answer):
            raise TypeError(f"the scheduler answered {type(reply).__name__} instead of {answer.__name__}")
        return reply

    def _received(self, _connection: Connection, message: Any) -> None:
        if isinstance(message, wire.TaskStarted | wire.TaskPaused | wire.TaskPlan | wire.TaskEnded):
            self._on_update(message)
        else:
            self._questions.answered(message.req, message)

    def _begun(self, connection: Connection) -> None:
        self._connection = connection
        for question in self._questions.linked():
            connection.send(question)
        while self._alarms:
            connection.send(self._alarms.popleft())
        self._on_linked()

    def _ended(self) -> None:
        self._connection = None
        self._questions.unlinked()
