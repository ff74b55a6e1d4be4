"""The messages of Triton's gRPC service as bytes: how requests are written, and how fields are read.

Field numbers are those of the KServe v2 inference protocol, `grpc_service.proto`: ModelInferRequest,
ModelStreamInferResponse and what they hold. Tensors travel as raw bytes: numbers in little-endian order, each string
after its length in four bytes.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from adapters.triton.protocol import ModelConfig

#: The longest message that is read.
MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024

_VARINT: Final = 0
_FIXED64: Final = 1
BYTES: Final = 2
_FIXED32: Final = 5
_VARINT_BYTES_MAX: Final = 10

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
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


# ------------------------------------------------------------------------------------------------ reading


def read_fields(data: bytes, at: int = 0) -> Iterator[tuple[int, bytes | int, int]]:
    """Number and value of each field, a number or the bytes of what has a length, and where it ends.

    Raises WireError.
    """
    while at < len(data):
        tag, at = read_varint(data, at)
        kind = tag & 7
        value: bytes | int
        if kind == BYTES:
            length, at = read_varint(data, at)
            value = data[at : at + length]
            if len(value) != length:
                raise WireError("a field is cut short")
            at += length
        elif kind == _VARINT:
            value, at = read_varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
            value = data[at : at + size]
            if len(value) != size:
                raise WireError("a field is cut short")
            at += size
        else:
            raise WireError(f"a field has the unknown kind {kind}")
        yield tag >> 3, value, at


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends. Raises WireError."""
    value = shift = 0
    for byte in data[at : at + _VARINT_BYTES_MAX]:
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise WireError("a number does not end")
