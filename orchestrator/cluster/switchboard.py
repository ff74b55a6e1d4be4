"""Who is connected to the scheduler, who watches which task, and who waits for which answer."""

import asyncio
from typing import Any, NamedTuple

from contracts import messages as wire
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.held import Receiver


class Question(NamedTuple):
    """Who asked, under which number, whether it wants to watch the task it submits, and which it wants canceled."""

    connection: Receiver
    req: int
    watch: bool
    canceling: str


class Asker:
    """Stands for a connection where someone in this process asks; `answer` is the first message sent to it."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def send(self, message: Any) -> None:
        if not self.answer.done():  # who asked may have left
            self.answer.set_result(message)


class Switchboard:
    """Replicas by id, watchers by task, questions by number."""

    def __init__(self) -> None:
        self.replicas: dict[str, Connection] = {}
        self._incarnations: dict[str, int] = {}
        self._endpoints: dict[str, wire.Endpoint] = {}
        self._watchers: dict[str, dict[Receiver, None]] = {}
        self._questions: dict[int, Question] = {}
        self._next_question = 0

    # -------------------------------------------------------------------- replicas

    def is_outdated(self, message: wire.RegisterReplica) -> bool:
        """Whether a replica that registers is one that was given up, and its successor is here."""
        return message.replica_id in self.replicas and self._incarnations[message.replica_id] > message.incarnation

    def register(self, connection: Connection, message: wire.RegisterReplica) -> None:
        self.replicas[message.replica_id] = connection
        self._incarnations[message.replica_id] = message.incarnation
        self._endpoints[message.replica_id] = message.endpoint

    def is_current(self, connection: Connection) -> bool:
        """Whether a replica speaks through this connection; another may have taken its place."""
        return self.replicas.get(connection.peer_id) is connection

    def unregister(self, replica_id: str) -> None:
        del self.replicas[replica_id]
        del self._incarnations[replica_id]
        del self._endpoints[replica_id]

    def endpoint(self, replica_id: str) -> wire.Endpoint | None:
        """Where ingresses find a replica's tokens; None if it is not here."""
        return self._endpoints.get(replica_id)

    # -------------------------------------------------------------------- watchers

    def watch(self, task_id: str, receiver: Receiver) -> None:
        self._watchers.setdefault(task_id, {})[receiver] = None

    def unwatch(self, task_id: str, receiver: Receiver) -> None:
        watchers = self._watchers.get(task_id)
        if watchers is not None:
            watchers.pop(receiver, None)
            if not watchers:
                del self._watchers[task_id]

    def watchers(self, task_id: str) -> list[Receiver]:
        return list(self._watchers.get(task_id, ()))

    def stop_watching(self, task_id: str) -> list[Receiver]:
        """Nothing more will be told of a task; who watched it."""
        return list(self._watchers.pop(task_id, ()))

    def left(self, receiver: Receiver) -> None:
        """A connection ended: it watches nothing any more."""
        for task_id in [task_id for task_id, watchers in self._watchers.items() if receiver in watchers]:
            self.unwatch(task_id, receiver)

    # ------------------------------------------------------------------- questions

    def question(self, connection: Receiver, req: int, *, watch: bool = False, canceling: str = "") -> int:
        """A number under which the core answers."""
        self._next_question += 1
        self._questions[self._next_question] = Question(connection, req, watch, canceling)
        return self._next_question

    def answered(self, number: int) -> Question:
        """Who asked; each question is answered once."""
        return self._questions.pop(number)
