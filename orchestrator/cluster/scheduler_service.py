"""The scheduler's shell: turns channel messages into core events and core commands into messages.

It decides nothing. Everything that chooses is in `orchestrator.core`; here are the clock, the
connections, the payloads and transcripts (which the core never reads), and the metrics.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import structlog

from contracts import messages as wire
from contracts import scheduling as ev
from contracts.api import Admission
from contracts.errors import ErrorInfo
from contracts.policies import SchedulerConfig
from orchestrator.cluster.channel import ChannelServer
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.telemetry import Telemetry
from orchestrator.core.scheduler import Scheduler

log = structlog.get_logger(__name__)

_NO_SUCH_TASK: Final = ErrorInfo(
    "NOT_FOUND", "no such task; it was never admitted here, or its result is no longer kept", retriable=False
)
#: Where a replica listens that is no longer here; only ended tasks still name it.
_NOWHERE: Final = wire.Endpoint("", "", "", 0)
_NOT_ENDED: Final = ErrorInfo("NOT_FOUND", "the task has no transcript yet", retriable=True)


class Question(NamedTuple):
    """Who asked, under which number, and whether it wants to watch the task it submits."""

    connection: Connection
    req: int
    watch: bool


class SchedulerService:
    """One scheduler: core, channel server, payloads of live tasks, transcripts of ended ones."""

    def __init__(self, config: SchedulerConfig, secret: bytes, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._core = Scheduler(config)
        self._clock = clock
        self._server = ChannelServer(secret, wire.ToScheduler, self._opened, self._received, self._closed)
        self._telemetry = Telemetry(config)
        self._replicas: dict[str, Connection] = {}
        self._endpoints: dict[str, wire.Endpoint] = {}
        self._submits: dict[str, wire.Submit] = {}
        self._transcripts: dict[str, bytes] = {}
        self._watchers: dict[str, set[Connection]] = {}
        self._questions: dict[int, Question] = {}
        self._next_question = 0
        self._timer: asyncio.TimerHandle | None = None

    async def start(self, node_id: str, host: str) -> wire.Endpoint:
        return await self._server.start(node_id, host)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._server.close()

    # ------------------------------------------------------------------ the core

    def _tell(self, event: ev.AnyEvent) -> None:
        """Step the core with one event and carry out what it commands."""
        now_ns = self._clock()
        commands = self._core.step(now_ns, event)
        self._telemetry.observe(now_ns, event, commands)
        for command in commands:
            _PERFORM[type(command)](self, command)

    def _admit(self, command: ev.Admit) -> None:
        asked = self._questions.pop(command.submission)
        task_id = command.task_id
        admission = Admission(task_id, command.queue_position, command.predicted_start_ms, command.backoff_ms)
        asked.connection.send(wire.Admitted(asked.req, admission))
        if asked.watch:
            self._watch(asked.connection, task_id, self._submits[task_id].task.tenant)
        if command.replayed and self._core.outcome(task_id, self._submits[task_id].task.tenant) is not None:
            del self._submits[task_id]  # sent again after its end: nothing will run it

    def _reject(self, command: ev.Reject) -> None:
        asked = self._questions.pop(command.submission)
        first = self._submits.get(command.task_id)
        # A refused resubmission (a conflict) leaves the task that holds the id alone.
        if first is not None and self._core.task(command.task_id, first.task.tenant) is None:
            del self._submits[command.task_id]
        asked.connection.send(wire.Failed(asked.req, command.error))

    def _measure(self, command: ev.MeasurePrompt) -> None:
        payload = self._submits[command.task_id].payload
        self._replicas[command.replica_id].send(wire.Measure(command.task_id, command.measurement, payload))

    def _start(self, command: ev.Start) -> None:
        task_id = command.task_id
        submit = self._submits[task_id]
        self._replicas[command.replica_id].send(wire.StartAttempt(task_id, command.attempt, submit.payload))
        started = self._task_started(task_id, submit.task.tenant)
        if started is not None:
            for connection in self._watchers.get(task_id, ()):
                connection.send(started)

    def _task_started(self, task_id: str, tenant: str) -> wire.TaskStarted | None:
        view = self._core.started(self._clock(), task_id, tenant)
        if view is None:
            return None
        return wire.TaskStarted(
            task_id=task_id,
            attempt=view.attempt,
            replica=view.replica,
            endpoint=self._endpoints.get(view.replica.replica_id, _NOWHERE),
            queue_position=view.queue_position,
            predicted_start_ms=view.predicted_start_ms,
            queue_time_ms=view.queue_time_ns // 1_000_000,
            queue_depth=view.queue_depth,
            time_budget_remaining_ms=view.time_budget_remaining_ms,
        )

    def _stop(self, command: ev.Stop) -> None:
        replica = self._replicas.get(command.replica_id)
        if replica is not None:
            replica.send(wire.StopAttempt(command.task_id, command.attempt, command.reason))

    def _finish(self, command: ev.Finish) -> None:
        self._submits.pop(command.task_id, None)
        ended = wire.TaskEnded(command.task_id, command.outcome)
        for connection in self._watchers.pop(command.task_id, ()):
            connection.send(ended)

    def _answer_cancel(self, command: ev.AnswerCancel) -> None:
        asked = self._questions.pop(command.request)
        asked.connection.send(wire.Done(asked.req) if command.found else wire.Failed(asked.req, _NO_SUCH_TASK))

    def _forget(self, command: ev.Forget) -> None:
        self._submits.pop(command.task_id, None)
        self._transcripts.pop(command.task_id, None)

    def _refuse(self, command: ev.RefuseReplica) -> None:
        log.error("replica.refused", replica_id=command.replica_id, reason=command.reason)
        replica = self._replicas.get(command.replica_id)
        if replica is not None:
            replica.send(wire.Refused(command.reason))

    def _set_timer(self, command: ev.SetTimer) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0, command.at_ns - self._clock()) / 1e9
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tell, ev.TimerFired())

    # --------------------------------------------------------------- connections

    def _opened(self, connection: Connection) -> None:
        log.info("channel.opened", role=connection.role, peer=connection.peer_id)

    def _closed(self, connection: Connection) -> None:
        log.info("channel.closed", role=connection.role, peer=connection.peer_id)
        for watchers in self._watchers.values():
            watchers.discard(connection)
        # A newer connection of the same replica has taken over; its state is not ours to end.
        if connection.role == "replica" and self._replicas.get(connection.peer_id) is connection:
            del self._replicas[connection.peer_id]
            self._endpoints.pop(connection.peer_id, None)
            self._tell(ev.ReplicaLost(connection.peer_id, "its connection ended"))

    def _received(self, connection: Connection, message: Any) -> None:
        handler = _HANDLE[connection.role].get(type(message))
        if handler is None:
            log.warning("channel.unexpected", role=connection.role, message=type(message).__name__)
            connection.close()
            return
        handler(self, connection, message)

    def _question(self, connection: Connection, req: int, *, watch: bool = False) -> int:
        self._next_question += 1
        self._questions[self._next_question] = Question(connection, req, watch)
        return self._next_question

    def _watch(self, connection: Connection, task_id: str, tenant: str) -> None:
        """Tell how the task stands, and what comes if it has not ended."""
        started = self._task_started(task_id, tenant)
        if started is not None:
            connection.send(started)
        outcome = self._core.outcome(task_id, tenant)
        if outcome is not None:
            connection.send(wire.TaskEnded(task_id, outcome))
        else:
            self._watchers.setdefault(task_id, set()).add(connection)

    # ------------------------------------------------------------ from ingresses

    def _on_submit(self, connection: Connection, message: wire.Submit) -> None:
        # A task sent again keeps the payload of the first time.
        self._submits.setdefault(message.task.task_id, message)
        self._tell(ev.TaskSubmitted(self._question(connection, message.req, watch=message.watch), message.task))

    def _on_cancel(self, connection: Connection, message: wire.Cancel) -> None:
        self._tell(ev.CancelRequested(self._question(connection, message.req), message.task_id, message.tenant))

    def _on_status(self, connection: Connection, message: wire.GetStatus) -> None:
        status = self._core.status(self._clock(), message.task_id, message.tenant)
        reply = wire.Failed(message.req, _NO_SUCH_TASK) if status is None else wire.Status(message.req, status)
        connection.send(reply)

    def _on_task(self, connection: Connection, message: wire.GetTask) -> None:
        task = self._core.task(message.task_id, message.tenant)
        connection.send(wire.Failed(message.req, _NO_SUCH_TASK) if task is None else wire.Task(message.req, task))

    def _on_watch(self, connection: Connection, message: wire.Watch) -> None:
        task = self._core.task(message.task_id, message.tenant)
        if task is None:
            connection.send(wire.Failed(message.req, _NO_SUCH_TASK))
            return
        connection.send(wire.Task(message.req, task))
        self._watch(connection, task.task_id, task.tenant)

    def _on_unwatch(self, connection: Connection, message: wire.Unwatch) -> None:
        watchers = self._watchers.get(message.task_id)
        if watchers is not None:
            watchers.discard(connection)
            if not watchers:
                del self._watchers[message.task_id]

    def _on_fetch(self, connection: Connection, message: wire.FetchTranscript) -> None:
        if self._core.task(message.task_id, message.tenant) is None:
            connection.send(wire.Failed(message.req, _NO_SUCH_TASK))
        elif message.task_id not in self._transcripts:
            connection.send(wire.Failed(message.req, _NOT_ENDED))
        else:
            connection.send(wire.Transcript(message.req, self._transcripts[message.task_id]))

    def _on_metrics(self, connection: Connection, message: wire.GetMetrics) -> None:
        connection.send(wire.MetricsText(message.req, self._telemetry.render(self._core)))

    def _on_readiness(self, connection: Connection, message: wire.GetReadiness) -> None:
        report = wire.ReadinessReport(message.req, self._core.is_ready(), self._core.readiness())
        connection.send(report)

    def _on_rejected(self, _connection: Connection, message: wire.CountRejected) -> None:
        self._telemetry.count_rejected(message.engine, message.reason)

    # -------------------------------------------------------------- from replicas

    def _on_register(self, connection: Connection, message: wire.RegisterReplica) -> None:
        before = self._replicas.get(message.replica_id)
        if before is not None and before is not connection:
            self._tell(ev.ReplicaLost(message.replica_id, "it connected again"))
            before.close()
        self._replicas[message.replica_id] = connection
        self._endpoints[message.replica_id] = message.endpoint

    def _on_transcript(self, _connection: Connection, message: wire.AttemptTranscript) -> None:
        submit = self._submits.get(message.task_id)
        view = self._core.started(self._clock(), message.task_id, submit.task.tenant) if submit else None
        if view is not None and view.attempt == message.attempt:
            self._transcripts[message.task_id] = message.tokens

    def _on_gauges(self, _connection: Connection, message: wire.EngineGauges) -> None:
        self._telemetry.gauges(message)

    def _on_event(self, _connection: Connection, message: ev.AnyEvent) -> None:
        self._tell(message)


_PERFORM: Final[dict[type, Callable[[SchedulerService, Any], None]]] = {
    ev.Admit: SchedulerService._admit,
    ev.Reject: SchedulerService._reject,
    ev.MeasurePrompt: SchedulerService._measure,
    ev.Start: SchedulerService._start,
    ev.Stop: SchedulerService._stop,
    ev.Finish: SchedulerService._finish,
    ev.AnswerCancel: SchedulerService._answer_cancel,
    ev.Forget: SchedulerService._forget,
    ev.RefuseReplica: SchedulerService._refuse,
    ev.SetTimer: SchedulerService._set_timer,
}

_HANDLE: Final[dict[str, dict[type, Callable[[SchedulerService, Connection, Any], None]]]] = {
    "ingress": {
        wire.Submit: SchedulerService._on_submit,
        wire.Cancel: SchedulerService._on_cancel,
        wire.GetStatus: SchedulerService._on_status,
        wire.GetTask: SchedulerService._on_task,
        wire.Watch: SchedulerService._on_watch,
        wire.Unwatch: SchedulerService._on_unwatch,
        wire.FetchTranscript: SchedulerService._on_fetch,
        wire.GetMetrics: SchedulerService._on_metrics,
        wire.GetReadiness: SchedulerService._on_readiness,
        wire.CountRejected: SchedulerService._on_rejected,
    },
    "replica": {
        wire.RegisterReplica: SchedulerService._on_register,
        wire.AttemptTranscript: SchedulerService._on_transcript,
        wire.EngineGauges: SchedulerService._on_gauges,
        ev.ReplicaReady: SchedulerService._on_event,
        ev.ReplicaLoading: SchedulerService._on_event,
        ev.ReplicaUnready: SchedulerService._on_event,
        ev.PromptMeasured: SchedulerService._on_event,
        ev.TokensProgressed: SchedulerService._on_event,
        ev.AttemptEnded: SchedulerService._on_event,
        ev.SlotReleased: SchedulerService._on_event,
    },
    "scheduler": {},
}
