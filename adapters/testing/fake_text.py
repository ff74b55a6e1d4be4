"""The fake engine's model: tokens that follow from (prompt, seed, index) and the model's name alone."""

import hashlib
import re
from typing import Final

VOCABULARY: Final = 4096
BOS_TEXT: Final = "<s>"
BOS_ID: Final = 1
_FIRST_ID: Final = 3
_TOKEN = re.compile(r"\s*\S+|\s+")

PIECES: Final = tuple(f" w{n}" for n in range(VOCABULARY))


def tokenize(text: str) -> list[int]:
    """One token per word with the space before it; `<s>` is the start token."""
    return [BOS_ID if piece == BOS_TEXT else _FIRST_ID + _hash(piece) % VOCABULARY for piece in _TOKEN.findall(text)]


def start_state(prompt: str | list[int], seed: int, model: str = "") -> int:
    """Where the pseudo-random sequence of a completion begins; `model` is empty for the usual one."""
    return _hash(f"{seed}\0{prompt!r}\0{model}" if model else f"{seed}\0{prompt!r}")


def piece_index(state: int, index: int) -> int:
    """Which piece is token `index`: one multiply-and-fold per token, so that bursts stay fast."""
    mixed = (state + index * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    return ((mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9 >> 32) % VOCABULARY


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
