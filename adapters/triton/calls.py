"""The calls that the adapter makes of a Triton server, decoded. All raise EngineError."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Struct

from adapters.answers import decoded
from adapters.http_client import EngineClient
from adapters.triton import protocol
from adapters.triton.protocol import ENGINE

_LOAD_TIMEOUT_S: Final = 600.0
_INFER_TIMEOUT_S: Final = 60.0


class Output(Struct, frozen=True):
    """One output of `infer`; its data are left as the server wrote them."""

    name: str
    data: msgspec.Raw = msgspec.Raw(b"[]")


class Inferred(Struct, frozen=True):
    """What `infer` answers."""

    outputs: list[Output] = []

    def data(self, name: str) -> bytes | None:
        """An output's JSON, None where it is not there."""
        return next((bytes(output.data) for output in self.outputs if output.name == name), None)


_decode_inferred: Final = msgspec.json.Decoder(Inferred).decode
_decode_counts: Final = msgspec.json.Decoder(Annotated[list[int], msgspec.Meta(min_length=1)]).decode


async def metadata(client: EngineClient) -> protocol.ServerMetadata:
    return decoded(protocol.decode_metadata, await client.call("GET", "/v2"), "/v2", ENGINE)


async def config(client: EngineClient, model: str) -> protocol.ModelConfig:
    path = f"/v2/models/{model}/config"
    return decoded(protocol.decode_config, await client.call("GET", path), path, ENGINE)


async def loaded_models(client: EngineClient) -> list[str]:
    """Names of the models that are ready."""
    path = "/v2/repository/index"
    listed = decoded(protocol.decode_index, await client.call("POST", path), path, ENGINE)
    return [entry.name for entry in listed if entry.state == "READY"]


async def load(client: EngineClient, model: str) -> None:
    """Load a model of the repository, or load it anew (ORCH-3057)."""
    await client.call("POST", f"/v2/repository/models/{model}/load", {}, timeout_s=_LOAD_TIMEOUT_S)


async def unload(client: EngineClient, model: str) -> None:
    await client.call("POST", f"/v2/repository/models/{model}/unload", {}, timeout_s=_LOAD_TIMEOUT_S)


async def samples(client: EngineClient, model: str) -> protocol.Samples:
    return protocol.parse_metrics(await client.call("GET", "/metrics"), model)


async def prompt_length(client: EngineClient, model: protocol.ModelConfig, prompt: str) -> int:
    """Tokens of a prompt, by a model with the interface of TensorRT-LLM's `preprocessing`."""
    inputs = {"QUERY": ("BYTES", prompt), "REQUEST_OUTPUT_LEN": ("INT32", 1)}
    data = (await infer(client, model, inputs)).data("REQUEST_INPUT_LEN")
    counts: list[int] = decoded(_decode_counts, data or b"", f"model {model.name}", ENGINE)
    return counts[0]


async def infer(
    client: EngineClient, model: protocol.ModelConfig, inputs: Mapping[str, tuple[str, object]]
) -> Inferred:
    """One answer of a model that is not decoupled; `inputs` are type and value by name."""
    # A batch dimension comes first where the model batches.
    shape = [1, 1] if model.max_batch_size > 0 else [1]
    tensors: list[dict[str, Any]] = [
        {"name": name, "shape": shape, "datatype": datatype, "data": [value]}
        for name, (datatype, value) in inputs.items()
    ]
    path = f"/v2/models/{model.name}/infer"
    answer = await client.call("POST", path, {"inputs": tensors}, timeout_s=_INFER_TIMEOUT_S)
    return decoded(_decode_inferred, answer, path, ENGINE)
