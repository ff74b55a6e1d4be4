"""From the responses of a completion to chunks of whole characters, counted tokens and one end."""

import codecs
from typing import Final, Literal

from adapters.errors import worker_reset
from adapters.stops import StopCutter
from adapters.triton.frames import Frame
from adapters.triton.protocol import ENGINE
from contracts.engine import Chunk, Finish

_REASONS: Final[dict[str, Literal["stop", "length"]]] = {
    "stop": "stop",
    "stop_words": "stop",
    "end_id": "stop",
    "eos": "stop",
    "length": "length",
}


class Text:
    """The text of one completion as it comes in.

    A model that tells no count of its own makes a token with each response, as TensorRT-LLM does. A token counts
    with the chunk that has the last of its text, so a chunk is held back while all of its tokens are.
    """

    def __init__(self, *, max_tokens: int, stops: list[str], tells_reason: bool, tokens_in: int) -> None:
        self._max_tokens = max_tokens
        self._tells_reason = tells_reason
        self._tokens_in = tokens_in
        #: Whether a stop string has ended the text, whatever else the engine makes.
        self.stopped = False
        self._characters = codecs.getincrementaldecoder("utf-8")()
        self._amid_character = False
        self._cutter = StopCutter(stops)
        self._fed = self._cut = 0
        self._ready = ""
        self._pending = 0
        self._tokens = 0
        self._reason = ""

    def take(self, frame: Frame) -> Chunk | None:
        """What a response completes. Raises EngineError (WORKER_RESET) for text that is no UTF-8."""
        if frame.tokens_in is not None:
            self._tokens_in = frame.tokens_in if frame.tokens_in > 0 else 0
        if frame.reason:
            self._reason = frame.reason
        if not frame.is_response:
            return None
        tokens = 1 if frame.tokens is None else frame.tokens if frame.tokens > 0 else 0
        self._tokens += tokens
        self._pending += tokens
        self._ready += self._cutter.feed(self._whole(frame.text))
        self.stopped = self._cutter.matched is not None
        held = not self.stopped and self._fed > self._cut + len(self._ready)
        return self._chunk(self._pending - 1 if held else self._pending)

    def rest(self) -> Chunk | None:
        """What was held back, at the end of the text. Raises EngineError (WORKER_RESET) amid a character."""
        self._whole(b"", last=True)
        if not self.stopped:
            self._ready += self._cutter.flush()
        return self._chunk(max(self._pending, 1) if self._ready else self._pending)

    def finish(self) -> Finish:
        """The end. Raises EngineError (WORKER_RESET) where the model should have told a reason and told none."""
        return Finish(
            finish_reason="stop" if self.stopped else self._why(),
            tokens_in=self._tokens_in,
            stop_sequence=self._cutter.matched,
        )

    def _why(self) -> Literal["stop", "length"]:
        if self._reason in _REASONS:
            return _REASONS[self._reason]
        if self._reason or self._tells_reason:
            raise worker_reset(f"the engine ended the stream for no known reason ({self._reason!r})", ENGINE)
        return "length" if self._tokens >= self._max_tokens else "stop"

    def _whole(self, data: bytes, *, last: bool = False) -> str:
        if self.stopped:
            return ""
        try:
            # Most tokens are whole characters, which need no memory.
            if not self._amid_character and data.isascii():
                text = data.decode("ascii")
            else:
                text = self._characters.decode(data, last)
                self._amid_character = bool(self._characters.getstate()[0])
        except UnicodeDecodeError as error:
            raise worker_reset("the engine sent text that is no UTF-8", ENGINE) from error
        self._fed += len(text)
        return text

    def _chunk(self, tokens: int) -> Chunk | None:
        if tokens < 1:
            return None
        chunk = Chunk(self._ready, tokens)
        self._cut += len(self._ready)
        self._pending -= tokens
        self._ready = ""
        return chunk
