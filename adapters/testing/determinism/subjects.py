"""Engines that this suite brings up by itself for development, and how another one is described to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from contracts.engine import EngineSpec

T = TypeVar("T")

_MODEL: Final = "smollm2-135m-instruct"
_TRITON_REPOSITORY: Final = Path(__file__).resolve().parents[1] / "triton_repository"
_SLOTS: Final = 8
_READY_TIMEOUT_MS: Final = 600_000


class Changes(Struct, frozen=True):
    """What of an engine's default is to be otherwise; empty values change nothing.

    `endpoints` are those of A and B, `devices` their GPU masks; one entry counts for both.
    """

    model: str = ""
    model_path: str = ""
    binary: str = ""
    ctx: int = 0
    slots: int = 0
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    batch_invariant: bool | None = None
    accelerator: str = ""
    devices: tuple[tuple[str, ...], ...] = ()
    endpoints: tuple[str, ...] = ()
    api_key_env: str = ""


def specs_of(engine: str, changes: Changes) -> tuple[EngineSpec, EngineSpec]:
    """Replicas A and B. Raises ValueError for an engine without a default that is not described in full."""
    if changes.model and (changes.model_path or changes.endpoints):
        spec = _spec(engine, changes.model, changes.model_path, changes.ctx or 1024)
    elif engine in SUBJECTS:
        spec = SUBJECTS[engine]
    else:
        known = ", ".join(SUBJECTS)
        raise ValueError(f"{engine} has no default here ({known} have): give --model with --model-path or --endpoint")
    given = {
        name: value
        for name in ("model", "model_path", "binary", "ctx", "slots", "args", "env", "accelerator", "api_key_env")
        if (value := getattr(changes, name))
    }
    spec = replace(spec, **given, batch_invariant=changes.batch_invariant)
    return _replica(spec, changes, 0), _replica(spec, changes, 1)


def _replica(spec: EngineSpec, changes: Changes, index: int) -> EngineSpec:
    return replace(
        spec,
        replica_id=f"determinism-{index}",
        devices=_nth(changes.devices, index, ()),
        endpoint=_nth(changes.endpoints, index, ""),
    )


def _nth(given: Sequence[T], index: int, default: T) -> T:
    return given[min(index, len(given) - 1)] if given else default


def _spec(engine: str, model: str, model_path: str, ctx: int) -> EngineSpec:
    return EngineSpec(
        engine=engine,
        pool_id="determinism",
        replica_id="",
        model=model,
        model_path=model_path,
        ctx=ctx,
        slots=_SLOTS,
        accelerator="cpu-dev",
        ready_timeout_ms=_READY_TIMEOUT_MS,
    )


#: What an engine runs by default. Paths that are left open are the adapter's to find, or to make on first use.
SUBJECTS: Final[dict[str, EngineSpec]] = {
    "llamacpp": _spec("llamacpp", _MODEL, "", 1024),
    # A real server with the project's own toy model.
    "triton": _spec("triton", "llorch_text", str(_TRITON_REPOSITORY), 4096),
    # vLLM for the CPU, with the same model as llama.cpp, converted.
    "vllm": _spec("vllm", _MODEL, "", 1024),
}
