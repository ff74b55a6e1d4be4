"""The results of embeddings and reranks: gathered, and told with the end of the stream.

They come as tokens, one for each input, which keeps what is promised of tokens: the journal, the results store,
resumption and the digest. A client has no use for half of them, so it is sent all of them in the `end` event, and
again whenever it attaches. Numbers are passed on as the engine wrote them.
"""

from collections.abc import AsyncIterator
from typing import Final

import msgspec

from contracts.api import End, Rank
from contracts.gateway import EventSource, StreamEvent, Tokens
from contracts.tasks import RESULT_BYTES_MAX, TaskInfo
from orchestrator.ingress.errors import internal, refuse
from orchestrator.ingress.result_memory import ResultMemory

_FIELDS: Final = {"embedding": b"embeddings", "rerank": b"ranks"}
_decode_rank: Final = msgspec.json.Decoder(Rank).decode
_encode: Final = msgspec.json.Encoder().encode


class EndWithResults(msgspec.Struct, frozen=True):
    """An `End` and its results, one JSON object in pieces: they are joined once, into what is sent."""

    parts: list[bytes]

    def encoded(self) -> bytes:
        """All of it."""
        return b"".join(self.parts)


ClientEvent = StreamEvent | EndWithResults


class Gathered:
    """Events of an embedding or a rerank without its tokens; the `End` carries what they were.

    Read the task's stream from its first token on. What is held is bounded by RESULT_BYTES_MAX, and with what other
    streams hold by `memory`, until this one is closed.
    """

    def __init__(self, events: EventSource, workload: str, items: int, memory: ResultMemory) -> None:
        self._events = events
        self._workload = workload
        self._items = items
        self._share = memory.share()
        self._texts: list[bytes] = []
        self._size = 0

    def __aiter__(self) -> AsyncIterator[ClientEvent]:
        return self

    async def __anext__(self) -> ClientEvent:
        async for event in self._events:
            if isinstance(event, Tokens):
                self._gather(event.texts)
            elif isinstance(event, End):
                return self._end(event)
            else:
                return event
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._texts.clear()
        self._share.release()
        await self._events.aclose()

    def _gather(self, texts: list[str]) -> None:
        """Hold more results. Before the first ones, room is made for as many as are to come, judged by these."""
        more = sum(map(len, texts))
        if self._size + more > RESULT_BYTES_MAX:
            message = f"The results are over the limit of {RESULT_BYTES_MAX} bytes. Send fewer inputs."
            raise refuse("INVALID_PARAMS", message)
        if not self._size:
            self._share.grow_to(min(RESULT_BYTES_MAX, more * self._items // max(1, len(texts))))
        self._share.grow_to(self._size + more)
        self._size += more
        self._texts += [text.encode() for text in texts]

    def _end(self, end: End) -> ClientEvent:
        texts, self._texts = self._texts, []
        if end.finish_reason == "canceled":
            return end
        if self._workload == "rerank":
            try:
                texts.sort(key=_by_score)
            except msgspec.DecodeError:
                return internal()
        parts = [_encode(end)[:-1], b',"%b":[' % _FIELDS[self._workload]]
        for text in texts:
            parts += (text, b",")
        if texts:
            parts.pop()
        parts.append(b"]}")
        return EndWithResults(parts)


def _by_score(text: bytes) -> tuple[float, int]:
    """Best first, of equals the one that was given first."""
    rank = _decode_rank(text)
    return -rank.score, rank.index


#: Events on their way to a client.
Events = EventSource | Gathered


def gathered(events: EventSource, task: TaskInfo, memory: ResultMemory) -> Events:
    """Events as a client is sent them: those of a completion as they come."""
    return events if task.decodes else Gathered(events, task.workload, task.items, memory)


def first_wanted(after: int, workload: str) -> int:
    """After which token a stream is to be read that goes on after token `after`: results are always read whole."""
    return after if workload == "completion" else -1
