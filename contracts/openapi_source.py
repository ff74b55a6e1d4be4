"""The data plane's OpenAPI 3.1 document, made from the msgspec structs and the description below.

`python -m contracts.generate` freezes it as `contracts/openapi/data-plane.yaml`.
"""

from typing import Final

from contracts import api
from contracts import openapi_examples as ex
from contracts.errors import ErrorInfo
from contracts.gateway import Readiness
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
    protectable,
    ref,
    response,
    schemas,
    service,
)
from contracts.openapi_texts import FIELDS, OVERVIEW

_TYPES: Final = (
    api.TaskRequest,
    api.Admission,
    api.TaskStatus,
    api.Started,
    api.Token,
    api.Metrics,
    api.End,
    api.Session,
    ErrorInfo,
    Readiness,
)

#: SSE event name to the schema of its data (ORCH-2002, OC-CTRL-2020).
SSE_SCHEMAS: Final = {"started": "Started", "token": "Token", "metrics": "Metrics", "end": "End", "error": "ErrorInfo"}

_HEADERS: Final[dict[str, tuple[str, Json]]] = {
    **HEADERS,
    "Location": ("Where the task's status is.", {"type": "string"}),
    "X-Queue-Position": ("`queue_position` of the admission.", {"type": "integer", "minimum": 0}),
    "X-Predicted-Start-Ms": ("`predicted_start_ms` of the admission.", {"type": "integer", "minimum": 0}),
    "X-Budget-Tokens-Remaining": (
        "Tokens left to the session; present where they are bounded (ORCH-3099).",
        {"type": "integer", "minimum": 0},
    ),
    "X-Budget-Time-Remaining-Ms": (
        "Slot time left to the session; present where it is bounded (ORCH-3099).",
        {"type": "integer", "minimum": 0},
    ),
    "X-Budget-Cost-Remaining": (
        "Cost left to the session, in the operator's currency; present where it is bounded (ORCH-3099).",
        {"type": "number", "minimum": 0},
    ),
}

_BUDGETS: Final = ("X-Budget-Tokens-Remaining", "X-Budget-Time-Remaining-Ms", "X-Budget-Cost-Remaining")

_FAILURES: Final[dict[int, Failure]] = {
    **SHARED_FAILURES,
    404: Failure("No such task or session of this tenant (any more)."),
    409: Failure("The task_id was used with another body.", (), ("ORCH-3024",)),
    429: Failure(
        "Refused now; try again after the time given.",
        ("Retry-After", "X-Backoff-Ms"),
        ("ORCH-2007", "OC-CTRL-2011"),
    ),
    503: Failure(
        "Nothing can serve this now. Retry headers are present when a time is known.",
        (),
        ("ORCH-3018",),
    ),
}


