"""The sqlite file: how it is opened, what is in it, and whether it is whole."""

import os
import sqlite3
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import msgspec

from orchestrator.cluster.journal.errors import JournalFolderError, JournalVersionError
from orchestrator.cluster.journal.places import Places
from orchestrator.cluster.journal.rows import (
    ACCOUNTS,
    META,
    TABLES,
    Subject,
    Value,
    checksum,
    encode,
    is_sound,
    over_at,
)

#: "llor", in the file's header.
APPLICATION_ID: Final = 0x6C6C6F72
#: Of tables and records. A journal of a later one is refused, not guessed at.
VERSION: Final = 1
PAGE_BYTES: Final = 4096
PAGES_MIN: Final = 64
#: What the write-ahead log is cut back to after a checkpoint, which comes each 1000 pages.
LOG_BYTES_MAX: Final = 16 * 1024 * 1024
BUSY_S: Final = 5.0
_EMPTY_PAGES_MAX: Final = 2
#: Free pages that are given back to the disk at a time.
VACUUM_PAGES: Final = 1024

_RELEASE: Final = b"release"
#: The number of its row; those of all others begin with 1.
_RELEASE_NUMBER: Final = 0
_TABLE: Final = (
    "CREATE TABLE {} (id INTEGER PRIMARY KEY, key BLOB NOT NULL, data BLOB NOT NULL, crc INTEGER NOT NULL,"
    " until INTEGER)"
)
_DAMAGED: Final = (
    "CREATE TABLE damaged (id INTEGER PRIMARY KEY, found_ms INTEGER NOT NULL, source TEXT NOT NULL, key, data, crc)"
)
_SCHEMA: Final = {name: _TABLE.format(name) for name in TABLES} | {"damaged": _DAMAGED}
_WRITE: Final = {
    name: f"INSERT OR REPLACE INTO {name} (id, key, data, crc, until) VALUES (?, ?, ?, ?, ?)" for name in TABLES
}
_DELETE: Final = {name: f"DELETE FROM {name} WHERE id = ?" for name in TABLES}

#: Primary result codes that tell of the disk or of rights, not of what is in the file.
_OUTSIDE: Final = frozenset(
    (
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_ABORT,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_AUTH,
    )
)


class _Release(msgspec.Struct, frozen=True):
    """Which version of the journal it is, and which release wrote it."""

    journal: int
    release: str


class DamagedError(sqlite3.DatabaseError):
    """The file is a database, but not as it was left."""


def is_damage(error: sqlite3.Error, path: Path) -> bool:
    """Whether an error tells of the file's content; else of the disk, or of rights."""
    if isinstance(error, DamagedError):
        return True
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code == sqlite3.SQLITE_IOERR_SHORT_READ:
        return True
    if code & 0xFF == sqlite3.SQLITE_READONLY:  # a header that says so, if the file system does not
        return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return code & 0xFF not in _OUTSIDE


def unusable(path: Path, error: Exception) -> JournalFolderError:
    """The typed error for what `is_damage` says is none."""
    return JournalFolderError(
        f"the journal {path} cannot be opened ({error}); see that its disk has room and works and that the file can be"
        " written, or name another folder as storage.data_dir"
    )


def connect(path: Path, bytes_max: int) -> sqlite3.Connection:
    """A connection that commits durably. Raises sqlite3.Error, OSError."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # sqlite gives the files beside it the same mode
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.text_factory = bytes
        new = (f"page_size = {PAGE_BYTES}", "auto_vacuum = INCREMENTAL") if not path.stat().st_size else ()
        for pragma in (
            *new,
            "journal_mode = WAL",
            "synchronous = FULL",
            "secure_delete = FAST",
            "cell_size_check = ON",
            "trusted_schema = OFF",
            f"journal_size_limit = {LOG_BYTES_MAX}",
            f"max_page_count = {max(PAGES_MIN, bytes_max // PAGE_BYTES)}",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def make_ready(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables of a new file, or see that those of an old one are whole.

    Raises JournalVersionError, DamagedError and other sqlite3.Error.
    """
    if not _schema(connection):
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        if pages > _EMPTY_PAGES_MAX:
            raise DamagedError(f"{pages} pages and no table")
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.values():
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        release = encode(_Release(VERSION, _release()))
        connection.execute(_WRITE[META], (_RELEASE_NUMBER, _RELEASE, release, checksum(META, _RELEASE, release), None))
        connection.execute("COMMIT")
        return
    _check_version(connection, path)
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found is None or found[0] != b"ok":
        raise DamagedError(f"integrity check: {(found or ('nothing',))[0]!r}")


