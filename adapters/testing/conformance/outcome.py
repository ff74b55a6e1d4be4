"""What became of one generation, with the rules that hold for every one checked on the way."""

import asyncio
from collections.abc import Collection
from typing import Final

from adapters.testing.conformance.cases import NotConformingError, expect
from contracts.engine import Chunk, EngineAdapter, EngineError, Finish, GenerateRequest

GENERATION_TIMEOUT_S: Final = 60.0
#: An error goes into logs and to clients; what an engine says is quoted, not passed on by the megabyte.
MESSAGE_CHARS_MAX: Final = 8192


class Outcome:
    """Chunks and the end of one generation: a `Finish`, an error, or neither where it was canceled."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.finish: Finish | None = None
        self.error: EngineError | None = None

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def tokens(self) -> int:
        return sum(chunk.tokens for chunk in self.chunks)

    def add(self, item: Chunk | Finish) -> None:
        expect(self.finish is None, f"{item!r} came after the Finish")
        if isinstance(item, Finish):
            self.finish = item
            return
        expect(item.tokens >= 1, f"{item!r} counts no token")
        self.chunks.append(item)

    def told(self) -> str:
        """In words, for messages."""
        end = self.error or self.finish or "no end"
        text = self.text if len(self.text) <= 200 else f"{self.text[:200]}… ({len(self.text)} characters)"
        return f"{self.tokens} tokens {text!r}, then {end}"

    def finished(self) -> Finish:
        """Its `Finish`; not conforming without one."""
        expect(self.finish is not None, f"no Finish: {self.told()}")
        assert self.finish is not None
        return self.finish

    def failed(self, codes: Collection[str], retriable: bool | None) -> None:
        """Expect an error of one of `codes`, retriable or not (None: either)."""
        expect(self.error is not None, f"expected {' or '.join(codes)}, got {self.told()}")
        assert self.error is not None
        info = self.error.info
        expect(info.code in codes, f"expected {' or '.join(codes)}, got {info.code}: {info.message[:300]}")
        expect(info.retriable is not None, f"{info.code} does not say whether it is retriable")
        expect(retriable is None or info.retriable is retriable, f"{info.code} says retriable={info.retriable}")
        expect(info.engine, f"{info.code} names no engine")
        expect(len(info.message) <= MESSAGE_CHARS_MAX, f"{info.code} has a message of {len(info.message)} characters")


async def collect(adapter: EngineAdapter, key: str, request: GenerateRequest) -> Outcome:
    """Run a generation to its end. Anything but an `EngineError` that comes out is not conforming."""
    outcome = Outcome()
    try:
        async with asyncio.timeout(GENERATION_TIMEOUT_S):
            async for item in adapter.generate(key, request):
                outcome.add(item)
    except EngineError as error:
        outcome.error = error
    except TimeoutError:
        raise NotConformingError(f"no end after {GENERATION_TIMEOUT_S} s: {outcome.told()}") from None
    except NotConformingError:
        raise
    except Exception as error:
        raise NotConformingError(f"{type(error).__name__} came out instead of an EngineError: {error}"[:500]) from error
    return outcome
