"""The mock engine's wire."""

from collections.abc import Sequence
from typing import Final

import msgspec

from adapters.mock import MockAdapter
from adapters.mock.wire import MockError, MockFrame, MockInfo
from adapters.testing.conformance.dialect import CTX, SLOTS, Dialect, End, Piece, Trouble
from adapters.testing.peers.http import Answer, Call, json_answer
from contracts.engine import EngineAdapter, EngineSpec

_TROUBLES: Final[dict[Trouble, tuple[int, str]]] = {
    "invalid": (400, "invalid"),
    "too_long": (400, "invalid"),
    "unauthorized": (401, "unauthorized"),
    "overloaded": (429, "overloaded"),
    "not_ready": (503, "loading"),
    "internal": (500, "broken"),
}


class MockDialect(Dialect):
    """The mock adapter against a peer; with every capability, it shows what a dialect looks like."""

    engine = "mock"

    def create(self, spec: EngineSpec) -> EngineAdapter:
        return MockAdapter(spec)

    def is_generation(self, call: Call) -> bool:
        return call.path == "/generate"

    def answer(self, call: Call, active: Sequence[bytes]) -> Answer:
        if call.path == "/health":
            return Answer(200)
        if call.path == "/info":
            running = [msgspec.json.decode(body)["key"] for body in active]
            return json_answer(200, MockInfo("mock peer", SLOTS, CTX, running, 0, 12))
        if call.path == "/tokenize":
            return json_answer(200, 3)
        return json_answer(404, MockError("invalid", "there is nothing at this path"))

    def payloads(self, pieces: Sequence[Piece], end: End | None) -> list[bytes]:
        frames = []
        made = 0
        for piece in pieces:
            made += piece.tokens
            frames.append(MockFrame(piece.text, made))
        if end is not None:
            frames.append(MockFrame(made=made, done=end.reason, prompt_tokens=end.tokens_in, stop_sequence=end.stop))
        return [msgspec.json.encode(frame) for frame in frames]

    def refusal(self, trouble: Trouble) -> Answer | None:
        status, kind = _TROUBLES[trouble]
        return json_answer(status, MockError(kind, f"a peer says {trouble}"))

    def in_band(self, trouble: Trouble) -> bytes | None:
        return msgspec.json.encode(MockFrame(error=MockError(_TROUBLES[trouble][1], f"a peer says {trouble}")))

    def backwards(self) -> list[bytes] | None:
        return [msgspec.json.encode(MockFrame("a", made)) for made in (3, 1)] + self.payloads([], End())
