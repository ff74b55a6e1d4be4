"""The scheduler's vocabulary: events it is told, commands it gives, facts it is configured with.

Events are past tense, commands imperative. Both are frozen tagged structs: the same type is the
core's input, the channel's message and the journal's record. Instants are integer nanoseconds
(`_ns`) of one monotonic clock that the shell owns.
"""

from typing import Literal

from msgspec import Struct

from contracts.errors import ErrorInfo, PolicyLabel

# --------------------------------------------------------------------------- facts


class TaskInfo(Struct, frozen=True, gc=False):
    """All the scheduler knows of a task. The prompt itself travels beside it as an opaque payload.

    `prompt_bytes` is the UTF-8 length of the text the engine will see; a byte-level vocabulary
    never makes more tokens than that, so it bounds the prompt without a tokenizer.
    `templated` prompts (chat messages) grow by their template and are always measured.
    `body_digest` identifies the request body for idempotency (same id, same digest: same task).
    """

    task_id: str
    session_id: str
    tenant: str
    workload: str
    engine: str
    model_ref: str
    ctx: int
    priority: str
    max_tokens: int
    deadline_ms: int
    seed: int
    determinism: str
    sampler_profile_version: str
    prompt_bytes: int
    templated: bool
    body_digest: bytes
    correlation_id: str = ""
    expected_tokens: int | None = None
    kv_hint: str | None = None
    cancel_on_disconnect: bool = False
    labels: dict[str, str] | None = None


class QueuePolicy(Struct, frozen=True):
    """Bound and full-queue policy of one priority class within a replica set (ORCH-3004, 3005)."""

    priority: str
    capacity: int
    full_policy: PolicyLabel


class SetPolicy(Struct, frozen=True):
    """One replica set as configured: pools of the same engine, model, quant, ctx and profile.

    `capacity` bounds the waiting tasks of all classes together. `model_refs` are the names under
    which clients may ask for the model.
    """

    set_id: str
    engine: str
    model_refs: tuple[str, ...]
    ctx: int
    sampler_profile_version: str
    pool_ids: tuple[str, ...]
    capacity: int
    queues: tuple[QueuePolicy, ...]
    wall_timeout_ms: int
    idle_timeout_ms: int
    workloads: tuple[str, ...] = ("completion",)


class ResultPolicy(Struct, frozen=True):
    """How long and how much of finished tasks is kept for re-attaching and idempotency."""

    ttl_ms: int
    tasks_max: int
    bytes_max: int


class SchedulerConfig(Struct, frozen=True):
    sets: tuple[SetPolicy, ...]
    results: ResultPolicy


class ReplicaInfo(Struct, frozen=True):
    """One replica: one engine process on one device mask (ORCH-3001).

    `token_ns` is the decode time per token that its self-test measured; the predictor starts
    from it until tasks have been served.
    """

    replica_id: str
    pool_id: str
    engine: str
    engine_version: str
    model_digest: str
    ctx: int
    slots: int
    sampler_profile_version: str
    accelerator: str
    node_id: str
    devices: tuple[str, ...] = ()
    token_ns: int = 0
    interruptible_decode: bool = False


class Outcome(Struct, frozen=True, omit_defaults=True):
    """The one terminal outcome of a task."""

    state: Literal["finished", "failed", "canceled", "dropped"]
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    first_token_ms: int | None = None
    decode_ms: int = 0
    finish_reason: Literal["stop", "length", "canceled"] | None = None
    stop_sequence: str | None = None
    error: ErrorInfo | None = None


# -------------------------------------------------------------------------- events


class Event(Struct, frozen=True, tag=True, gc=False):
    """Something that happened; told to the core once, with the time it was learnt."""


class TaskSubmitted(Event, frozen=True, gc=False):
    """A validated request arrived. `submission` is the shell's handle for the answer."""

    submission: int
    task: TaskInfo


class PromptMeasured(Event, frozen=True, gc=False):
    """A replica counted a prompt's tokens, or could not (`error`); `measurement` is that of the command."""

    task_id: str
    measurement: int
    prompt_tokens: int
    error: ErrorInfo | None = None


class CancelRequested(Event, frozen=True, gc=False):
    """Someone of `tenant` asked to cancel; answered by `AnswerCancel` with the same `request`."""

    request: int
    task_id: str
    tenant: str


