"""The data plane's request and response bodies, OrchQueue v1 (ORCH-2001, ORCH-2002, ORCH-3044).

These structs are the source of the frozen OpenAPI document and the decoder on the hot path:
unknown fields, wrong types and out-of-range numbers are refused while decoding.
Times are milliseconds (`_ms`), text is UTF-8, ids are UUIDs in canonical form.
"""

from typing import Annotated, Final, Literal
from uuid import UUID

from msgspec import Meta, Struct

from contracts.errors import ErrorInfo

API_VERSION: Final = "1.0.0"

Engine = Literal["llamacpp", "vllm", "tgi", "triton"]
Priority = Literal["interactive", "batch"]
Workload = Literal["completion", "embedding", "rerank"]
Determinism = Literal["strict", "best_effort"]
TaskState = Literal["measuring", "queued", "running", "stopping", "finished", "failed", "canceled", "dropped"]
FinishReason = Literal["stop", "length", "canceled"]

#: Highest first; the order in which a v1 scheduler serves classes.
PRIORITIES: Final[tuple[Priority, ...]] = ("interactive", "batch")

PositiveInt32 = Annotated[int, Meta(ge=1, le=2**31 - 1)]
ModelRef = Annotated[str, Meta(min_length=1, max_length=256)]
Role = Literal["system", "user", "assistant", "tool"]


class Message(Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation, rendered through the model's own chat template."""

    role: Role
    content: str


class Sampling(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Overrides of the sampler profile's pinned defaults; what is left out keeps the default."""

    temperature: Annotated[float, Meta(ge=0, le=5)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=16)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=300)] | None = None


