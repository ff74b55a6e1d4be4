"""What a stream must be: every token of the fake engine's text, in order, once, and one end.

The fake engine's text follows from prompt, seed and index, so the check knows each byte beforehand.
"""

import re
from typing import Final

from adapters.testing.fake_text import PIECES, piece_index, start_state

_DIRECT_TOKEN: Final = re.compile(rb'"content":"([^"]+)".*"stop":false.*"tokens_predicted":(\d+)')
_TERMINAL: Final = (b"event: end\n", b"event: error\n")


class Expected:
    """The stream that `prompt` and `seed` give, as the service and as the engine write it."""

    def __init__(self, prompt: str, seed: int, tokens: int) -> None:
        state = start_state(prompt, seed)
        texts = [PIECES[piece_index(state, index)].encode() for index in range(tokens)]
        self._events = [
            b'id: %d\nevent: token\ndata: {"t":"%b","i":%d}' % (index, text, index) for index, text in enumerate(texts)
        ]
        self._frames = [(text, b"%d" % (index + 1)) for index, text in enumerate(texts)]
        self._tokens = tokens

    def service_violation(self, body: bytes) -> str:
        """What is wrong with an event stream of the service; empty when nothing is."""
        if not body.endswith(b"\n\n"):
            return "the stream stops within an event"
        events = body[:-2].split(b"\n\n")
        tokens = [event for event in events if b"event: token\n" in event]
        if tokens != self._events:
            return f"{len(tokens)} tokens instead of {self._tokens}, or other ones: {_difference(tokens, self._events)}"
        ends = [event for event in events if event.startswith(_TERMINAL)]
        if len(ends) != 1 or events[-1] is not ends[0]:
            return f"{len(ends)} terminal events, the last event is {events[-1][:80]!r}"
        if not ends[0].startswith(_TERMINAL[0]) or b'"tokens_out":%d,' % self._tokens not in ends[0]:
            return f"the stream ends with {ends[0][:200]!r}"
        return ""

    def direct_violation(self, body: bytes) -> str:
        """What is wrong with a completion stream of the engine; empty when nothing is."""
        if not body.endswith(b"\n\n"):
            return "the stream stops within a frame"
        frames = _DIRECT_TOKEN.findall(body)
        if frames != self._frames:
            return f"{len(frames)} tokens instead of {self._tokens}, or other ones"
        last = body[:-2].rpartition(b"\n\n")[2]
        if b'"stop":true' not in last or body.count(b'"stop":true') != 1:
            return f"the stream ends with {last[:200]!r}"
        return ""


def _difference(found: list[bytes], expected: list[bytes]) -> str:
    for index, event in enumerate(expected):
        if index >= len(found) or found[index] != event:
            return f"at {index} {found[index] if index < len(found) else b'nothing'!r}"
    return "some follow the last"
