"""How an engine's wire looks, as far as a scripted peer must know it to play the engine against its adapter."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal

from msgspec import Struct

from adapters.testing.peers.http import Answer, Call
from contracts.engine import EngineAdapter, EngineSpec

SLOTS: Final = 32
CTX: Final = 4096

#: What can go wrong with a request, as the suite names it.
Trouble = Literal["invalid", "too_long", "unauthorized", "overloaded", "not_ready", "internal"]


class Piece(Struct, frozen=True):
    """Text that an engine sends in one frame, and how many tokens it completes."""

    text: str
    tokens: int = 1


class End(Struct, frozen=True):
    """How a generation ends. `stop` is the stop string that ended it."""

    reason: Literal["stop", "length"] = "length"
    tokens_in: int = 5
    stop: str | None = None


class Dialect(ABC):
    """One engine's wire. Whoever writes an adapter writes this beside it.

    `lacks` maps capabilities to why the engine does not have them; cases that need one are then reported as not
    applicable, with that reason. Capabilities of the wire:

    - `sse`, `json`: frames are server-sent events, and hold JSON objects;
    - `end_marker`: the stream itself says where the text ends;
    - `frame_tokens`: a frame can complete several tokens;
    - `running_count`: frames tell how many tokens there are so far, or which;
    - `in_band_errors`: an error can come as a frame of a stream with status 200;
    - `release_proof`: the engine can be asked whether it has let go of a generation;
    - `stop_strings`: generations end at stop strings;
    - `tokenizer`: the engine counts tokens;
    - `described`: the engine describes itself (`properties` asks it);
    - `metrics`: the engine has metrics;
    - `keys`: the engine takes a key.
    """

    engine: ClassVar[str]
    lacks: ClassVar[Mapping[str, str]] = {}
    content_type: ClassVar[str] = "text/event-stream"
    #: What may stand between two frames and means nothing.
    fillers: ClassVar[Sequence[bytes]] = (b": keep-alive\n\n", b":\n\n", b"\n", b"event: ping\n\n", b"retry: 10\n\n")

    @abstractmethod
    def create(self, spec: EngineSpec) -> EngineAdapter:
        """The adapter under test."""

    @abstractmethod
    def is_generation(self, call: Call) -> bool:
        """Whether a request starts a generation."""

    @abstractmethod
    def answer(self, call: Call, active: Sequence[bytes]) -> Answer:
        """A well engine's answer to any other request; `active` are the bodies of the generations it works on."""

    @abstractmethod
    def payloads(self, pieces: Sequence[Piece], end: End | None) -> list[bytes]:
        """The frames of a stream, unframed; without `end` one that goes on."""

    @abstractmethod
    def refusal(self, trouble: Trouble) -> Answer | None:
        """The engine's answer to a request that it refuses so; None where it never does."""

    def in_band(self, trouble: Trouble) -> bytes | None:
        """The frame of such an error amid a stream; None where there is none."""
        del trouble
        return None

    def backwards(self) -> list[bytes] | None:
        """The frames of a stream whose counts contradict each other."""
        return None

    def frame(self, payload: bytes) -> bytes:
        """A frame as it goes over the wire: server-sent events by default."""
        return b"data: " + payload + b"\n\n"

    def spec(self, endpoint: str) -> EngineSpec:
        """What the adapter under test attaches to."""
        return EngineSpec(
            engine=self.engine,
            pool_id="conformance",
            replica_id="conformance-0",
            model="m",
            model_path="",
            ctx=CTX,
            slots=SLOTS,
            accelerator="cpu-dev",
            endpoint=endpoint,
            ready_timeout_ms=10_000,
            # A peer's text depends on nothing: all slots can be used at once.
            batch_invariant=True,
        )

    def body(self, pieces: Sequence[Piece], end: End | None) -> list[bytes]:
        """The frames of a stream as they go over the wire."""
        return [self.frame(payload) for payload in self.payloads(pieces, end)]
