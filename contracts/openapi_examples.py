"""Examples of the data plane's documents. They are built from the contract's own types, so they cannot drift.

The OpenAPI document shows them; the tests decode each one back.
"""

from typing import Any, Final
from uuid import UUID

import msgspec

from contracts.api import (
    Admission,
    End,
    Message,
    Metrics,
    Rank,
    Sampling,
    Session,
    Started,
    TaskRequest,
    TaskStatus,
    Token,
)
from contracts.errors import ErrorInfo
from contracts.gateway import Readiness

TASK_ID: Final = "0d9a8f6e-3c1b-4f7a-9e55-6b1c2d3e4f50"
SESSION_ID: Final = "7f1f6f0a-98a4-4a39-8f43-2a9d5f0c1b22"
MODEL: Final = "smollm2-135m-instruct"
ENGINE: Final = "llamacpp"
POOL: Final = "smollm2"
REPLICA: Final = "smollm2-0"
DIGEST: Final = "sha256:5b8f2b2a7c7f0f4a3f3a0c3f2d1e0b9a8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f"

PROMPT: Final = TaskRequest(
    task_id=UUID(TASK_ID),
    session_id=UUID(SESSION_ID),
    workload="completion",
    model_ref=MODEL,
    engine=ENGINE,
    ctx=2048,
    priority="interactive",
    max_tokens=64,
    deadline_ms=30_000,
    seed=42,
    prompt="Write one sentence about queues.",
)
CHAT: Final = msgspec.structs.replace(
    PROMPT,
    seed=None,
    prompt=None,
    messages=[
        Message(role="system", content="You answer in one sentence."),
        Message(role="user", content="What is a queue?"),
    ],
    sampling=Sampling(temperature=0.2, stop=["\n\n"]),
    labels={"app": "demo"},
)
EMBEDDING: Final = msgspec.structs.replace(
    PROMPT, workload="embedding", seed=None, max_tokens=1, prompt=None, inputs=["A queue is fair.", "A heap is not."]
)
RERANK: Final = msgspec.structs.replace(EMBEDDING, workload="rerank", prompt="What is fair?")
ADMISSION: Final = Admission(
    task_id=TASK_ID,
    queue_position=3,
    predicted_start_ms=420,
    backoff_ms=0,
    on_time_probability=0.97,
    tokens_budget_remaining=19_200,
)
STARTED: Final = Started(
    queue_position=3,
    predicted_start_ms=420,
    engine=ENGINE,
    engine_version="b11434",
    model_digest=DIGEST,
    pool_id=POOL,
    replica_id=REPLICA,
    accelerator="cpu-dev",
    seed=42,
    attempt=1,
    sampler_profile_version="v1",
    queue_time_ms=388,
    kv_warmth=False,
    determinism="strict",
)
TOKENS: Final = (Token(" A", 0), Token(" queue", 1))
METRICS: Final = Metrics(
    queue_depth=4,
    on_time_probability=0.98,
    deadline_remaining_ms=29_120,
    kv_warmth=False,
    kv_migrated=False,
    tokens_budget_remaining=19_200,
)
SESSION: Final = Session(
    ttl_ms_remaining=584_000, turns=3, kv_bytes=14_208_000, kv_warmth=True, tokens_budget_remaining=19_200
)
END: Final = End(tokens_out=2, decode_ms=35, finish_reason="stop", tokens_in=9)
EMBEDDED: Final = End(
    tokens_out=0, decode_ms=0, finish_reason="stop", tokens_in=9, embeddings=[[0.6, -0.8], [0.28, 0.96]]
)
RANKED: Final = End(tokens_out=0, decode_ms=0, finish_reason="stop", tokens_in=17, ranks=[Rank(1, 0.75), Rank(0, -2.5)])
FINISHED: Final = TaskStatus(
    task_id=TASK_ID,
    state="finished",
    engine=ENGINE,
    model_ref=MODEL,
    priority="interactive",
    replica_id=REPLICA,
    pool_id=POOL,
    engine_version="b11434",
    model_digest=DIGEST,
    attempt=1,
    tokens_in=9,
    tokens_out=2,
    decode_ms=35,
    queue_time_ms=388,
    first_token_ms=410,
    finish_reason="stop",
)
QUEUED: Final = TaskStatus(
    task_id=TASK_ID,
    state="queued",
    engine=ENGINE,
    model_ref=MODEL,
    priority="interactive",
    attempt=0,
    tokens_in=0,
    tokens_out=0,
    decode_ms=0,
    queue_position=3,
    predicted_start_ms=420,
    why="3 ahead, starts in about 420 ms, 97% sure to be on time",
    on_time_probability=0.97,
)
PREEMPTED: Final = msgspec.structs.replace(
    QUEUED,
    attempt=1,
    tokens_out=17,
    queue_position=0,
    why="preempted, waits again; resumes in about 420 ms",
    on_time_probability=0.9,
    preempted=True,
    resumable=True,
)
READY: Final = Readiness(ready=True, pools={POOL: "ready"})
UNREADY: Final = Readiness(ready=False, pools={POOL: "loading"})

