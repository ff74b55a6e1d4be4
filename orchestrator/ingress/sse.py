"""Server-sent events as bytes: framing is a stable contract (ORCH-2002, OC-CTRL-2020, OC-CTRL-2022).

Only `token` events carry an `id:`, the token's index, so that a client's `Last-Event-ID` is
always the last token it has. Data is one line of JSON: JSON strings never hold a raw line break.
"""

import re
from typing import Final

import msgspec

from contracts.api import End, Metrics, Started
from contracts.errors import ErrorInfo
from contracts.gateway import Tokens
from orchestrator.ingress.errors import refuse
from orchestrator.ingress.results import ClientEvent, EndWithResults

CONTENT_TYPE: Final = b"text/event-stream; charset=utf-8"
KEEP_ALIVE: Final = b": keep-alive\n\n"

_NAMES: Final[dict[type, bytes]] = {Started: b"started", Metrics: b"metrics", End: b"end", ErrorInfo: b"error"}
_INDEX: Final = re.compile(rb"-1|[0-9]{1,18}")

_encode = msgspec.json.Encoder().encode


def format_event(event: ClientEvent) -> bytes:
    """One event, or all tokens of a `Tokens` in one block of bytes."""
    if type(event) is Tokens:
        return b"".join(
            [
                b'id: %d\nevent: token\ndata: {"t":%b,"i":%d}\n\n' % (i, _encode(text), i)
                for i, text in enumerate(event.texts, event.first)
            ]
        )
    if type(event) is EndWithResults:
        return b"".join([b"event: end\ndata: ", *event.parts, b"\n\n"])
    return b"event: %b\ndata: %b\n\n" % (_NAMES[type(event)], _encode(event))


def last_event_id(headers: dict[bytes, bytes]) -> int:
    """Index of the last token a client has, -1 for none. Raises OrchError INVALID_PARAMS."""
    given = headers.get(b"last-event-id", b"-1").strip()
    if not _INDEX.fullmatch(given):
        raise refuse("INVALID_PARAMS", "Last-Event-ID: expected the index of a token, -1 or more; send the last `id:`.")
    return int(given)
