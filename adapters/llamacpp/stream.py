"""What a llama-server's completion stream says, made chunks and an end."""

from collections.abc import AsyncIterator

from adapters.attempts import Attempt
from adapters.errors import worker_reset
from adapters.exchange import ResponseStream
from adapters.llamacpp.protocol import ENGINE, decode_frame, error_of, finish_of
from adapters.llamacpp.sessions import Turn
from adapters.stream import read_frames
from contracts.engine import Chunk, Finish


async def read_completion(
    attempt: Attempt, response: ResponseStream, turn: Turn | None = None
) -> AsyncIterator[Chunk | Finish]:
    """Chunks, then one `Finish`. Ends without it only when the attempt is canceled (ORCH-3026).

    A frame is not a token: the tokens of a chunk are counted by how far the engine's own count
    moved. `turn` is told what its slot holds, also of an attempt that is broken off.
    Raises EngineError (WORKER_RESET) for a stream that stops or cannot be read.
    """
    tokens = 0
    async for frames in read_frames(attempt, response, decode_frame, ENGINE):
        if turn is not None and frames and frames[-1].tokens_predicted:
            turn.tokens = frames[-1].tokens_evaluated + frames[-1].tokens_predicted
        for frame in frames:
            if frame.error is not None:
                raise error_of(frame.error, frame.error.code)
            made = frame.tokens_predicted - tokens
            if made < 0:
                raise worker_reset("the engine's count of tokens runs backwards", ENGINE)
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
    if not attempt.canceled:
        raise worker_reset("the engine's stream ended before it was complete", ENGINE)
