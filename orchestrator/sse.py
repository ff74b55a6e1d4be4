"""Reading server-sent events out of chunks of bytes, as the HTML standard frames them."""

from collections.abc import Iterator
from typing import Final

from contracts.tasks import RESULT_BYTES_MAX

#: Longest event: embeddings come all in one. A server that sends more is not ours.
EVENT_BYTES_MAX: Final = RESULT_BYTES_MAX + 1024 * 1024


class SseParser:
    """Feed it chunks, get `(event name, data)` pairs. Comments, ids and retry hints are skipped."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str]]:
        """Events that `chunk` completes. Raises ValueError for an event over EVENT_BYTES_MAX."""
        *lines, rest = chunk.split(b"\n")
        # Only what ends a line is joined: a long one comes in many chunks.
        if lines:
            lines[0] = b"".join((*self._rest, lines[0]))
            self._rest, self._rest_bytes = [], 0
        self._rest.append(rest)
        self._rest_bytes += len(rest)
        if self._rest_bytes + self._size > EVENT_BYTES_MAX:
            raise ValueError(f"an event is larger than {EVENT_BYTES_MAX} bytes")
        for line in lines:
            event = self._line(line.removesuffix(b"\r").decode())
            if event is not None:
                yield event

    def _line(self, line: str) -> tuple[str, str] | None:
        if not line:
            event = (self._name or "message", "\n".join(self._data)) if self._data else None
            self._name, self._data, self._size = "", [], 0
            return event
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
            self._size += len(value) + 1
        return None
