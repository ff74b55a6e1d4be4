"""TGI's HTTP API: request bodies, stream frames, errors (OC-ADAPT-5001).

Sources: TGI's OpenAPI document and router, 3.3.6-dev0. A stream is answered with HTTP 200 whatever becomes of it:
refusals and failures come as frames, although the document says otherwise.
"""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from adapters.answers import UNREADABLE
from adapters.errors import engine_error, worker_reset
from adapters.faults import classify
from adapters.profiles import parameters
from contracts.engine import EngineError, GenerateRequest

ENGINE: Final = "tgi"

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Token(Struct, frozen=True, gc=False):
    """One generated token. The text of an incomplete character is empty and comes with its last token."""

    text: str
    special: bool = False


class Details(Struct, frozen=True, gc=False):
    """How a generation ended, told with its last token."""

    finish_reason: str
    generated_tokens: Count
    input_length: Count


class Frame(Struct, frozen=True, gc=False):
    """One event of a stream: a token, the last one with `details`, or an error.

    The last frame's `generated_text` is not read: it is empty where the text ends amid a character.
    """

    token: Token | None = None
    details: Details | None = None
    error: str | None = None
    error_type: str = ""


class ErrorBody(Struct, frozen=True):
    """The engine's own error object."""

    error: str
    error_type: str = ""


class Info(Struct, frozen=True):
    """`GET /info`. `sha` is the commit of the server, `model_sha` the revision of the model."""

    model_id: str
    version: str
    max_total_tokens: Count
    max_concurrent_requests: Count
    model_sha: str | None = None
    sha: str | None = None
    docker_label: str | None = None

    @property
    def engine_version(self) -> str:
        """The version with the image or else the commit that it was built from, where it tells."""
        build = self.docker_label or self.sha
        return f"tgi {self.version} ({build})" if build else f"tgi {self.version}"


class PromptToken(Struct, frozen=True):
    """One token of a prompt; its text is what it covers of the prompt, empty for a token that was added."""

    id: int
    text: str = ""


class Templated(Struct, frozen=True):
    """`POST /chat_tokenize`: the conversation as the model's template renders it, tokenized as it stands."""

    templated_text: str
    tokenize_response: list[PromptToken]


decode_frame = msgspec.json.Decoder(Frame).decode
decode_info = msgspec.json.Decoder(Info).decode
decode_tokens = msgspec.json.Decoder(list[PromptToken]).decode
decode_templated = msgspec.json.Decoder(Templated).decode
_decode_error = msgspec.json.Decoder(ErrorBody).decode

_INVALID: Final = ("validation", "template_error", "missing_template_variable", "tool_error")
_INCOMPLETE: Final = ("incomplete_generation", "incomplete_generation_stream")
_TYPE_OF_STATUS: Final = {
    400: "validation",
    404: "validation",
    413: "validation",
    415: "validation",
    422: "validation",
    429: "overloaded",
    503: "healthcheck",
}


def generate_body(request: GenerateRequest, prompt: str) -> dict[str, Any]:
    """Body of `POST /generate_stream`."""
    told = parameters(ENGINE, request.sampler_profile_version, request.sampling, request.seed)
    return {"inputs": prompt, "parameters": {**told, "max_new_tokens": request.max_tokens}}


def error_of(message: str, error_type: str) -> EngineError:
    """Map the engine's error to the envelope's codes (ORCH-2006, ORCH-3025)."""
    if error_type in _INVALID:
        return invalid(f"the engine refused: {message}")
    if error_type == "overloaded":
        return engine_error("REPLICA_EXHAUSTED", f"the engine refused: {message}", engine=ENGINE, retriable=True)
    if error_type == "healthcheck":
        return engine_error("POOL_UNREADY", f"the engine is not ready: {message}", engine=ENGINE, retriable=True)
    if error_type in _INCOMPLETE:
        return worker_reset(f"the engine broke off: {message}", ENGINE)
    fault = classify(None, (message,))
    return engine_error(
        "INTERNAL",
        f"the engine failed: {message}",
        engine=ENGINE,
        retriable=True,
        kind="launch" if fault == "exit" else fault,
    )


def error_of_response(status: int, body: bytes) -> EngineError:
    """The error that a non-200 response carries, whatever its body looks like."""
    if status in (401, 403):
        return engine_error(
            "INTERNAL", "the engine refused the key; correct what `api_key_env` names", engine=ENGINE, retriable=False
        )
    try:
        told = _decode_error(body)
    except UNREADABLE:
        # What comes from the server's framework is plain text.
        told = ErrorBody(body[:500].decode(errors="replace") or f"HTTP {status}")
    return error_of(told.error, told.error_type or _TYPE_OF_STATUS.get(status, ""))


def invalid(message: str) -> EngineError:
    """A request that this engine cannot serve, now or later."""
    return engine_error("INVALID_PARAMS", message, engine=ENGINE, retriable=False)
