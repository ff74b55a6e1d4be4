"""The calls that the adapter makes of a llama-server, decoded. All raise EngineError."""

from adapters.http_client import EngineClient
from adapters.llamacpp import protocol


async def props(client: EngineClient) -> protocol.Props:
    return protocol.decode_props(await client.call("GET", "/props"))


async def slots(client: EngineClient) -> list[protocol.Slot]:
    return protocol.decode_slots(await client.call("GET", "/slots"))


async def metrics(client: EngineClient) -> dict[str, float]:
    return protocol.parse_metrics(await client.call("GET", "/metrics"))


async def tokenize(client: EngineClient, text: str, *, add_special: bool = True) -> list[int]:
    """Token ids just as `/completion` makes them of a prompt: special tokens parsed, and added by default."""
    body = {"content": text, "add_special": add_special, "parse_special": True}
    return protocol.decode_tokens(await client.call("POST", "/tokenize", body)).tokens


async def apply_template(client: EngineClient, messages: list[dict[str, str]]) -> str:
    """The prompt that the model's own chat template makes of `messages`."""
    return protocol.decode_templated(await client.call("POST", "/apply-template", {"messages": messages})).prompt
