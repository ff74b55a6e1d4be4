"""vLLM's OpenAI-compatible HTTP API: request bodies, stream frames, errors, metrics (OC-ADAPT-5001).

Sources: the OpenAPI document and recorded answers of vLLM 0.32.
"""

import hashlib
import re
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from adapters.answers import UNREADABLE
from adapters.errors import engine_error, worker_reset
from adapters.faults import classify
from adapters.profiles import parameters
from contracts.engine import EngineError, EngineMetrics, EngineSpec, Finish, GenerateRequest

ENGINE: Final = "vllm"

_DONE: Final = b"[DONE]"


class WireError(Struct, frozen=True, gc=False):
    """The engine's own error object."""

    message: str = ""
    type: str = ""
    code: int | None = None


class PromptDetails(Struct, frozen=True, gc=False):
    cached_tokens: int | None = None


class Usage(Struct, frozen=True, gc=False):
    """Tokens so far; the details are in the last one alone, and only where the server was started for them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None


class Choice(Struct, frozen=True, gc=False):
    """`stop_reason` is the stop string that matched, or the id of a stop token."""

    text: str = ""
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Frame(Struct, frozen=True, gc=False):
    """One event of a completion stream: text, then the usage with no choices, then `done`; or an error."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: WireError | None = None
    done: bool = False


class ErrorBody(Struct, frozen=True):
    error: WireError | str


class Tokens(Struct, frozen=True):
    tokens: list[int]


class ServedModel(Struct, frozen=True):
    id: str
    max_model_len: int | None = None


class ServedModels(Struct, frozen=True):
    data: list[ServedModel]


class Version(Struct, frozen=True):
    version: str


_END: Final = Frame(done=True)
_decode_event = msgspec.json.Decoder(Frame).decode
_decode_error = msgspec.json.Decoder(ErrorBody).decode
decode_tokens = msgspec.json.Decoder(Tokens).decode
decode_models = msgspec.json.Decoder(ServedModels).decode
decode_version = msgspec.json.Decoder(Version).decode


def decode_frame(payload: bytes) -> Frame:
    """Raises msgspec.DecodeError."""
    return _END if payload == _DONE else _decode_event(payload)


def completion_body(
    spec: EngineSpec, attempt_key: str, request: GenerateRequest, prompt: str | list[int]
) -> dict[str, Any]:
    """Body of `POST /v1/completions`.

    Usage comes with every frame, because a frame is not a token. A salt of its own keeps a request from the prefix
    cache: a prompt that is partly computed already takes batches of other shapes, which round differently.
    """
    body: dict[str, Any] = {
        **parameters(ENGINE, request.sampler_profile_version, request.sampling, request.seed),
        "model": spec.model,
        "prompt": prompt,
        "max_tokens": request.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "request_id": attempt_key,
    }
    if spec.determinism == "strict" or request.kv_hint == "cold":
        # The engine takes no "/" in a salt.
        body["cache_salt"] = hashlib.sha256(attempt_key.encode()).hexdigest()
    return body


def finish_of(choice: Choice, usage: Usage) -> Finish:
    """The `Finish` that the last frames tell. Raises EngineError where they tell none."""
    reason: Literal["stop", "length"]
    if choice.finish_reason == "stop":
        reason = "stop"
    elif choice.finish_reason == "length":
        reason = "length"
    else:
        raise worker_reset(f"the engine ended the stream for no known reason ({choice.finish_reason!r})", ENGINE)
    details = usage.prompt_tokens_details
    return Finish(
        finish_reason=reason,
        tokens_in=usage.prompt_tokens,
        tokens_cached=(details.cached_tokens or 0) if details else 0,
        stop_sequence=choice.stop_reason if isinstance(choice.stop_reason, str) else None,
    )


def error_of(wire: WireError, status: int) -> EngineError:
    """Map the engine's error to the envelope's codes (ORCH-2006, ORCH-3025). `status` may come within a stream."""
    if status in (400, 404, 413, 422, 501):
        return engine_error("INVALID_PARAMS", f"the engine refused: {wire.message}", engine=ENGINE, retriable=False)
    if status in (401, 403):
        return engine_error("INTERNAL", "the engine refused its adapter's key", engine=ENGINE, retriable=False)
    if status == 429:
        return engine_error("REPLICA_EXHAUSTED", f"the engine is full: {wire.message}", engine=ENGINE, retriable=True)
    if status == 503:
        return engine_error("POOL_UNREADY", f"the engine is not ready: {wire.message}", engine=ENGINE, retriable=True)
    kind = classify(None, (wire.message,))
    return engine_error("INTERNAL", f"the engine failed: {wire.message}", engine=ENGINE, retriable=True, kind=kind)


def error_of_response(status: int, body: bytes) -> EngineError:
    """The error that a non-200 response carries, whatever its body looks like."""
    try:
        told = _decode_error(body).error
    except UNREADABLE:
        told = f"HTTP {status}"
    return error_of(told if isinstance(told, WireError) else WireError(message=told), status)


_SAMPLE: Final = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|prompt_tokens_total|"
    rb"generation_tokens_total)(?:\{[^}\n]*\})? ([0-9.eE+-]{1,32})$",
    re.MULTILINE,
)


def metrics_of(page: bytes) -> EngineMetrics:
    """Map the metrics page to the contract. Engines of one server are summed; of their caches the fullest counts.

    The gauges are of the last step that ended: a request in its first long prefill step does not show yet.
    """
    samples: dict[bytes, list[float]] = {}
    for name, value in _SAMPLE.findall(page):
        try:
            samples.setdefault(name, []).append(float(value))
        except ValueError:
            continue
    usage = samples.get(b"kv_cache_usage_perc")
    return EngineMetrics(
        requests_processing=_count(samples, b"num_requests_running"),
        requests_waiting=_count(samples, b"num_requests_waiting"),
        kv_cache_usage_ratio=max(usage) if usage else None,
        tokens_in_total=_count(samples, b"prompt_tokens_total"),
        tokens_out_total=_count(samples, b"generation_tokens_total"),
    )


def _count(samples: dict[bytes, list[float]], name: bytes) -> int | None:
    values = samples.get(name)
    return int(min(sum(values), 2.0**63)) if values else None
