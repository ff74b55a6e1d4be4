"""Moving sessions' contexts between the engine's slots and files.

Measured on the real server: a slot is untouched by a save, also one that fails; a restore that is refused leaves it
empty; what is restored gives the same bytes as what is computed anew. A file that is not whole can make the server
abort, so none is handed to it whose size is not what was written. A call that timed out says nothing, so after any
failed restore the prompt is computed without what the slot may hold.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from adapters.http_client import EngineClient
from adapters.llamacpp import calls
from adapters.llamacpp.sessions import Sessions, Turn
from contracts.engine import EngineError


class ContextMover:
    """Saves and restores, one at a time: the engine does nothing else meanwhile."""

    def __init__(self, client: EngineClient, folder: Path, sessions: Sessions) -> None:
        self._client = client
        self._folder = folder
        self._sessions = sessions
        self._lock = asyncio.Lock()

    async def move(self, turn: Turn) -> bool:
        """Do what the turn needs. Whether it is known what the slot holds; failures only cost time."""
        known = True
        async with self._lock:
            if turn.save:
                # First what must make room for it.
                await self._sweep()
                self._sessions.saved(turn, *await self._save(turn))
            if turn.restore:
                tokens = await self._restore(turn)
                known = tokens > 0
                self._sessions.restored(turn, tokens)
            await self._sweep()
        return known

    async def _save(self, turn: Turn) -> tuple[int, int]:
        """Tokens and bytes written; none where the file is not whole, as on a full disk."""
        try:
            saved = await calls.save_slot(self._client, turn.slot, turn.save)
        except EngineError:
            return 0, 0
        whole = saved.n_saved > 0 and await self._has_size(turn.save, saved.n_written)
        return (saved.n_saved, saved.n_written) if whole else (0, 0)

    async def _restore(self, turn: Turn) -> int:
        """Tokens restored; none where it failed."""
        if not await self._has_size(turn.restore, self._sessions.file_bytes(turn.restore)):
            return 0
        try:
            return await calls.restore_slot(self._client, turn.slot, turn.restore)
        except EngineError:
            return 0

    async def _has_size(self, name: str, size_bytes: int) -> bool:
        try:
            status = await asyncio.to_thread((self._folder / name).stat)
        except OSError:
            return False
        return status.st_size == size_bytes

    async def _sweep(self) -> None:
        with contextlib.suppress(OSError):  # what cannot be removed now is tried again the next time
            await asyncio.to_thread(_remove_others, self._folder, self._sessions.files)


def _remove_others(folder: Path, wanted: Sequence[str]) -> None:
    """Remove all files but these: what was used up, dropped, or written late after its call was given up."""
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink(missing_ok=True)
