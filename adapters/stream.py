"""Reading a stream of server-sent events to its end, which is told and never guessed."""

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from adapters.answers import UNREADABLE
from adapters.attempts import Attempt
from adapters.errors import worker_reset
from adapters.exchange import ResponseStream
from adapters.sse import SseOverflowError, SseSplitter

Frame = TypeVar("Frame")


async def read_frames(
    attempt: Attempt, response: ResponseStream, decode: Callable[[bytes], Frame], engine: str
) -> AsyncIterator[list[Frame]]:
    """The decoded events that each read completes; over at the response's regular end, or with a cancel.

    Whether that end is the end of the text is for the caller to know (ORCH-3026). Raises EngineError (WORKER_RESET)
    for a connection that breaks, an event that does not end and one that `decode` cannot read.
    """
    splitter = SseSplitter()
    while True:
        try:
            data = await response.read()
        except OSError as error:
            if attempt.canceled:
                return
            raise worker_reset("the engine's stream broke", engine) from error
        if attempt.canceled:
            return
        if not data:
            if splitter.pending:
                raise worker_reset("the engine's stream ended amid a frame", engine)
            return
        try:
            frames = [decode(payload) for payload in splitter.feed(data)]
        except (*UNREADABLE, SseOverflowError) as error:
            raise worker_reset("the engine sent a frame that cannot be read", engine) from error
        yield frames


async def read_whole(attempt: Attempt, response: ResponseStream, bytes_max: int, engine: str) -> bytes | None:
    """An answer that is no stream, to its end; None with a cancel.

    Raises EngineError (WORKER_RESET) for one that breaks off, or is longer than `bytes_max`.
    """
    answer = bytearray()
    try:
        while not attempt.canceled and (part := await response.read()):
            answer += part
            if len(answer) > bytes_max:
                raise worker_reset("the engine's answer never ends", engine)
    except OSError as error:
        if not attempt.canceled:
            raise worker_reset("the engine's answer broke off", engine) from error
    return None if attempt.canceled else bytes(answer)
