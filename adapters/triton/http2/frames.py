"""HTTP/2 frames: their numbers and how they are written (RFC 9113, sections 4 and 6)."""

import struct
from collections.abc import Iterator
from typing import Final

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

ENABLE_PUSH: Final = 2
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CANCEL: Final = 8
#: What may be in flight and how long a frame may be until the other side says something else.
WINDOW_BYTES_DEFAULT: Final = 65_535
FRAME_BYTES_DEFAULT: Final = 16_384
WINDOW_BYTES_MAX: Final = 2**31 - 1
FRAME_BYTES_MAX: Final = 2**24 - 1

#: Length and type in one number, flags, stream.
HEAD: Final = struct.Struct(">IBI")
HEAD_BYTES: Final = HEAD.size
NUMBER: Final = struct.Struct(">I")
_SETTING: Final = struct.Struct(">HI")

_ERRORS: Final = (
    *("NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED"),
    *("FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM"),
    *("INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"),
)


class Http2Error(ConnectionError):
    """The other side broke off, or sent what the protocol does not allow."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(name, value) for name, value in values.items()))


def window_update(stream: int, more_bytes: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, NUMBER.pack(more_bytes))


def reset(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, NUMBER.pack(code))


def headers(stream: int, block: bytes) -> bytes:
    """A header block in as many frames as it needs."""
    parts = [block[at : at + FRAME_BYTES_DEFAULT] for at in range(0, len(block), FRAME_BYTES_DEFAULT)]
    kinds = [HEADERS, *[CONTINUATION] * (len(parts) - 1)]
    flags = [*[0] * (len(parts) - 1), END_HEADERS]
    return b"".join(frame(kind, flag, stream, part) for kind, flag, part in zip(kinds, flags, parts, strict=True))


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """Name and value of each setting. Raises Http2Error."""
    if len(payload) % _SETTING.size:
        raise Http2Error("its settings are cut short")
    return _SETTING.iter_unpack(payload)


def read_number(payload: bytes, what: str) -> int:
    """The payload of a frame that is one number. Raises Http2Error."""
    if len(payload) != NUMBER.size:
        raise Http2Error(f"{what} has {len(payload)} bytes")
    number: int = NUMBER.unpack(payload)[0]
    return number


def unpadded(flags: int, payload: bytes) -> bytes:
    """What a frame holds beside padding. Raises Http2Error."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error("a frame has more padding than bytes")
    return payload[1 : len(payload) - payload[0]]


def error_name(code: int) -> str:
    return _ERRORS[code] if code < len(_ERRORS) else f"error {code}"
