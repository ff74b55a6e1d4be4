"""vLLM behind the engine protocol, over its OpenAI-compatible server."""

from adapters.vllm.adapter import VllmAdapter

__all__ = ["VllmAdapter"]
