"""What a pool's extra arguments tell vLLM, as far as it changes what the engine takes (ORCH-3003, ORCH-3020)."""

import re
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from adapters.answers import UNREADABLE
from adapters.arguments import last_value
from adapters.errors import engine_error
from adapters.vllm.model import TextConfig
from adapters.vllm.protocol import ENGINE
from contracts.engine import EngineError, EngineSpec

_VALUE_BYTES: Final = {"half": 2, "float16": 2, "bfloat16": 2, "float": 4, "float32": 4}
#: Other types of the KV cache are narrower than 16 bits, but keep scales: they count as 16 bits.
_KV_BYTE_TYPES: Final = ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc")
#: Methods that guess from the text itself, without weights.
_WITHOUT_MODEL: Final = ("ngram", "ngram_gpu", "suffix")
_CONFIG: Final = ("--speculative-config", "-sc")
_COUNT: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)([kmgtKMGT]?)")
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Draft(Struct, frozen=True):
    """A draft model: its folder, and whether every GPU has all of it."""

    folder: str
    is_on_each_gpu: bool = False


class _Speculation(Struct, frozen=True):
    """What of `--speculative-config` says which weights it takes."""

    model: str | None = None
    method: str | None = None
    draft_tensor_parallel_size: Annotated[int, Meta(ge=1)] | None = None


_decode_speculation = msgspec.json.Decoder(_Speculation).decode


def context_tokens(spec: EngineSpec) -> int:
    """The longest context: the pool's, unless `--max-model-len` says another one. Raises EngineError."""
    return _count(spec, "--max-model-len") or spec.ctx


def told_kv_cache_bytes(spec: EngineSpec) -> int | None:
    """The KV cache of one GPU where the pool's arguments say it. Raises EngineError."""
    return _count(spec, "--kv-cache-memory-bytes")


def value_bytes(spec: EngineSpec, config: TextConfig) -> int:
    """Of a weight as the engine computes with it: what `--dtype` says, else 32 bits on the CPU and the model's own.

    Raises EngineError (INVALID_PARAMS).
    """
    told = _told(spec, "--dtype")
    if told is None and spec.accelerator == "cpu-dev":
        return 4
    if told is None or told == "auto":
        return min(config.value_bytes, 2)
    if told not in _VALUE_BYTES:
        raise _refused(spec, "--dtype", told, f"say one of auto, {', '.join(_VALUE_BYTES)}")
    return _VALUE_BYTES[told]


def kv_value_bytes(spec: EngineSpec, config: TextConfig) -> int:
    """Of a value in the KV cache, at most: what `--kv-cache-dtype` says, else as weights. Raises EngineError."""
    told = _told(spec, "--kv-cache-dtype")
    if told is None or told == "auto":
        return value_bytes(spec, config)
    return 1 if told in _KV_BYTE_TYPES else 2


def draft(spec: EngineSpec) -> Draft | None:
    """The draft model that the pool's arguments ask for.

    Raises EngineError (INVALID_PARAMS) for one whose size cannot be found out before the launch.
    """
    name, told = _CONFIG[0], _told(spec, *_CONFIG)
    try:
        said = _Speculation() if told is None else _decode_speculation(told.encode())
    except UNREADABLE as error:
        raise _refused(spec, name, str(told), f"give JSON that can be read ({error})") from None
    model = _told(spec, "--spec-model", *(f"{each}.model" for each in _CONFIG)) or said.model
    method = _told(spec, "--spec-method", *(f"{each}.method" for each in _CONFIG)) or said.method
    is_asked_for = told is not None or model is not None or method is not None
    if not is_asked_for or method in _WITHOUT_MODEL:
        return None
    if model is None or not Path(model).is_dir():
        remedy = "give the draft model's folder as `model`, so that its memory can be reckoned"
        raise _refused(spec, name, f"model {model!r}, method {method!r}", remedy)
    return Draft(model, is_on_each_gpu=said.draft_tensor_parallel_size == 1)


def _told(spec: EngineSpec, *names: str) -> str | None:
    """The last value of one of `names`. The engine takes underscores in names as well."""
    return last_value([_dashed(argument) for argument in spec.args], *names)


def _dashed(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _count(spec: EngineSpec, name: str) -> int | None:
    """A number as the engine reads it: 1k is 1000, 1K is 1024."""
    told = _told(spec, name)
    if told is None:
        return None
    match = _COUNT.fullmatch(told)
    value = 0 if match is None else _scaled(*match.groups())
    if value < 1:
        raise _refused(spec, name, told, "say a number, so that its memory can be reckoned")
    return value


def _scaled(number: str, unit: str) -> int:
    base = 1024 if unit.isupper() else 1000
    return int(float(number) * base ** _POWERS[unit.lower()])


def _refused(spec: EngineSpec, name: str, told: str, remedy: str) -> EngineError:
    message = f"pool {spec.pool_id} gives vLLM {name} {told}; {remedy}"
    return engine_error("INVALID_PARAMS", message, engine=ENGINE, retriable=False)
