"""Embeddings and scores of a vLLM pooling server: its answers, made one chunk an input (ORCH-3044).

Numbers are passed on as the engine wrote them. Inputs go in groups, so that an answer is of bounded size.
"""

from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from adapters.answers import decoded
from adapters.attempts import Attempt
from adapters.errors import engine_error, worker_reset
from adapters.http_client import EngineClient
from adapters.stream import read_whole
from adapters.vllm.protocol import ENGINE, Usage
from contracts.engine import Chunk, Finish, GenerateRequest

GROUP_INPUTS: Final = 32
_ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024


class Embedding(Struct, frozen=True):
    index: int
    embedding: Raw


class Embeddings(Struct, frozen=True):
    data: list[Embedding]
    usage: Usage


class Score(Struct, frozen=True):
    index: int
    score: Raw


class Scores(Struct, frozen=True):
    data: list[Score]
    usage: Usage


_decode_embeddings = msgspec.json.Decoder(Embeddings).decode
_decode_scores = msgspec.json.Decoder(Scores).decode
#: Numbers are passed on unread; this is to know that they are numbers.
_decode_vector = msgspec.json.Decoder(list[float]).decode
_decode_number = msgspec.json.Decoder(float).decode


async def pooled(
    client: EngineClient, model: str, attempt: Attempt, request: GenerateRequest, group_inputs: int = GROUP_INPUTS
) -> AsyncIterator[Chunk | Finish]:
    """One chunk an input, in their order, then the `Finish`. Ends without it only when the attempt is canceled.

    `group_inputs` go to the engine at once, which may compute them in one batch. Raises EngineError.
    """
    inputs = request.inputs or []
    tokens_in = 0
    for begin in range(0, len(inputs), group_inputs):
        group = inputs[begin : begin + group_inputs]
        path, body = _call(model, request, group)
        response = await attempt.run(attempt.keep(client.open(path, body)))
        if response is None or attempt.canceled:
            return
        answer = await read_whole(attempt, response, _ANSWER_BYTES_MAX, ENGINE)
        response.close()
        if answer is None:
            return
        texts, tokens = _read(answer, request.workload, len(group), begin)
        tokens_in += tokens
        for text in texts:
            yield Chunk(text)
            if attempt.canceled:
                return
    attempt.finished = True
    yield Finish("stop", tokens_in=tokens_in)


def _call(model: str, request: GenerateRequest, group: list[str]) -> tuple[str, dict[str, Any]]:
    if request.workload == "embedding":
        return "/v1/embeddings", {"model": model, "input": group, "encoding_format": "float"}
    if not request.prompt:
        raise engine_error("INVALID_PARAMS", "a rerank needs its query in `prompt`", engine=ENGINE, retriable=False)
    return "/v1/score", {"model": model, "queries": request.prompt, "documents": group}


def _read(answer: bytes, workload: str, count: int, begin: int) -> tuple[list[str], int]:
    """The chunks' texts of `count` inputs from `begin` on, and the tokens read for them. Raises EngineError."""
    decode = _embedded if workload == "embedding" else _scored
    order, numbers, tokens = decoded(decode, answer, f"{count} inputs", ENGINE)
    if order != list(range(count)):
        raise worker_reset("the engine did not answer each input once, in order", ENGINE)
    if workload == "embedding":
        return numbers, tokens
    return [f'{{"index":{begin + index},"score":{score}}}' for index, score in zip(order, numbers, strict=True)], tokens


def _embedded(answer: bytes) -> tuple[list[int], list[str], int]:
    told = _decode_embeddings(answer)
    for entry in told.data:
        _decode_vector(entry.embedding)
    texts = [bytes(entry.embedding).decode() for entry in told.data]
    return [entry.index for entry in told.data], texts, told.usage.prompt_tokens


def _scored(answer: bytes) -> tuple[list[int], list[str], int]:
    told = _decode_scores(answer)
    for entry in told.data:
        _decode_number(entry.score)
    scores = [bytes(entry.score).decode() for entry in told.data]
    return [entry.index for entry in told.data], scores, told.usage.prompt_tokens
