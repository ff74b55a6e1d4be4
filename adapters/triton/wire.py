"""The few messages of Triton's gRPC service that completions need, written and read byte by byte.

Field numbers are those of the KServe v2 inference protocol, `grpc_service.proto`: ModelInferRequest,
ModelStreamInferResponse and what they hold. Tensors travel as raw bytes: numbers in little-endian order, each string
after its length in four bytes.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct

from adapters.triton.protocol import ModelConfig

#: The longest message that is read.
MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_VARINT_BYTES_MAX: Final = 10
#: From this value on, a byte of a number has another one after it.
_MORE: Final = 128
#: Tag of ModelInferResponse.raw_output_contents, which come last, and of ModelStreamInferResponse.infer_response.
_RAW: Final = 6 << 3 | _BYTES
_RAW_TAG: Final = bytes([_RAW])
_INFER_TAG: Final = bytes([2 << 3 | _BYTES])

#: Wire name and struct format by the configuration's data type.
_TYPES: Final[dict[str, tuple[bytes, str]]] = {
    "TYPE_BOOL": (b"BOOL", "?"),
    "TYPE_INT8": (b"INT8", "b"),
    "TYPE_INT16": (b"INT16", "h"),
    "TYPE_INT32": (b"INT32", "i"),
    "TYPE_INT64": (b"INT64", "q"),
    "TYPE_UINT8": (b"UINT8", "B"),
    "TYPE_UINT16": (b"UINT16", "H"),
    "TYPE_UINT32": (b"UINT32", "I"),
    "TYPE_UINT64": (b"UINT64", "Q"),
    "TYPE_FP32": (b"FP32", "f"),
    "TYPE_FP64": (b"FP64", "d"),
    "TYPE_STRING": (b"BYTES", ""),
}


class WireError(ValueError):
    """Bytes that are no message of the protocol, or a value that an input cannot hold."""


class Response(Struct, frozen=True, gc=False):
    """A ModelStreamInferResponse: raw outputs by name, whether it is the last, and what went wrong (empty: nothing)."""

    outputs: dict[str, bytes]
    final: bool = False
    error: str = ""


# ------------------------------------------------------------------------------------------------ writing


def infer_request(config: ModelConfig, inputs: Mapping[str, object], outputs: Iterable[str]) -> bytes:
    """A ModelInferRequest that asks for `outputs` and for an empty last response (OC-ADAPT-5060).

    Raises WireError for a value that the declared input cannot hold.
    """
    declared = {tensor.name: tensor for tensor in config.input}
    flag = _field(1, b"triton_enable_empty_final_response") + _field(2, b"\x08\x01")
    message = [_field(1, config.name.encode()), _field(4, flag)]
    raw = []
    for name, value in inputs.items():
        if name not in declared:
            raise WireError(f"the model declares no input {name!r}")
        datatype, content, count = _tensor(declared[name].data_type, value)
        # A batch dimension comes first where the model batches.
        shape = _varint(1) + _varint(count) if config.max_batch_size > 0 else _varint(count)
        message.append(_field(5, _field(1, name.encode()) + _field(2, datatype) + _field(3, shape)))
        raw.append(_field(7, content))
    message += [_field(6, _field(1, name.encode())) for name in outputs]
    return b"".join(message + raw)


def _tensor(data_type: str, value: object) -> tuple[bytes, bytes, int]:
    """Wire type, contents and number of elements."""
    if data_type not in _TYPES:
        raise WireError(f"inputs of type {data_type!r} are not supported")
    datatype, form = _TYPES[data_type]
    values = value if isinstance(value, list) else [value]
    try:
        if not form:
            texts = [str(item).encode() for item in values]
            return datatype, b"".join(struct.pack("<I", len(text)) + text for text in texts), len(texts)
        return datatype, struct.pack(f"<{len(values)}{form}", *values), len(values)
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        raise WireError(f"the input cannot hold {value!r:.80}: {error}") from None


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


# ------------------------------------------------------------------------------------------------ reading


class ResponseReader:
    """Reads the responses of one stream.

    All of them begin alike, with everything but the contents of the outputs. That part is remembered, so that it is
    read once and compared after that.
    """

    def __init__(self) -> None:
        self._head = b""
        self._names: list[str] = []
        self._final = False

    def read(self, message: bytes) -> Response:
        """Raises WireError."""
        if message[:1] == _INFER_TAG:
            length, at = _read_varint(message, 1)
            after = at + len(self._head)
            # The usual message: nothing but a response that begins as the last one did.
            if (
                at + length == len(message)
                and message.startswith(self._head, at)
                and message[after : after + 1] == _RAW_TAG
            ):
                return self._response(message, after, "")
        inner, error = b"", ""
        for number, value, _ in _fields(message):
            if number == 1 and type(value) is bytes:
                error = value.decode(errors="replace")
            elif number == 2 and type(value) is bytes:
                inner = value
        self._learn(inner)
        return self._response(inner, len(self._head), error)

    def _response(self, data: bytes, at: int, error: str) -> Response:
        """The response whose contents begin at `at`."""
        outputs = {}
        names = iter(self._names)
        end = len(data)
        while at < end:
            if data[at] != _RAW:
                raise WireError("something else stands among the contents")
            length = data[at + 1] if at + 1 < end else _MORE
            at += 2
            if length >= _MORE:
                length, at = _read_varint(data, at - 1)
            content = data[at : at + length]
            if len(content) != length:
                raise WireError("a content is cut short")
            at += length
            name = next(names, None)
            if name is None:
                raise WireError("there are more contents than outputs")
            outputs[name] = content
        return Response(outputs, self._final, error)

    def _learn(self, inner: bytes) -> None:
        """Read all that comes before the first content."""
        self._names, self._final, end = [], False, 0
        for number, value, after in _fields(inner):
            if number == 6:
                break
            end = after
            if number == 5 and type(value) is bytes:
                self._names.append(_name(value))
            elif number == 4 and type(value) is bytes:
                self._final = self._final or _is_final(value)
        self._head = inner[:end]


def text_of(content: bytes) -> bytes:
    """The strings of a BYTES output, one after another. Raises WireError."""
    if len(content) - 4 == int.from_bytes(content[:4], "little"):
        return content[4:]
    texts, at = [], 0
    while at < len(content):
        end = at + 4 + int.from_bytes(content[at : at + 4], "little")
        if end > len(content):
            raise WireError("a string is cut short")
        texts.append(content[at + 4 : end])
        at = end
    return b"".join(texts)


def count_of(content: bytes) -> int:
    """The first number of an integer output of four or eight bytes an element. Raises WireError."""
    if len(content) not in (4, 8):
        raise WireError("a count has neither four nor eight bytes")
    return int.from_bytes(content, "little", signed=True)


def _name(output: bytes) -> str:
    found = [value for number, value, _ in _fields(output) if number == 1 and type(value) is bytes]
    return found[-1].decode(errors="replace") if found else ""


def _is_final(entry: bytes) -> bool:
    """Whether a parameter says that no response follows."""
    parts = {number: value for number, value, _ in _fields(entry) if type(value) is bytes}
    flags = [value for number, value, _ in _fields(parts.get(2, b"")) if number == 1]
    return parts.get(1) == b"triton_final_response" and flags[-1:] == [1]


def _fields(data: bytes, at: int = 0) -> Iterator[tuple[int, bytes | int, int]]:
    """Number and value of each field, a number or the bytes of what has a length, and where it ends."""
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind = tag & 7
        value: bytes | int
        if kind == _BYTES:
            length, at = _read_varint(data, at)
            value = data[at : at + length]
            if len(value) != length:
                raise WireError("a field is cut short")
            at += length
        elif kind == _VARINT:
            value, at = _read_varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
            value = data[at : at + size]
            if len(value) != size:
                raise WireError("a field is cut short")
            at += size
        else:
            raise WireError(f"a field has the unknown kind {kind}")
        yield tag >> 3, value, at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = shift = 0
    for byte in data[at : at + _VARINT_BYTES_MAX]:
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise WireError("a number does not end")
