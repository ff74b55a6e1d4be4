"""The data plane's OpenAPI 3.1 document, made from the msgspec structs and the description below.

`python -m contracts.generate` freezes it as `contracts/openapi/data-plane.yaml`.
"""

import inspect
from typing import Any, Final

import msgspec

from contracts import api
from contracts import openapi_examples as ex
from contracts.errors import HTTP_STATUS, ErrorInfo
from contracts.gateway import Readiness
from contracts.openapi_texts import FIELDS, OVERVIEW

Json = dict[str, Any]

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
    "X-Correlation-Id": (
        "The request's correlation id, or one made for it (OC-CTRL-2052).",
        {"type": "string", "minLength": 1, "maxLength": 128},
    ),
    "Retry-After": ("Seconds until a repeat is worth trying, rounded up.", {"type": "integer", "minimum": 1}),
    "X-Backoff-Ms": ("The same time in milliseconds.", {"type": "integer", "minimum": 0}),
    "Location": ("Where the task's status is.", {"type": "string"}),
    "WWW-Authenticate": ("The scheme to use.", {"type": "string"}),
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

#: Status to component name, description, extra headers, requirement IDs.
_FAILURES: Final[dict[int, tuple[str, str, tuple[str, ...], tuple[str, ...]]]] = {
    400: ("BadRequest", "The request cannot be served as it is; the message names field and remedy.", (), ()),
    401: ("Unauthenticated", "No API key.", ("WWW-Authenticate",), ("ORCH-3035", "OC-CTRL-2040")),
    403: ("Forbidden", "An API key that is not known or not allowed this.", (), ("ORCH-3035", "OC-CTRL-2040")),
    404: ("NotFound", "No such task or session of this tenant (any more).", (), ()),
    409: ("Conflict", "The task_id was used with another body.", (), ("ORCH-3024",)),
    413: ("TooLarge", "The body is over the limit.", (), ()),
    429: (
        "Backpressure",
        "Refused now; try again after the time given.",
        ("Retry-After", "X-Backoff-Ms"),
        ("ORCH-2007", "OC-CTRL-2011"),
    ),
    500: ("Failure", "The service failed.", (), ()),
    503: (
        "Unavailable",
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
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "x-requirements": ["ORCH-3044", "ORCH-2006", "ORCH-2008", "OC-CTRL-2052"],
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "tasks", "description": "Submit, follow and cancel tasks."},
            {"name": "sessions", "description": "Look at sessions and end them."},
            {"name": "service", "description": "Health, metrics and documentation. No key needed."},
        ],
        "security": [{"bearer": []}, {"apiKey": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "parameters": _parameters(),
            "headers": {name: {"description": text, "schema": schema} for name, (text, schema) in _HEADERS.items()},
            "responses": {failure[0]: _failure(status) for status, failure in _FAILURES.items()},
            "schemas": _schemas(),
        },
    }


def _paths() -> Json:
    return {
        "/v1/tasks": {"post": _submit()},
        "/v1/tasks/{id}": {
            "parameters": [_ref("parameters", "TaskId")],
            "get": _operation(
                "getTask",
                "State, position and outcome of a task",
                ["ORCH-2006", "ORCH-2008"],
                {
                    "200": _json(
                        "The task.",
                        "TaskStatus",
                        {"queued": ex.QUEUED, "preempted": ex.PREEMPTED, "finished": ex.FINISHED},
                    )
                },
                (400, 401, 403, 404, 500, 503),
            ),
        },
        "/v1/tasks/{id}/stream": {"parameters": [_ref("parameters", "TaskId")], "get": _stream()},
        "/v1/tasks/{id}/cancel": {
            "parameters": [_ref("parameters", "TaskId")],
            "post": _operation(
                "cancelTask",
                "Cancel a task; after the answer no token of it follows",
                ["ORCH-2003", "ORCH-3017", "ORCH-3026", "OC-CTRL-2012"],
                {"204": _response("Canceled, or ended already.")},
                (400, 401, 403, 404, 500, 503),
            ),
        },
        "/v1/sessions/{id}": _session(),
        "/healthz": {"get": _service("healthz", "The process answers", {"200": _bare("OK.", "application/json")})},
        "/readyz": {
            "get": _service(
                "readyz",
                "Whether tasks can be served now",
                {
                    "200": _json("They can.", "Readiness", {"ready": ex.READY}),
                    "503": _json("They cannot.", "Readiness", {"unready": ex.UNREADY}),
                },
                ["ORCH-3002"],
            )
        },
        "/metrics": {
            "get": _service("metrics", "Prometheus metrics", {"200": _bare("Text format.", "text/plain")}),
        },
        "/docs": {"get": _service("docs", "This document as a page", {"200": _bare("A page.", "text/html")})},
        "/openapi.json": {
            "get": _service("openapi", "This document as JSON", {"200": _bare("It.", "application/json")})
        },
    }


def _session() -> Json:
    failures = (400, 401, 403, 404, 500, 503)
    return {
        "parameters": [_ref("parameters", "SessionId")],
        "get": _operation(
            "getSession",
            "Life, turns, kept context and budgets of a session",
            ["ORCH-2004", "ORCH-3021", "ORCH-3023", "OC-CORE-1024"],
            {"200": _json("The session.", "Session", {"warm": ex.SESSION})},
            failures,
            "sessions",
        ),
        "delete": _operation(
            "endSession",
            "End a session and give up its kept context; tasks under way go on",
            ["ORCH-2005"],
            {"204": _response("Ended.")},
            failures,
            "sessions",
        ),
    }


