"""Reading what an engine answers to a small call."""

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from adapters.errors import worker_reset

T = TypeVar("T")

#: What a decoder raises for bytes that are not what was agreed; nesting without end is one kind of them.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decoded(decode: Callable[[bytes], T], answer: bytes, what: str, engine: str) -> T:
    """`decode(answer)`. Raises EngineError (WORKER_RESET) for an answer that cannot be read, called `what`."""
    try:
        return decode(answer)
    except UNREADABLE as error:
        raise worker_reset(f"the engine's answer to {what} cannot be read", engine) from error
