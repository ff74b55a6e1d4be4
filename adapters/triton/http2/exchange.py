"""One request and its response over HTTP/2, as bytes in and bytes out (RFC 9113)."""

from collections.abc import Mapping
from typing import Final

from hpack import Decoder, Encoder, HPACKError

from adapters.triton.http2 import frames
from adapters.triton.http2.frames import HEAD, HEAD_BYTES, Http2Error

#: More than this the other side may not send before it was read.
WINDOW_BYTES: Final = 256 * 1024
HEADER_BYTES_MAX: Final = 64 * 1024
_STREAM: Final = 1
_SETTINGS: Final = {
    frames.ENABLE_PUSH: 0,
    frames.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
    frames.MAX_HEADER_LIST_SIZE: HEADER_BYTES_MAX,
}


class Exchange:
    """The only stream of a connection. Feed it what came, send what it says, take what was read.

    `head` and `trailers` are the response's fields, None until they came; a response without a body has them in
    both. `ended`: the response came to its regular end. What comes after that is not looked at.
    """

    def __init__(self, head: Mapping[str, str], body: bytes) -> None:
        self.head: dict[bytes, bytes] | None = None
        self.trailers: dict[bytes, bytes] | None = None
        self.ended = False
        self.parts: list[bytes] = []
        self._decoder = Decoder(max_header_list_size=HEADER_BYTES_MAX)
        self._to_send = bytearray(frames.PREFACE)
        self._to_send += frames.settings(_SETTINGS)
        self._to_send += frames.window_update(0, WINDOW_BYTES - frames.WINDOW_BYTES_DEFAULT)
        self._to_send += frames.headers(_STREAM, Encoder().encode(list(head.items()), huffman=False))
        self._body = body
        self._sent = 0
        self._body_ended = False
        self._stream_room = self._room = self._stream_room_first = frames.WINDOW_BYTES_DEFAULT
        self._frame_bytes = frames.FRAME_BYTES_DEFAULT
        self._window = WINDOW_BYTES
        self._rest = b""
        self._settled = False
        self._takes_data = False
        self._block: bytearray | None = None
        self._block_ends = False
        self._send_body()

    def feed(self, data: bytes) -> None:
        """Raises Http2Error, after which the exchange is over."""
        if self.ended:
            return
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= HEAD_BYTES:
            size_and_kind, flags, stream = HEAD.unpack_from(data, at)
            size = size_and_kind >> 8
            if size > frames.FRAME_BYTES_DEFAULT:
                raise Http2Error("it sent a frame larger than agreed" if self._settled else "it does not speak HTTP/2")
            after = at + HEAD_BYTES + size
            if after > end:
                break
            payload = data[at + HEAD_BYTES : after]
            at = after
            # Next to all frames are of this kind.
            if size_and_kind & 255 == frames.DATA and not flags and stream == _STREAM and self._takes_data:
                self._take_data(payload, size)
                continue
            self._frame(size_and_kind & 255, flags, stream & 0x7FFFFFFF, payload)
            if self.ended:
                return
        self._rest = data[at:]

    def take(self) -> bytes:
        """What of the body came since the last call, for which the other side may send as much again."""
        parts = self.parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._window <= WINDOW_BYTES // 2 and not self.ended:
            self._grant()
        return data

    def to_send(self) -> bytes:
        """What must be sent now."""
        if not self._to_send:
            return b""
        data = bytes(self._to_send)
        self._to_send.clear()
        return data

    # ------------------------------------------------------------------------- frames

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if not self._settled and kind != frames.SETTINGS:
            raise Http2Error("it does not begin with its settings")
        if self._block is not None and kind != frames.CONTINUATION:
            raise Http2Error("header fields are not continued")
        if kind in (frames.DATA, frames.HEADERS, frames.RST_STREAM, frames.CONTINUATION):
            if stream != _STREAM:
                raise Http2Error(f"nothing was asked on stream {stream}")
            self._stream_frame(kind, flags, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream, payload)
        elif kind == frames.PUSH_PROMISE:
            raise Http2Error("it promises what was not asked for")
        elif kind in (frames.SETTINGS, frames.PING, frames.GOAWAY):
            if stream:
                raise Http2Error(f"a frame of the connection came on stream {stream}")
            self._connection_frame(kind, flags, payload)
        # Others are advice, or extensions: to be passed over.

    def _stream_frame(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == frames.DATA:
            if not self._takes_data:
                raise Http2Error("data came outside of the response")
            self._take_data(frames.unpadded(flags, payload), len(payload))
            self.ended = bool(flags & frames.END_STREAM)
            if not self.parts and not self.ended and self._window <= WINDOW_BYTES // 2:
                self._grant()  # padding alone: there is nothing to be taken
        elif kind == frames.RST_STREAM:
            code = frames.read_number(payload, "a reset")
            raise Http2Error(f"it reset the stream: {frames.error_name(code)}")
        elif kind == frames.HEADERS:
            part = frames.unpadded(flags, payload)
            if flags & frames.HAS_PRIORITY:
                if len(part) < 5:
                    raise Http2Error("a priority is cut short")
                part = part[5:]
            self._block, self._block_ends = bytearray(), bool(flags & frames.END_STREAM)
            self._add_to_block(flags, part)
        else:
            self._add_to_block(flags, payload)

    def _connection_frame(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == frames.SETTINGS:
            if not flags & frames.ACK:
                self._on_settings(payload)
            elif payload or not self._settled:
                raise Http2Error("an acknowledgement is not one")
        elif kind == frames.PING:
            if len(payload) != 8:
                raise Http2Error(f"a ping has {len(payload)} bytes")
            if not flags & frames.ACK:
                self._to_send += frames.frame(frames.PING, frames.ACK, 0, payload)
        else:
            if len(payload) < 8:
                raise Http2Error("a farewell is cut short")
            # What it has begun to answer it still may end.
            if frames.NUMBER.unpack_from(payload)[0] & 0x7FFFFFFF < _STREAM:
                code = frames.NUMBER.unpack_from(payload, 4)[0]
                raise Http2Error(f"it takes no more requests: {frames.error_name(code)}")

    # ----------------------------------------------------------------------- response

    def _take_data(self, content: bytes, size: int) -> None:
        self._window -= size
        if self._window < 0:
            raise Http2Error("it sent more than it was allowed")
        if content:
            self.parts.append(content)

    def _add_to_block(self, flags: int, part: bytes) -> None:
        if self._block is None:
            raise Http2Error("there are no header fields to continue")
        self._block += part
        if len(self._block) > HEADER_BYTES_MAX:
            raise Http2Error(f"its header fields take more than {HEADER_BYTES_MAX} bytes")
        if not flags & frames.END_HEADERS:
            return
        try:
            fields = dict(self._decoder.decode(bytes(self._block), raw=True))
        except HPACKError as error:
            raise Http2Error(f"its header fields cannot be read: {error}") from error
        self._block = None
        self._on_fields(fields)

    def _on_fields(self, fields: dict[bytes, bytes]) -> None:
        if self.head is not None:
            if not self._block_ends or b":status" in fields:
                raise Http2Error("header fields came amid the body")
            self.trailers, self.ended = fields, True
            return
        status = fields.get(b":status", b"")
        if len(status) != 3 or not status.isdigit():
            raise Http2Error(f"its status is {status[:16]!r}")
        if status.startswith(b"1"):
            if self._block_ends:
                raise Http2Error("the response ended before it began")
            return
        self.head = fields
        if self._block_ends:
            self.trailers, self.ended = fields, True
        else:
            self._takes_data = True

    def _grant(self) -> None:
        more = WINDOW_BYTES - self._window
        self._to_send += frames.window_update(0, more) + frames.window_update(_STREAM, more)
        self._window = WINDOW_BYTES

    # ------------------------------------------------------------------------ request

    def _on_settings(self, payload: bytes) -> None:
        for name, value in frames.read_settings(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                if value > frames.WINDOW_BYTES_MAX:
                    raise Http2Error(f"its window is {value} bytes")
                self._stream_room += value - self._stream_room_first
                self._stream_room_first = value
            elif name == frames.MAX_FRAME_SIZE:
                if not frames.FRAME_BYTES_DEFAULT <= value <= frames.FRAME_BYTES_MAX:
                    raise Http2Error(f"its frames may have {value} bytes")
                self._frame_bytes = value
        self._settled = True
        self._to_send += frames.frame(frames.SETTINGS, frames.ACK, 0)
        self._send_body()

    def _on_window_update(self, stream: int, payload: bytes) -> None:
        more = frames.read_number(payload, "a window update") & 0x7FFFFFFF
        if stream == 0:
            self._room += more
        elif stream == _STREAM:
            self._stream_room += more
        else:
            raise Http2Error(f"nothing was asked on stream {stream}")
        if not more or max(self._room, self._stream_room) > frames.WINDOW_BYTES_MAX:
            raise Http2Error(f"it adds {more} bytes to its window")
        self._send_body()

    def _send_body(self) -> None:
        """As much of it as the other side has room for."""
        while not self._body_ended:
            left = len(self._body) - self._sent
            size = min(left, self._room, self._stream_room, self._frame_bytes)
            if size <= 0 and left:
                return
            part = self._body[self._sent : self._sent + size]
            self._body_ended = size == left
            self._to_send += frames.frame(frames.DATA, frames.END_STREAM * self._body_ended, _STREAM, part)
            self._sent += size
            self._room -= size
            self._stream_room -= size
