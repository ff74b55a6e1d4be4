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
from contracts.tasks import RESULT_BYTES_MAX
from orchestrator.ingress.errors import internal, refuse

_FIELDS: Final = {"embedding": "embeddings", "rerank": "ranks"}
_decode_rank: Final = msgspec.json.Decoder(Rank).decode
_encode: Final = msgspec.json.Encoder().encode


class EndWithResults(msgspec.Struct, frozen=True):
    """An `End` and its results: the text of a JSON array that stands under `field`."""

    end: End
    field: str
    results: bytes

    def encoded(self) -> bytes:
        """All of it as one JSON object."""
        return b'%b,"%b":%b}' % (_encode(self.end)[:-1], self.field.encode(), self.results)


ClientEvent = StreamEvent | EndWithResults


class Gathered:
    """Events of an embedding or a rerank without its tokens; the `End` carries what they were.

    Read the task's stream from its first token on. What is held is bounded by RESULT_BYTES_MAX.
    """

    def __init__(self, events: EventSource, workload: str) -> None:
        self._events = events
        self._workload = workload
        self._texts: list[str] = []
        self._size = 0

    def __aiter__(self) -> AsyncIterator[ClientEvent]:
        return self

    async def __anext__(self) -> ClientEvent:
        async for event in self._events:
            if isinstance(event, Tokens):
                self._texts += event.texts
                self._size += sum(map(len, event.texts))
                if self._size > RESULT_BYTES_MAX:
                    message = f"The results are over the limit of {RESULT_BYTES_MAX} bytes. Send fewer inputs."
                    raise refuse("INVALID_PARAMS", message)
            elif isinstance(event, End):
                return self._end(event)
            else:
                return event
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._texts.clear()
        await self._events.aclose()

    def _end(self, end: End) -> ClientEvent:
        if end.finish_reason == "canceled":
            return end
        texts = self._texts
        if self._workload == "rerank":
            try:
                texts = sorted(texts, key=_by_score)
            except msgspec.DecodeError:
                return internal()
        return EndWithResults(end, _FIELDS[self._workload], b"[%b]" % ",".join(texts).encode())


def _by_score(text: str) -> tuple[float, int]:
    """Best first, of equals the one that was given first."""
    rank = _decode_rank(text)
    return -rank.score, rank.index


#: Events on their way to a client.
Events = EventSource | Gathered


def gathered(events: EventSource, workload: str) -> Events:
    """Events as a client is sent them: those of a completion as they come."""
    return events if workload == "completion" else Gathered(events, workload)


def first_wanted(after: int, workload: str) -> int:
    """After which token a stream is to be read that goes on after token `after`: results are always read whole."""
    return after if workload == "completion" else -1
