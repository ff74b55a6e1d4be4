"""The mock's own dialect: JSON frames as server-sent events, and how its adapter reads them."""

from collections.abc import AsyncIterator
from typing import Final, Literal

import msgspec
from msgspec import Struct

from adapters.answers import UNREADABLE
from adapters.attempts import Attempt
from adapters.errors import engine_error, worker_reset
from adapters.exchange import ResponseStream
from adapters.stream import read_frames
from contracts.engine import Chunk, EngineError, Finish
from contracts.errors import ErrorCode

ENGINE: Final = "mock"

#: What the engine calls its errors, what they are to the rest of the system, and whether trying again can help.
_ERRORS: Final[dict[str, tuple[ErrorCode, bool]]] = {
    "invalid": ("INVALID_PARAMS", False),
    "overloaded": ("REPLICA_EXHAUSTED", True),
    "loading": ("POOL_UNREADY", True),
    "unauthorized": ("INTERNAL", False),
}


class MockError(Struct, frozen=True):
    """An error of the engine, in a frame or as the body of a refusal."""

    kind: str
    message: str


class MockFrame(Struct, frozen=True, omit_defaults=True):
    """One event. `made` counts all tokens so far; the last frame has `done`, and the length of the prompt."""

    text: str = ""
    made: int = 0
    done: Literal["", "stop", "length"] = ""
    prompt_tokens: int = 0
    stop_sequence: str | None = None
    error: MockError | None = None


class MockInfo(Struct, frozen=True):
    """What the engine says of itself and of what it has done."""

    version: str
    slots: int
    ctx: int
    running: list[str]
    tokens_in: int
    tokens_out: int


class MockRequest(Struct, frozen=True):
    """Body of a generation."""

    key: str
    prompt: str
    max_tokens: int
    seed: int
    temperature: float
    stop: list[str]


decode_frame = msgspec.json.Decoder(MockFrame).decode
decode_info = msgspec.json.Decoder(MockInfo).decode
decode_count = msgspec.json.Decoder(int).decode
decode_request = msgspec.json.Decoder(MockRequest).decode
_decode_error = msgspec.json.Decoder(MockError).decode


def error_of(error: MockError) -> EngineError:
    """The engine's error as one of ours; what it does not name is its own failure."""
    code, retriable = _ERRORS.get(error.kind, ("INTERNAL", True))
    return engine_error(code, f"the engine refused: {error.message}", engine=ENGINE, retriable=retriable)


def refusal_of(status: int, body: bytes) -> EngineError:
    """What an answer other than 200 means, whatever its body looks like."""
    try:
        return error_of(_decode_error(body))
    except UNREADABLE:
        kind = {
            400: "invalid",
            422: "invalid",
            401: "unauthorized",
            404: "invalid",
            429: "overloaded",
            503: "loading",
        }.get(status, "")
        return error_of(MockError(kind, f"HTTP {status}"))


async def read_generation(attempt: Attempt, response: ResponseStream) -> AsyncIterator[Chunk | Finish]:
    """Chunks, then one `Finish`; ends without it only where the attempt was canceled (ORCH-3026)."""
    counted = 0
    async for frames in read_frames(attempt, response, decode_frame, ENGINE):
        for frame in frames:
            if frame.error is not None:
                raise error_of(frame.error)
            made = frame.made - counted
            if made < 0 or (frame.text and not made):
                raise worker_reset("the engine's count of tokens does not add up", ENGINE)
            counted = frame.made
            if made:
                yield Chunk(frame.text, made)
                if attempt.canceled:
                    return
            if frame.done:
                attempt.finished = True
                yield Finish(frame.done, tokens_in=frame.prompt_tokens, stop_sequence=frame.stop_sequence)
                return
    if not attempt.canceled:
        raise worker_reset("the engine's stream ended before it was complete", ENGINE)
