"""Where wire cases are played: the scripted peer, and the adapter under test attached to it."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final, cast

from adapters.testing.conformance.cases import CaseBook, NotConformingError, expect
from adapters.testing.conformance.dialect import Dialect, End, Piece
from adapters.testing.conformance.outcome import Outcome, collect
from adapters.testing.conformance.peer import Step, WirePeer
from adapters.testing.peers.http import streamed
from contracts.engine import Chunk, EngineAdapter, Finish, GenerateRequest

_SOON_S: Final = 5.0
_LOOK_S: Final = 0.005
#: How many broken generations may wait for their slots at once; the adapters of the suite have twice as many slots.
_BROKEN_MAX: Final = 16

#: Whole characters of one to four bytes, quotes, line ends, and what looks like framing but is text.
PIECES: Final = (Piece(" Grüße"), Piece("猫"), Piece('🙂 "q" \\ {}'), Piece(" data: x\n\n"), Piece("\u2028z"))
END: Final = End()


class WireStage:
    """One peer and one adapter. `play` runs a generation against a scene."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.peer = WirePeer(dialect)
        self.adapter: EngineAdapter = dialect.create(dialect.spec("http://127.0.0.1:1"))
        self._keys = itertools.count()
        self._broken: list[str] = []

    async def open(self) -> None:
        """Start the peer and attach to it."""
        await self.peer.listen()
        self.adapter = self.dialect.create(self.dialect.spec(self.peer.endpoint))
        await self.adapter.launch()

    async def close(self) -> None:
        await self.adapter.close()
        await self.peer.close()

    def key(self) -> str:
        """A new attempt's key."""
        return f"attempt-{next(self._keys)}-{secrets.token_hex(4)}"

    def request(self, prompt: str = "Say something", **fields: object) -> GenerateRequest:
        return GenerateRequest(task_id="t", max_tokens=1_000_000, seed=7, prompt=prompt, **fields)  # type: ignore[arg-type]

    def wire(self, pieces: Sequence[Piece] = PIECES, end: End | None = END) -> bytes:
        """A whole answer as an engine sends it: head, a chunk a frame, end."""
        return streamed(self.dialect.body(pieces, end), self.dialect.content_type)

    async def play(self, *scene: Step, request: GenerateRequest | None = None) -> Outcome:
        """The outcome of one generation to which the peer plays `scene`."""
        self.peer.scene = scene
        key = self.key()
        outcome = await collect(self.adapter, key, request or self.request())
        if outcome.finish is None:
            self._broken.append(key)
            if len(self._broken) == _BROKEN_MAX:
                await self._wait_for_slots()
        return outcome

    async def _wait_for_slots(self) -> None:
        """As a replica does after ends that are not the engine's: else the next attempt may find no slot free."""
        keys, self._broken = self._broken, []
        # A peer that plays dead confirms nothing.
        await asyncio.gather(*(self.adapter.cancel(key) for key in keys), return_exceptions=True)

    async def reaches(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until `condition()` holds; not conforming when it does not, soon."""
        try:
            async with asyncio.timeout(_SOON_S):
                while not condition():
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise NotConformingError(f"not within {_SOON_S} s: {what}") from None


def expect_whole(outcome: Outcome, pieces: Sequence[Piece] = PIECES, end: End = END, where: str = "") -> None:
    """Expect all of a stream: its text, its tokens and its end."""
    at = f" ({where})" if where else ""
    expect(outcome.error is None, f"an error for a sound stream{at}: {outcome.told()}")
    finish = outcome.finished()
    text = "".join(piece.text for piece in pieces)
    expect(outcome.text == text, f"expected the text {text[:200]!r}, got {outcome.text[:200]!r}{at}")
    tokens = sum(piece.tokens for piece in pieces)
    expect(outcome.tokens == tokens, f"expected {tokens} tokens, got {outcome.tokens}{at}")
    got = (finish.finish_reason, finish.tokens_in, finish.stop_sequence)
    expect(got == (end.reason, end.tokens_in, end.stop), f"expected the end {end}, got {finish}{at}")


class Running:
    """A generation that is read in the background, so that something can be done to it meanwhile."""

    def __init__(self, stage: WireStage, request: GenerateRequest | None = None) -> None:
        self.key = stage.key()
        self.outcome = Outcome()
        self.stream = cast(
            "AsyncGenerator[Chunk | Finish, None]", stage.adapter.generate(self.key, request or stage.request())
        )
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for item in self.stream:
            self.outcome.add(item)

    async def over(self) -> Outcome:
        """Its outcome; not conforming where it does not end soon, or ends in an error."""
        try:
            await asyncio.wait_for(self._task, _SOON_S)
        except TimeoutError:
            raise NotConformingError(f"the generation did not end within {_SOON_S} s of its cancel") from None
        except Exception as error:
            raise NotConformingError(f"a canceled generation ended in {type(error).__name__}: {error}") from error
        return self.outcome


wire: Final[CaseBook[WireStage]] = CaseBook("wire")
