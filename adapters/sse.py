"""Incremental splitter of server-sent events over byte chunks with arbitrary borders.

Works on bytes, so a character split between chunks is never decoded in halves.
"""

from typing import Final

EVENT_BYTES_MAX: Final = 1024 * 1024


class SseOverflowError(ValueError):
    """An event outgrew the splitter's bound; the stream cannot be trusted any more."""


class SseSplitter:
    """Feed it chunks, get the `data` payloads of the events they complete.

    Fields other than `data`, and comments, are dropped. Line ends may be LF, CRLF or CR, as the
    format allows. One unfinished event of at most `event_bytes_max` is kept between chunks.
    """

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._rest = b""
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Payloads completed by `chunk`, in order. Raises SseOverflowError."""
        # What engines mostly send: one whole event of one line.
        if chunk.find(b"\n") == len(chunk) - 2 and chunk.startswith(b"data: ") and self._is_plain(chunk):
            return [chunk[6:-2]]
        if self._after_cr or b"\r" in chunk:
            chunk = self._with_plain_line_ends(chunk)
        events = (self._rest + chunk).split(b"\n\n")
        self._rest = events.pop()
        if len(self._rest) > self._event_bytes_max:
            raise SseOverflowError(f"an event is longer than {self._event_bytes_max} bytes")
        payloads = []
        for event in events:
            if event.startswith(b"data: ") and b"\n" not in event:
                payloads.append(event[6:])
            else:
                payload = _data_of(event)
                if payload is not None:
                    payloads.append(payload)
        return payloads

    @property
    def pending(self) -> bool:
        """Whether an event has begun and not ended; at the end of a stream that means truncation."""
        return bool(self._rest.strip(b"\n"))

    def _is_plain(self, chunk: bytes) -> bool:
        return not self._rest and not self._after_cr and chunk.endswith(b"\n") and b"\r" not in chunk

    def _with_plain_line_ends(self, chunk: bytes) -> bytes:
        if not chunk:
            return chunk
        # A CR at a chunk's end ends its line at once: nothing need follow it. The LF of a CRLF may.
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data_of(event: bytes) -> bytes | None:
    """The joined `data` lines of an event, None where it has none."""
    lines = []
    for line in event.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None