def _submit() -> Json:
    streamed = _events("One-call mode (`Accept: text/event-stream`): admitted, and the stream follows at once.")
    streamed["headers"] |= _headers("Location", "X-Queue-Position", "X-Predicted-Start-Ms", "X-Backoff-Ms", *_BUDGETS)
    admitted = _json("Admitted, or admitted before with the same body.", "Admission", {"admitted": ex.ADMISSION})
    admitted["headers"] |= _headers("Location", *_BUDGETS)
    operation = _operation(
        "submitTask",
        "Admit a task",
        ["ORCH-2001", "ORCH-3024", "ORCH-3029", "ORCH-3099", "OC-CTRL-2010", "OC-CTRL-2050"],
        {"200": streamed, "202": admitted},
        (400, 401, 403, 409, 413, 429, 500, 503),
    )
    operation["parameters"].append(_ref("parameters", "LastEventId"))
    operation["requestBody"] = {
        "required": True,
        "description": "JSON, whatever the Content-Type says. Unknown fields and integers with a fraction are refused.",
        "content": {
            "application/json": {
                "schema": _ref("schemas", "TaskRequest"),
                "examples": {
                    "prompt": {"summary": "A prompt", "value": ex.plain(ex.PROMPT)},
                    "messages": {"summary": "A conversation", "value": ex.plain(ex.CHAT)},
                },
            }
        },
    }
    return operation


def _stream() -> Json:
    operation = _operation(
        "streamTask",
        "Follow a task's tokens; re-attach with Last-Event-ID",
        ["ORCH-2002", "ORCH-3029", "ORCH-3100", "OC-CTRL-2020", "OC-CTRL-2021", "OC-CTRL-2022", "OC-CTRL-2023"],
        {"200": _events("The task's events.")},
        (400, 401, 403, 404, 500, 503),
    )
    operation["parameters"].append(_ref("parameters", "LastEventId"))
    return operation


def _events(description: str) -> Json:
    """A response that is an event stream; each event's data schema stands under `x-sse-events`."""
    response = _response(
        f"{description} `started` comes on every attach, then `token` events (only they carry `id:`) mixed with "
        "`metrics`, then exactly one `end` or `error`. Comments (`: keep-alive`) fill silence."
    )
    response["content"] = {
        "text/event-stream": {
            "schema": {"type": "string"},
            "examples": {"stream": {"summary": "A whole stream", "value": ex.SSE_STREAM}},
        }
    }
    response["x-sse-events"] = {
        name: {"data": _ref("schemas", schema), "example": ex.SSE_EVENTS[name]} for name, schema in SSE_SCHEMAS.items()
    }
    return response


def _operation(
    name: str, summary: str, ids: list[str], answers: Json, failures: tuple[int, ...], tag: str = "tasks"
) -> Json:
    return {
        "operationId": name,
        "summary": summary,
        "tags": [tag],
        "x-requirements": ids,
        "parameters": [_ref("parameters", "CorrelationId")],
        "responses": answers | {str(status): _ref("responses", _FAILURES[status][0]) for status in failures},
    }


def _service(name: str, summary: str, answers: Json, ids: list[str] | None = None) -> Json:
    operation = _operation(name, summary, [*(ids or []), "OC-CTRL-2052"], answers, (500,), "service")
    return operation | {"security": []}


def _response(description: str) -> Json:
    return {"description": description, "headers": _headers("X-Correlation-Id")}


def _bare(description: str, media_type: str) -> Json:
    kind = "object" if media_type == "application/json" else "string"
    return _response(description) | {"content": {media_type: {"schema": {"type": kind}}}}


def _json(description: str, schema: str, examples: Json) -> Json:
    shown = {name: {"value": ex.plain(value)} for name, value in examples.items()}
    return _response(description) | {
        "content": {"application/json": {"schema": _ref("schemas", schema), "examples": shown}}
    }


def _failure(status: int) -> Json:
    _, description, headers, ids = _FAILURES[status]
    codes = {code: ex.ERRORS[code] for code, mapped in HTTP_STATUS.items() if mapped == status}
    response = _json(description, "ErrorInfo", codes)
    response["headers"] |= _headers(*headers)
    return response | {"x-requirements": ["ORCH-2006", "OC-CTRL-2030", *ids]}


def _headers(*names: str) -> Json:
    return {name: _ref("headers", name) for name in names}


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
        "CorrelationId": {
            "name": "X-Correlation-Id",
            "in": "header",
            "description": (
                "1 to 128 visible ASCII characters, echoed on the response and written to the logs. "
                "Anything else is replaced, not refused."
            ),
            "schema": {"type": "string"},
        },
    }


def _schemas() -> Json:
    _, schemas = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    for name, texts in FIELDS.items():
        for field, text in texts.items():
            schemas[name]["properties"][field] = {"description": text} | schemas[name]["properties"][field]
    for schema in schemas.values():
        if "description" in schema:  # Python 3.13 strips a docstring's indentation, earlier ones keep it
            schema["description"] = inspect.cleandoc(schema["description"])
    schemas["TaskRequest"] |= _content_rules()
    return dict(sorted(schemas.items()))


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
                "title": "Embedding or rerank",
                "required": ["inputs"],
                "properties": {
                    "workload": {"enum": ["embedding", "rerank"]},
                    "inputs": {"type": "array"},
                    "prompt": null,
                    "messages": null,
                },
            },
        ]
    }


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
