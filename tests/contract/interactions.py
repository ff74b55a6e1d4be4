"""What a consumer of the data plane relies on, interaction by interaction; the pact file is made from this.

Every interaction has its own task id, so that no provider state disturbs another.
"""

from dataclasses import dataclass, field
from typing import Any

from pact import Pact, match

from contracts import openapi_examples as ex

KEY = "llorch-test-key"
MODEL = ex.MODEL
#: Served by a pool with one slot and a queue of two, so that it can be filled.
SMALL_QUEUE_MODEL = f"{MODEL}-small-queue"
#: Configured, but without a replica that is ready.
DOWN_MODEL = f"{MODEL}-down"

COUNT = r"[0-9]+"
CORRELATION_ID = "pact-1"
_BLOCK = r"(:[^\n]*|(id: [0-9]+\n)?event: (token|metrics)\ndata: \{[^\n]*\})\n\n"
_STARTED = r'event: started\ndata: \{[^\n]*"queue_position":[0-9]+[^\n]*\}\n\n'
FINISHED_STREAM = (
    rf'^(:[^\n]*\n\n)*{_STARTED}({_BLOCK})*id: [0-9]+\nevent: token\ndata: \{{"t":"[^\n]*","i":[0-9]+\}}\n\n'
    rf'({_BLOCK})*event: end\ndata: \{{[^\n]*"tokens_out":[0-9]+[^\n]*\}}\n\n$'
)
DROPPED_STREAM = rf'^({_STARTED})?({_BLOCK})*event: error\ndata: \{{[^\n]*"code":"QUEUE_FULL_DROP_LRU"[^\n]*\}}\n\n$'


def task_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def body(number: int, **changes: Any) -> dict[str, Any]:
    """The example request under its own id; small, so that it ends soon."""
    return ex.plain(ex.PROMPT) | {"task_id": task_id(number), "max_tokens": 8} | changes


@dataclass(frozen=True)
class Interaction:
    """A request and the answer to it. `response` is a body with matchers; text stands as it is."""

    description: str
    status: int
    method: str
    path: str
    state: tuple[str, dict[str, object]] | None = None
    request: dict[str, Any] | str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    authorization: str | None = f"Bearer {KEY}"
    response: Any = None
    response_headers: dict[str, Any] = field(default_factory=dict)
    stream: tuple[str, str] | None = None

    def add_to(self, pact: Pact) -> None:
        """Declare this interaction in a pact."""
        it = pact.upon_receiving(self.description, "HTTP")
        if self.state:
            it.given(self.state[0], self.state[1])
        it.with_request(self.method, self.path).with_header("X-Correlation-Id", CORRELATION_ID)
        if self.authorization is not None:
            it.with_header("Authorization", self.authorization)
        for name, value in self.headers.items():
            it.with_header(name, value)
        if isinstance(self.request, str):
            it.with_body(self.request, "text/plain")
        elif self.request is not None:
            it.with_body(self.request, "application/json")
        it.will_respond_with(self.status).with_header("X-Correlation-Id", CORRELATION_ID)
        for name, value in self.response_headers.items():
            it.with_header(name, value)
        if self.stream:
            example, pattern = self.stream
            it.with_body(example, "text/event-stream; charset=utf-8")
            rule = {"combine": "AND", "matchers": [{"match": "regex", "regex": pattern}]}
            it.with_matching_rules({"body": {"$": rule}}, "Response")
        elif self.response is not None:
            it.with_body(self.response, "application/json")


def finished(number: int) -> tuple[str, dict[str, object]]:
    return ("a finished task", {"body": body(number)})


def envelope(code: str, **more: Any) -> dict[str, Any]:
    return {"code": code, "message": match.type("What happened and what to do."), **more}


def admission(number: int) -> dict[str, Any]:
    return {
        "task_id": task_id(number),
        "queue_position": match.int(0, min=0),
        "predicted_start_ms": match.int(420, min=0),
        "backoff_ms": match.int(0, min=0),
        "on_time_probability": match.number(0.97),
    }


def location(number: int) -> dict[str, str]:
    return {"Location": f"/v1/tasks/{task_id(number)}"}


def session_id(number: int) -> str:
    return f"00000000-0000-4000-9000-{number:012d}"


def _session(number: int) -> str:
    return f"/v1/sessions/{session_id(number)}"


def in_session(number: int) -> tuple[str, dict[str, object]]:
    """A finished task in a session of its own."""
    return ("a finished task", {"body": body(number, session_id=session_id(number))})


def _task(number: int, action: str = "") -> str:
    return f"/v1/tasks/{task_id(number)}{action}"


def _submit(description: str, status: int, request: Any, **more: Any) -> Interaction:
    return Interaction(description, status, "POST", "/v1/tasks", request=request, **more)


_REFUSED = envelope("INVALID_PARAMS", retriable=False)
_CHAT = body(2) | {"messages": [{"role": "user", "content": "What is a queue?"}]}
del _CHAT["prompt"]
_STATUS = {
    "task_id": task_id(12),
    "state": "finished",
    "engine": "llamacpp",
    "model_ref": MODEL,
    "priority": "interactive",
    "tokens_out": match.int(8, min=1),
    "finish_reason": match.regex("length", regex="^(stop|length)$"),
}
_RETRY = {"Retry-After": match.regex("2", regex=f"^{COUNT}$"), "X-Backoff-Ms": match.regex("1500", regex=f"^{COUNT}$")}
_EVENTS = {"Accept": "text/event-stream"}