class TaskRequest(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of `POST /v1/tasks`. `task_id` is the idempotency key.

    A completion takes `prompt` or `messages`, an embedding `inputs`, a rerank its query in `prompt` and the documents
    in `inputs`. `max_tokens` bounds what is generated, so that embedding and rerank ignore it. `determinism` left out
    is `strict`, unless the pools that serve the model promise `best_effort` only.

    `cancel_on_disconnect` defaults to true for a one-call stream and to false otherwise.
    `seed` left out is derived from a hash of `task_id` (ORCH-3045).
    """

    task_id: UUID
    session_id: UUID
    workload: Workload
    model_ref: ModelRef
    engine: Engine
    ctx: PositiveInt32
    priority: Priority
    max_tokens: PositiveInt32
    deadline_ms: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    determinism: Determinism | None = None
    sampler_profile_version: Annotated[str, Meta(min_length=1, max_length=32)] = "v1"
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=1024)] | None = None
    inputs: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=2048)] | None = None
    expected_tokens: PositiveInt32 | None = None
    kv_hint: Literal["reuse", "cold"] | None = None
    sampling: Sampling | None = None
    cancel_on_disconnect: bool | None = None
    labels: (
        Annotated[
            dict[
                Annotated[str, Meta(min_length=1, max_length=64)],
                Annotated[str, Meta(max_length=256)],
            ],
            Meta(max_length=16),
        ]
        | None
    ) = None


class Admission(Struct, frozen=True, omit_defaults=True):
    """Body of the 202: where the task stands and when it will start.

    `queue_position` counts the tasks that start before this one (0: next, or running already).
    `predicted_start_ms` is milliseconds from admission. `backoff_ms` is how long a well-behaved
    client waits before it submits more (0: no reason to wait). `on_time_probability` is the chance
    that the task ends before its deadline, 0 to 1. What is left of the session's budgets is told
    where they are bounded, this task's own claim taken off (ORCH-3099). `accelerator` is told where it is
    the development carve-out `cpu-dev` (ORCH-1101).
    """

    task_id: str
    queue_position: int
    predicted_start_ms: int
    backoff_ms: int
    on_time_probability: float | None = None
    tokens_budget_remaining: int | None = None
    time_budget_remaining_ms: int | None = None
    cost_budget_remaining: float | None = None
    accelerator: str | None = None


class Started(Struct, frozen=True, omit_defaults=True):
    """Data of the SSE `started` event; position and prediction are those told at admission."""

    queue_position: int
    predicted_start_ms: int
    engine: str
    engine_version: str
    model_digest: str
    pool_id: str
    replica_id: str
    accelerator: str
    seed: int
    attempt: int
    sampler_profile_version: str
    queue_time_ms: int
    kv_warmth: bool
    labels: dict[str, str] | None = None
    determinism: Determinism | None = None


class Token(Struct, frozen=True):
    """Data of the SSE `token` event; the event's `id:` equals `i`.

    `i` is the index of the engine token. A character spread over several tokens arrives with the
    last of them, the earlier ones carry an empty `t`.
    """

    t: str
    i: int


class Metrics(Struct, frozen=True, omit_defaults=True):
    """Data of the SSE `metrics` event; every field is optional and more may come (OC-CTRL-2023, ORCH-3100).

    One comes with every start, with a preemption, and then at a steady interval. `deadline_remaining_ms`
    is what is left until the task's own deadline; the three budgets are the session's. `preempted` says
    that the task was stopped for a more urgent one; while it is also `resumable` it waits, and with
    `resumed` it goes on after the tokens that were delivered (ORCH-3086). `failover`: it goes on after its replica
    was lost; another one made the delivered tokens again, and they were the same (ORCH-3009, ORCH-3023).
    """

    queue_depth: int | None = None
    queue_position: int | None = None
    predicted_start_ms: int | None = None
    on_time_probability: float | None = None
    deadline_remaining_ms: int | None = None
    kv_warmth: bool | None = None
    kv_migrated: bool | None = None
    tokens_budget_remaining: int | None = None
    time_budget_remaining_ms: int | None = None
    cost_budget_remaining: float | None = None
    preempted: bool | None = None
    resumable: bool | None = None
    resumed: bool | None = None
    failover: bool | None = None


class Rank(Struct, frozen=True):
    """How well a document answers the query: `index` is its place in `inputs`, higher scores are better."""

    index: int
    score: float


class End(Struct, frozen=True, omit_defaults=True):
    """Data of the SSE `end` event. `decode_ms` runs from the first token to the last.

    An embedding carries `embeddings`, one list of numbers for each of `inputs`; a rerank carries `ranks`, a `Rank`
    for each of `inputs`, best first. Both are the engine's own digits, joined and not read. Nothing was generated
    then: `tokens_out` and `decode_ms` are 0.
    """

    tokens_out: int
    decode_ms: int
    finish_reason: FinishReason
    tokens_in: int
    tokens_cached: int = 0
    stop_sequence: str | None = None
    embeddings: list[list[float]] | None = None
    ranks: list[Rank] | None = None


class TaskStatus(Struct, frozen=True, omit_defaults=True):
    """Body of `GET /v1/tasks/{id}`. `error` is set when the outcome was a failure.

    `why` says in one line what was last decided about the task. `preempted`: it was stopped for a
    more urgent one; `resumable`: it has not ended and goes on where it was.
    """

    task_id: str
    state: TaskState
    engine: str
    model_ref: str
    priority: str
    attempt: int
    tokens_in: int
    tokens_out: int
    decode_ms: int
    queue_position: int | None = None
    predicted_start_ms: int | None = None
    replica_id: str | None = None
    pool_id: str | None = None
    engine_version: str | None = None
    model_digest: str | None = None
    queue_time_ms: int | None = None
    first_token_ms: int | None = None
    finish_reason: FinishReason | None = None
    error: ErrorInfo | None = None
    labels: dict[str, str] | None = None
    why: str | None = None
    on_time_probability: float | None = None
    preempted: bool = False
    resumable: bool = False
    accelerator: str | None = None


class Session(Struct, frozen=True, omit_defaults=True):
    """Body of `GET /v1/sessions/{id}` (ORCH-2004).

    It lives `ttl_ms_remaining` more without a task. `turns` counts the tasks served since its context was
    last given up, `kv_bytes` is what that context takes on the replica that holds it, and `kv_warmth` says
    whether the next task may find it there (ORCH-3021, ORCH-3023). Budgets are told where they are bounded.
    """

    ttl_ms_remaining: int
    turns: int
    kv_bytes: int
    kv_warmth: bool
    tokens_budget_remaining: int | None = None
    time_budget_remaining_ms: int | None = None
    cost_budget_remaining: float | None = None
