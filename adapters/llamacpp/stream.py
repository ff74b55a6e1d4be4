"""Reading one completion stream to its end, which is told and never guessed."""

from collections.abc import AsyncIterator

import msgspec

from adapters.llamacpp.attempts import Attempt
from adapters.llamacpp.exchange import CompletionStream
from adapters.llamacpp.protocol import Frame, decode_frame, error_of, finish_of, worker_reset
from adapters.sse import SseOverflowError, SseSplitter
from contracts.engine import Chunk, Finish


async def read_completion(attempt: Attempt, response: CompletionStream) -> AsyncIterator[Chunk | Finish]:
    """Chunks, then one `Finish`. Ends without it only when the attempt is canceled (ORCH-3026).

    A frame is not a token: the tokens of a chunk are counted by how far the engine's own count
    moved. Raises EngineError (WORKER_RESET) for a stream that stops or cannot be read.
    """
    splitter = SseSplitter()
    tokens = 0
    while True:
        data = await _read(attempt, response)
        if attempt.canceled:
            return
        if not data:
            raise worker_reset("the engine's stream ended before it was complete")
        for frame in _frames(splitter, data):
            if frame.error is not None:
                raise error_of(frame.error, frame.error.code)
            made = frame.tokens_predicted - tokens
            tokens = frame.tokens_predicted
            if made or frame.content:
                yield Chunk(frame.content, max(made, 1))
                if attempt.canceled:
                    return
            if frame.stop:
                finish = finish_of(frame)
                attempt.finished = True
                yield finish
                return


async def _read(attempt: Attempt, response: CompletionStream) -> bytes:
    try:
        return await response.read()
    except OSError as error:
        if attempt.canceled:
            return b""
        raise worker_reset("the engine's stream broke") from error


def _frames(splitter: SseSplitter, data: bytes) -> list[Frame]:
    try:
        return [decode_frame(payload) for payload in splitter.feed(data)]
    except (msgspec.DecodeError, SseOverflowError) as error:
        raise worker_reset("the engine sent a frame that cannot be read") from error
