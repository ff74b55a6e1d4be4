"""Embeddings over `infer`, from a model with an input `text_input` and an output `embedding`."""

import asyncio
from collections.abc import AsyncIterator

from adapters.attempts import Attempt
from adapters.errors import engine_error, worker_reset
from adapters.http_client import EngineClient
from adapters.triton import calls
from adapters.triton.protocol import ENGINE, ModelConfig
from contracts.engine import Chunk, Finish, GenerateRequest


class Computing:
    """The call under way for each attempt: Triton does not break one off, so the slot is free when it has ended."""

    def __init__(self) -> None:
        self._calls: dict[str, asyncio.Task[calls.Inferred]] = {}

    def has(self, attempt: Attempt) -> bool:
        """Whether the server computes something for the attempt."""
        return attempt.key in self._calls

    async def infer(
        self, client: EngineClient, model: ModelConfig, attempt: Attempt, text: str
    ) -> calls.Inferred | None:
        """The answer for one input; None when the attempt is canceled meanwhile, and then the call goes on."""
        call = asyncio.create_task(calls.infer(client, model, {"text_input": ("BYTES", text)}))
        self._calls[attempt.key] = call
        call.add_done_callback(lambda done: self._ended(attempt.key, done))
        attempt.asked = True
        answer = await attempt.run(_shielded(call))
        attempt.asked = attempt.canceled
        return answer

    def _ended(self, key: str, call: asyncio.Task[calls.Inferred]) -> None:
        if self._calls.get(key) is call:
            del self._calls[key]
        if not call.cancelled():
            call.exception()  # whoever waited for it has seen it


async def _shielded(call: asyncio.Task[calls.Inferred]) -> calls.Inferred:
    return await asyncio.shield(call)


async def embed(
    client: EngineClient, model: ModelConfig, attempt: Attempt, computing: Computing, request: GenerateRequest
) -> AsyncIterator[Chunk | Finish]:
    """A chunk per input, with the numbers as the server wrote them, then the end; without it only when canceled.

    Raises EngineError: INVALID_PARAMS without inputs, WORKER_RESET for an answer without an embedding.
    """
    if not request.inputs:
        raise engine_error("INVALID_PARAMS", "an embedding needs `inputs`", engine=ENGINE, retriable=False)
    tokens_in = 0
    for text in request.inputs:
        answer = await computing.infer(client, model, attempt, text)
        if answer is None:
            return
        numbers = answer.data("embedding")
        if numbers is None:
            raise worker_reset("the engine's answer holds no embedding", ENGINE)
        counted = answer.data("num_input_tokens") or b""
        tokens_in += int(digits) if (digits := counted.strip(b"[] ")).isdigit() else 0
        yield Chunk(numbers.decode())
        if attempt.canceled:
            return
    attempt.finished = True
    yield Finish("stop", tokens_in=tokens_in)
