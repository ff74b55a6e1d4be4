"""Attempts on a llama-server: each has a slot, and the slot list says when it is free again."""

import contextlib
from collections.abc import Callable
from typing import Final

from adapters.attempts import Attempt, Attempts
from adapters.http_client import EngineClient
from adapters.llamacpp import calls
from adapters.llamacpp.protocol import ENGINE
from adapters.llamacpp.slots import SlotTable
from contracts.engine import EngineError

#: An input under way is computed to its end, so a cancel may have to wait for the longest one: this often 3 s.
_COMPUTE_WAITS: Final = 20


class SlotAttempts(Attempts):
    """The attempts of one engine process, at most one per slot."""

    def __init__(self, client: EngineClient, alive: Callable[[], bool], slots: int) -> None:
        super().__init__(ENGINE, slots, alive, self._is_idle)
        self._client = client
        self._table = SlotTable(slots)
        self._taken: dict[str, int] = {}

    def take_slot(self, attempt: Attempt, prompt: str | list[int]) -> int:
        """Give the attempt its slot. There is one: attempts are counted in `begin`."""
        slot = self._table.take(prompt if isinstance(prompt, str) else "")
        assert slot is not None, "more attempts than slots"
        self._taken[attempt.key] = slot
        return slot

    def _release(self, attempt: Attempt) -> None:
        super()._release(attempt)
        slot = self._taken.pop(attempt.key, None)
        if slot is not None:
            self._table.give_back(slot)

    async def _is_idle(self, attempt: Attempt) -> bool:
        slot = self._taken.get(attempt.key)
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
