"""What travels over the channel between ingress, scheduler and replicas.

Core events that a replica reports travel as they are; the rest is here. `req` numbers a
question on its connection, and the answer carries the same number.
"""

import msgspec
from msgspec import Struct

from contracts import scheduling as core
from contracts.api import Admission, Metrics, Session, TaskStatus
from contracts.base import Frame
from contracts.control_messages import (
    CapabilitiesReport,
    FromManager,
    GetCapabilities,
    GetPoolHealth,
    GetReplicaSets,
    PoolHealthReport,
    PoolRequest,
    ReplicaSetsReport,
)
from contracts.errors import ErrorInfo
from contracts.gpus import GpuCounts, GpuReading
from contracts.pools import LeaseRenewed, ReplicaFaulted
from contracts.tasks import Outcome, ReplicaInfo, TaskInfo
from contracts.token_messages import Credit as Credit
from contracts.token_messages import StreamOver as StreamOver
from contracts.token_messages import Subscribe as Subscribe
from contracts.token_messages import TokenBatch as TokenBatch
from contracts.token_messages import Unsubscribe as Unsubscribe

# ------------------------------------------------------------- ingress to scheduler


class Submit(Frame, frozen=True, gc=False):
    """`payload` is a msgpack `GenerateRequest` that the scheduler passes on unread.

    `watch` asks for the task's `TaskStarted`, `TaskPaused` and `TaskEnded` behind the `Admitted`.
    """

    req: int
    task: TaskInfo
    payload: bytes
    watch: bool = False


class Cancel(Frame, frozen=True, gc=False):
    req: int
    task_id: str
    tenant: str


class GetStatus(Frame, frozen=True, gc=False):
    req: int
    task_id: str
    tenant: str


class GetTask(Frame, frozen=True, gc=False):
    """Ask for a task as it was submitted; answered by `Task`."""

    req: int
    task_id: str
    tenant: str


class Watch(Frame, frozen=True, gc=False):
    """Ask for what becomes of a task, as `Submit.watch` does; answered by `Task` and the present state."""

    req: int
    task_id: str
    tenant: str


class Unwatch(Frame, frozen=True, gc=False):
    task_id: str


class GetPlan(Frame, frozen=True, gc=False):
    """Ask for the planning figures of a live task; answered by `TaskPlan`, or not at all once it has ended."""

    req: int
    task_id: str
    tenant: str


class FetchTranscript(Frame, frozen=True, gc=False):
    """Ask for the tokens of a task's ended attempts; all of them once the task has ended."""

    req: int
    task_id: str
    tenant: str


class GetSession(Frame, frozen=True, gc=False):
    """Ask how a session stands; answered by `SessionFound`."""

    req: int
    session_id: str
    tenant: str


class CloseSession(Frame, frozen=True, gc=False):
    """End a session; answered by `Done`."""

    req: int
    session_id: str
    tenant: str


class GetMetrics(Frame, frozen=True, gc=False):
    req: int


class GetReadiness(Frame, frozen=True, gc=False):
    req: int


class CountRejected(Frame, frozen=True, gc=False):
    """A request that the ingress refused by itself, for the metrics."""

    engine: str
    reason: str


# ------------------------------------------------------------- scheduler to ingress


class Admitted(Frame, frozen=True, gc=False):
    req: int
    admission: Admission


class Failed(Frame, frozen=True, gc=False):
    """The answer to any question that ended in an error."""

    req: int
    error: ErrorInfo


class Done(Frame, frozen=True, gc=False):
    req: int


class Status(Frame, frozen=True, gc=False):
    req: int
    status: TaskStatus


class Task(Frame, frozen=True, gc=False):
    req: int
    task: TaskInfo


class SessionFound(Frame, frozen=True, gc=False):
    req: int
    session: Session


class Transcript(Frame, frozen=True, gc=False):
    """`tokens` is a msgpack list of strings."""

    req: int
    tokens: bytes


class MetricsText(Frame, frozen=True, gc=False):
    req: int
    text: bytes


class ReadinessReport(Frame, frozen=True, gc=False):
    req: int
    ready: bool
    pools: dict[str, str]


class TaskStarted(Frame, frozen=True, gc=False):
    """An attempt of a watched task runs; its tokens are at `endpoint`.

    The first `resume_tokens` tokens are those of an earlier attempt that was stopped or lost; the replica has found
    them the same before it sends any. `metrics` is the frame that goes to the client with the start. `determinism`
    is the task's, or the set's where the task left it out.
    """

    task_id: str
    attempt: int
    replica: ReplicaInfo
    endpoint: "Endpoint"
    queue_position: int
    predicted_start_ms: int
    queue_time_ms: int
    kv_warmth: bool
    metrics: Metrics
    resume_tokens: int = 0
    determinism: str = "strict"


