"""What a stream has delivered, and how a later attempt of the task goes on from there (ORCH-3045, ORCH-3086).

A later attempt makes the same text again, but engines put it into tokens as it comes, another time in other places.
So it is compared and cut by text, while the client's tokens keep their indices: those that follow are numbered on
without a gap, and wherever the later attempt allows it they have the index that it gives them. No character comes
twice or is left out. Only lengths and a CRC-32 are kept, never the text.
"""

import zlib


class Diverged(Exception):
    """The later attempt makes another text than was delivered."""


class Delivered:
    """The text of one stream, and how much of it the present attempt has made again. `count` tokens were delivered."""

    __slots__ = ("_again", "_again_chars", "_again_crc", "_carry", "_chars", "_comparing", "_crc", "count")

    def __init__(self) -> None:
        self.count = 0
        self._comparing = False
        self._chars = 0
        self._crc = 0
        #: Of the present attempt: tokens seen, and length and CRC of their text up to what was delivered.
        self._again = 0
        self._again_chars = 0
        self._again_crc = 0
        #: Text that follows what was delivered, in tokens whose indices have been used up.
        self._carry = ""

    @property
    def is_catching_up(self) -> bool:
        """Whether the present attempt has yet to make again some of what was delivered, or text of it waits."""
        return self._comparing or self._again < self.count or self._carry != ""

    def begin(self) -> None:
        """Another attempt begins, with its first token."""
        self._again = self._again_chars = self._again_crc = 0
        self._carry = ""
        self._comparing = self._chars > 0

    def feed(self, texts: list[str]) -> list[str]:
        """Take the attempt's next tokens and return those that the client lacks. Raises Diverged."""
        if self.is_catching_up:
            texts = self._cut(texts)
        else:
            self._again += len(texts)
        return self._deliver(texts)

    def complete(self) -> list[str]:
        """The attempt has made all its tokens; return what is left to be delivered. Raises Diverged."""
        if self._comparing:
            raise Diverged
        rest, self._carry = self._carry, ""
        return self._deliver([rest] if rest else [])

    def _deliver(self, texts: list[str]) -> list[str]:
        text = "".join(texts)
        self.count += len(texts)
        self._chars += len(text)
        self._crc = zlib.crc32(text.encode(), self._crc)
        return texts

    def _cut(self, texts: list[str]) -> list[str]:
        """What of these tokens lies behind what was delivered."""
        new: list[str] = []
        known = self.count
        for text in texts:
            index = self._again
            self._again += 1
            behind = self._compare(text) if self._comparing else text
            if index < known:
                self._carry += behind
            else:
                new.append(self._carry + behind)
                self._carry = ""
        return new

    def _compare(self, text: str) -> str:
        """Compare a token with what was delivered; what of it follows that is returned."""
        missing = self._chars - self._again_chars
        same, behind = text[:missing], text[missing:]
        self._again_chars += len(same)
        self._again_crc = zlib.crc32(same.encode(), self._again_crc)
        if self._again_chars == self._chars:
            if self._again_crc != self._crc:
                raise Diverged
            self._comparing = False
        return behind
