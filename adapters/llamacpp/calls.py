"""The calls that the adapter makes of a llama-server, decoded. All raise EngineError."""

from adapters.answers import decoded
from adapters.http_client import EngineClient
from adapters.llamacpp import protocol
from adapters.llamacpp.protocol import ENGINE


async def props(client: EngineClient) -> protocol.Props:
    return decoded(protocol.decode_props, await client.call("GET", "/props"), "/props", ENGINE)


async def slots(client: EngineClient) -> list[protocol.Slot]:
    return decoded(protocol.decode_slots, await client.call("GET", "/slots"), "/slots", ENGINE)


async def save_slot(client: EngineClient, slot: int, filename: str) -> protocol.SavedSlot:
    """Write what the slot holds to a file in the engine's folder.

    The engine takes the number of a slot that it has not for another one's, so it must be one of ours.
    """
    answer = await client.call("POST", f"/slots/{slot}?action=save", {"filename": filename})
    return decoded(protocol.decode_saved, answer, "/slots", ENGINE)


async def restore_slot(client: EngineClient, slot: int, filename: str) -> int:
    """Make the slot hold what is in the file; how many tokens that is."""
    answer = await client.call("POST", f"/slots/{slot}?action=restore", {"filename": filename})
    return decoded(protocol.decode_restored, answer, "/slots", ENGINE).n_restored


async def metrics(client: EngineClient) -> dict[str, float]:
    return protocol.parse_metrics(await client.call("GET", "/metrics"))


async def tokenize(client: EngineClient, text: str, *, add_special: bool = True) -> list[int]:
    """Token ids just as `/completion` makes them of a prompt: special tokens parsed, and added by default."""
    body = {"content": text, "add_special": add_special, "parse_special": True}
    answer = await client.call("POST", "/tokenize", body)
    return decoded(protocol.decode_tokens, answer, "/tokenize", ENGINE).tokens


async def apply_template(client: EngineClient, messages: list[dict[str, str]]) -> str:
    """The prompt that the model's own chat template makes of `messages`."""
    answer = await client.call("POST", "/apply-template", {"messages": messages})
    return decoded(protocol.decode_templated, answer, "/apply-template", ENGINE).prompt
