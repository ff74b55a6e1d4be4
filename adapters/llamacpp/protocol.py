"""llama-server's native HTTP API: request bodies, stream frames, errors, metrics (OC-ADAPT-5001)."""

import contextlib
import math
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct, field

from adapters.answers import UNREADABLE
from adapters.errors import engine_error, worker_reset
from adapters.profiles import parameters
from contracts.engine import EngineError, EngineMetrics, Finish, GenerateRequest

ENGINE: Final = "llamacpp"
#: What a server for embeddings says, with status 500, of an input that is over its batch.
TOO_LONG: Final = "is too large to process"

#: Of the last frame only these are asked for; unasked it repeats the whole prompt and all settings.
FINAL_FIELDS: Final = (
    "content",
    "stop",
    "stop_type",
    "stopping_word",
    "tokens_predicted",
    "tokens_evaluated",
    "timings/cache_n",
)


class WireError(Struct, frozen=True):
    """The engine's own error object."""

    message: str = ""
    type: str = ""
    code: int = 0


class Frame(Struct, frozen=True, gc=False):
    """One event of a completion stream. A frame may complete several tokens, or none.

    `tokens_predicted` counts all tokens so far; `cache_n` is how much of the prompt was reused.
    """

    content: str = ""
    stop: bool = False
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    stop_type: str = ""
    stopping_word: str = ""
    cache_n: int = field(name="timings/cache_n", default=0)
    error: WireError | None = None


class ErrorBody(Struct, frozen=True):
    error: WireError


class GenerationSettings(Struct, frozen=True):
    n_ctx: int


class Props(Struct, frozen=True):
    """`GET /props`; `n_ctx` is per slot."""

    total_slots: int
    build_info: str
    default_generation_settings: GenerationSettings
    model_path: str = ""
    bos_token: str = ""
    eos_token: str = ""


class Slot(Struct, frozen=True):
    """One entry of `GET /slots`."""

    id: int
    n_ctx: int
    is_processing: bool
    n_prompt_tokens: int = 0


class SavedSlot(Struct, frozen=True):
    """The answer to a slot's `save`."""

    n_saved: int
    n_written: int


class RestoredSlot(Struct, frozen=True):
    """The answer to a slot's `restore`."""

    n_restored: int


class Tokens(Struct, frozen=True):
    tokens: list[int]


class Templated(Struct, frozen=True):
    prompt: str


decode_frame = msgspec.json.Decoder(Frame).decode
decode_props = msgspec.json.Decoder(Props).decode
decode_slots = msgspec.json.Decoder(list[Slot]).decode
decode_saved = msgspec.json.Decoder(SavedSlot).decode
decode_restored = msgspec.json.Decoder(RestoredSlot).decode
decode_tokens = msgspec.json.Decoder(Tokens).decode
decode_templated = msgspec.json.Decoder(Templated).decode
_decode_error = msgspec.json.Decoder(ErrorBody).decode


def completion_body(
    request: GenerateRequest, prompt: str | list[int], slot: int, *, slot_known: bool = True
) -> dict[str, Any]:
    """Body of `POST /completion`. What a slot holds is not used where it is not known.

    Always streamed: the engine notices a closed connection only when it writes. `return_progress`
    makes it write during prefill too, so that a cancel is noticed there even while other slots
    stream (their results keep restarting the engine's own disconnect timer).
    """
    return {
        **parameters(ENGINE, request.sampler_profile_version, request.sampling, request.seed),
        "prompt": prompt,
        "n_predict": request.max_tokens,
        "id_slot": slot,
        "stream": True,
        "cache_prompt": slot_known and request.kv_hint != "cold",
        "return_progress": True,
        "response_fields": FINAL_FIELDS,
    }


def finish_of(frame: Frame) -> Finish:
    """The `Finish` that a last frame tells. Raises EngineError where it tells none."""
    reason: Literal["stop", "length"]
    if frame.stop_type in ("eos", "word"):
        reason = "stop"
    elif frame.stop_type == "limit":
        reason = "length"
    else:
        raise worker_reset(f"the engine ended the stream for no known reason ({frame.stop_type!r})", ENGINE)
    return Finish(
        finish_reason=reason,
        tokens_in=frame.tokens_evaluated,
        tokens_cached=frame.cache_n,
        stop_sequence=frame.stopping_word or None,
    )


def error_of(wire: WireError, status: int) -> EngineError:
    """Map the engine's error to the envelope's codes (ORCH-2006, ORCH-3025)."""
    is_too_long = wire.type == "exceed_context_size_error" or TOO_LONG in wire.message
    if is_too_long or status in (400, 404, 413, 422, 501):
        return engine_error("INVALID_PARAMS", f"the engine refused: {wire.message}", engine=ENGINE, retriable=False)
    if status == 503:
        return engine_error("POOL_UNREADY", f"the engine is not ready: {wire.message}", engine=ENGINE, retriable=True)
    if status in (401, 403):
        return engine_error("INTERNAL", "the engine refused its adapter's key", engine=ENGINE, retriable=False)
    return engine_error("INTERNAL", f"the engine failed: {wire.message}", engine=ENGINE, retriable=True)


def error_of_response(status: int, body: bytes) -> EngineError:
    """The error that a non-200 response carries, whatever its body looks like."""
    try:
        wire = _decode_error(body).error
    except UNREADABLE:
        wire = WireError(message=f"HTTP {status}")
    return error_of(wire, status)


_SAMPLE = re.compile(rb"^llamacpp:(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


def parse_metrics(text: bytes) -> dict[str, float]:
    """Samples of the engine's metrics page by name, without prefix and labels; what is no number is no sample."""
    samples = {}
    for name, value in _SAMPLE.findall(text):
        with contextlib.suppress(ValueError):
            samples[name.decode()] = float(value)
    return {name: value for name, value in samples.items() if math.isfinite(value)}


def metrics_of(samples: Mapping[str, float], slots: list[Slot]) -> EngineMetrics:
    """Map a scrape to the contract. Cache use is what the slots hold of what they can hold."""
    capacity = sum(slot.n_ctx for slot in slots)
    held = sum(min(slot.n_prompt_tokens, slot.n_ctx) for slot in slots)
    return EngineMetrics(
        requests_processing=_count(samples, "requests_processing"),
        requests_waiting=_count(samples, "requests_deferred"),
        kv_cache_usage_ratio=samples.get("kv_cache_usage_ratio", held / capacity if capacity else None),
        tokens_in_total=_count(samples, "prompt_tokens_total", "prompt_tokens_cached_total"),
        tokens_out_total=_count(samples, "tokens_predicted_total"),
    )


def _count(samples: Mapping[str, float], *names: str) -> int | None:
    found = [samples[name] for name in names if name in samples]
    return int(sum(found)) if found else None
