"""One completion of the fake engine: how its frames look and when it is over."""

import re
from typing import Final

import msgspec

from adapters.testing.fake_text import PIECES, piece_index, start_state

_FRAME: Final = (
    b'data: {"index":0,"content":"%b","tokens":[%d],"stop":false,"id_slot":-1,'
    b'"tokens_predicted":%d,"tokens_evaluated":%d}\n\n'
)
_PIECE_BYTES: Final = tuple(piece.encode() for piece in PIECES)
#: A word of the prompt that says after how many tokens the completion ends by itself.
_LENGTH: Final = re.compile(r"\bfake-length=([1-9]\d{0,8})\b")


class Completion:
    """A completion under way. `made` counts its tokens; `stop_type` is set when it is over."""

    def __init__(self, body: dict[str, object], prompt_tokens: int, ctx: int, model: str = "") -> None:
        prompt = body["prompt"]
        assert isinstance(prompt, str | list)
        seed, wanted, stop = body.get("seed", 0), body.get("n_predict", -1), body.get("stop") or []
        assert isinstance(seed, int)
        assert isinstance(wanted, int)
        assert isinstance(stop, list)
        self._state = start_state(prompt, seed, model)
        self._stop: list[str] = stop
        self._text = ""
        room = ctx - prompt_tokens
        self.limit = room if wanted < 0 else min(max(wanted, 1), room)
        self._end = "limit"
        length = _LENGTH.search(prompt) if isinstance(prompt, str) else None
        if length and int(length[1]) <= self.limit:
            self.limit, self._end = int(length[1]), "eos"
        self.prompt_tokens = prompt_tokens
        #: How much of the prompt is said to have been cached.
        self.cached_tokens = 0
        self.made = 0
        self.stop_type = ""
        self.stop_word = ""

    def frames(self, count: int) -> bytes:
        """The next frames, at most `count`; with the last token also the closing frame."""
        count = min(count, self.limit - self.made)
        if self._stop:
            return self._frames_with_stop(count)
        state, evaluated = self._state, self.prompt_tokens
        parts = []
        for n in range(self.made, self.made + count):
            piece = piece_index(state, n)
            parts.append(_FRAME % (_PIECE_BYTES[piece], piece, n + 1, evaluated))
        self.made += count
        if self.made >= self.limit:
            self.stop_type = self._end
            parts.append(self._last_frame())
        return b"".join(parts)

    def _frames_with_stop(self, count: int) -> bytes:
        parts = []
        for _ in range(count):
            piece = piece_index(self._state, self.made)
            self.made += 1
            text, before = PIECES[piece], len(self._text)
            self._text += text
            for word in self._stop:
                at = self._text.find(word, max(0, before - len(word)))
                if at >= 0:
                    self.stop_type, self.stop_word = "word", word
                    text = self._text[before : max(at, before)]
                    break
            parts.append(_FRAME % (text.encode(), piece, self.made, self.prompt_tokens))
            if self.stop_type:
                break
        if not self.stop_type and self.made >= self.limit:
            self.stop_type = self._end
        if self.stop_type:
            parts.append(self._last_frame())
        return b"".join(parts)

    def _last_frame(self) -> bytes:
        last = {
            "content": "",
            "stop": True,
            "stop_type": self.stop_type,
            "stopping_word": self.stop_word,
            "tokens_predicted": self.made,
            "tokens_evaluated": self.prompt_tokens,
            "timings/cache_n": self.cached_tokens,
        }
        return b"data: " + msgspec.json.encode(last) + b"\n\n"
