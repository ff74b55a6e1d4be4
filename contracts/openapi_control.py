"""The control plane's OpenAPI 3.1 document: pools, replica sets, capabilities (ORCH-2101..2104, ORCH-3095).

`python -m contracts.generate` freezes it as `contracts/openapi/control-plane.yaml`.
"""

from typing import Final

from contracts import api, control
from contracts import openapi_control_examples as ex
from contracts.errors import ErrorInfo
from contracts.gateway import POOL_ID_PATTERN, PoolAccepted
from contracts.openapi_control_texts import CONTROL_FIELDS, CONTROL_OVERVIEW
from contracts.openapi_examples import POOL
from contracts.openapi_parts import (
    CORRELATION_ID,
    HEADERS,
    LICENSE,
    SECURITY,
    SECURITY_SCHEMES,
    SHARED_FAILURES,
    Failure,
    Json,
    bare,
    failure_responses,
    header_components,
    headers,
    json_answer,
    json_body,
    operation,
    ref,
    schemas,
    service,
)

_TYPES: Final = (
    control.DrainRequest,
    control.ReloadRequest,
    control.PoolHealth,
    control.ReplicaSetStatus,
    control.Capabilities,
    PoolAccepted,
    ErrorInfo,
)

_HEADERS: Final[dict[str, tuple[str, Json]]] = {
    **HEADERS,
    "Location": ("Where the pool's health is.", {"type": "string"}),
}
_FAILURES: Final[dict[int, Failure]] = {
    **SHARED_FAILURES,
    404: Failure("No such pool; the message names those that there are."),
    409: Failure("Not now: the message says what is under way, or that there is nothing to do."),
    429: Failure(
        "Too many requests without a valid key came from here.", ("Retry-After", "X-Backoff-Ms"), ("ORCH-2007",)
    ),
    503: Failure("The scheduler cannot be reached.", ("Retry-After", "X-Backoff-Ms")),
}
_ASKED: Final = (404, 500, 503)
_POOL: Final = "/v1/pools/{id}"
_STRICT: Final = "JSON, whatever the Content-Type says. Unknown fields and integers with a fraction are refused."


def build_control_document() -> Json:
    """The whole document, as JSON values in the order in which they are to be read."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llama-orch control plane (OrchQueue v1)",
            "version": api.API_VERSION,
            "description": CONTROL_OVERVIEW,
            "license": LICENSE,
            "x-requirements": ["ORCH-3044", "ORCH-3096", "OC-CTRL-2061", "ORCH-2006", "OC-CTRL-2052"],
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "pools", "description": "Look at pools, empty them, change their models."},
            {"name": "discovery", "description": "What there is and how loaded it is."},
            {"name": "service", "description": "Documentation. No key needed."},
        ],
        "security": SECURITY,
        "paths": _pool_paths() | _discovery_paths(),
        "components": {
            "securitySchemes": SECURITY_SCHEMES,
            "parameters": {
                "PoolId": {
                    "name": "id",
                    "in": "path",
                    "required": True,
                    "description": "The pool's `id` in the configuration.",
                    "schema": {"type": "string", "pattern": POOL_ID_PATTERN},
                    "example": POOL,
                },
                "CorrelationId": CORRELATION_ID,
            },
            "headers": header_components(_HEADERS),
            "responses": failure_responses(_FAILURES, ex.CONTROL_ERRORS),
            "schemas": schemas(_TYPES, CONTROL_FIELDS),
        },
    }


def _pool_paths() -> Json:
    drain = _request("drainPool", "Empty a pool by a deadline and stop it", ["ORCH-2101", "OC-CTRL-2002"])
    drain["requestBody"] = json_body(_STRICT, "DrainRequest", {"drain": ("Within 30 s", ex.DRAIN)})
    reload = _request(
        "reloadPool",
        "Have a pool serve another model, atomically: once its new replicas are Ready, or not at all",
        ["ORCH-2102", "ORCH-3031", "ORCH-3033", "OC-CTRL-2003"],
    )
    reload["requestBody"] = json_body(
        _STRICT,
        "ReloadRequest",
        {"reload": ("At once when Ready", ex.RELOAD), "canary": ("With a tenth of the sessions first", ex.CANARY)},
    )
    return {
        "/v1/pools": {
            "get": operation(
                "listPools",
                "Health of every pool",
                ["ORCH-2103"],
                {"200": json_answer("In the order of their ids.", "PoolHealth", {"pools": [ex.HEALTHY]}, many=True)},
                (500, 503),
                "pools",
                "observe",
            )
        },
        f"{_POOL}/health": _item("get", _health()),
        f"{_POOL}/drain": _item("post", drain),
        f"{_POOL}/reload": _item("post", reload),
        f"{_POOL}/promote": _item("post", _request("promotePool", "Have the canary take over", ["ORCH-3033"], False)),
        f"{_POOL}/rollback": _item(
            "post",
            _request("rollbackPool", "Undo the last reload", ["ORCH-3033", "ORCH-3031", "OC-CTRL-2003"], False),
        ),
    }


def _discovery_paths() -> Json:
    return {
        "/v1/replicasets": {
            "get": operation(
                "listReplicaSets",
                "Load and objectives of every replica set",
                ["ORCH-2104", "OC-CTRL-2004"],
                {"200": json_answer("All of them.", "ReplicaSetStatus", {"sets": [ex.REPLICA_SET]}, many=True)},
                (500, 503),
                "discovery",
                "observe",
            )
        },
        "/v1/capabilities": {
            "get": operation(
                "getCapabilities",
                "What the engines here can serve",
                ["ORCH-3095", "ORCH-3096", "OC-CTRL-2060", "OC-CTRL-2061"],
                {"200": json_answer("By engine.", "Capabilities", {"development": ex.CAPABILITIES})},
                (500, 503),
                "discovery",
            )
        },
        "/openapi-control.json": {
            "get": service("openapiControl", "This document as JSON", {"200": bare("It.", "application/json")})
        },
    }


def _item(method: str, described: Json) -> Json:
    return {"parameters": [ref("parameters", "PoolId")], method: described}


def _health() -> Json:
    examples = {
        "ready": ex.HEALTHY,
        "reloading": ex.RELOADING,
        "rolled_back": ex.ROLLED_BACK,
        "waiting": ex.WAITING,
        "drained": ex.DRAINED,
    }
    return operation(
        "getPoolHealth",
        "How a pool and its replicas are, and what went wrong last",
        ["ORCH-2103", "OC-CTRL-2001", "OC-POOL-3003"],
        {"200": json_answer("The pool.", "PoolHealth", examples)},
        _ASKED,
        "pools",
        "observe",
    )


def _request(name: str, summary: str, ids: list[str], body: bool = True) -> Json:
    """An operation that is answered with 202 once it is taken on."""
    accepted = json_answer("Taken on.", "PoolAccepted", {"accepted": ex.ACCEPTED})
    accepted["headers"] |= headers("Location")
    failures = (400, 404, 409, 413, 500, 503) if body else (404, 409, 500, 503)
    return operation(name, summary, ids, {"202": accepted}, failures, "pools", "operate")
