"""Embeddings and ranks of the fake engine: numbers that follow from the text and the model's name alone."""

import hashlib
from typing import Any, Final

from msgspec import Struct

from adapters.testing.fake_text import tokenize

DIMENSIONS: Final = 8
#: What this model puts around a query and a document.
PAIR_EXTRA_TOKENS: Final = 3


class Answer(Struct, frozen=True):
    """An HTTP answer, and how many tokens it took."""

    status: int
    body: object
    tokens: int = 0


class Pooling(Struct, frozen=True):
    """What the fake was started for: `embedding`, `rerank` or nothing, with batches of at most `rows`."""

    kind: str = ""
    rows: int = 512
    model: str = ""

    def answer(self, route: bytes, body: dict[str, Any]) -> Answer:
        """Answers `POST /embedding`, `/v1/embeddings` and `/rerank` as llama-server does."""
        if route == b"POST /rerank":
            return self._rerank(body)
        if self.kind != "embedding":
            return _refused(501, "not_supported_error", "This server does not support embeddings.")
        given = body.get("input", body.get("content"))
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return _refused(400, "invalid_request_error", '"input" or "content" must be provided')
        counts = [len(tokenize(text)) for text in texts]
        wrong = self._wrong(counts)
        if wrong is not None:
            return wrong
        vectors = [_numbers(f"{self.model}\0{text}", DIMENSIONS) for text in texts]
        if route == b"POST /embedding":
            return Answer(200, [{"index": n, "embedding": [each]} for n, each in enumerate(vectors)], sum(counts))
        data = [{"embedding": each, "index": n, "object": "embedding"} for n, each in enumerate(vectors)]
        return Answer(200, {"object": "list", "usage": _usage(counts), "data": data}, sum(counts))

    def _rerank(self, body: dict[str, Any]) -> Answer:
        if self.kind != "rerank":
            return _refused(501, "not_supported_error", "This server does not support reranking.")
        query, documents = body.get("query"), body.get("documents")
        if not isinstance(query, str) or not isinstance(documents, list) or not documents:
            return _refused(400, "invalid_request_error", '"query" and "documents" must be provided')
        counts = [len(tokenize(query)) + len(tokenize(text)) + PAIR_EXTRA_TOKENS for text in documents]
        wrong = self._wrong(counts)
        if wrong is not None:
            return wrong
        scores = [_numbers(f"{self.model}\0{query}\0{text}", 1)[0] for text in documents]
        results = [{"index": n, "relevance_score": score} for n, score in enumerate(scores)]
        results.sort(key=lambda result: -float(result["relevance_score"]))
        return Answer(200, {"object": "list", "usage": _usage(counts), "results": results}, sum(counts))

    def _wrong(self, counts: list[int]) -> Answer | None:
        if not min(counts):
            return _refused(400, "invalid_request_error", "Input content cannot be empty")
        if max(counts) > self.rows:
            message = f"input ({max(counts)} tokens) is too large to process. increase the physical batch size"
            return _refused(500, "server_error", message)
        return None


def _refused(status: int, kind: str, message: str) -> Answer:
    return Answer(status, {"error": {"code": status, "message": message, "type": kind}})


def _usage(counts: list[int]) -> dict[str, int]:
    return {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}


def _numbers(text: str, count: int) -> list[float]:
    """Numbers between -1 and 1 with the many digits of a float that was computed."""
    digest = hashlib.blake2b(text.encode(), digest_size=8 * count).digest()
    return [int.from_bytes(digest[8 * n : 8 * n + 8], "big") / 2**63 - 1 for n in range(count)]