#: One envelope for every code that a client of the data plane can meet.
ERRORS: Final[dict[str, ErrorInfo]] = {
    error.code: error
    for error in (
        ErrorInfo("INVALID_PARAMS", "`$.ctx`: expected `int` >= 1.", ENGINE, retriable=False),
        ErrorInfo(
            "DEADLINE_UNMET",
            "deadline_ms 1000 cannot be met: it would start in about 4200 ms; at least 5900 is needed now",
            ENGINE,
            POOL,
            retriable=True,
            earliest_deadline_ms=5900,
        ),
        ErrorInfo("UNAUTHENTICATED", "An API key is needed: send `Authorization: Bearer KEY`.", retriable=False),
        ErrorInfo("FORBIDDEN", "This API key is not known here. Check the key.", retriable=False),
        ErrorInfo("MODEL_DEPRECATED", "The model takes no new sessions. Use its successor.", ENGINE, retriable=False),
        ErrorInfo("NOT_FOUND", "There is no such task, or it was forgotten after its time.", retriable=False),
        ErrorInfo("METHOD_NOT_ALLOWED", "This path takes POST only.", retriable=False),
        ErrorInfo(
            "TASK_ID_CONFLICT", "The task_id is taken by another request. Use a new UUID.", ENGINE, retriable=False
        ),
        ErrorInfo("PAYLOAD_TOO_LARGE", "The body is over 4194304 bytes. Send a shorter prompt.", retriable=False),
        ErrorInfo("ADMISSION_REJECT", "The queue is full.", ENGINE, POOL, True, 1500, "reject"),
        ErrorInfo(
            "QUEUE_FULL_DROP_LRU", "Dropped from a full queue for a newer task.", ENGINE, POOL, True, 900, "drop-lru"
        ),
        ErrorInfo("POOL_UNREADY", "No replica is ready yet.", ENGINE, POOL, True, 2000),
        ErrorInfo("POOL_UNAVAILABLE", "No pool serves this model on this engine.", ENGINE, None, True, 5000),
        ErrorInfo("REPLICA_EXHAUSTED", "Every replica of the pool has failed.", ENGINE, POOL, True, 5000),
        ErrorInfo("UNTRUSTED_ARTIFACT", "The model could not be verified.", ENGINE, POOL, retriable=False),
        ErrorInfo("DECODE_TIMEOUT", "No token for 30000 ms; the attempt was stopped.", ENGINE, POOL, retriable=True),
        ErrorInfo("WORKER_RESET", "The engine ended while it decoded.", ENGINE, POOL, retriable=True),
        ErrorInfo("INTERNAL", "The service failed to handle this; quote the correlation id.", retriable=True),
    )
}


def plain(value: object) -> Any:
    """A struct as JSON values; what is None by default is left out, as on the wire for omitted fields."""
    return msgspec.json.decode(msgspec.json.encode(value))


def sse(name: str, data: object, event_id: int | None = None) -> str:
    """One event as it stands on the wire."""
    head = "" if event_id is None else f"id: {event_id}\n"
    return f"{head}event: {name}\ndata: {msgspec.json.encode(data).decode()}\n\n"


#: Every event of the stream as text, and a whole stream.
SSE_EVENTS: Final[dict[str, str]] = {
    "started": sse("started", STARTED),
    "token": sse("token", TOKENS[0], 0),
    "metrics": sse("metrics", METRICS),
    "end": sse("end", END),
    "error": sse("error", ERRORS["WORKER_RESET"]),
}
SSE_STREAM: Final = (
    SSE_EVENTS["started"] + "".join(sse("token", token, token.i) for token in TOKENS) + SSE_EVENTS["end"]
)
SSE_EMBEDDING: Final = SSE_EVENTS["started"] + sse("end", EMBEDDED)
SSE_RERANK: Final = SSE_EVENTS["started"] + sse("end", RANKED)
