"""What an operator's tool relies on of the control plane, interaction by interaction."""

from typing import Any

from pact import match

from contracts import openapi_control_examples as ex
from contracts.api import API_VERSION
from tests.contract.interactions import SMALL_QUEUE_MODEL, Interaction, envelope

#: The pool that serves `SMALL_QUEUE_MODEL`; nothing here changes it.
POOL = "small"
NO_POOL = "nobody"

_READY = ("a ready pool", {"pool_id": POOL})
_COUNT = match.int(1, min=0)


def _pool(action: str, pool_id: str = POOL) -> str:
    return f"/v1/pools/{pool_id}{action}"


def _post(description: str, status: int, path: str, request: Any = None, **more: Any) -> Interaction:
    return Interaction(description, status, "POST", path, request=request, **more)


def _refused(code: str, **more: Any) -> dict[str, Any]:
    return envelope(code, **{"retriable": False, **more})


_HEALTH = {
    "pool_id": POOL,
    "engine": "llamacpp",
    "accelerator": "cpu-dev",
    "model_ref": SMALL_QUEUE_MODEL,
    "live": True,
    "ready": True,
    "draining": False,
    "restarts": _COUNT,
    "metrics": {
        "replicas_desired": match.int(1, min=1),
        "replicas_ready": match.int(1, min=1),
        "slots_total": match.int(1, min=1),
        "slots_free": _COUNT,
        "queue_depth": _COUNT,
        "predicted_wait_ms": _COUNT,
    },
    "replicas": match.each_like(
        {
            "replica_id": match.regex(f"{POOL}-0", regex=f"^{POOL}-[0-9]+$"),
            "phase": match.regex("ready", regex="^(pending|starting|waiting|loading|ready|suspended|draining)$"),
            "model_ref": match.str(SMALL_QUEUE_MODEL),
            "incarnation": _COUNT,
            "restarts": _COUNT,
        },
        min=1,
    ),
}
_SET = {
    "id": match.str(ex.SET_ID),
    "engine": match.regex("llamacpp", regex="^(llamacpp|vllm|tgi|triton)$"),
    "load": match.number(0.25),
    "slots_total": _COUNT,
    "slots_free": _COUNT,
    "slo": match.type({}),
    "pools": match.each_like(POOL, min=1),
    "model_refs": match.each_like(SMALL_QUEUE_MODEL, min=1),
}
_ENGINE = {
    "engine": match.regex("llamacpp", regex="^(llamacpp|vllm|tgi|triton)$"),
    "ctx_max": match.int(2048, min=1),
    "supported_workloads": match.each_like("completion", min=1),
    "rate_limits": match.type([]),
    "features": match.each_like("strict_determinism", min=1),
    "accelerators": match.each_like("cpu-dev", min=1),
}

LOOKED_AT = [
    Interaction("the health of a ready pool", 200, "GET", _pool("/health"), state=_READY, response=_HEALTH),
    Interaction(
        "all pools",
        200,
        "GET",
        "/v1/pools",
        state=_READY,
        response=match.each_like(
            {
                "pool_id": match.str(POOL),
                "live": match.bool(True),
                "ready": match.bool(True),
                "draining": match.bool(False),
                "metrics": match.type({}),
            },
            min=1,
        ),
    ),
    Interaction("all replica sets", 200, "GET", "/v1/replicasets", state=_READY, response=match.each_like(_SET, min=1)),
    Interaction(
        "the capabilities",
        200,
        "GET",
        "/v1/capabilities",
        response={"api_version": API_VERSION, "engines": match.each_like(_ENGINE, min=1)},
    ),
]

NOT_TAKEN_ON = [
    Interaction("the health of an unknown pool", 404, "GET", _pool("/health", NO_POOL), response=_refused("NOT_FOUND")),
    _post(
        "drain an unknown pool", 404, _pool("/drain", NO_POOL), {"deadline_ms": 1000}, response=_refused("NOT_FOUND")
    ),
    _post("drain without a deadline", 400, _pool("/drain"), {}, response=_refused("INVALID_PARAMS")),
    _post(
        "drain with a negative deadline",
        400,
        _pool("/drain"),
        {"deadline_ms": -1},
        response=_refused("INVALID_PARAMS"),
    ),
    _post(
        "reload to a model that is not configured",
        400,
        _pool("/reload"),
        {"new_model_ref": "nobody-has-this"},
        response=_refused("INVALID_PARAMS"),
    ),
    _post(
        "promote a pool that has no canary",
        409,
        _pool("/promote"),
        response=_refused("CONFLICT"),
    ),
    _post("roll back an unknown pool", 404, _pool("/rollback", NO_POOL), response=_refused("NOT_FOUND")),
    _post(
        "drain without a key",
        401,
        _pool("/drain"),
        {"deadline_ms": 1000},
        authorization=None,
        response=_refused("UNAUTHENTICATED"),
        response_headers={"WWW-Authenticate": match.regex("Bearer", regex="^Bearer.*")},
    ),
    _post(
        "drain with a wrong key",
        403,
        _pool("/drain"),
        {"deadline_ms": 1000},
        authorization="Bearer not-a-key",
        response=_refused("FORBIDDEN"),
    ),
]
CONTROL_INTERACTIONS = LOOKED_AT + NOT_TAKEN_ON
