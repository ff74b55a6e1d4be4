"""Triton's HTTP API as far as the adapter uses it: metadata, model configuration, errors, metrics (OC-ADAPT-5060)."""

import math
import re
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from adapters.answers import UNREADABLE
from adapters.errors import engine_error, worker_reset
from adapters.faults import classify
from contracts.engine import EngineError, EngineMetrics

ENGINE: Final = "triton"


class Tensor(Struct, frozen=True):
    """A declared input or output. `data_type` is as configurations name it, such as `TYPE_INT32`."""

    name: str
    data_type: str = ""
    dims: list[int] = []
    optional: bool = False


class Parameter(Struct, frozen=True):
    """A model's own parameter in its configuration."""

    string_value: str = ""


class TransactionPolicy(Struct, frozen=True):
    decoupled: bool = False


class ModelConfig(Struct, frozen=True):
    """`GET /v2/models/NAME/config`."""

    name: str = ""
    backend: str = ""
    max_batch_size: int = 0
    input: list[Tensor] = []
    output: list[Tensor] = []
    parameters: dict[str, Parameter] = {}
    model_transaction_policy: TransactionPolicy = TransactionPolicy()

    def parameter(self, name: str) -> str:
        """A parameter's text, empty where it is not set."""
        return self.parameters[name].string_value if name in self.parameters else ""

    def has_output(self, name: str) -> bool:
        return any(tensor.name == name for tensor in self.output)

    @property
    def batch_invariant(self) -> bool:
        """Whether the model declares that what runs beside a request does not change its tokens (ORCH-3045)."""
        seeded = any(tensor.name in ("seed", "random_seed") for tensor in self.input)
        return self.parameter("batch_invariant").lower() == "true" and (seeded or not self.has_output("text_output"))


class ServerMetadata(Struct, frozen=True):
    """`GET /v2`."""

    version: str = ""


class IndexEntry(Struct, frozen=True):
    """One model of `POST /v2/repository/index`."""

    name: str
    state: str = ""
    reason: str = ""


class ErrorBody(Struct, frozen=True):
    error: str


decode_config: Final = msgspec.json.Decoder(ModelConfig).decode
decode_metadata: Final = msgspec.json.Decoder(ServerMetadata).decode
decode_index: Final = msgspec.json.Decoder(list[IndexEntry]).decode
_decode_error: Final = msgspec.json.Decoder(ErrorBody).decode

#: A model of the Python backend whose process has died; the server goes on calling itself ready.
_DEAD: Final = re.compile(r"\bStub process\b.*\bnot healthy\b", re.IGNORECASE)
_NOT_LOADED: Final = re.compile(r"\bunknown model\b|\bis not found\b|\bis not ready\b|\bhas no available versions\b")
_FULL: Final = re.compile(r"\b[Ee]xceeds maximum queue size\b|\b[Qq]ueue is full\b|\bServer is stopping\b")
_CANCELED: Final = re.compile(r"\bcancell?ed\b", re.IGNORECASE)
#: What a request can be changed for: the server's own checks of inputs, and lengths as TensorRT-LLM words them.
_REQUEST: Final = re.compile(
    r"\bexpected number of inputs\b|\bunexpected (?:inference input|shape|datatype)\b|\bmissing required input"
    r"|\bexceed(?:s|ed)? (?:the )?max|\b[Pp]rompt length\b.*\bexceed|\bmax_seq_len\b"
    r"|\bmaximum (?:input|sequence) length\b"
)


def is_dead(message: str) -> bool:
    """Whether the message tells that the model's process has died and will not come back."""
    return _DEAD.search(message) is not None


def error_of(message: str, *, refused: bool = False) -> EngineError:
    """What an error message of the server or of a model means (ORCH-2006, ORCH-3025).

    gRPC streams and the first response of a stream over HTTP tell no code of their own, so it is read from the
    words. `refused`: the server itself took the request for a wrong one.
    """
    if is_dead(message):
        return worker_reset(f"the model's process has died: {message}", ENGINE)
    if _NOT_LOADED.search(message):
        return engine_error("POOL_UNREADY", f"the engine is not ready: {message}", engine=ENGINE, retriable=True)
    if _FULL.search(message):
        return engine_error("REPLICA_EXHAUSTED", f"the engine is full: {message}", engine=ENGINE, retriable=True)
    if refused or _REQUEST.search(message):
        return engine_error("INVALID_PARAMS", f"the engine refused: {message}", engine=ENGINE, retriable=False)
    if _CANCELED.search(message):
        return worker_reset(f"the engine broke off: {message}", ENGINE)
    kind = classify(None, (message,))
    return engine_error("INTERNAL", f"the engine failed: {message}", engine=ENGINE, retriable=True, kind=kind)


