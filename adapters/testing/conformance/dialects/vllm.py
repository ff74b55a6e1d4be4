"""vLLM's wire: streamed completions of its OpenAI-compatible server, as recorded from the real one."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import msgspec

from adapters.testing.conformance.dialect import CTX, Dialect, End, Piece, Trouble
from adapters.testing.peers.http import Answer, Call, json_answer
from adapters.vllm.adapter import VllmAdapter
from contracts.engine import EngineAdapter, EngineSpec

_TROUBLES: Final[dict[Trouble, tuple[int, str]]] = {
    "invalid": (400, "BadRequestError"),
    "too_long": (400, "BadRequestError"),
    "unauthorized": (401, "Unauthorized"),
    "overloaded": (429, "TooManyRequests"),
    "not_ready": (503, "ServiceUnavailableError"),
    "internal": (500, "InternalServerError"),
}


class VllmDialect(Dialect):
    """The adapter for vLLM against a peer."""

    engine = "vllm"
    lacks: ClassVar[Mapping[str, str]] = {
        "release_proof": "vLLM does not tell what it works on: the adapter has it compute a token after what was "
        "broken off, and only the real engine's order of work makes that a proof",
    }

    def create(self, spec: EngineSpec) -> EngineAdapter:
        return VllmAdapter(spec)

    def is_generation(self, call: Call) -> bool:
        return call.path == "/v1/completions" and b'"stream":true' in call.body

    def answer(self, call: Call, active: Sequence[bytes]) -> Answer:
        if call.path == "/health":
            return Answer(200)
        if call.path == "/version":
            return json_answer(200, {"version": "0-peer"})
        if call.path == "/v1/models":
            return json_answer(200, {"object": "list", "data": [{"id": "m", "max_model_len": CTX}]})
        if call.path == "/v1/completions":
            return json_answer(200, {"choices": [{"text": "x"}]})
        if call.path == "/tokenize":
            return json_answer(200, {"count": 3, "max_model_len": CTX, "tokens": [1, 2, 3]})
        if call.path == "/metrics":
            labels = '{engine="0",model_name="m"}'
            text = f"vllm:num_requests_running{labels} {len(active)}.0\nvllm:num_requests_waiting{labels} 0.0\n"
            return Answer(200, f"{text}vllm:generation_tokens_total{labels} 12.0\n".encode(), "text/plain")
        return json_answer(404, {"detail": "Not Found"})

    def payloads(self, pieces: Sequence[Piece], end: End | None) -> list[bytes]:
        frames: list[object] = []
        made = 0
        prompt_tokens = end.tokens_in if end else End().tokens_in
        for number, piece in enumerate(pieces, 1):
            made += piece.tokens
            choice: dict[str, object] = {"index": 0, "text": piece.text, "logprobs": None, "finish_reason": None}
            if end is not None and number == len(pieces):
                choice |= {"finish_reason": end.reason, "stop_reason": end.stop}
            frames.append(_event([choice], prompt_tokens, made))
        if end is None:
            return [msgspec.json.encode(frame) for frame in frames]
        return [*(msgspec.json.encode(frame) for frame in [*frames, _event([], prompt_tokens, made)]), b"[DONE]"]

    def refusal(self, trouble: Trouble) -> Answer | None:
        return json_answer(_TROUBLES[trouble][0], _error(trouble))

    def in_band(self, trouble: Trouble) -> bytes | None:
        return msgspec.json.encode(_error(trouble))

    def backwards(self) -> list[bytes] | None:
        last = self.payloads([Piece("d", 1)], End())
        return [*self.payloads([Piece("abc", 3)], None), *last]


def _event(choices: list[dict[str, object]], prompt_tokens: int, made: int) -> object:
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + made, "completion_tokens": made}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": choices, "usage": usage}


def _error(trouble: Trouble) -> object:
    code, kind = _TROUBLES[trouble]
    return {"error": {"message": f"a peer says {trouble}", "type": kind, "param": None, "code": code}}
