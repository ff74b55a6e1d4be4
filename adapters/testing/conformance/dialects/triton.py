"""Triton's wire over HTTP: `generate_stream`, as recorded from the real server."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import msgspec
from msgspec.structs import replace

from adapters.testing.conformance.dialect import CTX, Dialect, End, Piece, Trouble
from adapters.testing.peers.http import Answer, Call, json_answer
from adapters.triton.adapter import TritonAdapter
from contracts.engine import EngineAdapter, EngineSpec

_TROUBLES: Final[dict[Trouble, tuple[int, str]]] = {
    "invalid": (400, "expected number of inputs between 1 and 2 but got 0"),
    "too_long": (400, "Prompt length (5000) exceeds maximum input length (4096)"),
    "overloaded": (503, "Exceeds maximum queue size"),
    "not_ready": (404, "Request for unknown model: 'm' is not found"),
    "internal": (500, "the model failed for a reason of its own"),
}
_INPUTS: Final = {
    "text_input": "TYPE_STRING",
    "max_tokens": "TYPE_INT32",
    "seed": "TYPE_UINT64",
    "temperature": "TYPE_FP32",
    "stop_words": "TYPE_STRING",
    "stream": "TYPE_BOOL",
}
_OUTPUTS: Final = ("text_output", "finish_reason", "num_input_tokens", "num_output_tokens")


class TritonDialect(Dialect):
    """The adapter for Triton, told to use HTTP, against a peer. Over gRPC the frames are not this side's bytes."""

    engine = "triton"
    lacks: ClassVar[Mapping[str, str]] = {
        "end_marker": "over HTTP the regular end of the response is the end of the text",
        "running_count": "a response tells the tokens that it adds",
        "release_proof": "only TensorRT-LLM's backend tells how many requests it works on",
        "tokenizer": "Triton counts tokens only where the repository has a model that does",
    }

    def create(self, spec: EngineSpec) -> EngineAdapter:
        return TritonAdapter(spec)

    def spec(self, endpoint: str) -> EngineSpec:
        address = endpoint.removeprefix("http://")
        args = ("--llorch-transport=http", f"--llorch-metrics={address}")
        is_address = endpoint.startswith("unix:/") or address.rpartition(":")[2].isdecimal()
        return replace(super().spec(endpoint), args=args if is_address else args[:1])

    def is_generation(self, call: Call) -> bool:
        return call.path == "/v2/models/m/generate_stream"

    def answer(self, call: Call, active: Sequence[bytes]) -> Answer:
        if call.path in ("/v2/health/ready", "/v2/models/m/ready"):
            return Answer(200)
        if call.path == "/v2":
            return json_answer(200, {"name": "triton", "version": "0-peer"})
        if call.path == "/v2/repository/index":
            return json_answer(200, [{"name": "m", "version": "1", "state": "READY"}])
        if call.path == "/v2/models/m/config":
            return json_answer(200, _config())
        if call.path == "/metrics":
            text = 'nv_inference_pending_request_count{model="m",version="1"} 0\n'
            return Answer(200, text.encode(), "text/plain")
        del active
        return json_answer(404, {"error": "there is nothing at this path"})

    def payloads(self, pieces: Sequence[Piece], end: End | None) -> list[bytes]:
        frames = []
        for number, piece in enumerate(pieces, 1):
            is_last = end is not None and number == len(pieces)
            frames.append(
                msgspec.json.encode(
                    {
                        "model_name": "m",
                        "model_version": "1",
                        # Stop words are left in the text.
                        "text_output": piece.text + ((end.stop or "") if is_last and end else ""),
                        "num_output_tokens": piece.tokens,
                        "num_input_tokens": end.tokens_in if end else 0,
                        "finish_reason": end.reason if is_last and end else "",
                    }
                )
            )
        return frames

    def refusal(self, trouble: Trouble) -> Answer | None:
        if trouble not in _TROUBLES:
            return None
        return json_answer(_TROUBLES[trouble][0], _error(trouble))

    def in_band(self, trouble: Trouble) -> bytes | None:
        # What the server itself refuses never comes as a frame.
        told = trouble in _TROUBLES and trouble not in ("invalid", "not_ready", "overloaded")
        return msgspec.json.encode(_error(trouble)) if told else None


def _config() -> object:
    return {
        "name": "m",
        "backend": "python",
        "max_batch_size": 0,
        "input": [{"name": name, "data_type": kind, "dims": [1]} for name, kind in _INPUTS.items()],
        "output": [{"name": name, "data_type": "TYPE_STRING", "dims": [-1]} for name in _OUTPUTS],
        "parameters": {"max_seq_len": {"string_value": str(CTX)}, "batch_invariant": {"string_value": "true"}},
        "model_transaction_policy": {"decoupled": True},
    }


def _error(trouble: Trouble) -> object:
    return {"error": _TROUBLES[trouble][1]}
