"""The scheduler's shell: turns channel messages into core events and core commands into messages.

It decides nothing. Everything that chooses is in `orchestrator.core`; here are the clock, the
connections, the payloads and transcripts (which the core never reads), and the metrics.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from contracts import messages as wire
from contracts import pools
from contracts import scheduling as ev
from contracts.policies import SchedulerConfig
from orchestrator.cluster.channel import ChannelServer
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.decisions import DecisionLog
from orchestrator.cluster.live import LiveTask
from orchestrator.cluster.planning import NS_PER_MS, admission_of, paused_metrics, plan, running_metrics
from orchestrator.cluster.pool_dialogue import REQUESTS, PoolDialogue
from orchestrator.cluster.queries import NO_SUCH_SESSION, NO_SUCH_TASK, QUESTIONS, TRANSCRIPTS_WAIT, Queries
from orchestrator.cluster.telemetry import Telemetry
from orchestrator.core.scheduler import Scheduler

log = structlog.get_logger(__name__)

#: Where a replica listens that is no longer here; only ended tasks still name it.
_NOWHERE: Final = wire.Endpoint("", "", "", 0)
_TEXTS: Final = msgspec.msgpack.Decoder(list[str])


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
        self._now_ns = 0
        self._live: dict[str, LiveTask] = {}
        self._telemetry = Telemetry(config, self._live)
        self._decisions = DecisionLog(config)
        self._replicas: dict[str, Connection] = {}
        self._pools = PoolDialogue(self._core, self._tell, self._replicas, self._telemetry.pools)
        self._incarnations: dict[str, int] = {}
        self._endpoints: dict[str, wire.Endpoint] = {}
        self._transcripts: dict[str, bytes] = {}
        self._queries = Queries(self._core, clock, self._live, self._transcripts, self._telemetry)
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
        now_ns = self._now_ns = self._clock()
        commands = self._core.step(now_ns, event)
        self._telemetry.happened(event)
        for command in commands:
            self._telemetry.decided(now_ns, command)
            _PERFORM[type(command)](self, command)

    def _admit(self, command: ev.Admit) -> None:
        asked = self._questions.pop(command.submission)
        live = self._live[command.task_id]
        task = live.task
        if not command.replayed:
            live.set_id = command.set_id
            live.on_time_probability = command.on_time_probability
            live.deadline_ns = self._now_ns + task.deadline_ms * NS_PER_MS
            self._decisions.note(command, live)
        asked.connection.send(wire.Admitted(asked.req, admission_of(command)))
        if asked.watch and command.replayed:
            self._watch(asked.connection, task.task_id, task.tenant)
        elif asked.watch:  # whatever becomes of a new task comes behind this command
            self._watchers.setdefault(task.task_id, set()).add(asked.connection)
        if command.replayed and self._core.outcome(task.task_id, task.tenant) is not None:
            del self._live[task.task_id]  # sent again after its end: nothing will run it

    def _reject(self, command: ev.Reject) -> None:
        asked = self._questions.pop(command.submission)
        first = self._live.get(command.task_id)
        # A refused resubmission (a conflict) leaves the task that holds the id alone.
        if first is not None and self._core.task(command.task_id, first.task.tenant) is None:
            del self._live[command.task_id]
        asked.connection.send(wire.Failed(asked.req, command.error))

    def _measure(self, command: ev.MeasurePrompt) -> None:
        live = self._live[command.task_id]
        measure = wire.Measure(command.task_id, command.measurement, live.payload, live.task.ctx)
        self._replicas[command.replica_id].send(measure)

    def _start(self, command: ev.Start) -> None:
        task_id = command.task_id
        live = self._live[task_id]
        self._decisions.note(command, live)
        live.attempt, live.started_ns, live.replica_id = command.attempt, self._now_ns, command.replica_id
        live.resume_tokens, live.paused = command.resume_tokens, False
        order = wire.StartAttempt(task_id, command.attempt, live.payload, command.resume_tokens, command.resume_digest)
        self._replicas[command.replica_id].send(order)
        watchers = self._watchers.get(task_id)
        started = self._task_started(task_id, live.task.tenant) if watchers else None
        if watchers and started is not None:
            for connection in watchers:
                connection.send(started)

    def _task_started(self, task_id: str, tenant: str) -> wire.TaskStarted | None:
        view = self._core.started(self._clock(), task_id, tenant)
        if view is None:
            return None
        live = self._live.get(task_id)
        return wire.TaskStarted(
            task_id=task_id,
            attempt=view.attempt,
            replica=view.replica,
            endpoint=self._endpoints.get(view.replica.replica_id, _NOWHERE),
            queue_position=view.queue_position,
            predicted_start_ms=view.predicted_start_ms,
            queue_time_ms=view.queue_time_ns // NS_PER_MS,
            kv_warmth=view.kv_warmth,
            metrics=running_metrics(view, resumed=view.preempted and live is not None and not live.paused),
            resume_tokens=live.resume_tokens if live is not None else 0,
            determinism=view.determinism,
        )

    def _stop(self, command: ev.Stop) -> None:
        live = self._live.get(command.task_id)
        if live is not None:
            self._decisions.note(command, live)
        replica = self._replicas.get(command.replica_id)
        if replica is not None:
            replica.send(wire.StopAttempt(command.task_id, command.attempt, command.reason))

    def _pause(self, command: ev.Pause) -> None:
        live = self._live[command.task_id]
        self._decisions.note(command, live)
        live.preempted = live.paused = True
        paused = wire.TaskPaused(command.task_id, command.attempt, paused_metrics(command))
        for connection in self._watchers.get(command.task_id, ()):
            connection.send(paused)

    def _finish(self, command: ev.Finish) -> None:
        live = self._live.pop(command.task_id, None)
        if live is not None:
            self._decisions.note(command, live)
        ended = wire.TaskEnded(command.task_id, command.outcome)
        for connection in self._watchers.pop(command.task_id, ()):
            connection.send(ended)

    def _answer_cancel(self, command: ev.AnswerCancel) -> None:
        asked = self._questions.pop(command.request)
        asked.connection.send(wire.Done(asked.req) if command.found else wire.Failed(asked.req, NO_SUCH_TASK))

    def _answer_close(self, command: ev.AnswerClose) -> None:
        asked = self._questions.pop(command.request)
        asked.connection.send(wire.Done(asked.req) if command.found else wire.Failed(asked.req, NO_SUCH_SESSION))

    def _forget(self, command: ev.Forget) -> None:
        self._live.pop(command.task_id, None)
        self._transcripts.pop(command.task_id, None)

    def _drop_transcript(self, command: ev.DropTranscript) -> None:
        self._transcripts.pop(command.task_id, None)

    def _refuse(self, command: ev.RefuseReplica) -> None:
        log.error("replica.refused", replica_id=command.replica_id, reason=command.reason)
        replica = self._replicas.get(command.replica_id)
        if replica is not None:
            replica.send(wire.Refused(command.reason))

    def _note_pool(self, command: pools.NotePool) -> None:
        self._telemetry.learn(self._core.set_policies())
        self._pools.note(command)

    def _set_timer(self, command: ev.SetTimer) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0, command.at_ns - self._clock()) / 1e9
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tell, ev.TimerFired())

    # --------------------------------------------------------------- connections

    def _opened(self, connection: Connection) -> None:
        log.info("channel.opened", role=connection.role, peer=connection.peer_id)
        if connection.role == "manager":
            self._pools.manager_opened(connection)

    def _closed(self, connection: Connection) -> None:
        log.info("channel.closed", role=connection.role, peer=connection.peer_id)
        self._pools.manager_closed(connection)
        for watchers in self._watchers.values():
            watchers.discard(connection)
        # A newer connection of the same replica has taken over; its state is not ours to end.
        if connection.role == "replica" and self._replicas.get(connection.peer_id) is connection:
            del self._replicas[connection.peer_id]
            del self._incarnations[connection.peer_id]
            self._endpoints.pop(connection.peer_id, None)
            self._tell(ev.ReplicaLost(connection.peer_id, "its connection ended"))

    def _received(self, connection: Connection, message: Any) -> None:
        kind = type(message)
        if kind in QUESTIONS and connection.role == "ingress":
            reply = self._queries.answer(message)
            if isinstance(reply, wire.Transcript):
                if not connection.send_in_turn(reply, len(reply.tokens)):
                    connection.send(wire.Failed(message.req, TRANSCRIPTS_WAIT))
            elif reply is not None:
                connection.send(reply)
            return
        handler = _HANDLE[connection.role].get(kind)
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
        live = self._live.get(task_id)
        metrics = plan(self._core, self._clock(), live) if live is not None and live.paused else None
        if live is not None and metrics is not None:
            connection.send(wire.TaskPaused(task_id, live.attempt, metrics))
        outcome = self._core.outcome(task_id, tenant)
        if outcome is not None:
            connection.send(wire.TaskEnded(task_id, outcome))
        else:
            self._watchers.setdefault(task_id, set()).add(connection)

    # ------------------------------------------------------------ from ingresses

    def _on_submit(self, connection: Connection, message: wire.Submit) -> None:
        task = message.task
        if task.task_id not in self._live:  # one sent again keeps the payload of the first time
            self._live[task.task_id] = LiveTask(task, message.payload, self._clock())
        self._tell(ev.TaskSubmitted(self._question(connection, message.req, watch=message.watch), task))

    def _on_cancel(self, connection: Connection, message: wire.Cancel) -> None:
        self._tell(ev.CancelRequested(self._question(connection, message.req), message.task_id, message.tenant))

    def _on_close_session(self, connection: Connection, message: wire.CloseSession) -> None:
        question = self._question(connection, message.req)
        self._tell(ev.SessionCloseRequested(question, message.session_id, message.tenant))

    def _on_watch(self, connection: Connection, message: wire.Watch) -> None:
        task = self._core.task(message.task_id, message.tenant)
        if task is None:
            connection.send(wire.Failed(message.req, NO_SUCH_TASK))
            return
        connection.send(wire.Task(message.req, task))
        self._watch(connection, task.task_id, task.tenant)

    def _on_unwatch(self, connection: Connection, message: wire.Unwatch) -> None:
        watchers = self._watchers.get(message.task_id)
        if watchers is not None:
            watchers.discard(connection)
            if not watchers:
                del self._watchers[message.task_id]

    def _on_rejected(self, _connection: Connection, message: wire.CountRejected) -> None:
        self._telemetry.count_rejected(message.engine, message.reason)

    # -------------------------------------------------------------- from replicas

    def _on_register(self, connection: Connection, message: wire.RegisterReplica) -> None:
        before = self._replicas.get(message.replica_id)
        if before is not None and self._incarnations[message.replica_id] > message.incarnation:
            connection.close()  # one that was given up; its successor is here
            return
        if before is not None and before is not connection:
            self._tell(ev.ReplicaLost(message.replica_id, "it connected again"))
            before.close()
        self._replicas[message.replica_id] = connection
        self._incarnations[message.replica_id] = message.incarnation
        self._endpoints[message.replica_id] = message.endpoint

    def _on_transcript(self, _connection: Connection, message: wire.AttemptTranscript) -> None:
        task_id = message.task_id
        live = self._live.get(task_id)
        if live is None or live.attempt != message.attempt:
            return
        before = self._transcripts.get(task_id)
        if live.resume_tokens and before is not None:
            self._transcripts[task_id] = _joined(before, message.tokens, live.resume_tokens)
        else:
            self._transcripts[task_id] = message.tokens

    def _on_mismatch(self, _connection: Connection, message: wire.ResumeMismatch) -> None:
        self._telemetry.count_mismatch(message.replica_id)

    def _on_gauges(self, _connection: Connection, message: wire.EngineGauges) -> None:
        self._telemetry.gauges(message)
        if message.kv_cache_usage_ratio is not None:
            self._tell(ev.ReplicaReported(message.replica_id, round(message.kv_cache_usage_ratio * 1000)))

    def _on_event(self, connection: Connection, message: ev.AnyEvent) -> None:
        # A replica whose place was taken by another connection is not spoken for by this one any more.
        if self._replicas.get(connection.peer_id) is connection:
            self._tell(message)


def _joined(before: bytes, after: bytes, resumed_at: int) -> bytes:
    """One transcript of an attempt and the one that resumed it.

    Both have the same text up to there, but perhaps not in the same tokens, and clients count tokens.
    """
    return wire.encode(_TEXTS.decode(before)[:resumed_at] + _TEXTS.decode(after)[resumed_at:])


_PERFORM: Final[dict[type, Callable[[SchedulerService, Any], None]]] = {
    ev.Admit: SchedulerService._admit,
    ev.Reject: SchedulerService._reject,
    ev.MeasurePrompt: SchedulerService._measure,
    ev.Start: SchedulerService._start,
    ev.Stop: SchedulerService._stop,
    ev.Pause: SchedulerService._pause,
    ev.Finish: SchedulerService._finish,
    ev.AnswerCancel: SchedulerService._answer_cancel,
    ev.AnswerClose: SchedulerService._answer_close,
    ev.Forget: SchedulerService._forget,
    ev.DropTranscript: SchedulerService._drop_transcript,
    ev.RefuseReplica: SchedulerService._refuse,
    pools.OrderReplica: lambda service, command: service._pools.order(command),
    pools.RetireReplica: lambda service, command: service._pools.order(command),
    pools.LaunchEngine: lambda service, command: service._pools.launch(command),
    pools.AnswerControl: lambda service, command: service._pools.answer(command),
    pools.NotePool: SchedulerService._note_pool,
    ev.SetTimer: SchedulerService._set_timer,
}

_HANDLE: Final[dict[str, dict[type, Callable[[SchedulerService, Connection, Any], None]]]] = {
    "ingress": {
        wire.Submit: SchedulerService._on_submit,
        wire.Cancel: SchedulerService._on_cancel,
        wire.CloseSession: SchedulerService._on_close_session,
        wire.Watch: SchedulerService._on_watch,
        wire.Unwatch: SchedulerService._on_unwatch,
        wire.CountRejected: SchedulerService._on_rejected,
        **dict.fromkeys(REQUESTS, lambda service, connection, asked: service._pools.request(connection, asked)),
    },
    "replica": {
        wire.RegisterReplica: SchedulerService._on_register,
        wire.AttemptTranscript: SchedulerService._on_transcript,
        wire.ResumeMismatch: SchedulerService._on_mismatch,
        wire.EngineGauges: SchedulerService._on_gauges,
        ev.ReplicaReady: SchedulerService._on_event,
        ev.ReplicaLoading: SchedulerService._on_event,
        ev.ReplicaUnready: SchedulerService._on_event,
        ev.PromptMeasured: SchedulerService._on_event,
        ev.TokensProgressed: SchedulerService._on_event,
        ev.AttemptEnded: SchedulerService._on_event,
        ev.SlotReleased: SchedulerService._on_event,
        pools.LeaseRenewed: SchedulerService._on_event,
        pools.ReplicaFaulted: SchedulerService._on_event,
    },
    "manager": {
        report: lambda service, connection, event: service._pools.report(connection, event)
        for report in (pools.NodesSeen, pools.ReplicaPlaced, pools.ReplicaUnplaced, pools.ReplicaGone)
    },
    "scheduler": {},
}
