"""The mock's model: tokens that follow from model, prompt, seed and temperature alone, some half a character."""

import codecs
import hashlib
import re
from collections.abc import Iterator
from typing import Final

#: Words as their tokens. A character of several tokens is what adapters get wrong.
_WORDS: Final[tuple[tuple[bytes, ...], ...]] = (
    (b" the",),
    (b" river",),
    (b" runs",),
    (b" to", b"ward"),
    (b" sea,",),
    (" Straße".encode(),),
    (" déj".encode(), "à".encode()),
    (" 猫".encode(),),
    (b" \xe7\x8a", b"\xac"),
    (b" \xf0\x9f", b"\x99", b"\x82"),
    ("é".encode(),),
    (b".\n",),
)
_TOKEN: Final = re.compile(r"\s*\S+|\s+")
_LENGTH_MIN: Final = 400


def count_tokens(prompt: str) -> int:
    """One token a word with the space before it; the start token alone for nothing."""
    return len(_TOKEN.findall(prompt)) or 1


class MockText:
    """The text of one generation; `length` is where it ends by itself, in tokens."""

    def __init__(self, model: str, prompt: str, seed: int, temperature: float) -> None:
        # At temperature 0 the seed decides nothing, as with any engine.
        source = f"{model}\0{prompt}\0{seed if temperature else 0}\0{temperature}"
        self._key = hashlib.blake2b(source.encode(errors="surrogatepass"), digest_size=16).digest()
        self.length = _LENGTH_MIN + self._number(-1) % _LENGTH_MIN

    def pieces(self) -> Iterator[str]:
        """The text that each token completes, empty for one that completes none; without an end."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        index = 0
        while True:
            for token in _WORDS[self._number(index) % len(_WORDS)]:
                yield decoder.decode(token)
            index += 1

    def _number(self, index: int) -> int:
        digest = hashlib.blake2b(index.to_bytes(8, "big", signed=True), key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "big")
