"""The one error envelope of the system, its codes, and how codes map to HTTP (ORCH-2006, OC-CTRL-2030).

Every refusal and every failure a client can see is an `ErrorInfo`: in a JSON body, in an SSE
`error` event, or raised to Python callers as `OrchError`.
"""

from typing import Final, Literal

import msgspec

ErrorCode = Literal[
    "INVALID_PARAMS",
    "DEADLINE_UNMET",
    "UNAUTHENTICATED",
    "FORBIDDEN",
    "NOT_FOUND",
    "METHOD_NOT_ALLOWED",
    "TASK_ID_CONFLICT",
    "CONFLICT",
    "PAYLOAD_TOO_LARGE",
    "MODEL_DEPRECATED",
    "UNTRUSTED_ARTIFACT",
    "ADMISSION_REJECT",
    "QUEUE_FULL_DROP_LRU",
    "POOL_UNREADY",
    "POOL_UNAVAILABLE",
    "REPLICA_EXHAUSTED",
    "DECODE_TIMEOUT",
    "WORKER_RESET",
    "INTERNAL",
]

PolicyLabel = Literal["reject", "drop-lru", "shed-low-priority"]

HTTP_STATUS: Final[dict[str, int]] = {
    "INVALID_PARAMS": 400,
    "DEADLINE_UNMET": 400,
    "UNAUTHENTICATED": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "TASK_ID_CONFLICT": 409,
    "CONFLICT": 409,
    "PAYLOAD_TOO_LARGE": 413,
    "MODEL_DEPRECATED": 403,
    "UNTRUSTED_ARTIFACT": 503,
    "ADMISSION_REJECT": 429,
    "QUEUE_FULL_DROP_LRU": 429,
    "POOL_UNREADY": 503,
    "POOL_UNAVAILABLE": 503,
    "REPLICA_EXHAUSTED": 503,
    "DECODE_TIMEOUT": 500,
    "WORKER_RESET": 500,
    "INTERNAL": 500,
}


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """The error envelope. `message` says what happened and what to do about it.

    `retriable` (ORCH-3025) tells a client whether sending the same request again can help;
    `retry_after_ms` is when that is worth trying, computed from measured service times.
    `policy_label` is always present on 429. `earliest_deadline_ms` comes with DEADLINE_UNMET: the
    smallest `deadline_ms` that would have been accepted (ORCH-3079).
    """

    code: ErrorCode
    message: str
    engine: str | None = None
    pool_id: str | None = None
    retriable: bool | None = None
    retry_after_ms: int | None = None
    policy_label: PolicyLabel | None = None
    earliest_deadline_ms: int | None = None


class OrchError(Exception):
    """Raised wherever a call ends in an `ErrorInfo`; carries it as `.info`."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(f"{info.code}: {info.message}")
        self.info = info

    def __reduce__(self) -> tuple[type["OrchError"], tuple[ErrorInfo]]:
        return (OrchError, (self.info,))

    @property
    def http_status(self) -> int:
        return HTTP_STATUS[self.info.code]
