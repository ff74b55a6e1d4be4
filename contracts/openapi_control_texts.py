"""What the fields of the control plane's bodies mean, for its OpenAPI document and `/docs`."""

from typing import Final

_REPLICAS_SLOTS: Final = {
    "slots_total": "Tasks that its Ready replicas serve at once.",
    "slots_free": "How many of `slots_total` are not taken.",
    "queue_depth": "Tasks that wait.",
    "predicted_wait_ms": "Predicted wait of a task that came now, in milliseconds.",
}
_ACCELERATOR: Final = "`gpu`, or `cpu-dev` for the development carve-out (ORCH-1101)."

CONTROL_FIELDS: Final[dict[str, dict[str, str]]] = {
    "DrainRequest": {
        "deadline_ms": (
            "How long admitted work may go on, in milliseconds; 0: not at all. What runs then is moved or ended."
        ),
    },
    "ReloadRequest": {
        "new_model_ref": "A model that the configuration names for this pool's engine; the pool's own is allowed.",
        "canary_percent": (
            "Share of the sessions that the new model takes until it is promoted or rolled back (ORCH-3033). "
            "Left out: it takes over as soon as all its replicas are Ready."
        ),
    },
    "PoolAccepted": {"status": "Always `accepted`: the pool's health tells how it goes on."},
    "PoolHealth": {
        "accelerator": _ACCELERATOR,
        "model_ref": "The model that the pool serves; during a reload the one before it.",
        "live": "Whether the pool is wanted and somebody acts on it.",
        "ready": "Whether a replica can serve a task now.",
        "draining": "Whether the pool is being emptied; it takes no new task.",
        "restarts": "Launches after the first, over all its replicas.",
        "replicas": "Every replica that is to exist.",
        "breaker": "`open`: launches fail so often that one replica is tried at a time (ORCH-3053).",
        "drained": "The pool was emptied and has no replica; a reload brings it back.",
        "reload": "The last reload, under way or over.",
        "last_error": "The last thing that went wrong, over all its replicas (OC-CTRL-2001).",
    },
    "PoolMetrics": {
        "replicas_desired": "Replicas that the pool is to have now.",
        "replicas_ready": "Replicas that serve.",
        **_REPLICAS_SLOTS,
    },
    "ReplicaHealth": {
        "phase": (
            "`pending`: no node has room; `starting`: its actor is made; `waiting`: launched in `retry_in_ms`; "
            "`loading`: its engine comes up; `ready`; `suspended`: not heard of; `draining`: finishes its work."
        ),
        "model_ref": "The model that it serves or loads.",
        "incarnation": "How often its actor was made.",
        "restarts": "Launches after the first.",
        "devices": "Its GPUs as numbers of its node.",
        "gpu_uuids": "The same GPUs as the driver names them.",
        "slots_total": "Tasks that it serves at once; fewer than configured after its GPU ran out of memory.",
        "retry_in_ms": "When its engine is launched again, in milliseconds.",
    },
    "PoolError": {
        "kind": "Stable; one of those that `docs/pools.md` lists.",
        "message": "For people: what happened and what to do.",
        "ms_ago": "How long ago it was.",
        "stderr": "The engine's last lines, secrets removed.",
    },
    "Reload": {
        "model_ref": "The model that was asked for.",
        "state": "`loading`, `canary` (waits for promote or rollback), `done` or `rolled_back`.",
        "why": "What a rollback was for.",
    },
    "ReplicaSetStatus": {
        "id": "Replicas of one id give the same bytes for the same task.",
        "load": "Share of the slots that are taken, 0 to 1.",
        "slo": "Objective and attainment by priority.",
        "model_refs": "Names under which clients ask for it.",
        "pools": "Pools whose replicas belong to it.",
        "replicas_ready": "Replicas that serve.",
        "accelerator": _ACCELERATOR,
        "engine_version": "As the engine itself reports it; all replicas of the set have it (ORCH-3046).",
        "model_digest": "sha256 of the model file; all replicas of the set have it.",
        **_REPLICAS_SLOTS,
    },
    "SloStatus": {
        "first_token_ms": "The objective: first token within this time; left out where there is none.",
        "attainment": "Share of tasks that met it of late, 0 to 1; left out before anything was measured (ORCH-3041).",
    },
    "Capabilities": {"api_version": "`info.version` of the OpenAPI documents (ORCH-3096)."},
    "EngineCapability": {
        "ctx_max": "Largest context that a task can ask for, in tokens.",
        "supported_workloads": "Values that `workload` can have.",
        "rate_limits": "Requests a second that are let in.",
        "features": "What this engine can do here; more may come.",
        "models": "Names that `model_ref` can have.",
        "accelerators": "`gpu`, `cpu-dev`, or both, over its pools (ORCH-1101).",
        "sampler_profile_versions": "Values that `sampler_profile_version` can have.",
        "priorities": "Values that `priority` can have.",
        "engine_versions": "As the engines report them; empty before any was Ready.",
    },
    "RateLimit": {
        "rps": "Requests a second on average.",
        "burst": "Requests at once.",
        "priority": "The class that it holds for; left out: for each API key.",
    },
    "ErrorInfo": {
        "code": "Stable; what programs decide on.",
        "message": "For people: what happened and what to do.",
        "retriable": "Whether sending the same request again can help (ORCH-3025).",
        "retry_after_ms": "When that is worth trying.",
    },
}

CONTROL_OVERVIEW: Final = """\
A pool keeps replicas of one engine and one model. The control plane tells how pools are, empties them, and has them
serve another model: beside the old one, atomically, and revertibly. What changes something is answered with 202 once it
is taken on; `GET /v1/pools/{id}/health` tells how it goes on.

Keys, correlation ids and errors are those of the data plane, and both have one version. `x-required-role` names the
role that a key needs: `observe` to look, `operate` to change; where there is none, any key will do.
A path that does not exist answers 404, a method that a path does not take 405 with `Allow`, both with the envelope.
Clients must ignore response fields that they do not know: minor versions add some.
"""