def _release() -> str:
    """Of this program; sources that were never installed have none."""
    try:
        return version("llama-orch")
    except PackageNotFoundError:
        return "unknown"


def _schema(connection: sqlite3.Connection) -> dict[bytes, bytes]:
    return dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall())


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Raises JournalVersionError for a later one; DamagedError where header and content do not agree."""
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    written = read_meta(connection).get(_RELEASE)
    release = _release_of(written)
    if application == APPLICATION_ID and number > VERSION and (release is None or release.journal > VERSION):
        by = f"release {release.release}" if release is not None else "a later release"
        raise JournalVersionError(
            f"the journal {path} is of version {number}, written by {by}; this release reads up to version {VERSION}."
            f" Start {by} or a later one, or name another folder as storage.data_dir"
        )
    expected = {name.encode(): sql.encode() for name, sql in _SCHEMA.items()}
    if (application, number) != (APPLICATION_ID, VERSION) or _schema(connection) != expected:
        raise DamagedError("its header or its tables are not those of a journal")


def _release_of(written: bytes | None) -> _Release | None:
    try:
        return msgspec.msgpack.decode(written or b"", type=_Release)
    except msgspec.DecodeError:
        return None


def read_meta(connection: sqlite3.Connection) -> dict[bytes, bytes]:
    """What is known of the journal itself, without rows that are damaged."""
    rows = connection.execute(f"SELECT key, data, crc FROM {META}").fetchall()
    return {key: data for key, data, crc in rows if is_sound(META, key, data, crc)}


def write(connection: sqlite3.Connection, rows: Mapping[Subject, Value], places: Places) -> list[Subject]:
    """Write rows, inside a transaction; what is deleted goes first, so that its room can be used.

    Told is what was deleted, for `places` once that is durable.
    """
    deleted: list[Subject] = []
    for subject, value in rows.items():
        if value is None:
            deleted.append(subject)
            number = places.known(subject)
            if number is not None:
                connection.execute(_DELETE[subject[0]], (number,))
    for subject, value in rows.items():
        if value is not None:
            table, key = subject
            data = value if isinstance(value, bytes) else encode(value)
            row = (places.given(subject), key, data, checksum(table, key, data), over_at(value))
            connection.execute(_WRITE[table], row)
    return deleted


def tidy(connection: sqlite3.Connection, now_ns: int) -> list[Subject]:
    """Delete accounts whose buckets are full again, inside a transaction: nobody forgets those by name.

    Told is what was deleted, for `Places` once that is durable.
    """
    gone = connection.execute(f"DELETE FROM {ACCOUNTS} WHERE until <= ? RETURNING key", (now_ns,)).fetchall()
    return [(ACCOUNTS, key) for (key,) in gone]


def give_back(connection: sqlite3.Connection) -> None:
    """Give free pages back to the disk where they are many, some at a time; outside of a transaction."""
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    if free > max(VACUUM_PAGES, pages // 4):
        # As a script: it gives back one page at each step, and has no rows that a cursor would step for.
        connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")


def empty_log(connection: sqlite3.Connection) -> None:
    """Have all that is committed in the file itself, durably. Raises sqlite3.Error."""
    (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise sqlite3.OperationalError("the log could not be emptied")


def set_aside(connection: sqlite3.Connection, table: str, row: tuple[Any, Any, Any], found_ms: int) -> None:
    """Keep a row that does not verify, to be looked at."""
    connection.execute(
        "INSERT INTO damaged (found_ms, source, key, data, crc) VALUES (?, ?, ?, ?, ?)", (found_ms, table, *row)
    )
