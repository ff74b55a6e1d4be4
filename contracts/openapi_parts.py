"""What both OpenAPI documents are built of: operations, answers, failures, headers, schemas."""

import inspect
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from contracts.config import KeyRole
from contracts.errors import HTTP_STATUS, ErrorInfo
from contracts.openapi_examples import plain

Json = dict[str, Any]

HEADERS: Final[dict[str, tuple[str, Json]]] = {
    "X-Correlation-Id": (
        "The request's correlation id, or one made for it (OC-CTRL-2052).",
        {"type": "string", "minLength": 1, "maxLength": 128},
    ),
    "Retry-After": ("Seconds until a repeat is worth trying, rounded up.", {"type": "integer", "minimum": 1}),
    "X-Backoff-Ms": ("The same time in milliseconds.", {"type": "integer", "minimum": 0}),
    "WWW-Authenticate": ("The scheme to use.", {"type": "string"}),
}

CORRELATION_ID: Final[Json] = {
    "name": "X-Correlation-Id",
    "in": "header",
    "description": (
        "1 to 128 visible ASCII characters, echoed on the response and written to the logs. "
        "Anything else is replaced, not refused."
    ),
    "schema": {"type": "string"},
}

#: Component of each failing status.
_NAMES: Final = {
    400: "BadRequest",
    401: "Unauthenticated",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    413: "TooLarge",
    429: "Backpressure",
    500: "Failure",
    503: "Unavailable",
}


class Failure(NamedTuple):
    """What a failing status means in a document; `ids` are requirements beyond those of every error."""

    description: str
    headers: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


#: Failures that mean the same on both planes.
SHARED_FAILURES: Final = {
    400: Failure("The request cannot be served as it is; the message names field and remedy."),
    401: Failure("No API key.", ("WWW-Authenticate",), ("ORCH-3035", "OC-CTRL-2040")),
    403: Failure(
        "An API key that is not known or lacks the role; the message names it.", (), ("ORCH-3035", "OC-CTRL-2040")
    ),
    413: Failure("The body is over the limit."),
    500: Failure("The service failed."),
}

#: How asking for a key can fail: none, not this one, too many failures.
_OF_KEYS: Final = (401, 403, 429)

SECURITY: Final[list[Json]] = [{"bearer": []}, {"apiKey": []}]
SECURITY_SCHEMES: Final[Json] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
LICENSE: Final[Json] = {"name": "Apache-2.0", "identifier": "Apache-2.0"}


def ref(kind: str, name: str) -> Json:
    """A reference to one of the document's own components."""
    return {"$ref": f"#/components/{kind}/{name}"}


def operation(
    name: str,
    summary: str,
    ids: list[str],
    answers: Json,
    failures: tuple[int, ...],
    tag: str,
    role: KeyRole | None = None,
) -> Json:
    """One operation that needs a key, and fails with the envelope and any of the statuses in `failures`.

    `role` is what the key must have (OC-CTRL-2040); None: any key will do.
    """
    failures = tuple(sorted({*failures, *_OF_KEYS}))
    asked: Json = {"x-required-role": role} if role is not None else {}
    return asked | _operation(name, summary, ids, answers, failures, tag)


def service(
    name: str, summary: str, answers: Json, ids: list[str] | None = None, failures: tuple[int, ...] = (500,)
) -> Json:
    """An operation that needs no key."""
    described = _operation(name, summary, [*(ids or []), "OC-CTRL-2052"], answers, failures, "service")
    return described | {"security": []}


def protectable(name: str, summary: str, answers: Json, role: KeyRole) -> Json:
    """An operation that needs a key of this role where the operator says so (`auth.protect_metrics`)."""
    described = service(name, summary, answers, ["OC-CTRL-2040"], (*_OF_KEYS, 500))
    return described | {"security": [{}, *SECURITY], "x-required-role": role}


def _operation(name: str, summary: str, ids: list[str], answers: Json, failures: tuple[int, ...], tag: str) -> Json:
    return {
        "operationId": name,
        "summary": summary,
        "tags": [tag],
        "x-requirements": ids,
        "parameters": [ref("parameters", "CorrelationId")],
        "responses": answers | {str(status): ref("responses", _NAMES[status]) for status in failures},
    }


def response(description: str) -> Json:
    """An answer without a body."""
    return {"description": description, "headers": headers("X-Correlation-Id")}


def bare(description: str, media_type: str) -> Json:
    """An answer whose body is not described further."""
    kind = "object" if media_type == "application/json" else "string"
    return response(description) | {"content": {media_type: {"schema": {"type": kind}}}}


def json_answer(description: str, schema: str, examples: Mapping[str, object], *, many: bool = False) -> Json:
    """An answer with a JSON body of a named type, or with a list of it."""
    shown = {name: {"value": plain(value)} for name, value in examples.items()}
    one = ref("schemas", schema)
    return response(description) | {
        "content": {"application/json": {"schema": {"type": "array", "items": one} if many else one, "examples": shown}}
    }


def json_body(description: str, schema: str, examples: Mapping[str, tuple[str, object]]) -> Json:
    """A required request body; an example is a summary and a value."""
    return {
        "required": True,
        "description": description,
        "content": {
            "application/json": {
                "schema": ref("schemas", schema),
                "examples": {
                    name: {"summary": summary, "value": plain(value)} for name, (summary, value) in examples.items()
                },
            }
        },
    }


def failure_responses(failures: Mapping[int, Failure], errors: Mapping[str, ErrorInfo]) -> Json:
    """The components that `operation` points to, each with the examples of its status."""
    return {_NAMES[status]: _failure(status, failures[status], errors) for status in sorted(failures)}


def _failure(status: int, failure: Failure, errors: Mapping[str, ErrorInfo]) -> Json:
    shown = {code: errors[code] for code, mapped in HTTP_STATUS.items() if mapped == status and code in errors}
    answer = json_answer(failure.description, "ErrorInfo", shown)
    answer["headers"] |= headers(*failure.headers)
    return answer | {"x-requirements": ["ORCH-2006", "OC-CTRL-2030", *failure.ids]}


def headers(*names: str) -> Json:
    """References to described headers."""
    return {name: ref("headers", name) for name in names}


def header_components(described: Mapping[str, tuple[str, Json]]) -> Json:
    """The components that `headers` points to."""
    return {name: {"description": text, "schema": schema} for name, (text, schema) in described.items()}


def schemas(types: tuple[type, ...], fields: Mapping[str, Mapping[str, str]]) -> Json:
    """Schemas of the types and of all that they hold, with the fields' descriptions."""
    _, found = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    for name, texts in fields.items():
        for field, text in texts.items():
            found[name]["properties"][field] = {"description": text} | found[name]["properties"][field]
    for schema in found.values():
        if "description" in schema:  # Python 3.13 strips a docstring's indentation, earlier ones keep it
            schema["description"] = inspect.cleandoc(schema["description"])
    return dict(sorted(found.items()))
