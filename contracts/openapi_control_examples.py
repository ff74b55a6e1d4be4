"""Examples of the control plane's documents, built from the contract's own types, so they cannot drift."""

from typing import Final

import msgspec

from contracts.api import API_VERSION
from contracts.control import (
    Capabilities,
    DrainRequest,
    EngineCapability,
    PoolError,
    PoolHealth,
    PoolMetrics,
    RateLimit,
    Reload,
    ReloadRequest,
    ReplicaHealth,
    ReplicaSetStatus,
    SloStatus,
)
from contracts.errors import ErrorInfo
from contracts.gateway import PoolAccepted
from contracts.openapi_examples import DIGEST, ENGINE, ERRORS, MODEL, POOL, REPLICA

NEXT_MODEL: Final = "smollm2-360m-instruct"
SET_ID: Final = f"{ENGINE}/{MODEL}/q8_0/2048/v1"

DRAIN: Final = DrainRequest(deadline_ms=30_000)
RELOAD: Final = ReloadRequest(new_model_ref=NEXT_MODEL)
CANARY: Final = ReloadRequest(new_model_ref=NEXT_MODEL, canary_percent=10)
ACCEPTED: Final = PoolAccepted(POOL)

REPLICA_READY: Final = ReplicaHealth(
    replica_id=REPLICA,
    phase="ready",
    model_ref=MODEL,
    incarnation=1,
    restarts=0,
    node_id="9f2c",
    zone="a",
    slots_total=4,
    slots_free=3,
)
LAUNCH_FAILED: Final = PoolError(
    kind="model",
    message="the model file cannot be read; copy it to the node again",
    replica_id=f"{POOL}-1",
    ms_ago=4_200,
    stderr=["error loading model: invalid magic number"],
)
METRICS: Final = PoolMetrics(
    replicas_desired=1, replicas_ready=1, slots_total=4, slots_free=3, queue_depth=0, predicted_wait_ms=0
)
HEALTHY: Final = PoolHealth(
    pool_id=POOL,
    engine=ENGINE,
    accelerator="cpu-dev",
    model_ref=MODEL,
    live=True,
    ready=True,
    draining=False,
    restarts=0,
    metrics=METRICS,
    replicas=[REPLICA_READY],
)
RELOADING: Final = msgspec.structs.replace(
    HEALTHY,
    replicas=[
        REPLICA_READY,
        ReplicaHealth(f"{POOL}-1", "loading", NEXT_MODEL, incarnation=1, restarts=0, node_id="9f2c", zone="a"),
    ],
    reload=Reload(NEXT_MODEL, "loading"),
)
ROLLED_BACK: Final = msgspec.structs.replace(
    HEALTHY,
    restarts=1,
    reload=Reload(NEXT_MODEL, "rolled_back", why=f"two launches of {POOL}-1 failed: {LAUNCH_FAILED.message}"),
    last_error=LAUNCH_FAILED,
)
WAITING: Final = msgspec.structs.replace(
    HEALTHY,
    ready=False,
    restarts=3,
    metrics=PoolMetrics(1, 0, 0, 0, queue_depth=2, predicted_wait_ms=9_400),
    replicas=[
        ReplicaHealth(
            REPLICA,
            "waiting",
            MODEL,
            incarnation=1,
            restarts=3,
            node_id="9f2c",
            zone="a",
            retry_in_ms=1_800,
            last_error=msgspec.structs.replace(LAUNCH_FAILED, replica_id=REPLICA),
        )
    ],
    last_error=msgspec.structs.replace(LAUNCH_FAILED, replica_id=REPLICA),
)
DRAINED: Final = msgspec.structs.replace(
    HEALTHY, live=False, ready=False, drained=True, metrics=PoolMetrics(0, 0, 0, 0, 0, 0), replicas=[]
)

REPLICA_SET: Final = ReplicaSetStatus(
    id=SET_ID,
    engine=ENGINE,
    load=0.25,
    slots_total=4,
    slots_free=3,
    slo={"interactive": SloStatus(first_token_ms=800, attainment=0.99), "batch": SloStatus()},
    model_refs=[MODEL],
    pools=[POOL],
    replicas_ready=1,
    queue_depth=0,
    predicted_wait_ms=0,
    accelerator="cpu-dev",
    engine_version="b11434",
    model_digest=DIGEST,
)
CAPABILITIES: Final = Capabilities(
    api_version=API_VERSION,
    engines=[
        EngineCapability(
            engine=ENGINE,
            ctx_max=2048,
            supported_workloads=["completion"],
            rate_limits=[RateLimit(rps=50, burst=100, priority="interactive"), RateLimit(rps=20, burst=40)],
            features=["strict_determinism", "session_kv", "one_call_stream", "last_event_id", "hot_reload", "canary"],
            models=[MODEL, NEXT_MODEL],
            accelerators=["cpu-dev"],
            sampler_profile_versions=["v1"],
            priorities=["interactive", "batch"],
            engine_versions=["b11434"],
        )
    ],
)

#: One envelope for every code that a client of the control plane can meet.
CONTROL_ERRORS: Final[dict[str, ErrorInfo]] = {
    "INVALID_PARAMS": ErrorInfo("INVALID_PARAMS", "`$.deadline_ms`: expected `int` >= 0.", retriable=False),
    "UNAUTHENTICATED": ERRORS["UNAUTHENTICATED"],
    "FORBIDDEN": ERRORS["FORBIDDEN"],
    "NOT_FOUND": ErrorInfo("NOT_FOUND", f"There is no pool `main`. There are: {POOL}.", retriable=False),
    "CONFLICT": ErrorInfo(
        "CONFLICT",
        f"pool {POOL}: a reload to {NEXT_MODEL} is under way; wait for its end or roll it back first",
        None,
        POOL,
        retriable=False,
    ),
    "PAYLOAD_TOO_LARGE": ErrorInfo("PAYLOAD_TOO_LARGE", "The body is over 4194304 bytes.", retriable=False),
    "ADMISSION_REJECT": ErrorInfo(
        "ADMISSION_REJECT",
        "Too many requests without a valid API key came from this address.",
        retriable=True,
        retry_after_ms=700,
        policy_label="reject",
    ),
    "INTERNAL": ErrorInfo("INTERNAL", "The service failed to handle this; quote the correlation id.", retriable=True),
    "POOL_UNAVAILABLE": ErrorInfo(
        "POOL_UNAVAILABLE",
        "the scheduler cannot be reached; try again shortly",
        retriable=True,
        retry_after_ms=1000,
    ),
}
