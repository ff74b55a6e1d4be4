"""From a folder to what the scheduler knew: whole if it can be, else all of it that is sound.

A commit that was under way when the machine stopped is sqlite's to undo. What is decided here is what becomes of
damage: a row that does not verify is left out, kept aside and told of; of a file that cannot be trusted what is sound
goes into a new one, and it stays where it is until that is durable.
"""

import sqlite3
import time
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import structlog
from msgspec.structs import replace

from contracts.errors import ErrorInfo
from contracts.journal import Kept, KeptAccount, KeptPool, KeptSession, KeptTask, moved
from contracts.tasks import Outcome
from orchestrator.cluster.journal import database
from orchestrator.cluster.journal.clocks import Anchor, Clocks, moved_by_ns
from orchestrator.cluster.journal.folder import Folder
from orchestrator.cluster.journal.places import Places
from orchestrator.cluster.journal.rows import (
    ACCOUNTS,
    META,
    PAYLOADS,
    POOLS,
    SESSIONS,
    TABLES,
    TASKS,
    TRANSCRIPTS,
    Changes,
    Subject,
    Value,
    encode,
    is_sound,
    session_key,
)
from orchestrator.cluster.journal.salvage import start_anew

log = structlog.get_logger(__name__)

CLOCK: Final[Subject] = (META, b"clock")
EPOCH: Final[Subject] = (META, b"epoch")
#: Damaged rows that are kept aside, and those of one start that are logged each.
ASIDE_MAX: Final = 1000
LOGGED_MAX: Final = 20

_PAYLOAD_LOST: Final = ErrorInfo(
    "INTERNAL",
    "the scheduler's journal was damaged: what this task asked for cannot be read any more, and it had not ended;"
    " submit it again under a new task_id",
    retriable=False,
)

_R = TypeVar("_R")
_TYPES: Final[dict[str, Any]] = {
    TASKS: KeptTask,
    SESSIONS: KeptSession,
    ACCOUNTS: KeptAccount,
    POOLS: KeptPool,
}


class Restored(NamedTuple):
    """What the scheduler before knew, on the present clock; `epoch` is the present one's number.

    Payloads are those of live tasks. `damaged` counts rows that were left out.
    """

    kept: Kept
    payloads: dict[str, bytes]
    transcripts: dict[str, bytes]
    epoch: int
    damaged: int = 0


