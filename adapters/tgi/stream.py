"""What a TGI stream says, made chunks and an end."""

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Final, Literal

from adapters.attempts import Attempt
from adapters.errors import worker_reset
from adapters.exchange import ResponseStream
from adapters.stops import StopCutter
from adapters.stream import read_frames
from adapters.tgi.protocol import ENGINE, Details, Frame, Token, decode_frame, error_of
from contracts.engine import Chunk, Finish

_REASONS: Final[dict[str, Literal["stop", "length"]]] = {
    "length": "length",
    "eos_token": "stop",
    "stop_sequence": "stop",
}


class GenerationReader:
    """Reads one stream: a frame is a token, and special tokens count but are no text.

    Two ends are this side's own (`Attempt.finished` stays unset then, and the connection is closed). TGI finds a stop
    string only where a token ends with it, and leaves it in the text. And it makes longer texts in rounds of 1024
    tokens, of which it does not cut the last one short.
    """

    def __init__(
        self,
        attempt: Attempt,
        max_tokens: int,
        stops: Sequence[str],
        count_prompt: Callable[[], Coroutine[Any, Any, int]],
    ) -> None:
        self._attempt = attempt
        self._max_tokens = max_tokens
        self._stops = stops
        self._count_prompt = count_prompt
        self._cutter = StopCutter(stops)
        self._made = 0

    async def read(self, response: ResponseStream) -> AsyncIterator[Chunk | Finish]:
        """Chunks, then one `Finish`. Ends without it only when the attempt is canceled (ORCH-3026).

        Raises EngineError: what the engine says in the stream, WORKER_RESET for one that stops or cannot be read.
        """
        attempt, cutter = self._attempt, self._cutter
        async for frames in read_frames(attempt, response, decode_frame, ENGINE):
            for frame in frames:
                token = self._token(frame)
                self._made += 1
                text = cutter.feed("" if token.special else token.text)
                if frame.details is None and cutter.matched is None and self._made < self._max_tokens:
                    yield Chunk(text)
                    if attempt.canceled:
                        return
                    continue
                yield self._last_chunk(text, frame.details)
                finish = await self._finish(response, token, frame.details)
                if finish is not None:
                    yield finish
                return
        if not attempt.canceled:
            raise worker_reset("the engine's stream ended before it was complete", ENGINE)

    def _token(self, frame: Frame) -> Token:
        if frame.error is not None:
            self._attempt.finished = True
            raise error_of(frame.error, frame.error_type)
        if frame.token is None:
            raise worker_reset("the engine sent a frame that is neither token nor error", ENGINE)
        return frame.token

    def _last_chunk(self, text: str, details: Details | None) -> Chunk:
        """Held-back text, and tokens that the engine counts and did not send."""
        if self._cutter.matched is None:
            text += self._cutter.flush()
        unsent = 0 if details is None else min(details.generated_tokens, self._max_tokens) - self._made
        return Chunk(text, 1 + max(unsent, 0))

    async def _finish(self, response: ResponseStream, token: Token, details: Details | None) -> Finish | None:
        """None where the attempt is canceled. The engine tells the prompt's length at the end of its own text only."""
        if self._attempt.canceled:
            return None
        matched = self._cutter.matched
        if details is None:
            response.close()
            tokens_in = await self._attempt.run(self._count_prompt())
            if tokens_in is None:
                return None
            return Finish("length" if matched is None else "stop", tokens_in, stop_sequence=matched)
        reason = _REASONS.get(details.finish_reason)
        if reason is None:
            raise worker_reset(f"the engine ended for no known reason ({details.finish_reason!r})", ENGINE)
        self._attempt.finished = True
        if matched is None and details.finish_reason == "stop_sequence":
            # The text of a special token, which is not sent.
            matched = next((stop for stop in self._stops if token.text.endswith(stop)), None)
        return Finish(reason if matched is None else "stop", details.input_length, stop_sequence=matched)
