"""Triton: one `tritonserver` per replica, over gRPC or HTTP."""

from adapters.triton.adapter import TritonAdapter

__all__ = ["TritonAdapter"]
