"""What a vLLM completion stream says, made chunks and an end."""

from collections.abc import AsyncIterator

from adapters.attempts import Attempt
from adapters.errors import worker_reset
from adapters.exchange import ResponseStream
from adapters.stream import read_frames
from adapters.vllm.protocol import ENGINE, Choice, Frame, Usage, decode_frame, error_of, finish_of
from contracts.engine import Chunk, Finish


class _Reading:
    """How far one stream has come."""

    def __init__(self) -> None:
        self.tokens = 0
        self.last: Choice | None = None
        self.usage: Usage | None = None

    def chunk(self, frame: Frame) -> Chunk | None:
        """What a frame adds. Raises EngineError for an error frame, and for one that cannot be."""
        if frame.error is not None:
            raise error_of(frame.error, frame.error.code or 500)
        if not frame.choices:
            self.usage = frame.usage or self.usage
            return None
        if len(frame.choices) > 1 or self.last is not None or frame.usage is None:
            raise worker_reset("the engine sent a frame that does not fit its request", ENGINE)
        choice = frame.choices[0]
        made = frame.usage.completion_tokens - self.tokens
        if made < 0:
            raise worker_reset("the engine counted its tokens backwards", ENGINE)
        self.tokens += made
        if choice.finish_reason is not None:
            self.last = choice
        return Chunk(choice.text, max(made, 1)) if made or choice.text else None

    def finish(self) -> Finish:
        """The end that was told. Raises EngineError where none was."""
        if self.last is None or self.usage is None:
            raise worker_reset("the engine ended the stream without saying why", ENGINE)
        return finish_of(self.last, self.usage)


async def read_completion(attempt: Attempt, response: ResponseStream) -> AsyncIterator[Chunk | Finish]:
    """Chunks, then one `Finish`. Ends without it only when the attempt is canceled (ORCH-3026).

    Text that may become a stop string is held back by the engine, and half a character as well: then a chunk has
    tokens and no text. Raises EngineError (WORKER_RESET) for a stream that stops or cannot be read.
    """
    reading = _Reading()
    async for frames in read_frames(attempt, response, decode_frame, ENGINE):
        for frame in frames:
            # After an error, too, the engine has nothing left of the request.
            attempt.finished = frame.error is not None
            if frame.done:
                finish = reading.finish()
                attempt.finished = True
                yield finish
                return
            chunk = reading.chunk(frame)
            if chunk is not None:
                yield chunk
                if attempt.canceled:
                    return
    if not attempt.canceled:
        raise worker_reset("the engine's stream ended before it was complete", ENGINE)
