"""TGI's wire: `/generate_stream`, made from its OpenAPI document and sources; no real server was at hand."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import msgspec

from adapters.testing.conformance.dialect import CTX, SLOTS, Dialect, End, Piece, Trouble
from adapters.testing.peers.http import Answer, Call, json_answer
from adapters.tgi.adapter import TgiAdapter
from contracts.engine import EngineAdapter, EngineSpec

_TROUBLES: Final[dict[Trouble, tuple[int, str]]] = {
    "invalid": (422, "validation"),
    "too_long": (422, "validation"),
    "overloaded": (429, "overloaded"),
    "not_ready": (503, "healthcheck"),
    "internal": (424, "generation"),
}


class TgiDialect(Dialect):
    """The adapter for TGI against a peer."""

    engine = "tgi"
    lacks: ClassVar[Mapping[str, str]] = {
        "frame_tokens": "a frame of TGI is one token",
        "running_count": "frames of TGI do not tell how many tokens there are so far",
    }
    fillers = (b":\n\n", b": keep-alive\n\n", b"\n")

    def create(self, spec: EngineSpec) -> EngineAdapter:
        return TgiAdapter(spec)

    def is_generation(self, call: Call) -> bool:
        return call.path == "/generate_stream"

    def answer(self, call: Call, active: Sequence[bytes]) -> Answer:
        if call.path == "/health":
            return Answer(200)
        if call.path == "/info":
            return json_answer(
                200,
                {
                    "model_id": "m",
                    "version": "0-peer",
                    "max_total_tokens": CTX,
                    "max_concurrent_requests": SLOTS,
                    "max_input_tokens": CTX - 1,
                },
            )
        if call.path == "/tokenize":
            return json_answer(200, [{"id": n, "text": "x", "start": n, "stop": n + 1} for n in range(End().tokens_in)])
        if call.path == "/chat_tokenize":
            tokens = [{"id": 1, "text": "<s>", "start": 0, "stop": 3}, {"id": 2, "text": "hi", "start": 3, "stop": 5}]
            return json_answer(200, {"templated_text": "<s>hi", "tokenize_response": tokens})
        if call.path == "/metrics":
            text = f"tgi_queue_size 0\ntgi_batch_current_size {len(active)}\n"
            return Answer(200, f"{text}tgi_request_generated_tokens_sum 12\n".encode(), "text/plain")
        return Answer(404, b"", "text/plain")

    def payloads(self, pieces: Sequence[Piece], end: End | None) -> list[bytes]:
        frames = []
        for number, piece in enumerate(pieces, 1):
            is_last = end is not None and number == len(pieces)
            # Stop strings are left in the text.
            text = piece.text + ((end.stop or "") if is_last and end else "")
            token = {"id": number, "text": text, "logprob": -0.5, "special": False}
            frame: dict[str, object] = {"index": number, "token": token, "generated_text": None, "details": None}
            if is_last and end is not None:
                kind = "length" if end.reason == "length" else "stop_sequence" if end.stop else "eos_token"
                frame["generated_text"] = "the text once more"
                frame["details"] = {
                    "finish_reason": kind,
                    "generated_tokens": len(pieces),
                    "seed": 7,
                    "input_length": end.tokens_in,
                }
            frames.append(msgspec.json.encode(frame))
        return frames

    def frame(self, payload: bytes) -> bytes:
        # As its server writes them: without a space.
        return b"data:" + payload + b"\n\n"

    def refusal(self, trouble: Trouble) -> Answer | None:
        if trouble not in _TROUBLES:
            return None
        return json_answer(_TROUBLES[trouble][0], _error(trouble))

    def in_band(self, trouble: Trouble) -> bytes | None:
        return msgspec.json.encode(_error(trouble)) if trouble in _TROUBLES else None


def _error(trouble: Trouble) -> object:
    return {"error": f"a peer says {trouble}", "error_type": _TROUBLES[trouble][1]}