def error_of_response(status: int, body: bytes) -> EngineError:
    """The error that an answer other than 200 carries, whatever its body looks like.

    A 400 may be the server's refusal, as JSON, or the first word of a model, as an event of a stream.
    """
    of_model = body.startswith(b"data:")
    try:
        message = _decode_error(body[5:].strip() if of_model else body).error
    except UNREADABLE:
        message = f"HTTP {status}"
    if status in (401, 403):
        return engine_error("INTERNAL", "the engine refused its adapter's key", engine=ENGINE, retriable=False)
    if status in (404, 503) and not of_model and not _FULL.search(message):
        return engine_error("POOL_UNREADY", f"the engine is not ready: {message}", engine=ENGINE, retriable=True)
    return error_of(message, refused=status in (400, 413, 422, 501) and not of_model)


#: Codes of gRPC: INVALID_ARGUMENT, then PERMISSION_DENIED and UNAUTHENTICATED.
_INVALID: Final = 3
_FORBIDDEN: Final = (7, 16)


def error_of_status(code: int, message: str) -> EngineError:
    """What a call's outcome other than success means. What went wrong with a text comes as a message, not so."""
    if code in _FORBIDDEN:
        return engine_error("INTERNAL", "the engine refused its adapter's key", engine=ENGINE, retriable=False)
    if code == _INVALID:
        return error_of(message, refused=True)
    return worker_reset(f"the engine ended the call with gRPC code {code}: {message or 'no reason'}", ENGINE)


_SAMPLE: Final = re.compile(rb"^(nv_\w+)\{([^}\n]*)\} (\S+)$", re.MULTILINE)
_TRTLLM: Final = b"nv_trt_llm_"
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')

#: Sample by name and by those of its labels that are neither model nor version.
Samples = Mapping[tuple[str, tuple[str, ...]], float]


def parse_metrics(text: bytes, model: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """One model's samples of the metrics page, all versions together.

    What TensorRT-LLM's backend tells goes by the name of the model that it runs, which a model such as
    `tensorrt_llm_bls` only calls: where a model has none of that, it is what all others have.
    """
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    of_others: dict[tuple[str, tuple[str, ...]], float] = {}
    for name, told, value in _SAMPLE.findall(text):
        labels = dict(_LABEL.findall(told.decode(errors="replace")))
        own = labels.pop("model", model) == model
        if not own and not name.startswith(_TRTLLM):
            continue
        labels.pop("version", None)
        key = (name.decode(), tuple(labels.values()))
        try:
            number = float(value)
        except ValueError:
            continue
        if math.isfinite(number):
            into = found if own else of_others
            into[key] = into.get(key, 0.0) + number
    return {**of_others, **found}


def active_requests(samples: Samples) -> int | None:
    """Requests that the model works on, as TensorRT-LLM's backend tells; Triton itself counts only those that wait."""
    active = samples.get(("nv_trt_llm_request_metrics", ("active",)))
    return None if active is None else int(active)


def waiting_requests(samples: Samples) -> int | None:
    waiting = samples.get(("nv_inference_pending_request_count", ()))
    return None if waiting is None else int(waiting)


def metrics_of(samples: Samples, live: int) -> EngineMetrics:
    """Map a scrape to the contract. Triton counts no tokens.

    A model that does not tell how many requests it works on is taken to work on the `live` ones of this adapter.
    """
    active = active_requests(samples)
    used = samples.get(("nv_trt_llm_kv_cache_block_metrics", ("used",)))
    most = samples.get(("nv_trt_llm_kv_cache_block_metrics", ("max",)))
    return EngineMetrics(
        requests_processing=live if active is None else active,
        requests_waiting=waiting_requests(samples),
        kv_cache_usage_ratio=used / most if used is not None and most else None,
    )
