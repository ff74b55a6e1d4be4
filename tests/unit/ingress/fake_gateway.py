"""Test double: a `Gateway` that lives in memory and is scripted by the test. It serves no model."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from contracts import openapi_examples as ex
from contracts.api import Admission, End, Session, Started, TaskStatus
from contracts.engine import GenerateRequest
from contracts.errors import ErrorInfo, OrchError
from contracts.gateway import Readiness, StreamEvent, Tokens
from contracts.tasks import TaskInfo
from tests.unit.ingress.fake_pools import FakePools

NOT_FOUND = ErrorInfo("NOT_FOUND", "There is no such task.", retriable=False)
NO_SESSION = ErrorInfo("NOT_FOUND", "There is no such session.", retriable=False)


class FakeTask:
    """A submitted task and the events told about it so far."""

    def __init__(self, info: TaskInfo, request: GenerateRequest, admission: Admission) -> None:
        self.info = info
        self.request = request
        self.admission = admission
        self.events: list[StreamEvent] = []
        self.news = asyncio.Event()

    @property
    def outcome(self) -> End | ErrorInfo | None:
        last = self.events[-1] if self.events else None
        return last if isinstance(last, End | ErrorInfo) else None


class FakeGateway(FakePools):
    """`script` is what happens to each task right after its admission; `feed` adds to that later."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[str, FakeTask] = {}
        self.script: list[StreamEvent] = []
        self.admission: dict[str, Any] = {"queue_position": 0, "predicted_start_ms": 0, "backoff_ms": 0}
        self.open_sessions: set[tuple[str, str]] = set()
        self.refusal: ErrorInfo | None = None
        self.failure: Exception | None = None
        self.ready = Readiness(True, {"smollm2": "ready"})
        self.rejected: list[tuple[str, str]] = []
        self.canceled: list[str] = []
        self.streams_open = 0
        self.stream_breaks_off = False

    def feed(self, task_id: str, *events: StreamEvent) -> None:
        task = self.tasks[task_id]
        task.events.extend(events)
        task.news.set()

    async def submit(self, task: TaskInfo, request: GenerateRequest) -> Admission:
        if self.failure:
            raise self.failure
        if self.refusal:
            raise OrchError(self.refusal)
        known = self.tasks.get(task.task_id)
        if known is None:
            admission = Admission(task.task_id, **self.admission)
            self.tasks[task.task_id] = FakeTask(task, request, admission)
            self.open_sessions.add((task.session_id, task.tenant))
            self.feed(task.task_id, *self.script)
            return admission
        if known.info.body_digest != task.body_digest or known.info.tenant != task.tenant:
            raise OrchError(ErrorInfo("TASK_ID_CONFLICT", "The task_id is taken.", task.engine, retriable=False))
        return known.admission

    async def open(
        self, task: TaskInfo, request: GenerateRequest, after: int = -1
    ) -> tuple[Admission, AsyncGenerator[StreamEvent]]:
        admission = await self.submit(task, request)
        return admission, self.stream(task.task_id, task.tenant, after)

    async def stream(self, task_id: str, tenant: str, after: int = -1) -> AsyncGenerator[StreamEvent]:
        task = self._find(task_id, tenant)
        self.streams_open += 1
        told = 0
        try:
            while True:
                while told < len(task.events):
                    event = task.events[told]
                    told += 1
                    if isinstance(event, Tokens):
                        event = _from(event, after + 1)
                        if not event.texts:
                            continue
                    yield event
                    if isinstance(event, End | ErrorInfo):
                        return
                if self.stream_breaks_off:
                    return
                task.news.clear()
                await task.news.wait()
        finally:
            self.streams_open -= 1

    async def cancel(self, task_id: str, tenant: str) -> None:
        task = self._find(task_id, tenant)
        self.canceled.append(task_id)
        if task.outcome is None:
            self.feed(task_id, End(tokens_out=0, decode_ms=0, finish_reason="canceled", tokens_in=0))

    async def status(self, task_id: str, tenant: str) -> TaskStatus:
        task = self._find(task_id, tenant)
        info, outcome = task.info, task.outcome
        state = "running" if any(isinstance(event, Started) for event in task.events) else "queued"
        if isinstance(outcome, End):
            state = "canceled" if outcome.finish_reason == "canceled" else "finished"
        elif outcome:
            state = "failed"
        return TaskStatus(
            task_id=task_id,
            state=state,
            engine=info.engine,
            model_ref=info.model_ref,
            priority=info.priority,
            attempt=1,
            tokens_in=0,
            decode_ms=0,
            tokens_out=outcome.tokens_out if isinstance(outcome, End) else 0,
            finish_reason=outcome.finish_reason if isinstance(outcome, End) else None,
            error=outcome if isinstance(outcome, ErrorInfo) else None,
            labels=info.labels,
        )

    async def task_info(self, task_id: str, tenant: str) -> TaskInfo:
        return self._find(task_id, tenant).info

    async def session(self, session_id: str, tenant: str) -> Session:
        if (session_id, tenant) not in self.open_sessions:
            raise OrchError(NO_SESSION)
        return ex.SESSION

    async def close_session(self, session_id: str, tenant: str) -> None:
        if (session_id, tenant) not in self.open_sessions:
            raise OrchError(NO_SESSION)
        self.open_sessions.remove((session_id, tenant))

    async def metrics(self) -> bytes:
        return b"# HELP queue_depth Waiting tasks.\n# TYPE queue_depth gauge\n"

    async def readiness(self) -> Readiness:
        return self.ready

    def count_rejected(self, engine: str, reason: str) -> None:
        self.rejected.append((engine, reason))

    def _find(self, task_id: str, tenant: str) -> FakeTask:
        task = self.tasks.get(task_id)
        if task is None or task.info.tenant != tenant:
            raise OrchError(NOT_FOUND)
        return task


def _from(tokens: Tokens, first: int) -> Tokens:
    skip = max(0, first - tokens.first)
    return Tokens(tokens.first + skip, tokens.texts[skip:])
