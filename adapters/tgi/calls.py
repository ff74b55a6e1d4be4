"""The calls that the adapter makes of a TGI server, decoded. All raise EngineError."""

import msgspec

from adapters.answers import decoded
from adapters.http_client import EngineClient
from adapters.tgi.metrics import parse_metrics
from adapters.tgi.protocol import (
    ENGINE,
    Info,
    PromptToken,
    Templated,
    decode_info,
    decode_templated,
    decode_tokens,
)
from contracts.api import Message


async def info(client: EngineClient) -> Info:
    return decoded(decode_info, await client.call("GET", "/info"), "/info", ENGINE)


async def metrics(client: EngineClient) -> dict[str, float]:
    """Samples of the metrics page by name."""
    return parse_metrics(await client.call("GET", "/metrics"))


async def tokenize(client: EngineClient, text: str) -> list[PromptToken]:
    """Tokens just as `/generate_stream` makes them of a prompt, special tokens added."""
    return decoded(decode_tokens, await client.call("POST", "/tokenize", {"inputs": text}), "/tokenize", ENGINE)


async def chat_tokenize(client: EngineClient, messages: list[Message]) -> Templated:
    """The prompt that the model's own chat template makes of `messages`, and its tokens, none added."""
    body = {"messages": [msgspec.to_builtins(message) for message in messages]}
    return decoded(decode_templated, await client.call("POST", "/chat_tokenize", body), "/chat_tokenize", ENGINE)
