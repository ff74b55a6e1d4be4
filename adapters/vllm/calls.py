"""The calls that the adapter makes of a vLLM server, decoded. All raise EngineError."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from adapters.answers import decoded
from adapters.errors import engine_error
from adapters.http_client import EngineClient
from adapters.vllm import protocol
from adapters.vllm.protocol import ENGINE, ServedModel
from contracts.api import Message, Workload
from contracts.engine import EngineMetrics

#: A first computation on a cold engine compiles kernels.
_PROBE_TIMEOUT_S: Final = 120.0


async def version(client: EngineClient) -> str:
    return decoded(protocol.decode_version, await client.call("GET", "/version"), "/version", ENGINE).version


async def served_model(client: EngineClient, model: str) -> ServedModel:
    """What the server says of `model`. Raises EngineError (POOL_UNREADY, kind `model`) where it serves others."""
    served = decoded(protocol.decode_models, await client.call("GET", "/v1/models"), "/v1/models", ENGINE).data
    found = next((entry for entry in served if entry.id == model), None)
    if found is None:
        names = ", ".join(repr(entry.id) for entry in served[:8]) or "none"
        message = f"the engine serves {names} and not {model!r}; start it with `--served-model-name {model}`"
        raise engine_error("POOL_UNREADY", message, engine=ENGINE, retriable=True, kind="model")
    return found


async def metrics(client: EngineClient) -> EngineMetrics:
    return protocol.metrics_of(await client.call("GET", "/metrics"))


async def tokenize(client: EngineClient, model: str, text: str) -> list[int]:
    """Token ids just as a completion makes them of a prompt, special tokens included."""
    return await _tokens(client, {"model": model, "prompt": text})


async def templated(client: EngineClient, model: str, messages: Sequence[Message]) -> list[int]:
    """Token ids of what the model's own chat template makes of `messages`."""
    told = [msgspec.to_builtins(message) for message in messages]
    return await _tokens(client, {"model": model, "messages": told, "add_generation_prompt": True})


async def compute_one(
    client: EngineClient, model: str, workload: Workload, *, timeout_s: float = _PROBE_TIMEOUT_S
) -> None:
    """Have the engine compute one token, embedding or score for nobody, by the route that `workload` is served by.

    A server has the routes of its model only: one of a cross-encoder gives no embeddings.
    """
    body: dict[str, Any]
    if workload == "rerank":
        path, body = "/v1/score", {"queries": "a", "documents": ["a"]}
    elif workload == "embedding":
        path, body = "/v1/embeddings", {"input": "a"}
    else:
        path, body = "/v1/completions", {"prompt": "a", "max_tokens": 1, "temperature": 0.0}
    await client.call("POST", path, {"model": model, **body}, timeout_s=timeout_s)


async def _tokens(client: EngineClient, body: dict[str, Any]) -> list[int]:
    answer = await client.call("POST", "/tokenize", body)
    return decoded(protocol.decode_tokens, answer, "/tokenize", ENGINE).tokens
