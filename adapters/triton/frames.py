"""One response of a completion, the same whichever way it came."""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from adapters.triton.responses import ResponseReader, Rest, count_of, text_of

#: How models say that a text goes on.
_GOES_ON: Final = ("", "None", "null", "not_finished")


class Frame(Struct, frozen=True, gc=False):
    """`text` may end amid a character. Counts and reason are None and empty where the model does not tell them.

    `final`: nothing follows. `error` is what went wrong; empty: nothing.
    """

    text: bytes = b""
    tokens: int | None = None
    tokens_in: int | None = None
    reason: str = ""
    final: bool = False
    error: str = ""
    is_response: bool = True


class _Event(Struct, frozen=True, gc=False):
    """An event of `generate_stream`. An output of one element comes as that element."""

    text_output: str | list[str] = ""
    num_output_tokens: int | list[int] | None = None
    num_input_tokens: int | list[int] | None = None
    finish_reason: str | list[str] = ""
    error: str = ""


_decode_event: Final = msgspec.json.Decoder(_Event).decode


def frame_of_event(payload: bytes) -> Frame:
    """Raises msgspec.DecodeError."""
    event = _decode_event(payload)
    return Frame(
        text=_joined(event.text_output).encode(errors="surrogatepass"),
        tokens=_first(event.num_output_tokens),
        tokens_in=_first(event.num_input_tokens),
        reason=_reason(_joined(event.finish_reason)),
        error=event.error,
        is_response=not event.error,
    )


class FrameReader:
    """Makes frames of the messages of one stream."""

    def __init__(self) -> None:
        self._responses = ResponseReader()
        self._rest = Rest()
        #: What `_rest` says, in a frame without text; None where its first output is not the text.
        self._told: Frame | None = None

    def read(self, message: bytes) -> Frame:
        """Raises WireError."""
        response = self._responses.read(message)
        rest = response.rest
        if rest is not self._rest:
            self._rest = rest
            self._told = _frame_of(rest.others, rest.final, "") if rest.first == "text_output" else None
        told = self._told
        if told is None:
            return _frame_of(response.outputs, rest.final, response.error)
        return Frame(
            text_of(response.content), told.tokens, told.tokens_in, told.reason, told.final, response.error, True
        )


def _frame_of(outputs: Mapping[str, bytes], final: bool, error: str) -> Frame:
    text, tokens, tokens_in = (outputs.get(name) for name in ("text_output", "num_output_tokens", "num_input_tokens"))
    reason = outputs.get("finish_reason", b"")
    return Frame(
        b"" if text is None else text_of(text),
        None if tokens is None else count_of(tokens),
        None if tokens_in is None else count_of(tokens_in),
        _reason(text_of(reason).decode(errors="replace")),
        final,
        error,
        text is not None,
    )


def _joined(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def _first(value: int | list[int] | None) -> int | None:
    return (value[0] if value else None) if isinstance(value, list) else value


def _reason(told: str) -> str:
    return "" if told in _GOES_ON else told
