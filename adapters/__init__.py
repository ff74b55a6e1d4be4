"""Engines behind one protocol (OC-ADAPT-5001): an explicit registry, no discovery and no side effects."""

from typing import Final

from adapters import triton
from adapters.errors import engine_error
from adapters.llamacpp import LlamaCppAdapter
from adapters.tgi import TgiAdapter
from adapters.vllm import VllmAdapter
from contracts.engine import AdapterFactory, EngineAdapter, EngineSpec

ENGINES: Final[dict[str, AdapterFactory]] = {
    "llamacpp": LlamaCppAdapter,
    "tgi": TgiAdapter,
    "triton": triton.create,
    "vllm": VllmAdapter,
}


def create_adapter(spec: EngineSpec) -> EngineAdapter:
    """The adapter of `spec.engine`. Raises EngineError (INVALID_PARAMS) for an engine without one."""
    factory = ENGINES.get(spec.engine)
    if factory is None:
        known = ", ".join(sorted(ENGINES))
        raise engine_error(
            "INVALID_PARAMS",
            f"pool {spec.pool_id} names engine {spec.engine!r}, which this release cannot run; use one of: {known}",
            engine=spec.engine,
            retriable=False,
        )
    return factory(spec)