class _Damage:
    """Counts rows that are left out, tells of the first ones, and moves them aside."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.count = 0
        self._connection = connection
        self._path = path

    def found(self, table: str, number: int, why: str) -> None:
        """A row of that number says nothing that could be used."""
        self.count += 1
        key, data, crc = self._connection.execute(
            f"SELECT key, data, crc FROM {table} WHERE id = ?", (number,)
        ).fetchone()
        if self.count <= LOGGED_MAX:
            log.error("journal.row_damaged", path=str(self._path), table=table, key=repr(key), why=why)
        if self.count <= ASIDE_MAX:
            database.set_aside(self._connection, table, (key, data, crc), time.time_ns() // 1_000_000)
        self._connection.execute(f"DELETE FROM {table} WHERE id = ?", (number,))

    def given_up(self, kept: KeptTask, now_ns: int) -> KeptTask:
        """An accepted task whose payload is gone: nobody can run it, and whoever asks for it is told so."""
        log.error("journal.payload_lost", path=str(self._path), job_id=kept.task.task_id)
        outcome = Outcome("failed", tokens_out=kept.resume_tokens, error=_PAYLOAD_LOST)
        return replace(kept, outcome=outcome, ended_ns=now_ns)


class _Row(NamedTuple):
    """A row that verifies: its number in its table, and its bytes."""

    number: int
    data: bytes


class Opened(NamedTuple):
    """A journal that can be written, and what it had."""

    connection: sqlite3.Connection
    places: Places
    restored: Restored


def recover(folder: Folder, bytes_max: int, clocks: Clocks) -> Opened:
    """Open the journal of a folder and begin an epoch of it, durably. Raises JournalError."""
    path = folder.journal
    try:
        folder.settle()
        try:
            return _opened(folder, bytes_max, clocks)
        except sqlite3.Error as error:
            if not database.is_damage(error, path):
                raise
            log.error("journal.damaged", path=str(path), error=str(error))
            start_anew(folder, bytes_max)
        return _opened(folder, bytes_max, clocks)
    except (sqlite3.Error, OSError) as failed:
        raise database.unusable(path, failed) from failed


def _opened(folder: Folder, bytes_max: int, clocks: Clocks) -> Opened:
    connection = database.connect(folder.journal, bytes_max)
    try:
        database.make_ready(connection, folder.journal)
        places = Places()
        restored = _begin_epoch(connection, places, folder, clocks)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        folder.sync()
    except BaseException:
        connection.close()
        raise
    return Opened(connection, places, restored)


def _begin_epoch(connection: sqlite3.Connection, places: Places, folder: Folder, clocks: Clocks) -> Restored:
    """Read everything, and commit what this start changes."""
    connection.execute("BEGIN IMMEDIATE")
    damage = _Damage(connection, folder.journal)
    rows = {table: _sound_rows(connection, table, damage) for table in TABLES}
    epoch = 1 + max(_decoded(rows[META].get(EPOCH[1]), int) or 0, folder.before.epoch)
    anchor = clocks.anchor()
    by_ns = moved_by_ns(_decoded(rows[META].get(CLOCK[1]), Anchor) or folder.before.anchor, anchor)
    kept, given_up = _kept(rows, damage, by_ns, clocks.now_ns())
    for table in TABLES:
        for key, row in rows[table].items():
            places.found((table, key), row.number)
    ended = {task.task.task_id.encode(): task.outcome is not None for task in kept.tasks}
    payloads = {key: row.data for key, row in rows[PAYLOADS].items() if ended.get(key) is False}
    transcripts = {key: row.data for key, row in rows[TRANSCRIPTS].items() if key in ended}
    changes = Changes()  # if instants were moved, all are on the present clock from now on
    changes.put(0, (*kept.tasks, *kept.sessions, *kept.accounts) if by_ns else given_up, {}, {})
    written: dict[Subject, Value] = {**changes.rows, CLOCK: encode(anchor), EPOCH: encode(epoch)}
    alive = {session_key(each.tenant, each.session_id) for each in kept.sessions}
    written |= {(SESSIONS, key): None for key in rows[SESSIONS] if key not in alive}
    written |= {(PAYLOADS, key): None for key in rows[PAYLOADS] if key not in payloads}
    written |= {(TRANSCRIPTS, key): None for key in rows[TRANSCRIPTS] if key not in transcripts}
    gone = database.write(connection, written, places)
    gone += database.tidy(connection, clocks.now_ns())
    connection.execute(f"DELETE FROM damaged WHERE id <= (SELECT max(id) FROM damaged) - {ASIDE_MAX}")
    folder.note(epoch, anchor)
    connection.execute("COMMIT")
    places.gone(gone)
    if damage.count:
        log.error("journal.rows_left_out", path=str(folder.journal), rows=damage.count)
    return Restored(kept, _by_task(payloads), _by_task(transcripts), epoch, damage.count)


def _sound_rows(connection: sqlite3.Connection, table: str, damage: _Damage) -> dict[bytes, _Row]:
    """The rows of a table that verify; the others are moved aside."""
    sound: dict[bytes, _Row] = {}
    broken: list[int] = []
    older: list[int] = []
    for number, key, data, crc in connection.execute(f"SELECT id, key, data, crc FROM {table} ORDER BY id"):
        if is_sound(table, key, data, crc):
            if key in sound:
                older.append(sound[key].number)
            sound[key] = _Row(number, data)
        else:
            broken.append(number)
    for number in broken:
        damage.found(table, number, "its checksum is wrong")
    for number in older:
        damage.found(table, number, "a later row has its key")
    return sound


def _kept(
    rows: dict[str, dict[bytes, _Row]], damage: _Damage, by_ns: int, now_ns: int
) -> tuple[Kept, tuple[KeptTask, ...]]:
    """The records, on the present clock, without sessions and buckets whose time is over; and tasks that end now."""
    read = {table: _records(table, rows[table], damage) for table in _TYPES}
    kept = moved(Kept(*(tuple(read[table].values()) for table in (TASKS, SESSIONS, ACCOUNTS, POOLS))), by_ns)
    given_up = {
        each.task.task_id: damage.given_up(each, now_ns)
        for each in kept.tasks
        if each.outcome is None and each.task.task_id.encode() not in rows[PAYLOADS]
    }
    tasks = tuple([given_up.get(each.task.task_id, each) for each in kept.tasks])
    needed = {(each.task.tenant, each.task.session_id) for each in tasks if each.outcome is None}
    kept = replace(
        kept,
        tasks=tasks,
        sessions=tuple(
            [each for each in kept.sessions if each.until_ns > now_ns or (each.tenant, each.session_id) in needed]
        ),
        accounts=tuple([each for each in kept.accounts if max(each.requests_full_ns, each.tokens_full_ns) > now_ns]),
    )
    return kept, tuple(given_up.values())


def _records(table: str, rows: dict[bytes, _Row], damage: _Damage) -> dict[bytes, Any]:
    """The records of a table's rows; those that are none are moved aside."""
    decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(_TYPES[table])
    records: dict[bytes, Any] = {}
    for key, row in rows.items():
        try:
            records[key] = decoder.decode(row.data)
        except msgspec.DecodeError as error:
            damage.found(table, row.number, str(error))
    return records


def _by_task(rows: dict[bytes, bytes]) -> dict[str, bytes]:
    return {key.decode(): data for key, data in rows.items()}


def _decoded(row: _Row | None, kind: type[_R]) -> _R | None:
    try:
        return msgspec.msgpack.decode(row.data, type=kind) if row is not None else None
    except msgspec.DecodeError:
        return None
