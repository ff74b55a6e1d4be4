"""Completions over gRPC: ModelStreamInfer, each request on a connection of its own.

How gRPC uses HTTP/2 is told by its protocol description: messages after a flag and four bytes of length, the outcome
in the trailers `grpc-status` and `grpc-message`.
"""

import struct
from collections.abc import AsyncIterator, Mapping
from typing import Final
from urllib.parse import unquote

from adapters.attempts import Attempt
from adapters.errors import worker_reset
from adapters.exchange import Address
from adapters.triton.frames import Frame, FrameReader
from adapters.triton.http2.stream import Http2Stream, open_http2
from adapters.triton.protocol import ENGINE, error_of_status
from adapters.triton.wire import MESSAGE_BYTES_MAX, WireError

_METHOD: Final = "/inference.GRPCInferenceService/ModelStreamInfer"
_PREFIX: Final = struct.Struct(">BI")


class MessageSplitter:
    """Feed it parts of a body, get the messages that they complete. One unfinished message is kept."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._needed_bytes = _PREFIX.size

    @property
    def pending(self) -> bool:
        """Whether a message has begun and not ended; at the end of a stream that means truncation."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Raises WireError."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed_bytes:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        messages = []
        at, end = 0, len(data)
        needed = _PREFIX.size
        while end - at >= _PREFIX.size:
            flag, length = _PREFIX.unpack_from(data, at)
            if flag:
                raise WireError("a message is compressed, which was not asked for")
            if length > MESSAGE_BYTES_MAX:
                raise WireError(f"a message of {length} bytes is too long")
            begin = at + _PREFIX.size
            if end - begin < length:
                needed = _PREFIX.size + length
                break
            at = begin + length
            messages.append(data[begin:at])
        if at < end:
            self._rest += data[at:]
            self._needed_bytes = needed
        return messages


class GrpcClient:
    """Asks one server. `key` goes into the metadata, empty: none."""

    def __init__(self, address: Address, key: str = "") -> None:
        self._address = address
        self._head = {
            ":method": "POST",
            ":scheme": "http",
            ":path": _METHOD,
            ":authority": address.authority,
            "te": "trailers",
            "content-type": "application/grpc",
            **({"authorization": f"Bearer {key}"} if key else {}),
        }

    async def open(self, request: bytes) -> Http2Stream:
        """Send a request; whether the server takes it is told by the first read.

        Raises EngineError (WORKER_RESET) where it cannot be reached.
        """
        try:
            return await open_http2(self._address, self._head, _PREFIX.pack(0, len(request)) + request)
        except OSError as error:
            raise worker_reset("the engine's gRPC service cannot be reached", ENGINE) from error


async def read_grpc(attempt: Attempt, stream: Http2Stream) -> AsyncIterator[list[Frame]]:
    """The responses that each read completes, to the one marked as the last (ORCH-3026).

    Over before that only with a cancel. Raises EngineError: WORKER_RESET for a call that breaks or ends without the
    mark and for what cannot be read, and what the server says of a request that it refuses.
    """
    reader = FrameReader()
    splitter = MessageSplitter()
    began = False
    while True:
        try:
            data = await stream.read()
        except OSError as error:
            if attempt.canceled:
                return
            raise worker_reset(f"the engine's stream broke: {error}", ENGINE) from error
        if attempt.canceled:
            return
        if not began:
            _check_head(stream.head)
            began = True
        if not data:
            _check_outcome(stream.trailers)
            raise worker_reset("the engine's stream ended before it was complete", ENGINE)
        try:
            frames = [reader.read(message) for message in splitter.feed(data)]
        except WireError as error:
            raise worker_reset(f"the engine sent what cannot be read: {error}", ENGINE) from error
        if any(frame.final for frame in frames[:-1]):
            raise worker_reset("the engine's stream went on after its end", ENGINE)
        yield frames
        if frames and frames[-1].final:
            return


def _check_head(head: Mapping[bytes, bytes]) -> None:
    status, kind = head.get(b":status", b""), head.get(b"content-type", b"")
    if status != b"200" or not kind.startswith(b"application/grpc"):
        told = f"HTTP {status.decode(errors='replace')}, {kind[:80].decode(errors='replace') or 'no type'}"
        raise worker_reset(f"what answers the engine's gRPC calls is no gRPC service ({told})", ENGINE)


def _check_outcome(trailers: Mapping[bytes, bytes]) -> None:
    """Raises EngineError for any but success."""
    status = trailers.get(b"grpc-status", b"")
    if not status.isdigit() or len(status) > 3:
        raise worker_reset("the engine's stream ended and tells no outcome", ENGINE)
    if int(status):
        told = unquote(trailers.get(b"grpc-message", b"").decode(errors="replace"), errors="replace")
        raise error_of_status(int(status), told)
