"""One response of a completion, the same whichever way it came."""

from typing import Final

import msgspec
from msgspec import Struct

from adapters.triton.wire import ResponseReader, count_of, text_of

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


#: A BYTES output of one string without text.
_EMPTY: Final = bytes(4)

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


def frame_of_message(reader: ResponseReader, message: bytes) -> Frame:
    """Raises WireError."""
    response = reader.read(message)
    get = response.outputs.get
    text, tokens, tokens_in = get("text_output"), get("num_output_tokens"), get("num_input_tokens")
    reason = get("finish_reason")
    return Frame(
        b"" if text is None else text_of(text),
        None if tokens is None else count_of(tokens),
        None if tokens_in is None else count_of(tokens_in),
        "" if reason is None or reason == _EMPTY else _reason(text_of(reason).decode(errors="replace")),
        response.final,
        response.error,
        text is not None,
    )


def _joined(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def _first(value: int | list[int] | None) -> int | None:
    return (value[0] if value else None) if isinstance(value, list) else value


def _reason(told: str) -> str:
    return "" if told in _GOES_ON else told