def build_document() -> Json:
    """The whole document, as JSON values in the order in which they are to be read."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llama-orch data plane (OrchQueue v1)",
            "version": api.API_VERSION,
            "description": OVERVIEW,
            "license": LICENSE,
            "x-requirements": ["ORCH-3044", "ORCH-2006", "ORCH-2008", "OC-CTRL-2052"],
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "tasks", "description": "Submit, follow and cancel tasks."},
            {"name": "sessions", "description": "Look at sessions and end them."},
            {
                "name": "service",
                "description": "Health, metrics and documentation. No key needed, unless metrics are protected.",
            },
        ],
        "security": SECURITY,
        "paths": _paths(),
        "components": {
            "securitySchemes": SECURITY_SCHEMES,
            "parameters": _parameters(),
            "headers": header_components(_HEADERS),
            "responses": failure_responses(_FAILURES, ex.ERRORS),
            "schemas": _schemas(),
        },
    }


def _paths() -> Json:
    return {
        "/v1/tasks": {"post": _submit()},
        "/v1/tasks/{id}": {
            "parameters": [ref("parameters", "TaskId")],
            "get": operation(
                "getTask",
                "State, position and outcome of a task",
                ["ORCH-2006", "ORCH-2008"],
                {
                    "200": json_answer(
                        "The task.",
                        "TaskStatus",
                        {"queued": ex.QUEUED, "preempted": ex.PREEMPTED, "finished": ex.FINISHED},
                    )
                },
                (400, 404, 500, 503),
                "tasks",
                "submit",
            ),
        },
        "/v1/tasks/{id}/stream": {"parameters": [ref("parameters", "TaskId")], "get": _stream()},
        "/v1/tasks/{id}/cancel": {
            "parameters": [ref("parameters", "TaskId")],
            "post": operation(
                "cancelTask",
                "Cancel a task; after the answer no token of it follows",
                ["ORCH-2003", "ORCH-3017", "ORCH-3026", "OC-CTRL-2012"],
                {"204": response("Canceled, or ended already.")},
                (400, 404, 500, 503),
                "tasks",
                "submit",
            ),
        },
        "/v1/sessions/{id}": _session(),
        "/healthz": {"get": service("healthz", "The process answers", {"200": bare("OK.", "application/json")})},
        "/readyz": {
            "get": service(
                "readyz",
                "Whether tasks can be served now",
                {
                    "200": json_answer("They can.", "Readiness", {"ready": ex.READY}),
                    "503": json_answer("They cannot.", "Readiness", {"unready": ex.UNREADY}),
                },
                ["ORCH-3002"],
            )
        },
        "/metrics": {
            "get": protectable("metrics", "Prometheus metrics", {"200": bare("Text format.", "text/plain")}, "observe"),
        },
        "/docs": {"get": service("docs", "This document as a page", {"200": bare("A page.", "text/html")})},
        "/openapi.json": {"get": service("openapi", "This document as JSON", {"200": bare("It.", "application/json")})},
    }


def _session() -> Json:
    failures = (400, 404, 500, 503)
    return {
        "parameters": [ref("parameters", "SessionId")],
        "get": operation(
            "getSession",
            "Life, turns, kept context and budgets of a session",
            ["ORCH-2004", "ORCH-3021", "ORCH-3023", "OC-CORE-1024"],
            {"200": json_answer("The session.", "Session", {"warm": ex.SESSION})},
            failures,
            "sessions",
            "submit",
        ),
        "delete": operation(
            "endSession",
            "End a session and give up its kept context; tasks under way go on",
            ["ORCH-2005"],
            {"204": response("Ended.")},
            failures,
            "sessions",
            "submit",
        ),
    }


def _submit() -> Json:
    streamed = _events("One-call mode (`Accept: text/event-stream`): admitted, and the stream follows at once.")
    streamed["headers"] |= headers("Location", "X-Queue-Position", "X-Predicted-Start-Ms", "X-Backoff-Ms", *_BUDGETS)
    admitted = json_answer("Admitted, or admitted before with the same body.", "Admission", {"admitted": ex.ADMISSION})
    admitted["headers"] |= headers("Location", *_BUDGETS)
    submit = operation(
        "submitTask",
        "Admit a task",
        ["ORCH-2001", "ORCH-3024", "ORCH-3029", "ORCH-3099", "OC-CTRL-2010", "OC-CTRL-2050"],
        {"200": streamed, "202": admitted},
        (400, 409, 413, 429, 500, 503),
        "tasks",
        "submit",
    )
    submit["parameters"].append(ref("parameters", "LastEventId"))
    submit["requestBody"] = json_body(
        "JSON, whatever the Content-Type says. Unknown fields and integers with a fraction are refused.",
        "TaskRequest",
        {
            "prompt": ("A prompt", ex.PROMPT),
            "messages": ("A conversation", ex.CHAT),
            "embedding": ("Texts to embed", ex.EMBEDDING),
            "rerank": ("Documents to rank", ex.RERANK),
        },
    )
    return submit


def _stream() -> Json:
    stream = operation(
        "streamTask",
        "Follow a task's tokens; re-attach with Last-Event-ID",
        ["ORCH-2002", "ORCH-3029", "ORCH-3100", "OC-CTRL-2020", "OC-CTRL-2021", "OC-CTRL-2022", "OC-CTRL-2023"],
        {"200": _events("The task's events.")},
        (400, 404, 500, 503),
        "tasks",
        "submit",
    )
    stream["parameters"].append(ref("parameters", "LastEventId"))
    return stream


def _events(description: str) -> Json:
    """A response that is an event stream; each event's data schema stands under `x-sse-events`."""
    answer = response(
        f"{description} `started` comes on every attach, then `token` events (only they carry `id:`) mixed with "
        "`metrics`, then exactly one `end` or `error`. Comments (`: keep-alive`) fill silence. An embedding or a "
        "rerank has no `token` events: all results stand in `end`, on every attach."
    )
    answer["content"] = {
        "text/event-stream": {
            "schema": {"type": "string"},
            "examples": {
                "stream": {"summary": "A whole stream", "value": ex.SSE_STREAM},
                "embedding": {"summary": "The stream of an embedding", "value": ex.SSE_EMBEDDING},
                "rerank": {"summary": "The stream of a rerank", "value": ex.SSE_RERANK},
            },
        }
    }
    answer["x-sse-events"] = {
        name: {"data": ref("schemas", schema), "example": ex.SSE_EVENTS[name]} for name, schema in SSE_SCHEMAS.items()
    }
    return answer


def _parameters() -> Json:
    return {
        "TaskId": {
            "name": "id",
            "in": "path",
            "required": True,
            "description": "The task's `task_id`.",
            "schema": {"type": "string", "format": "uuid"},
            "example": ex.TASK_ID,
        },
        "SessionId": {
            "name": "id",
            "in": "path",
            "required": True,
            "description": "The `session_id` of its tasks.",
            "schema": {"type": "string", "format": "uuid"},
            "example": ex.SESSION_ID,
        },
        "LastEventId": {
            "name": "Last-Event-ID",
            "in": "header",
            "description": "Index of the last token that the client has; the stream goes on after it.",
            "schema": {"type": "integer", "minimum": -1, "maximum": 10**18 - 1},
        },
        "CorrelationId": CORRELATION_ID,
    }


def _schemas() -> Json:
    found = schemas(_TYPES, FIELDS)
    found["TaskRequest"] |= _content_rules()
    # What is meant by leaving it out, though a value of its own tells the two apart.
    found["TaskRequest"]["properties"]["determinism"]["default"] = "strict"
    return found


def _content_rules() -> Json:
    """Which content goes with which workload; the ingress enforces the same by hand."""
    null: Json = {"type": "null"}
    completion = {"workload": {"const": "completion"}, "inputs": null}
    return {
        "oneOf": [
            {"title": "Completion of a prompt", "properties": completion | {"messages": null}},
            {
                "title": "Completion of a conversation",
                "required": ["messages"],
                "properties": completion | {"prompt": null, "messages": {"type": "array"}},
            },
            {
                "title": "Embedding",
                "required": ["inputs"],
                "properties": {
                    "workload": {"const": "embedding"},
                    "inputs": {"type": "array"},
                    "prompt": null,
                    "messages": null,
                },
            },
            {
                "title": "Rerank",
                "required": ["prompt", "inputs"],
                "properties": {
                    "workload": {"const": "rerank"},
                    "inputs": {"type": "array"},
                    "prompt": {"type": "string", "minLength": 1},
                    "messages": null,
                },
            },
        ]
    }
