"""The ingress's way into the cluster: questions to the scheduler, token streams from replicas.

One multiplexed connection to the scheduler and one to each replica that serves a stream of this
ingress.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final

from contracts import messages as wire
from contracts.api import Admission, Session, TaskStatus
from contracts.engine import GenerateRequest
from contracts.errors import ErrorInfo
from contracts.gateway import Readiness, StreamEvent
from contracts.tasks import Outcome, TaskInfo
from orchestrator.cluster.channel import connect
from orchestrator.cluster.connection import ChannelError, Connection
from orchestrator.cluster.pool_questions import PoolQuestions
from orchestrator.cluster.scheduler_link import Locate, SchedulerLink, Update
from orchestrator.cluster.task_stream import TaskStream

_STREAM_LOST: Final = ErrorInfo(
    "WORKER_RESET",
    "the scheduler was lost while the task ran; submit the task again",
    retriable=True,
    retry_after_ms=1000,
)


class ClusterGateway(PoolQuestions):
    """Implements `contracts.gateway.Gateway` over the channel."""

    def __init__(self, secret: bytes, locate: Locate, node_id: str, peer_id: str, metrics_interval_ms: int) -> None:
        super().__init__(SchedulerLink(secret, locate, node_id, peer_id, self._updated, self._lost_scheduler))
        self._secret = secret
        self._node_id = node_id
        self._peer_id = peer_id
        self._metrics_interval_s = metrics_interval_ms / 1000
        self._streams: dict[str, list[TaskStream]] = {}
        self._subscriptions: dict[int, tuple[TaskStream, Connection]] = {}
        self._replicas: dict[tuple[str, int], asyncio.Task[Connection]] = {}

    def start(self) -> None:
        """Begin to connect; must be called on the event loop that serves requests."""
        self._scheduler.start()

    async def close(self) -> None:
        await self._scheduler.close()
        for dial in self._replicas.values():
            if dial.done() and not dial.cancelled() and dial.exception() is None:
                dial.result().close()
            dial.cancel()

    # ----------------------------------------------------------------------- calls

    async def submit(self, task: TaskInfo, request: GenerateRequest) -> Admission:
        req = self._next()
        return (await self._scheduler.ask(wire.Submit(req, task, wire.encode(request)), req, wire.Admitted)).admission

    async def cancel(self, task_id: str, tenant: str) -> None:
        req = self._next()
        await self._scheduler.ask(wire.Cancel(req, task_id, tenant), req, wire.Done)

    async def status(self, task_id: str, tenant: str) -> TaskStatus:
        req = self._next()
        return (await self._scheduler.ask(wire.GetStatus(req, task_id, tenant), req, wire.Status)).status

    async def task_info(self, task_id: str, tenant: str) -> TaskInfo:
        req = self._next()
        return (await self._scheduler.ask(wire.GetTask(req, task_id, tenant), req, wire.Task)).task

    async def session(self, session_id: str, tenant: str) -> Session:
        req = self._next()
        return (await self._scheduler.ask(wire.GetSession(req, session_id, tenant), req, wire.SessionFound)).session

    async def close_session(self, session_id: str, tenant: str) -> None:
        req = self._next()
        await self._scheduler.ask(wire.CloseSession(req, session_id, tenant), req, wire.Done)

    async def metrics(self) -> bytes:
        req = self._next()
        return (await self._scheduler.ask(wire.GetMetrics(req), req, wire.MetricsText)).text

    async def readiness(self) -> Readiness:
        req = self._next()
        report = await self._scheduler.ask(wire.GetReadiness(req), req, wire.ReadinessReport)
        return Readiness(report.ready, report.pools)

    def count_rejected(self, engine: str, reason: str) -> None:
        self._scheduler.send(wire.CountRejected(engine, reason))

    async def transcript(self, task_id: str, tenant: str) -> bytes:
        """The tokens of a task's ended attempts, a msgpack list of strings."""
        req = self._next()
        return (await self._scheduler.ask(wire.FetchTranscript(req, task_id, tenant), req, wire.Transcript)).tokens

    # --------------------------------------------------------------------- streams

    async def open(self, task: TaskInfo, request: GenerateRequest, after: int = -1) -> tuple[Admission, "FollowedTask"]:
        req = self._next()
        stream = self._follow(task.task_id, after)
        try:
            question = wire.Submit(req, task, wire.encode(request), watch=True)
            admission = (await self._scheduler.ask(question, req, wire.Admitted)).admission
        except BaseException:
            self._unfollow(task.task_id, stream)
            raise
        return admission, FollowedTask(stream.events(task), lambda: self._unfollow(task.task_id, stream))

    async def stream(self, task_id: str, tenant: str, after: int = -1) -> AsyncGenerator[StreamEvent]:
        req = self._next()
        stream = self._follow(task_id, after)
        try:
            task = (await self._scheduler.ask(wire.Watch(req, task_id, tenant), req, wire.Task)).task
            async with contextlib.aclosing(stream.events(task)) as events:
                async for event in events:
                    yield event
        finally:
            self._unfollow(task_id, stream)

    def _follow(self, task_id: str, after: int) -> TaskStream:
        """Register a stream before the scheduler is asked, so that nothing it tells is missed."""
        stream = TaskStream(self, after, self._metrics_interval_s)
        self._streams.setdefault(task_id, []).append(stream)
        return stream

    def _unfollow(self, task_id: str, stream: TaskStream) -> None:
        streams = self._streams.get(task_id, [])
        if stream in streams:
            streams.remove(stream)
            if not streams:
                del self._streams[task_id]
                self._scheduler.send(wire.Unwatch(task_id))

    def ask_plan(self, task_id: str, tenant: str) -> int:
        req = self._next()
        self._scheduler.send(wire.GetPlan(req, task_id, tenant))
        return req

    async def subscribe(self, stream: TaskStream, started: wire.TaskStarted, first: int, credit: int) -> int:
        replica = await self._dial(started.endpoint)
        sid = self._next()
        self._subscriptions[sid] = (stream, replica)
        replica.send(wire.Subscribe(sid, started.task_id, started.attempt, first, credit))
        return sid

    def grant(self, sid: int, tokens: int) -> None:
        if sid in self._subscriptions:
            self._subscriptions[sid][1].send(wire.Credit(sid, tokens))

    def unsubscribe(self, sid: int) -> None:
        subscription = self._subscriptions.pop(sid, None)
        if subscription is not None:
            subscription[1].send(wire.Unsubscribe(sid))

    async def _dial(self, endpoint: wire.Endpoint) -> Connection:
        """The connection to a replica, made on first use and shared by all streams."""
        key = (endpoint.host, endpoint.port)
        if key not in self._replicas:
            dial = connect(
                endpoint,
                self._node_id,
                self._secret,
                "ingress",
                self._peer_id,
                wire.ToIngress,
                self._from_replica,
                lambda connection: self._lost_replica(key, connection),
            )
            self._replicas[key] = asyncio.get_running_loop().create_task(dial)
        try:
            # Shielded: the client that waits here may leave, others wait for the same connection.
            return await asyncio.shield(self._replicas[key])
        except ChannelError:
            self._replicas.pop(key, None)
            raise

    def _from_replica(self, _connection: Connection, message: Any) -> None:
        if isinstance(message, wire.TokenBatch):
            for sid, first, texts in message.items:
                subscription = self._subscriptions.get(sid)
                if subscription is not None:
                    subscription[0].tokens(sid, first, texts)
        elif isinstance(message, wire.StreamOver):
            subscription = self._subscriptions.get(message.sid)
            if subscription is not None:
                subscription[0].over(message)

    def _lost_replica(self, key: tuple[str, int], connection: Connection) -> None:
        self._replicas.pop(key, None)
        for sid, (stream, replica) in list(self._subscriptions.items()):
            if replica is connection:
                stream.over(wire.StreamOver(sid, "unknown"))

    # --------------------------------------------------------------------- updates

    def _updated(self, message: Update) -> None:
        for stream in self._streams.get(message.task_id, ()):
            if isinstance(message, wire.TaskStarted):
                stream.started(message)
            elif isinstance(message, wire.TaskPlan):
                stream.planned(message.req, message.metrics)
            elif isinstance(message, wire.TaskPaused):
                stream.paused(message.metrics)
            else:
                stream.ended(message.outcome)

    def _lost_scheduler(self) -> None:
        # A restarted scheduler does not know these tasks: their streams end, typed.
        lost = Outcome("failed", error=_STREAM_LOST)
        for streams in self._streams.values():
            for stream in streams:
                stream.ended(lost)


class FollowedTask:
    """Events of a task that this gateway follows until they are closed, read or not."""

    def __init__(self, events: AsyncGenerator[StreamEvent], release: Callable[[], None]) -> None:
        self._events = events
        self._release = release

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self

    async def __anext__(self) -> StreamEvent:
        return await anext(self._events)

    async def aclose(self) -> None:
        self._release()
        await self._events.aclose()
