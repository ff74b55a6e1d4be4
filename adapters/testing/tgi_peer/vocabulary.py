"""The peer's tokens: words, bytes of characters that have no token of their own, and special tokens.

A character of several bytes takes as many tokens, and the text of all but the last of them is empty: so it is with
tokenizers that fall back to bytes, and so TGI detokenizes a stream.
"""

import codecs
import hashlib
import re
from typing import Final

from msgspec import Struct

from adapters.testing.fake_text import piece_index

UNKNOWN_ID: Final = 0
START_ID: Final = 1
END_ID: Final = 2
SPECIAL: Final = ("<unk>", "<s>", "</s>")
_BYTES_FROM: Final = len(SPECIAL)
_WORDS_FROM: Final = _BYTES_FROM + 256
_WORDS: Final = 4096
_CHARACTERS: Final = ("é", "€", "語", "🙂")
_PIECE: Final = re.compile(r"<unk>|</?s>|\s*[^\s<]+|\s+|<")


class SimpleToken(Struct, frozen=True):
    """One token of a prompt; `start` and `stop` are byte offsets, both 0 for a token that was added."""

    id: int
    text: str
    start: int
    stop: int


def tokenize(text: str, *, add_special: bool = True) -> list[SimpleToken]:
    """Tokens of a text, with the start token before them unless they are wanted bare."""
    tokens = [SimpleToken(START_ID, "", 0, 0)] if add_special else []
    start = 0
    for piece in _PIECE.findall(text):
        stop = start + len(piece.encode())
        id_ = SPECIAL.index(piece) if piece in SPECIAL else _WORDS_FROM + _hash(piece) % _WORDS
        tokens.append(SimpleToken(id_, piece, start, stop))
        start = stop
    return tokens


def drawn(state: int, index: int) -> tuple[int, ...]:
    """The ids of the unit that is drawn at `index`: a word, a character in bytes or, rarely, a special token."""
    unit = piece_index(state, index)
    if unit % 64 == 63:
        return (UNKNOWN_ID,)
    if unit % 8 == 0:
        return tuple(_BYTES_FROM + byte for byte in _CHARACTERS[unit // 8 % len(_CHARACTERS)].encode())
    return (_WORDS_FROM + unit,)


def is_special(id_: int) -> bool:
    return id_ < _BYTES_FROM


class Detokenizer:
    """Gives each token the text that it completes."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def text(self, id_: int) -> str:
        """Empty while a character is incomplete; a special token ends one for good."""
        if is_special(id_):
            broken = self._decoder.decode(b"", final=True)
            self._decoder.reset()
            return broken + SPECIAL[id_]
        return self._decoder.decode(_bytes_of(id_))


def whole_text(ids: list[int]) -> str:
    """The text of a generation without special tokens; empty where it ends amid a character, as in TGI."""
    text = b"".join(_bytes_of(id_) for id_ in ids if not is_special(id_)).decode(errors="replace")
    return "" if text.endswith("\ufffd") else text


def _bytes_of(id_: int) -> bytes:
    return bytes((id_ - _BYTES_FROM,)) if id_ < _WORDS_FROM else f" w{id_ - _WORDS_FROM}".encode()


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
