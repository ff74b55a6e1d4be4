"""Embeddings and ranks from a llama-server: one request for each input, so that a cancel waits for one at most.

Inputs of one request would share batches, and then the numbers of one depend on the others (measured: the last digits
of embeddings, and whole scores of ranks). Numbers are passed on as the engine wrote them.
"""

from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from adapters.answers import decoded
from adapters.attempts import Attempt
from adapters.errors import engine_error, worker_reset
from adapters.http_client import EngineClient
from adapters.llamacpp.protocol import ENGINE
from adapters.stream import read_whole
from contracts.engine import Chunk, EngineError, Finish, GenerateRequest

#: An answer holds the numbers of one input; the widest models have some ten thousand of them.
_ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024


class Usage(Struct, frozen=True):
    prompt_tokens: int


class Embedding(Struct, frozen=True):
    embedding: Raw


class Embeddings(Struct, frozen=True):
    """Answer of `POST /v1/embeddings`."""

    data: list[Embedding]
    usage: Usage


class Ranked(Struct, frozen=True):
    relevance_score: Raw


class Ranks(Struct, frozen=True):
    """Answer of `POST /rerank`."""

    results: list[Ranked]
    usage: Usage


_decode_embeddings: Final = msgspec.json.Decoder(Embeddings).decode
_decode_ranks: Final = msgspec.json.Decoder(Ranks).decode


async def compute(attempt: Attempt, client: EngineClient, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
    """A chunk for each input, then one `Finish`. Ends without it only when the attempt is canceled."""
    tokens_in = 0
    for index, text in enumerate(request.inputs or ()):
        target, body = _question(request, text)
        response = await attempt.run(attempt.keep(client.open(target, body)))
        if response is None or attempt.canceled:
            return
        answer = await read_whole(attempt, response, _ANSWER_BYTES_MAX, ENGINE)
        if answer is None:
            return
        # The engine has nothing of the attempt until the next input.
        response.close()
        attempt.response, attempt.asked = None, False
        result, tokens = _result(request, index, answer)
        tokens_in += tokens
        yield Chunk(result)
        if attempt.canceled:
            return
    attempt.finished = True
    yield Finish("stop", tokens_in=tokens_in)


async def pair_tokens(client: EngineClient) -> int:
    """How many tokens the engine computes for a query and a document of which it says how many it has."""
    answer = await client.call("POST", "/rerank", {"query": "query", "documents": ["document"]})
    return decoded(_decode_ranks, answer, "/rerank", ENGINE).usage.prompt_tokens


#: What `pair_tokens` asks with.
PAIR: Final = ("query", "document")


def _question(request: GenerateRequest, text: str) -> tuple[str, dict[str, Any]]:
    if request.workload == "embedding":
        return "/v1/embeddings", {"input": text, "encoding_format": "float"}
    return "/rerank", {"query": request.prompt or "", "documents": [text]}


def _result(request: GenerateRequest, index: int, answer: bytes) -> tuple[str, int]:
    """The result of an input as JSON, and how many tokens the input had."""
    numbers: list[Raw]
    if request.workload == "embedding":
        embeddings = decoded(_decode_embeddings, answer, "/v1/embeddings", ENGINE)
        numbers, usage = [item.embedding for item in embeddings.data], embeddings.usage
    else:
        ranks = decoded(_decode_ranks, answer, "/rerank", ENGINE)
        numbers, usage = [item.relevance_score for item in ranks.results], ranks.usage
    if len(numbers) != 1:
        raise worker_reset(f"the engine gave {len(numbers)} results for one input", ENGINE)
    digits = bytes(numbers[0]).decode()
    if "null" in digits:
        raise _no_number(index)
    return (digits if request.workload == "embedding" else f'{{"index":{index},"score":{digits}}}'), usage.prompt_tokens


def _no_number(index: int) -> EngineError:
    """JSON has no infinities, so the engine writes null for them."""
    message = f"the model gave something that is no number for input {index}; it may be damaged"
    return engine_error("INTERNAL", message, engine=ENGINE, retriable=False)
