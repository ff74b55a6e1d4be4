"""Embeddings over `infer`, from a model with an input `text_input` and an output `embedding`."""

from collections.abc import AsyncIterator

from adapters.errors import engine_error, worker_reset
from adapters.http_client import EngineClient
from adapters.triton import calls
from adapters.triton.protocol import ENGINE
from contracts.engine import Chunk, Finish, GenerateRequest


async def embed(client: EngineClient, model: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
    """A chunk per input, with the numbers as the server wrote them, then the end.

    Raises EngineError: INVALID_PARAMS without inputs, WORKER_RESET for an answer without an embedding.
    """
    if not request.inputs:
        raise engine_error("INVALID_PARAMS", "an embedding needs `inputs`", engine=ENGINE, retriable=False)
    tokens_in = 0
    for text in request.inputs:
        answer = await calls.infer(client, model, {"text_input": ("BYTES", text)})
        numbers = answer.data("embedding")
        if numbers is None:
            raise worker_reset("the engine's answer holds no embedding", ENGINE)
        counted = answer.data("num_input_tokens") or b""
        tokens_in += int(digits) if (digits := counted.strip(b"[] ")).isdigit() else 0
        yield Chunk(numbers.decode())
    yield Finish("stop", tokens_in=tokens_in)
