"""llama-server's wire: native completions, as recorded from the real server."""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from adapters.llamacpp import LlamaCppAdapter
from adapters.testing.conformance.dialect import CTX, SLOTS, Dialect, End, Piece, Trouble
from adapters.testing.peers.http import Answer, Call, json_answer
from contracts.engine import EngineAdapter, EngineSpec

#: HTTP status and type of each trouble's error object.
_TROUBLES: Final[dict[Trouble, tuple[int, str]]] = {
    "invalid": (400, "invalid_request_error"),
    "too_long": (400, "exceed_context_size_error"),
    "unauthorized": (401, "authentication_error"),
    "not_ready": (503, "unavailable_error"),
    "internal": (500, "server_error"),
}


class LlamaCppDialect(Dialect):
    """The adapter for llama.cpp against a peer."""

    engine = "llamacpp"

    def create(self, spec: EngineSpec) -> EngineAdapter:
        return LlamaCppAdapter(spec)

    def spec(self, endpoint: str) -> EngineSpec:
        # The digest is that of a file on this side; any will do.
        return replace(super().spec(endpoint), model_path=__file__)

    def is_generation(self, call: Call) -> bool:
        return call.path == "/completion"

    def answer(self, call: Call, active: Sequence[bytes]) -> Answer:
        if call.path == "/health":
            return json_answer(200, {"status": "ok"})
        if call.path == "/props":
            settings = {"n_ctx": CTX}
            return json_answer(
                200, {"total_slots": SLOTS, "build_info": "b1-peer", "default_generation_settings": settings}
            )
        if call.path == "/slots":
            taken = {msgspec.json.decode(body).get("id_slot") for body in active}
            return json_answer(
                200, [{"id": n, "n_ctx": CTX, "is_processing": n in taken, "n_prompt_tokens": 0} for n in range(SLOTS)]
            )
        if call.path == "/metrics":
            text = f"# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing {len(active)}\n"
            return Answer(200, f"{text}llamacpp:tokens_predicted_total 12\n".encode(), "text/plain")
        if call.path == "/tokenize":
            return json_answer(200, {"tokens": list(range(len(msgspec.json.decode(call.body)["content"].split())))})
        if call.path == "/apply-template":
            return json_answer(200, {"prompt": "one two three"})
        return json_answer(404, _error("invalid", 404))

    def payloads(self, pieces: Sequence[Piece], end: End | None) -> list[bytes]:
        frames: list[object] = []
        made = 0
        for piece in pieces:
            made += piece.tokens
            frames.append(
                {
                    "index": 0,
                    "content": piece.text,
                    "tokens": [made],
                    "stop": False,
                    "id_slot": -1,
                    "tokens_predicted": made,
                    "tokens_evaluated": end.tokens_in if end else 0,
                }
            )
        if end is not None:
            kind = "limit" if end.reason == "length" else "word" if end.stop else "eos"
            frames.append(
                {
                    "content": "",
                    "stop": True,
                    "stop_type": kind,
                    "stopping_word": end.stop or "",
                    "tokens_predicted": made,
                    "tokens_evaluated": end.tokens_in,
                    "timings/cache_n": 0,
                }
            )
        return [msgspec.json.encode(frame) for frame in frames]

    def refusal(self, trouble: Trouble) -> Answer | None:
        if trouble not in _TROUBLES:
            return None
        return json_answer(_TROUBLES[trouble][0], _error(trouble))

    def in_band(self, trouble: Trouble) -> bytes | None:
        return msgspec.json.encode(_error(trouble)) if trouble in _TROUBLES else None

    def backwards(self) -> list[bytes] | None:
        three, one = Piece("abc", 3), Piece("d", 1)
        return [*self.payloads([three], None), *self.payloads([one], None), *self.payloads([], End())]


def _error(trouble: Trouble, status: int = 0) -> object:
    code, kind = _TROUBLES[trouble]
    return {"error": {"code": status or code, "message": f"a peer says {trouble}", "type": kind}}
