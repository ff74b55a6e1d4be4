"""TGI (Text Generation Inference) behind the engine protocol, over its own `/generate_stream` API."""

from adapters.tgi.adapter import TgiAdapter

__all__ = ["TgiAdapter"]
