"""The thread that commits: whatever waits when it is free is one transaction.

Nothing waits for company: the first change of a quiet time is committed at once, and what comes meanwhile is the
next transaction. A transaction that fails is undone and tried again every `RETRY_S`; its admissions are given up, all
else stays to be written.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from contracts.journal import Record
from orchestrator.cluster.journal import database
from orchestrator.cluster.journal.clocks import Clocks
from orchestrator.cluster.journal.places import Places
from orchestrator.cluster.journal.recovery import CLOCK
from orchestrator.cluster.journal.rows import META, Changes, encode

log = structlog.get_logger(__name__)

RETRY_S: Final = 1.0
#: At most this often the clock is noted and what is over by itself deleted.
UPKEEP_NS: Final = 60_000_000_000
#: The journal counts as restored once there is room for this much more.
PROBE: Final = (META, b"probe")
PROBE_BYTES: Final = 64 * 1024

#: Told from the thread: what is durable, that a transaction failed with which admissions, that all is well again.
OnDurable = Callable[[int], None]
OnFailed = Callable[[str, tuple[str, ...]], None]
OnRestored = Callable[[], None]


class Writer:
    """Owns the connection. `put` may be called from one thread, the callbacks come from the writer's own."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        places: Places,
        reopen: Callable[[], sqlite3.Connection],
        clocks: Clocks,
    ) -> None:
        self._connection = connection
        self._places = places
        self._reopen = reopen
        self._clocks = clocks
        self._upkeep_ns = clocks.now_ns()
        self._changed = threading.Condition()
        self._waiting = Changes()
        self._sequence = 0
        self._closing = False
        self._is_down = False
        self._thread: threading.Thread | None = None

    def start(self, durable: OnDurable, failed: OnFailed, restored: OnRestored) -> None:
        """Begin to commit."""
        self._durable, self._failed, self._restored = durable, failed, restored
        self._thread = threading.Thread(target=self._live, name="journal", daemon=True)
        self._thread.start()

    def put(self, records: list[Record], payloads: Mapping[str, bytes], transcripts: Mapping[str, bytes | None]) -> int:
        """Have what one step changed written; its number, which is durable when `durable` is told it or a later one."""
        with self._changed:
            self._sequence += 1
            self._waiting.put(self._sequence, records, payloads, transcripts)
            self._changed.notify()
            return self._sequence

    def close(self, timeout_s: float) -> bool:
        """Commit what waits, if that is possible, and end. False: it has not ended in time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.error("journal.stuck", waited_s=timeout_s)
                return False
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        return True

    # ------------------------------------------------------------------ in the thread

    def _live(self) -> None:
        """Commit until closed. Without this thread nothing would be durable any more: the process ends with it."""
        try:
            self._run()
        except BaseException:
            with contextlib.suppress(Exception):
                log.exception("journal.crashed")
            os._exit(1)  # Ray starts the scheduler again, on what is durable

    def _run(self) -> None:
        while True:
            changes, closing = self._take()
            if changes.sequence or self._is_down:
                self._write(changes)
            if closing and (self._is_down or not self._waiting.sequence):
                break
        if self._waiting.rows:
            log.error("journal.ended_unwritten", rows=len(self._waiting.rows))

    def _take(self) -> tuple[Changes, bool]:
        """What waits: as soon as anything does, or, while writing fails, when it is time to try again."""
        with self._changed:
            if self._is_down:
                self._changed.wait_for(lambda: self._closing, RETRY_S)
            else:
                self._changed.wait_for(lambda: self._closing or self._waiting.sequence)
            changes, self._waiting = self._waiting, Changes()
            return changes, self._closing

    def _write(self, changes: Changes) -> None:
        try:
            if self._is_down:
                self._connection.close()
                self._connection = self._reopen()
            self._commit(changes)
        except Exception as error:  # whatever it is, what waits must not be lost
            self._undo(changes, error)
            return
        if changes.sequence:
            self._durable(changes.sequence)
        if self._is_down and self._has_room():
            self._is_down = False
            log.warning("journal.restored")
            self._restored()

    def _commit(self, changes: Changes) -> None:
        connection, now_ns = self._connection, self._clocks.now_ns()
        upkeep = now_ns - self._upkeep_ns >= UPKEEP_NS
        connection.execute("BEGIN IMMEDIATE")
        gone = database.write(connection, changes.rows, self._places)
        if upkeep:
            self._upkeep_ns = now_ns
            database.write(connection, {CLOCK: encode(self._clocks.anchor())}, self._places)
            gone += database.tidy(connection, now_ns)
        connection.execute("COMMIT")
        self._places.gone(gone)
        if upkeep:
            with contextlib.suppress(sqlite3.Error):  # what counts is committed
                database.give_back(connection)

    def _has_room(self) -> bool:
        """Whether more than what waited can be written: else the next admission would only fail again."""
        try:
            database.write(self._connection, {PROBE: bytes(PROBE_BYTES)}, self._places)
            database.write(self._connection, {PROBE: None}, self._places)
        except sqlite3.Error:
            return False
        return True

    def _undo(self, changes: Changes, error: Exception) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.rollback()
        undone = changes.give_up_admissions()
        with self._changed:
            changes.add(self._waiting)
            self._waiting = changes
        if undone or not self._is_down:
            self._is_down = True
            self._failed(str(error), undone)
            expected = isinstance(error, sqlite3.Error | OSError)
            log.error("journal.failed", error=str(error), undone=len(undone), exc_info=None if expected else error)
