"""Attempts on a llama-server: each has a slot, and the slot list says when it is free again."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from adapters.attempts import Attempt, Attempts
from adapters.http_client import EngineClient
from adapters.llamacpp import calls
from adapters.llamacpp.contexts import ContextMover
from adapters.llamacpp.protocol import ENGINE
from adapters.llamacpp.sessions import Sessions, Turn, session_name
from adapters.llamacpp.slots import SlotTable
from contracts.engine import EngineError, GenerateRequest

#: An input under way is computed to its end, so a cancel may have to wait for the longest one: this often 3 s.
_COMPUTE_WAITS: Final = 20


class SlotAttempts(Attempts):
    """The attempts of one engine process, at most one per slot.

    Contexts that leave their slots are saved in `contexts`, where there is such a folder; `token_bytes` is what a
    token of them takes there.
    """

    def __init__(
        self,
        client: EngineClient,
        alive: Callable[[], bool],
        slots: int,
        contexts: Path | None = None,
        token_bytes: int = 0,
    ) -> None:
        super().__init__(ENGINE, slots, alive, self._is_idle)
        self._client = client
        self._table = SlotTable(slots)
        self._sessions = Sessions(slots, saves=contexts is not None, token_bytes=token_bytes)
        self._mover = ContextMover(client, contexts, self._sessions) if contexts is not None else None
        self._taken: dict[str, Turn] = {}

    def take_slot(self, attempt: Attempt, request: GenerateRequest, prompt: str | list[int]) -> Turn:
        """Give the attempt its slot. There is one: attempts are counted in `begin`."""
        now_ns, name = time.monotonic_ns(), session_name(request.session_id)
        if request.kv_hint == "cold":
            self._sessions.forget(name)
            name = ""
        text = prompt if isinstance(prompt, str) else ""
        slot = self._table.take(text, self._sessions.slot_of(name), self._sessions.costly(now_ns))
        assert slot is not None, "more attempts than slots"
        self._taken[attempt.key] = turn = self._sessions.begin(slot, name, now_ns)
        return turn

    async def prepare_slot(self, attempt: Attempt, turn: Turn) -> bool | None:
        """Save and restore contexts as the turn needs it. Whether it is known what the slot holds; None: canceled."""
        if self._mover is None or not (turn.save or turn.restore):
            return True
        return await attempt.run(self._mover.move(turn))

    def _release(self, attempt: Attempt) -> None:
        super()._release(attempt)
        turn = self._taken.pop(attempt.key, None)
        if turn is not None:
            self._sessions.end(turn, time.monotonic_ns())
            self._table.give_back(turn.slot)

    async def _is_idle(self, attempt: Attempt) -> bool:
        turn = self._taken.get(attempt.key)
        slot = None if turn is None else turn.slot
        return not any(entry.id == slot and entry.is_processing for entry in await calls.slots(self._client))


class ComputeAttempts(Attempts):
    """The attempts of a server for embeddings or ranks, which puts inputs into its slots by itself."""

    def __init__(self, client: EngineClient, alive: Callable[[], bool], slots: int) -> None:
        super().__init__(ENGINE, slots, alive, self._is_idle)
        self._client = client

    async def cancel(self, key: str) -> None:
        """See `Attempts`; waits for the input under way, which nothing stops."""
        for _ in range(_COMPUTE_WAITS - 1):
            with contextlib.suppress(EngineError):
                await super().cancel(key)
                return
        await super().cancel(key)

    async def _is_idle(self, attempt: Attempt) -> bool:
        """Whether no more slots are busy than the other attempts account for."""
        del attempt
        busy = sum(entry.is_processing for entry in await calls.slots(self._client))
        return busy <= sum(each.asked and not each.ended for each in self._open.values())
