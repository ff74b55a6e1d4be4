"""What ingresses send to the scheduler: questions are answered, requests become events for the core."""

from collections.abc import Callable
from typing import Any, Final

import structlog

from contracts import messages as wire
from contracts import scheduling as ev
from contracts.errors import ErrorInfo
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.live import LiveTask
from orchestrator.cluster.news import News, Post
from orchestrator.cluster.pool_dialogue import REQUESTS, PoolDialogue
from orchestrator.cluster.queries import NO_SUCH_TASK, QUESTIONS, TRANSCRIPTS_WAIT, Queries
from orchestrator.cluster.switchboard import Switchboard
from orchestrator.cluster.telemetry import Telemetry
from orchestrator.core.scheduler import Scheduler

log = structlog.get_logger(__name__)


class Requests:
    """Takes in what an ingress sent. `tell` steps the core.

    `refusal` says why nothing can be told of a task at present: while it is not durable what became of it.
    """

    def __init__(
        self,
        core: Scheduler,
        clock: Callable[[], int],
        live: dict[str, LiveTask],
        switchboard: Switchboard,
        tell: Callable[[ev.AnyEvent], None],
        post: Post,
        news: News,
        dialogue: PoolDialogue,
        queries: Queries,
        telemetry: Telemetry,
        refusal: Callable[[str], ErrorInfo | None],
    ) -> None:
        self._core = core
        self._clock = clock
        self._live = live
        self._switchboard = switchboard
        self._tell = tell
        self._post = post
        self._news = news
        self._pools = dialogue
        self._queries = queries
        self._telemetry = telemetry
        self._refusal = refusal

    def take(self, connection: Connection, message: Any) -> bool:
        """Take in a message; False if it is none of an ingress's."""
        kind = type(message)
        if kind in QUESTIONS:
            self._answer(connection, message)
            return True
        if kind in REQUESTS:
            self._pools.request(connection, message)
            return True
        handler = _HANDLE.get(kind)
        if handler is not None:
            handler(self, connection, message)
        return handler is not None

    def _answer(self, connection: Connection, message: Any) -> None:
        """Tell how things stand, in turn with what is being made durable."""
        reply = self._queries.answer(message)
        if isinstance(reply, wire.Transcript):
            if not connection.send_in_turn(reply, len(reply.tokens)):
                connection.send(wire.Failed(message.req, TRANSCRIPTS_WAIT))
        elif reply is not None and not self._refused(connection, message.req, task_id := _subject(message)):
            self._post(connection, reply, task_id)

    def _refused(self, connection: Connection, req: int, task_id: str) -> bool:
        error = self._refusal(task_id)
        if error is not None:
            connection.send(wire.Failed(req, error))
        return error is not None

    def _submit(self, connection: Connection, message: wire.Submit) -> None:
        task = message.task
        if self._refused(connection, message.req, task.task_id):
            return
        if task.task_id not in self._live:  # one sent again keeps the payload of the first time
            self._live[task.task_id] = LiveTask(task, message.payload, self._clock())
        self._tell(ev.TaskSubmitted(self._switchboard.question(connection, message.req, watch=message.watch), task))

    def _cancel(self, connection: Connection, message: wire.Cancel) -> None:
        question = self._switchboard.question(connection, message.req, canceling=message.task_id)
        self._tell(ev.CancelRequested(question, message.task_id, message.tenant))

    def _close_session(self, connection: Connection, message: wire.CloseSession) -> None:
        question = self._switchboard.question(connection, message.req)
        self._tell(ev.SessionCloseRequested(question, message.session_id, message.tenant))

    def _watch(self, connection: Connection, message: wire.Watch) -> None:
        task = self._core.task(message.task_id, message.tenant)
        if task is None:
            self._post(connection, wire.Failed(message.req, NO_SUCH_TASK), message.task_id)
            return
        if self._refused(connection, message.req, task.task_id):
            return
        self._post(connection, wire.Task(message.req, task), task.task_id)
        self._news.watch(connection, task.task_id, task.tenant)

    def _unwatch(self, connection: Connection, message: wire.Unwatch) -> None:
        self._switchboard.unwatch(message.task_id, connection)

    def _rejected(self, _connection: Connection, message: wire.CountRejected) -> None:
        self._telemetry.count_rejected(message.engine, message.reason)

    def _diverged(self, connection: Connection, message: ev.TokensDiverged) -> None:
        """An attempt made other tokens than were delivered: an alarm, and the core ends it (ORCH-3045)."""
        live = self._live.get(message.task_id)
        if live is not None and live.attempt == message.attempt:
            log.error("task.diverged", job_id=message.task_id, attempt=message.attempt, ingress=connection.peer_id)
            self._telemetry.count_mismatch(live.replica_id)
        self._tell(message)


def _subject(question: Any) -> str:
    """The task that is asked about, if any."""
    task_id: str = getattr(question, "task_id", "")
    return task_id


_HANDLE: Final[dict[type, Callable[[Requests, Connection, Any], None]]] = {
    wire.Submit: Requests._submit,
    wire.Cancel: Requests._cancel,
    wire.CloseSession: Requests._close_session,
    wire.Watch: Requests._watch,
    wire.Unwatch: Requests._unwatch,
    wire.CountRejected: Requests._rejected,
    ev.TokensDiverged: Requests._diverged,
}
