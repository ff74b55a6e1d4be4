"""What an engine made of a task, and where two of these differ."""

import hashlib
from collections.abc import Callable
from itertools import takewhile

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from adapters.errors import worker_reset
from contracts.engine import Chunk, EngineAdapter, Finish, GenerateRequest


class Transcript(Struct, frozen=True):
    """A whole generation. `marks` holds the text's length in characters and its tokens after each chunk.

    Chunks may break anywhere, and how much of a prompt was cached may differ: neither is part of what is compared.
    """

    text: str
    tokens: int
    finish_reason: str
    tokens_in: int
    stop_sequence: str | None = None
    marks: tuple[tuple[int, int], ...] = ()
    tokens_cached: int = 0

    @property
    def outcome(self) -> tuple[str, int, str, int, str | None]:
        """What has to be the same, byte for byte and count for count."""
        return self.text, self.tokens, self.finish_reason, self.tokens_in, self.stop_sequence

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the outcome."""
        return f"sha256:{hashlib.sha256(msgspec.json.encode(self.outcome)).hexdigest()}"

    def cut_like(self, part: "Transcript") -> "Transcript":
        """Its beginning, as long as the text of `part`, of which all else is taken."""
        return replace(part, text=self.text[: len(part.text)])


class Recording:
    """A generation under way: what has been delivered stays here when the stream breaks."""

    def __init__(self, on_chunk: Callable[[], None] | None = None) -> None:
        self.text = ""
        self.tokens = 0
        self.marks: list[tuple[int, int]] = []
        self._on_chunk = on_chunk

    async def run(self, adapter: EngineAdapter, key: str, request: GenerateRequest) -> Transcript:
        """The whole of it. Raises EngineError, also for a stream that ends without an end."""
        finish: Finish | None = None
        async for item in adapter.generate(key, request):
            if finish is not None:
                raise worker_reset("the stream went on after its end", "adapter")
            if isinstance(item, Finish):
                finish = item
            else:
                self._add(item)
        if finish is None:
            raise worker_reset("the stream ended without an end", "adapter")
        return Transcript(
            text=self.text,
            tokens=self.tokens,
            finish_reason=finish.finish_reason,
            tokens_in=finish.tokens_in,
            stop_sequence=finish.stop_sequence,
            marks=tuple(self.marks),
            tokens_cached=finish.tokens_cached,
        )

    def so_far(self) -> Transcript:
        """What has been delivered, as if that were all."""
        return Transcript(self.text, self.tokens, "", 0, marks=tuple(self.marks))

    def _add(self, chunk: Chunk) -> None:
        self.text += chunk.text
        self.tokens += chunk.tokens
        self.marks.append((len(self.text), self.tokens))
        if self._on_chunk is not None:
            self._on_chunk()


class Divergence(Struct, frozen=True):
    """Where two generations part. `token_index` is that of the first chunk that differs, as the first one counted it.

    `common` is the end of what they share; the continuations begin at the first character that differs.
    """

    token_index: int
    byte_index: int
    common: str
    expected: str
    found: str


_CONTEXT_CHARS = 80


def divergence(expected: Transcript, found: Transcript) -> Divergence | None:
    """Where `found` parts from `expected`; None where both are the same."""
    if expected.outcome == found.outcome:
        return None
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(expected.text, found.text, strict=False)))
    before = [tokens for chars, tokens in expected.marks if chars <= same]
    return Divergence(
        token_index=before[-1] if before else 0,
        byte_index=len(expected.text[:same].encode()),
        common=expected.text[max(0, same - _CONTEXT_CHARS) : same],
        expected=expected.text[same:],
        found=found.text[same:],
    )
