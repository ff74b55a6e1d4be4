"""What ingresses ask of the scheduler without changing anything: one answer to a question, or none."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from contracts import control_messages as control
from contracts import messages as wire
from contracts.api import API_VERSION
from contracts.base import Frame
from contracts.control import Capabilities
from contracts.errors import ErrorInfo
from orchestrator.cluster.live import LiveTask
from orchestrator.cluster.planning import plan, session_of
from orchestrator.cluster.stream_events import TRANSCRIPT_GONE
from orchestrator.cluster.telemetry import Telemetry
from orchestrator.core.scheduler import Scheduler

NO_SUCH_TASK: Final = ErrorInfo(
    "NOT_FOUND", "no such task; it was never admitted here, or its result is no longer kept", retriable=False
)
NO_SUCH_SESSION: Final = ErrorInfo(
    "NOT_FOUND", "no such session; none of its tasks was admitted here, or its time is over", retriable=False
)
NO_TRANSCRIPT: Final = ErrorInfo("NOT_FOUND", "the task has no transcript yet", retriable=True)
TRANSCRIPTS_WAIT: Final = ErrorInfo(
    "ADMISSION_REJECT",
    "too many results of ended tasks are asked for at once; try again shortly",
    retriable=True,
    retry_after_ms=1000,
    policy_label="reject",
)


def no_such_pool(pool_id: str, known: str) -> ErrorInfo:
    """NOT_FOUND for a pool, with the pools that there are."""
    return ErrorInfo("NOT_FOUND", f"no pool {pool_id!r}; there is: {known}", retriable=False)


class Queries:
    """Reads the core, the live tasks, the transcripts and the metrics."""

    def __init__(
        self,
        core: Scheduler,
        clock: Callable[[], int],
        live: Mapping[str, LiveTask],
        transcripts: Mapping[str, bytes],
        telemetry: Telemetry,
    ) -> None:
        self._core = core
        self._clock = clock
        self._live = live
        self._transcripts = transcripts
        self._telemetry = telemetry

    def answer(self, message: Any) -> Frame | None:
        """The answer to a question; None where there is nothing to tell. Raises KeyError for anything else."""
        return _ANSWERS[type(message)](self, message)

    def status(self, message: wire.GetStatus) -> Frame:
        status = self._core.status(self._clock(), message.task_id, message.tenant)
        return wire.Failed(message.req, NO_SUCH_TASK) if status is None else wire.Status(message.req, status)

    def task(self, message: wire.GetTask) -> Frame:
        task = self._core.task(message.task_id, message.tenant)
        return wire.Failed(message.req, NO_SUCH_TASK) if task is None else wire.Task(message.req, task)

    def plan(self, message: wire.GetPlan) -> Frame | None:
        live = self._live.get(message.task_id)
        if live is None or live.task.tenant != message.tenant:
            return None
        metrics = plan(self._core, self._clock(), live)
        return None if metrics is None else wire.TaskPlan(message.req, message.task_id, metrics)

    def session(self, message: wire.GetSession) -> Frame:
        view = self._core.session(self._clock(), message.tenant, message.session_id)
        if view is None:
            return wire.Failed(message.req, NO_SUCH_SESSION)
        return wire.SessionFound(message.req, session_of(view))

    def transcript(self, message: wire.FetchTranscript) -> Frame:
        if self._core.task(message.task_id, message.tenant) is None:
            return wire.Failed(message.req, NO_SUCH_TASK)
        tokens = self._transcripts.get(message.task_id)
        if tokens is not None:
            return wire.Transcript(message.req, tokens)
        has_ended = self._core.outcome(message.task_id, message.tenant) is not None
        return wire.Failed(message.req, TRANSCRIPT_GONE if has_ended else NO_TRANSCRIPT)

    def metrics(self, message: wire.GetMetrics) -> Frame:
        return wire.MetricsText(message.req, self._telemetry.render(self._core, self._clock()))

    def readiness(self, message: wire.GetReadiness) -> Frame:
        return wire.ReadinessReport(message.req, self._core.is_ready(), self._core.readiness())

    def pool_health(self, message: control.GetPoolHealth) -> Frame:
        health = self._core.pool_health(self._clock(), message.pool_id)
        if health is not None:
            return control.PoolHealthReport(message.req, health)
        known = ", ".join(self._core.readiness())
        return wire.Failed(message.req, no_such_pool(message.pool_id, known))

    def replica_sets(self, message: control.GetReplicaSets) -> Frame:
        sets = [self._telemetry.with_attainment(each) for each in self._core.replica_sets(self._clock())]
        return control.ReplicaSetsReport(message.req, sets)

    def capabilities(self, message: control.GetCapabilities) -> Frame:
        return control.CapabilitiesReport(message.req, Capabilities(API_VERSION, self._core.capabilities()))


_ANSWERS: Final[dict[type, Callable[[Queries, Any], Frame | None]]] = {
    wire.GetStatus: Queries.status,
    wire.GetTask: Queries.task,
    wire.GetPlan: Queries.plan,
    wire.GetSession: Queries.session,
    wire.FetchTranscript: Queries.transcript,
    wire.GetMetrics: Queries.metrics,
    wire.GetReadiness: Queries.readiness,
    control.GetPoolHealth: Queries.pool_health,
    control.GetReplicaSets: Queries.replica_sets,
    control.GetCapabilities: Queries.capabilities,
}
QUESTIONS: Final = frozenset(_ANSWERS)
