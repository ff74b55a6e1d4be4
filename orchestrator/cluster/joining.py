"""One transcript out of those of a task's attempts, in the tokens that clients were sent."""

from itertools import accumulate
from typing import Final

import msgspec

from contracts.messages import encode

_TEXTS: Final = msgspec.msgpack.Decoder(list[str])


def joined(before: bytes | None, after: bytes, resumed_at: int) -> bytes:
    """The transcript of earlier attempts, if any, and that of the attempt which resumed them after `resumed_at` tokens.

    Both have the same text up to there, but perhaps not in the same tokens, and clients count tokens. What an
    attempt made before it was lost with its replica is in no transcript: then `before` ends earlier, and the text
    between comes from `after`, in as many tokens as were counted.
    """
    if before is None or not resumed_at:
        return after
    old, new = _TEXTS.decode(before)[:resumed_at], _TEXTS.decode(after)
    missing = resumed_at - len(old)
    if missing <= 0:
        return encode(old + new[resumed_at:])
    between = _behind(new[:resumed_at], len("".join(old)))
    if len(between) > missing:
        between[missing - 1 :] = ["".join(between[missing - 1 :])]
    between += [""] * (missing - len(between))
    return encode(old + between + new[resumed_at:])


def _behind(texts: list[str], length: int) -> list[str]:
    """The texts without their first `length` characters."""
    ends = accumulate(map(len, texts))
    return [text[max(0, len(text) - (end - length)) :] for text, end in zip(texts, ends, strict=True) if end > length]
