"""The events of a stream as a client reads them."""

from collections.abc import Mapping
from typing import Final

import msgspec

from contracts.api import End, Metrics, Started, Token
from contracts.errors import ErrorInfo, OrchError

StreamEvent = Started | Token | Metrics | End

_EVENTS: Final[Mapping[str, type[StreamEvent | ErrorInfo]]] = {
    "started": Started,
    "token": Token,
    "metrics": Metrics,
    "end": End,
    "error": ErrorInfo,
}


def decode_event(name: str, data: str) -> StreamEvent | ErrorInfo | None:
    """The event, or None for kinds that a later server may add."""
    kind = _EVENTS.get(name)
    if kind is None:
        return None
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise OrchError(ErrorInfo("INTERNAL", f"the server sent a malformed `{name}` event: {error}")) from error
