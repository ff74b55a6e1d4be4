"""The ingress's way into the cluster: questions to the scheduler, token streams from replicas.

One multiplexed connection to the scheduler and one to each replica that serves a stream of this ingress. Streams
outlive both: what a lost scheduler would have told is asked of the next one.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

import structlog

from contracts import messages as wire
from contracts.api import Admission, Session, TaskStatus
from contracts.engine import GenerateRequest
from contracts.errors import ErrorInfo
from contracts.gateway import Readiness, StreamEvent
from contracts.scheduling import TokensDiverged
from contracts.tasks import Outcome, TaskInfo
from orchestrator.cluster.following import Following
from orchestrator.cluster.pool_questions import PoolQuestions
from orchestrator.cluster.relink import Locate
from orchestrator.cluster.replica_links import ReplicaLinks
from orchestrator.cluster.scheduler_link import SchedulerLink, Update
from orchestrator.cluster.task_stream import TaskStream
from orchestrator.cluster.watching import Watching

log = structlog.get_logger(__name__)

_FINISH_POLL_S: Final = 0.05


class ClusterGateway(PoolQuestions):
    """Implements `contracts.gateway.Gateway` over the channel."""

    def __init__(self, secret: bytes, locate: Locate, node_id: str, peer_id: str, metrics_interval_ms: int) -> None:
        super().__init__(SchedulerLink(secret, locate, node_id, peer_id, self._updated, self._linked))
        self._metrics_interval_s = metrics_interval_ms / 1000
        self._streams: dict[str, list[TaskStream]] = {}
        self._replicas = ReplicaLinks(secret, node_id, peer_id)
        self._watching = Watching(self._followed, self._watch, self._gone)

    def start(self) -> None:
        """Begin to connect; must be called on the event loop that serves requests."""
        self._scheduler.start()

    async def finish(self, timeout_s: float) -> None:
        """Wait until no stream is open, for so long at most."""
        until_s = time.monotonic() + timeout_s
        while self._streams and time.monotonic() < until_s:
            await asyncio.sleep(_FINISH_POLL_S)

    async def close(self) -> None:
        await self._watching.close()
        await self._scheduler.close()
        await self._replicas.close()

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
        stream.tenant = task.tenant
        return admission, FollowedTask(stream.events(task), lambda: self._unfollow(task.task_id, stream))

    async def stream(self, task_id: str, tenant: str, after: int = -1) -> AsyncGenerator[StreamEvent]:
        stream = self._follow(task_id, after)
        try:
            task = await self._watch(task_id, tenant)
            stream.tenant = tenant
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

    def subscribe(self, reader: Following, started: wire.TaskStarted, first: int, credit: int) -> int:
        return self._replicas.subscribe(reader, started, first, credit)

    def grant(self, sid: int, tokens: int) -> None:
        self._replicas.grant(sid, tokens)

    def unsubscribe(self, sid: int) -> None:
        self._replicas.unsubscribe(sid)

    def diverged(self, task_id: str, attempt: int) -> None:
        log.error("stream.determinism_mismatch", job_id=task_id, attempt=attempt)
        self._scheduler.alarm(TokensDiverged(task_id, attempt))

    # ------------------------------------------------------------------- scheduler

    async def _watch(self, task_id: str, tenant: str) -> TaskInfo:
        req = self._next()
        return (await self._scheduler.ask(wire.Watch(req, task_id, tenant), req, wire.Task)).task

    def _linked(self) -> None:
        self._watching.begin()

    def _followed(self) -> list[tuple[str, str]]:
        """Tasks that the scheduler has told of; the others' questions are sent again by themselves."""
        told = [
            (task_id, next((stream.tenant for stream in streams if stream.tenant is not None), None))
            for task_id, streams in self._streams.items()
        ]
        return [(task_id, tenant) for task_id, tenant in told if tenant is not None]

    def _gone(self, task_id: str, error: ErrorInfo) -> None:
        """The scheduler knows a task no more."""
        for stream in self._streams.get(task_id, ()):
            if stream.tenant is not None:
                stream.ended(Outcome("failed", error=error))

    def _updated(self, message: Update) -> None:
        for stream in self._streams.get(message.task_id, ()):
            if isinstance(message, wire.TaskStarted):
                stream.started(message)
            elif isinstance(message, wire.TaskPlan):
                stream.planned(message.req, message.metrics)
            elif isinstance(message, wire.TaskPaused):
                stream.paused(message)
            else:
                stream.ended(message.outcome)


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