class ReplicaLoading(Event, frozen=True, gc=False):
    """A replica exists and is bringing its engine up; not dispatchable yet."""

    replica_id: str
    pool_id: str


class ReplicaReady(Event, frozen=True, gc=False):
    """A replica preloaded its model and generated a token; dispatchable from now on."""

    replica: ReplicaInfo


class ReplicaUnready(Event, frozen=True, gc=False):
    """A replica's engine is down but the replica lives and will bring it up again."""

    replica_id: str
    reason: str


class ReplicaLost(Event, frozen=True, gc=False):
    """A replica is gone (its connection ended); all it was doing is gone with it."""

    replica_id: str
    reason: str


class TokensProgressed(Event, frozen=True, gc=False):
    """How far an attempt is: tokens so far and the rolling digest of their text."""

    task_id: str
    attempt: int
    tokens_out: int
    digest: int


class AttemptEnded(Event, frozen=True, gc=False):
    """An attempt is over: no token of it will follow.

    `stopped` answers a `Stop`; an attempt that finished first reports `finished` instead, and
    that stands. `slot_free` is false while the engine still has to let go of the slot; then a
    `SlotReleased` follows.
    """

    task_id: str
    attempt: int
    replica_id: str
    result: Literal["finished", "stopped", "failed"]
    slot_free: bool
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    first_token_ns: int = 0
    decode_ns: int = 0
    transcript_bytes: int = 0
    finish_reason: Literal["stop", "length"] | None = None
    stop_sequence: str | None = None
    error: ErrorInfo | None = None


class SlotReleased(Event, frozen=True, gc=False):
    """The engine confirmed that the slot of an ended attempt is free."""

    task_id: str
    attempt: int
    replica_id: str


class TimerFired(Event, frozen=True, gc=False):
    """The time last asked for by `SetTimer` has come."""


AnyEvent = (
    TaskSubmitted
    | PromptMeasured
    | CancelRequested
    | ReplicaLoading
    | ReplicaReady
    | ReplicaUnready
    | ReplicaLost
    | TokensProgressed
    | AttemptEnded
    | SlotReleased
    | TimerFired
)

# ------------------------------------------------------------------------ commands


class Command(Struct, frozen=True, tag=True, gc=False):
    """Something the shell must do. Carries the set's id, so that sets can live on other shards."""

    set_id: str


class Admit(Command, frozen=True, gc=False):
    """Answer a submission: accepted. `replayed` marks the same task submitted again."""

    submission: int
    task_id: str
    queue_position: int
    predicted_start_ms: int
    backoff_ms: int
    replayed: bool = False


class Reject(Command, frozen=True, gc=False):
    """Answer a submission: refused; nothing of it is kept."""

    submission: int
    task_id: str
    error: ErrorInfo


class MeasurePrompt(Command, frozen=True, gc=False):
    """Have a replica count the prompt's tokens; answered by `PromptMeasured`.

    `measurement` fences: a late answer must not be taken for another task submitted under the id.
    """

    task_id: str
    measurement: int
    replica_id: str


class Start(Command, frozen=True, gc=False):
    """Run an attempt of a task on a replica that has a free slot for it."""

    task_id: str
    attempt: int
    replica_id: str


class Stop(Command, frozen=True, gc=False):
    """Stop an attempt; answered by `AttemptEnded`."""

    task_id: str
    attempt: int
    replica_id: str
    reason: str


class Finish(Command, frozen=True, gc=False):
    """The task has reached its terminal outcome; tell whoever listens."""

    task_id: str
    outcome: Outcome


class AnswerCancel(Command, frozen=True, gc=False):
    """Answer a cancel request: no token of the task will follow (or no such task)."""

    request: int
    found: bool


class Forget(Command, frozen=True, gc=False):
    """Drop payload, transcript and every other trace of a task."""

    task_id: str


class RefuseReplica(Command, frozen=True, gc=False):
    """A replica does not match its set's pinned versions; it must not serve (ORCH-3046)."""

    replica_id: str
    reason: str


class SetTimer(Command, frozen=True, gc=False):
    """Tell the core `TimerFired` at `at_ns`; replaces the timer asked for before."""

    at_ns: int


AnyCommand = Admit | Reject | MeasurePrompt | Start | Stop | Finish | AnswerCancel | Forget | RefuseReplica | SetTimer
