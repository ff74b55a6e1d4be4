"""Reading ModelStreamInferResponse, one for each token, at as little cost as it can be done."""

from typing import Final

from msgspec import Struct

from adapters.triton.wire import BYTES, WireError, read_fields, read_varint

#: Tag of ModelInferResponse.raw_output_contents, which come last, and of ModelStreamInferResponse.infer_response.
_RAW: Final = 6 << 3 | BYTES
_INFER: Final = 2 << 3 | BYTES
#: From this value on, a byte of a number has another one after it.
_MORE: Final = 128
#: Messages from this size on have a length of three bytes.
_LONG_FROM: Final = 16_387


class Rest(Struct, frozen=True):
    """What a response says beside the content of its first output: that one's name, the others, whether it is the last.

    `first` is empty where there are no outputs.
    """

    first: str = ""
    others: dict[str, bytes] = {}
    final: bool = False


class Response(Struct, frozen=True, gc=False):
    """Raw content of the first output, the rest, and what went wrong (empty: nothing)."""

    content: bytes
    rest: Rest
    error: str = ""

    @property
    def outputs(self) -> dict[str, bytes]:
        """Raw contents by name."""
        rest = self.rest
        return {rest.first: self.content, **rest.others} if rest.first else {}


class ResponseReader:
    """Reads the responses of one stream.

    All of them are alike but for the first output, which is the text. What comes before its content and what comes
    after it is remembered, so that it is read once and compared after that; `Rest` is then the same object.
    """

    def __init__(self) -> None:
        self._head = b""
        self._names: list[str] = []
        self._final = False
        self._tail = b""
        self._rest = Rest()

    def read(self, message: bytes) -> Response:
        """Raises WireError."""
        size = len(message)
        # The usual message: nothing but a response that begins as the last one did.
        if 2 < size < _LONG_FROM and message[0] == _INFER:
            length, at = message[1], 2
            if length >= _MORE:
                length, at = length & 127 | message[2] << 7, 3
            after = at + len(self._head)
            if length == size - at and message.startswith(self._head, at) and after < size and message[after] == _RAW:
                return self._response(message, after, "")
        inner, error = b"", ""
        for number, value, _ in read_fields(message):
            if number == 1 and type(value) is bytes:
                error = value.decode(errors="replace")
            elif number == 2 and type(value) is bytes:
                inner = value
        self._learn(inner)
        return self._response(inner, len(self._head), error)

    def _response(self, data: bytes, at: int, error: str) -> Response:
        """The response whose contents begin at `at`."""
        if at == len(data):
            return Response(b"", Rest(final=self._final), error)
        content, at = _content(data, at)
        if data[at:] != self._tail:
            self._learn_tail(data[at:])
        return Response(content, self._rest, error)

    def _learn(self, inner: bytes) -> None:
        """Read all that comes before the first content."""
        self._names, self._final, end = [], False, 0
        for number, value, after in read_fields(inner):
            if number == 6:
                break
            end = after
            if number == 5 and type(value) is bytes:
                self._names.append(_name(value))
            elif number == 4 and type(value) is bytes:
                self._final = self._final or _is_final(value)
        self._head = inner[:end]
        self._learn_tail(b"")

    def _learn_tail(self, tail: bytes) -> None:
        """Read all that comes after the first content."""
        contents, at = [], 0
        while at < len(tail):
            content, at = _content(tail, at)
            contents.append(content)
        if len(contents) + 1 > len(self._names) and tail:
            raise WireError("there are more contents than outputs")
        self._rest = Rest(
            self._names[0] if self._names else "", dict(zip(self._names[1:], contents, strict=False)), self._final
        )
        self._tail = tail


def _content(data: bytes, at: int) -> tuple[bytes, int]:
    """The content that begins at `at`, and where it ends."""
    if data[at] != _RAW:
        raise WireError("something else stands among the contents")
    length = data[at + 1] if at + 1 < len(data) else _MORE
    begin = at + 2
    if length >= _MORE:
        length, begin = read_varint(data, at + 1)
    end = begin + length
    if end > len(data):
        raise WireError("a content is cut short")
    return data[begin:end], end


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
    found = [value for number, value, _ in read_fields(output) if number == 1 and type(value) is bytes]
    return found[-1].decode(errors="replace") if found else ""


def _is_final(entry: bytes) -> bool:
    """Whether a parameter says that no response follows."""
    parts = {number: value for number, value, _ in read_fields(entry) if type(value) is bytes}
    flags = [value for number, value, _ in read_fields(parts.get(2, b"")) if number == 1]
    return parts.get(1) == b"triton_final_response" and flags[-1:] == [1]
