"""llama.cpp behind the engine protocol, over the native API of its `llama-server`."""

from adapters.llamacpp.adapter import LlamaCppAdapter

__all__ = ["LlamaCppAdapter"]