class TaskPaused(Frame, frozen=True, gc=False):
    """A watched task was preempted and waits to be resumed; `metrics` says so to the client."""

    task_id: str
    attempt: int
    metrics: Metrics


class TaskPlan(Frame, frozen=True, gc=False):
    """The answer to `GetPlan`: a frame for the client."""

    req: int
    task_id: str
    metrics: Metrics


class TaskEnded(Frame, frozen=True, gc=False):
    task_id: str
    outcome: Outcome


class Endpoint(Struct, frozen=True):
    """Where a channel server listens. `uds_path` is usable on the same node only.

    `epoch` counts the starts of the scheduler on its journal; replicas have none.
    """

    node_id: str
    uds_path: str
    host: str
    port: int
    epoch: int = 0


# ------------------------------------------------------------- replica and scheduler


class RegisterReplica(Frame, frozen=True, gc=False):
    """First message of a replica; `endpoint` is where ingresses subscribe to tokens.

    Behind it come the `AttemptTranscript`s of ends that were not confirmed, then, with these ends, `ReplicaReady` if it
    serves, else `ReplicaLoading`.
    """

    replica_id: str
    pool_id: str
    endpoint: Endpoint
    incarnation: int = 0


class Launch(Frame, frozen=True, gc=False):
    """Bring the engine up, ending the one that runs, to serve `slots` attempts at once."""

    slots: int


class AttemptTranscript(Frame, frozen=True, gc=False):
    """Sent right before the `AttemptEnded` it belongs to; `tokens` is a msgpack list of strings."""

    task_id: str
    attempt: int
    tokens: bytes


class EndNoted(Frame, frozen=True, gc=False):
    """The end of an attempt is known and durable: the replica need not tell it again."""

    task_id: str
    attempt: int


class ResumeMismatch(Frame, frozen=True, gc=False):
    """A resumed attempt made other tokens than the one before it; sent right before its `AttemptEnded`."""

    task_id: str
    attempt: int
    replica_id: str


class StartAttempt(Frame, frozen=True, gc=False):
    """Run an attempt. Its first `resume_tokens` tokens must have the rolling digest `resume_digest`."""

    task_id: str
    attempt: int
    payload: bytes
    resume_tokens: int = 0
    resume_digest: int = 0


class StopAttempt(Frame, frozen=True, gc=False):
    task_id: str
    attempt: int
    reason: str


class Measure(Frame, frozen=True, gc=False):
    """Count the prompt's tokens, or those of each input that may not fit into `ctx`."""

    task_id: str
    measurement: int
    payload: bytes
    ctx: int = 0


class Refused(Frame, frozen=True, gc=False):
    """The replica does not fit its set and must not serve."""

    reason: str


class EngineGauges(Frame, frozen=True, gc=False):
    """A periodic scrape of the engine's own gauges and of the replica's GPUs and host, for the metrics page."""

    replica_id: str
    kv_cache_usage_ratio: float | None
    gpus: tuple[GpuReading, ...] = ()
    gpu_counts: GpuCounts = GpuCounts()
    host_ram_used_bytes: int | None = None


ToScheduler = (
    Submit
    | Cancel
    | GetStatus
    | GetTask
    | Watch
    | Unwatch
    | GetPlan
    | FetchTranscript
    | GetSession
    | CloseSession
    | GetMetrics
    | GetReadiness
    | CountRejected
    | RegisterReplica
    | AttemptTranscript
    | ResumeMismatch
    | EngineGauges
    | GetPoolHealth
    | GetReplicaSets
    | GetCapabilities
    | PoolRequest
    | FromManager
    | LeaseRenewed
    | ReplicaFaulted
    | core.PromptMeasured
    | core.ReplicaLoading
    | core.ReplicaReady
    | core.ReplicaUnready
    | core.TokensProgressed
    | core.AttemptEnded
    | core.SlotReleased
    | core.TokensDiverged
)
ToIngress = (
    Admitted
    | Failed
    | Done
    | Status
    | Task
    | SessionFound
    | Transcript
    | MetricsText
    | ReadinessReport
    | PoolHealthReport
    | ReplicaSetsReport
    | CapabilitiesReport
    | TaskStarted
    | TaskPaused
    | TaskPlan
    | TaskEnded
    | TokenBatch
    | StreamOver
)
ToReplica = StartAttempt | StopAttempt | EndNoted | Measure | Launch | Refused | Subscribe | Credit | Unsubscribe

encode = msgspec.msgpack.Encoder().encode
