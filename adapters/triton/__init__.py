"""Triton: one `tritonserver` per replica, over gRPC or HTTP; in beta, `trtllm-serve` in its place."""

from adapters.triton.adapter import TritonAdapter
from adapters.triton.options import read_options
from adapters.triton.trtllm_serve import TrtllmServeAdapter
from contracts.engine import EngineAdapter, EngineSpec

__all__ = ["TritonAdapter", "create"]


def create(spec: EngineSpec) -> EngineAdapter:
    """The adapter of the mode that the spec's arguments name. Raises EngineError (INVALID_PARAMS)."""
    return TrtllmServeAdapter(spec) if read_options(spec).mode == "trtllm-serve" else TritonAdapter(spec)