SERVED = [
    _submit("a new task", 202, body(1), response=admission(1), response_headers=location(1)),
    _submit("a new conversation", 202, _CHAT, response=admission(2)),
    _submit("the same task again", 202, body(3), state=finished(3), response=admission(3)),
    _submit(
        "a task in one call",
        200,
        body(4),
        headers=_EVENTS,
        stream=(ex.SSE_STREAM, FINISHED_STREAM),
        response_headers={
            **location(4),
            "X-Queue-Position": match.regex("3", regex=f"^{COUNT}$"),
            "X-Predicted-Start-Ms": match.regex("420", regex=f"^{COUNT}$"),
        },
    ),
    Interaction(
        "the stream of a finished task",
        200,
        "GET",
        _task(11, "/stream"),
        state=finished(11),
        stream=(ex.SSE_STREAM, FINISHED_STREAM),
    ),
    Interaction(
        "the rest of a stream",
        200,
        "GET",
        _task(13, "/stream"),
        state=finished(13),
        headers={"Last-Event-ID": "0"},
        stream=(ex.SSE_STREAM.replace(ex.SSE_EVENTS["token"], ""), FINISHED_STREAM),
    ),
    Interaction(
        "the stream of a task that was dropped",
        200,
        "GET",
        _task(14, "/stream"),
        state=("a task that a full queue dropped", {"body": body(14, model_ref=SMALL_QUEUE_MODEL, priority="batch")}),
        stream=(
            ex.sse("error", ex.ERRORS["QUEUE_FULL_DROP_LRU"]),
            DROPPED_STREAM,
        ),
    ),
    Interaction("the status of a finished task", 200, "GET", _task(12), state=finished(12), response=_STATUS),
    Interaction(
        "cancel a running task",
        204,
        "POST",
        _task(15, "/cancel"),
        state=("a running task", {"body": body(15)}),
    ),
    Interaction("cancel a finished task", 204, "POST", _task(16, "/cancel"), state=finished(16)),
    Interaction(
        "the session of a finished task",
        200,
        "GET",
        _session(17),
        state=in_session(17),
        response={
            "ttl_ms_remaining": match.int(584_000, min=1),
            "turns": match.int(1, min=0),
            "kv_bytes": match.int(14_208_000, min=0),
            "kv_warmth": match.bool(True),
        },
    ),
    Interaction("end a session", 204, "DELETE", _session(18), state=in_session(18)),
]

REFUSED = [
    _submit("a body that is not JSON", 400, "{", response=_REFUSED),
    _submit("a task with a wrong type", 400, body(21, ctx="many"), response=_REFUSED),
    _submit("a task with an unknown field", 400, body(22, temperature=1), response=_REFUSED),
    _submit("a task whose id is not a UUID", 400, body(23, task_id="one"), response=_REFUSED),
    _submit("a task with ctx 0", 400, body(24, ctx=0), response=_REFUSED),
    _submit("a task with an unknown engine", 400, body(25, engine="other"), response=_REFUSED),
    _submit(
        "a task with both prompt and messages",
        400,
        body(26, messages=[{"role": "user", "content": "x"}]),
        response=_REFUSED | {"engine": "llamacpp"},
    ),
    _submit("a task for an unknown model", 400, body(27, model_ref="nobody-has-this"), response=_REFUSED),
    _submit("a task with more context than the model has", 400, body(28, ctx=2**30), response=_REFUSED),
    _submit(
        "a task without a key",
        401,
        body(29),
        authorization=None,
        response=envelope("UNAUTHENTICATED", retriable=False),
        response_headers={"WWW-Authenticate": match.regex("Bearer", regex="^Bearer.*")},
    ),
    _submit(
        "a task with a wrong key",
        403,
        body(30),
        authorization="Bearer not-a-key",
        response=envelope("FORBIDDEN", retriable=False),
    ),
    _submit(
        "another task with a taken id",
        409,
        body(31, prompt="Another prompt."),
        state=finished(31),
        response=envelope("TASK_ID_CONFLICT", retriable=False),
    ),
    _submit(
        "a task for a full queue",
        429,
        body(32, model_ref=SMALL_QUEUE_MODEL),
        state=("a full queue", {"body": body(33, model_ref=SMALL_QUEUE_MODEL)}),
        response=envelope(
            "ADMISSION_REJECT",
            engine="llamacpp",
            retriable=True,
            retry_after_ms=match.int(1500, min=0),
            policy_label="reject",
        ),
        response_headers=_RETRY,
    ),
    _submit(
        "a task for a pool that is down",
        503,
        body(34, model_ref=DOWN_MODEL),
        state=("a pool without a ready replica", {"body": body(34, model_ref=DOWN_MODEL)}),
        response={
            "code": match.regex("POOL_UNAVAILABLE", regex="^POOL_(UNAVAILABLE|UNREADY)$"),
            "message": match.type("No replica is ready."),
            "engine": "llamacpp",
            "retriable": True,
            "retry_after_ms": match.int(1500, min=0),
        },
        response_headers=_RETRY,
    ),
    _submit(
        "a task that cannot meet its deadline",
        400,
        body(35, deadline_ms=1, max_tokens=1500),
        response=envelope(
            "DEADLINE_UNMET", engine="llamacpp", retriable=False, earliest_deadline_ms=match.int(5900, min=2)
        ),
    ),
    *(
        Interaction(
            f"{what} an unknown session",
            404,
            method,
            _session(99),
            response=envelope("NOT_FOUND", retriable=False),
        )
        for what, method in (("look at", "GET"), ("end", "DELETE"))
    ),
    *(
        Interaction(
            f"{what} an unknown task",
            404,
            method,
            _task(99, action),
            response=envelope("NOT_FOUND", retriable=False),
        )
        for what, method, action in (
            ("the status of", "GET", ""),
            ("the stream of", "GET", "/stream"),
            ("cancel", "POST", "/cancel"),
        )
    ),
]
INTERACTIONS = SERVED + REFUSED
