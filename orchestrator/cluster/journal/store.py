"""The scheduler's journal, as its shell sees it: `put` what changed, and be told when that is durable."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import structlog

from contracts.journal import Kept, Record
from orchestrator.cluster.journal import database
from orchestrator.cluster.journal.clocks import Clocks, this_boot
from orchestrator.cluster.journal.folder import Folder
from orchestrator.cluster.journal.recovery import Restored, recover
from orchestrator.cluster.journal.writer import Writer

log = structlog.get_logger(__name__)

BYTES_MAX: Final = 4 * 1024 * 1024 * 1024
#: How long an end may wait for the last commit.
CLOSE_WAIT_S: Final = 5.0


class Storage(NamedTuple):
    """Where a service keeps what outlives it. Without a folder it is the user's own, found where the scheduler runs."""

    folder: str | None = None
    journal: bool = True
    bytes_max: int = BYTES_MAX


class Listener(Protocol):
    """Who is told, on the event loop, of what became of what was put."""

    def durable(self, sequence: int) -> None:
        """All that was put up to this number is durable."""

    def failed(self, reason: str, undone: tuple[str, ...]) -> None:
        """Nothing can be made durable at present; these admissions were given up, all else will be tried again."""

    def restored(self) -> None:
        """Records are durable again."""


class Store(Protocol):
    """A journal, or none."""

    def start(self, listener: Listener) -> None:
        """Begin; must be called on the event loop on which `listener` is to be told."""

    def put(self, records: list[Record], payloads: Mapping[str, bytes], transcripts: Mapping[str, bytes | None]) -> int:
        """Have what one step changed made durable; the number to wait for."""

    async def close(self) -> None:
        """Make durable what waits, and end."""


class Journal:
    """A journal on disk."""

    def __init__(self, folder: Folder, writer: Writer) -> None:
        self._folder = folder
        self._writer = writer

    @classmethod
    def open(
        cls, folder: Path, bytes_max: int = BYTES_MAX, *, clocks: Clocks | None = None, wait_s: float | None = None
    ) -> tuple["Journal", Restored]:
        """Open a folder's journal, or begin one, and read all of it; blocks. Raises JournalError."""
        clocks = clocks or this_boot()
        locked = Folder(folder, wait_s)
        try:
            connection, places, restored = recover(locked, bytes_max, clocks)
        except BaseException:
            locked.close()
            raise
        log.info(
            "journal.opened",
            path=str(locked.journal),
            epoch=restored.epoch,
            tasks=len(restored.kept.tasks),
            live=len(restored.payloads),
            damaged=restored.damaged,
        )
        writer = Writer(connection, places, lambda: database.connect(locked.journal, bytes_max), clocks)
        return cls(locked, writer), restored

    def start(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()

        def tell(what: Callable[..., None], *arguments: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                loop.call_soon_threadsafe(what, *arguments)

        self._writer.start(
            lambda sequence: tell(listener.durable, sequence),
            lambda reason, undone: tell(listener.failed, reason, undone),
            lambda: tell(listener.restored),
        )

    def put(self, records: list[Record], payloads: Mapping[str, bytes], transcripts: Mapping[str, bytes | None]) -> int:
        return self._writer.put(records, payloads, transcripts)

    async def close(self) -> None:
        if await asyncio.to_thread(self._writer.close, CLOSE_WAIT_S):
            self._folder.close()  # else it is this process's until that ends


class NoJournal:
    """Keeps nothing: all is lost with the process. What is put counts as durable at once."""

    def start(self, listener: Listener) -> None:
        """Nobody is ever told anything."""

    def put(
        self,
        records: list[Record],  # noqa: ARG002  (the signature is the protocol's)
        payloads: Mapping[str, bytes],  # noqa: ARG002
        transcripts: Mapping[str, bytes | None],  # noqa: ARG002
    ) -> int:
        return 0

    async def close(self) -> None:
        """Nothing waits."""


def open_store(storage: Storage, clocks: Clocks | None = None) -> tuple[Store, Restored]:
    """What a service's settings ask for; blocks. Raises JournalError."""
    if not storage.journal:
        return NoJournal(), Restored(Kept(), {}, {}, epoch=0)
    folder = Path(storage.folder) if storage.folder is not None else default_folder()
    return Journal.open(folder, storage.bytes_max, clocks=clocks)


def default_folder() -> Path:
    """The user's own place for data, as the XDG Base Directory Specification has it."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share") / "llorch"
