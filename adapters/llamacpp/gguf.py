"""What the header of a GGUF model file says: the model's shape and the size of its tensors.

llama-server tells neither over HTTP, nor before it has loaded the model. The layout is that of the GGUF
specification, versions 2 and 3: magic, version, number of tensors, number of key-value pairs, the pairs, the
tensors' names and places, and from the next multiple of the alignment on their data. Integers are little-endian.
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO, Final

from msgspec import Struct

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_PAIRS_MAX: Final = 65_536
_TENSORS_MAX: Final = 1_048_576
_DIMENSIONS_MAX: Final = 8
_TEXT_BYTES_MAX: Final = 1024 * 1024
#: Vocabularies are the longest arrays there are.
_ARRAY_MAX: Final = 16_777_216
#: Longer arrays are passed over: those of the model's shape have one entry per layer.
_ARRAY_KEPT_MAX: Final = 65_536
_ALIGNMENT_DEFAULT: Final = 32
_PIECE_BYTES: Final = 1024 * 1024
_STRING, _ARRAY = 8, 9
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
#: Type number to format and size of the scalar types.
_SCALARS: Final = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: _U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: _U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_VOCABULARY: Final = "tokenizer.ggml.tokens"

Value = int | float | str | list[int | float]


class GgufError(ValueError):
    """A file is no GGUF model, or a damaged one; the text says what is wrong with it."""


class ModelHeader(Struct, frozen=True):
    """A model's own description.

    `facts` are the pairs of its architecture, without the prefix. `vocabulary` counts its tokens (0: not told).
    `tensor_bytes` is what each tensor takes in the file, padding included.
    """

    name: str
    facts: dict[str, Value]
    vocabulary: int
    tensor_bytes: dict[str, int]

    @property
    def weights_bytes(self) -> int:
        """What all tensors take."""
        return sum(self.tensor_bytes.values())


def read_header(path: Path) -> ModelHeader:
    """Read a model file's header, not its weights. Raises OSError, and GgufError for what is no whole model file."""
    with path.open("rb") as file:
        reader = _Reader(file)
        tensors, pairs = _begin(reader)
        values, vocabulary = _pairs(reader, pairs, to_tokenizer=False)
        places = [_tensor(reader) for _ in range(tensors)]
        alignment = values.get("general.alignment", _ALIGNMENT_DEFAULT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise GgufError("its alignment is not a positive number")
        begin = -(-reader.position // alignment) * alignment
        data_bytes = os.fstat(file.fileno()).st_size - begin
    return ModelHeader(
        name=str(values.get("general.name", "")),
        facts=_of_architecture(values),
        vocabulary=vocabulary,
        tensor_bytes=_sizes(places, data_bytes),
    )


def read_facts(path: Path) -> dict[str, Value]:
    """The `facts` alone, without reading past the tokenizer's. Raises OSError and GgufError."""
    with path.open("rb") as file:
        reader = _Reader(file)
        _, pairs = _begin(reader)
        return _of_architecture(_pairs(reader, pairs, to_tokenizer=True)[0])


class _Reader:
    """Reads a file forwards in large pieces; what is not there is a GgufError."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._data = b""
        self._at = 0
        self._read = 0

    @property
    def position(self) -> int:
        return self._read - len(self._data) + self._at

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            piece = self._file.read(max(size, _PIECE_BYTES))
            self._read += len(piece)
            self._data = self._data[self._at :] + piece
            self._at, end = 0, size
            if end > len(self._data):
                raise GgufError("its header ends early")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, layout: struct.Struct = _U64) -> int:
        number: int = layout.unpack(self.take(layout.size))[0]
        return number

    def bounded(self, most: int, what: str) -> int:
        number = self.number()
        if number > most:
            raise GgufError(f"it has more than {most} {what}")
        return number

    def text_bytes(self) -> bytes:
        return self.take(self.bounded(_TEXT_BYTES_MAX, "bytes in one text of its header"))

    def text(self) -> str:
        return self.text_bytes().decode(errors="replace")


def _begin(reader: _Reader) -> tuple[int, int]:
    """How many tensors and pairs follow."""
    if reader.take(4) != _MAGIC:
        raise GgufError("it is no GGUF file")
    version = reader.number(_U32)
    if version not in _VERSIONS:
        raise GgufError(f"its GGUF version is {version}, and only {_VERSIONS} are known")
    return reader.bounded(_TENSORS_MAX, "tensors"), reader.bounded(_PAIRS_MAX, "key-value pairs")


def _pairs(reader: _Reader, count: int, *, to_tokenizer: bool) -> tuple[dict[str, Value], int]:
    """The pairs but the tokenizer's, which come last as a rule, and the length of its vocabulary."""
    values: dict[str, Value] = {}
    vocabulary = 0
    for _ in range(count):
        key = reader.text()
        if to_tokenizer and key.startswith("tokenizer."):
            break
        kind = reader.number(_U32)
        if key == _VOCABULARY and kind == _ARRAY:
            _, vocabulary = _array(reader)
            continue
        value = _value(reader, kind)
        if not key.startswith("tokenizer."):
            values[key] = value
    return values, vocabulary


def _of_architecture(values: dict[str, Value]) -> dict[str, Value]:
    prefix = f"{values.get('general.architecture')}."
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _value(reader: _Reader, kind: int) -> Value:
    if kind == _STRING:
        return reader.text()
    if kind == _ARRAY:
        return _array(reader)[0]
    number: int | float = reader.number(_layout(kind))
    return number


def _array(reader: _Reader) -> tuple[list[int | float], int]:
    """An array's numbers, none where it is very long or holds texts, and its length."""
    inner, count = reader.number(_U32), reader.bounded(_ARRAY_MAX, "entries in one array of its header")
    if inner == _STRING:
        for _ in range(count):
            reader.text_bytes()
        return [], count
    layout = _layout(inner)
    data = reader.take(layout.size * count)
    return [number for (number,) in layout.iter_unpack(data)] if count <= _ARRAY_KEPT_MAX else [], count


def _layout(kind: int) -> struct.Struct:
    layout = _SCALARS.get(kind)
    if layout is None:
        raise GgufError(f"it has a value of the unknown type {kind}")
    return layout


def _tensor(reader: _Reader) -> tuple[int, str]:
    """Where a tensor's data begin, from the first tensor's on, and its name."""
    name = reader.text()
    dimensions = reader.number(_U32)
    if dimensions > _DIMENSIONS_MAX:
        raise GgufError(f"its tensor {name} has {dimensions} dimensions")
    reader.take(8 * dimensions + 4)
    return reader.number(), name


def _sizes(places: list[tuple[int, str]], data_bytes: int) -> dict[str, int]:
    """Each tensor reaches to where the next begins; the last to the end of the file."""
    places = sorted(places)
    if places and places[-1][0] >= data_bytes:
        raise GgufError(f"it ends before its tensor {places[-1][1]}: it was not copied in full")
    ends = [begin for begin, _ in places[1:]] + [data_bytes]
    return {name: end - begin for (begin, name), end in zip(places, ends, strict=True)}
