"""Bodies of the control plane: pools, replica sets, capabilities (ORCH-2101..2104, ORCH-3095, ORCH-3096)."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from contracts.api import ModelRef

#: pending: no room yet; starting: its actor is made; waiting: the next launch is due in `retry_in_ms`;
#: loading: its engine comes up; suspended: its lease ran out; draining: it takes no new task.
ReplicaPhase = Literal["pending", "starting", "waiting", "loading", "ready", "suspended", "draining"]
ReloadState = Literal["loading", "canary", "done", "rolled_back"]


class DrainRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v1/pools/{id}/drain`: what still runs after `deadline_ms` is moved or ended."""

    deadline_ms: Annotated[int, Meta(ge=0, le=86_400_000)]


class ReloadRequest(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of `POST /v1/pools/{id}/reload`.

    With `canary_percent` the new model takes that share of the sessions until it is promoted or rolled back.
    """

    new_model_ref: ModelRef
    canary_percent: Annotated[int, Meta(ge=1, le=99)] | None = None


class PoolError(Struct, frozen=True, omit_defaults=True):
    """The last thing that went wrong; `stderr` holds the engine's last lines, secrets removed."""

    kind: str
    message: str
    replica_id: str
    ms_ago: int
    stderr: list[str] = []


class ReplicaHealth(Struct, frozen=True, omit_defaults=True):
    """One replica of a pool."""

    replica_id: str
    phase: ReplicaPhase
    model_ref: str
    incarnation: int
    restarts: int
    node_id: str | None = None
    zone: str | None = None
    devices: list[int] = []
    gpu_uuids: list[str] = []
    slots_total: int = 0
    slots_free: int = 0
    retry_in_ms: int | None = None
    last_error: PoolError | None = None


class PoolMetrics(Struct, frozen=True):
    """Figures of a pool. Queue and predicted wait are those of its replica set, which its pools share."""

    replicas_desired: int
    replicas_ready: int
    slots_total: int
    slots_free: int
    queue_depth: int
    predicted_wait_ms: int


class Reload(Struct, frozen=True, omit_defaults=True):
    """The pool's last reload, under way or over; `why` says what a rollback was for."""

    model_ref: str
    state: ReloadState
    canary_percent: int | None = None
    why: str | None = None


class PoolHealth(Struct, frozen=True, omit_defaults=True):
    """Body of `GET /v1/pools/{id}/health` (ORCH-2103, OC-CTRL-2001, OC-POOL-3003).

    `live`: the pool is wanted and its manager acts on it. `ready`: a replica can serve. `breaker` is open while
    launches fail so often that only one is tried at a time.
    """

    pool_id: str
    engine: str
    accelerator: str
    model_ref: str
    live: bool
    ready: bool
    draining: bool
    restarts: int
    metrics: PoolMetrics
    replicas: list[ReplicaHealth]
    breaker: Literal["closed", "open"] = "closed"
    drained: bool = False
    reload: Reload | None = None
    last_error: PoolError | None = None


class SloStatus(Struct, frozen=True, omit_defaults=True):
    """A class's objective and how often it is met; `attainment` is 0 to 1, None before anything was measured."""

    first_token_ms: int | None = None
    attainment: float | None = None


class ReplicaSetStatus(Struct, frozen=True, omit_defaults=True):
    """One entry of `GET /v1/replicasets` (ORCH-2104, OC-CTRL-2004). `load` is the share of slots taken, 0 to 1."""

    id: str
    engine: str
    load: float
    slots_total: int
    slots_free: int
    slo: dict[str, SloStatus]
    model_refs: list[str]
    pools: list[str]
    replicas_ready: int
    queue_depth: int
    predicted_wait_ms: int
    accelerator: str | None = None
    engine_version: str | None = None
    model_digest: str | None = None


class RateLimit(Struct, frozen=True, omit_defaults=True):
    """Requests a second on average and at once; of a class, or of each key (`priority` left out)."""

    rps: float
    burst: int
    priority: str | None = None


class EngineCapability(Struct, frozen=True, omit_defaults=True):
    """What one engine serves here (ORCH-3095). `accelerator` is `cpu-dev` only under the explicit carve-out."""

    engine: str
    ctx_max: int
    supported_workloads: list[str]
    rate_limits: list[RateLimit]
    features: list[str]
    models: list[str]
    accelerators: list[str]
    sampler_profile_versions: list[str]
    priorities: list[str]
    engine_versions: list[str] = []


class Capabilities(Struct, frozen=True):
    """Body of `GET /v1/capabilities`; `api_version` is the OpenAPI documents' `info.version` (ORCH-3096)."""

    api_version: str
    engines: list[EngineCapability]
