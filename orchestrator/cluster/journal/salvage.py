"""What can still be read of a damaged sqlite file, row by row.

A page that cannot be read takes its rows with it and stops a scan that comes to it. So tables are read in ranges of
row numbers: one that fails is halved, until what fails is a single number. Rows that are read may still be
wrong: each is checked by its own checksum.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import structlog

from orchestrator.cluster.journal import database
from orchestrator.cluster.journal.database import PAGE_BYTES
from orchestrator.cluster.journal.folder import Folder
from orchestrator.cluster.journal.places import Places
from orchestrator.cluster.journal.rows import META, TABLES, Subject, is_sound

log = structlog.get_logger(__name__)

#: Row numbers are given out one by one, so there are fewer than this.
_ROWS_MAX: Final = 1 << 40
#: Ranges that may fail before a table is given up: a page that is gone costs about 50.
FAILURES_MAX: Final = 4_000
#: How every journal's header begins (sqlite.org/fileformat2.html, section 1.3), and how much of that may be wrong in
#: one that is mended: without it not a single row can be read.
_HEADER: Final = b"SQLite format 3\0" + bytes([PAGE_BYTES >> 8, 0, 2, 2, 0, 64, 32, 32])
_WRONG_MAX: Final = 4
_SIZE_AT: Final = 28
_FORMAT_AT: Final = 44
_ENCODING_AT: Final = 56

_RELEASE: Final[Subject] = (META, b"release")

Row = tuple[str, bytes, bytes]


def start_anew(folder: Folder, bytes_max: int) -> None:
    """Write what is sound of a damaged journal into another one, and only when that is durable change their places.

    Raises sqlite3.Error, OSError: nothing has changed then.
    """
    rows, whole = salvage(folder.journal)
    try:
        connection = database.connect(folder.draft, bytes_max)
        try:
            database.make_ready(connection, folder.draft)
            connection.execute("BEGIN IMMEDIATE")
            sound = {(table, key): data for table, key, data in rows if (table, key) != _RELEASE}
            database.write(connection, sound, Places())
            connection.execute("COMMIT")
            database.empty_log(connection)
        finally:
            connection.close()
        aside = folder.replace()
    except (sqlite3.Error, OSError):
        with contextlib.suppress(OSError):
            folder.drop_draft()  # the room it takes may be what is lacking
        raise
    log.error("journal.started_anew", damaged=str(aside), rows=len(rows), whole=whole)


def salvage(path: Path) -> tuple[list[Row], bool]:
    """Rows (table, key, data) of a damaged file that are as they were written, and whether that seems to be all.

    Mends the file's header if nothing can be read without that.
    """
    found, whole = _read(path)
    if not found and _mend(path):
        found, _ = _read(path)
        whole = False
    return found, whole


def _read(path: Path) -> tuple[list[Row], bool]:
    try:
        connection = sqlite3.connect(path, isolation_level=None)
    except sqlite3.Error:
        return [], False
    with contextlib.closing(connection):
        connection.text_factory = bytes
        with contextlib.suppress(sqlite3.Error):
            # Tables whose definition is damaged are left out then, and the others can be read.
            connection.execute("PRAGMA writable_schema = ON")
        found: list[Row] = []
        whole = True
        for table in TABLES:
            scan = _Scan(connection, table)
            for key, data, crc in scan:
                if is_sound(table, key, data, crc):
                    found.append((table, key, data))
            whole = whole and not scan.failures
        return found, whole


def _mend(path: Path) -> bool:
    """Write the parts of the header that are the same in every journal; False if it does not look like one."""
    with path.open("r+b") as file:
        begin = file.read(len(_HEADER))
        pages = path.stat().st_size // PAGE_BYTES
        if len(begin) < len(_HEADER) or sum(a != b for a, b in zip(begin, _HEADER, strict=True)) > _WRONG_MAX:
            return False
        for place, right in (
            (0, _HEADER),
            (_SIZE_AT, pages.to_bytes(4, "big")),
            (_FORMAT_AT, (4).to_bytes(4, "big")),
            (_ENCODING_AT, (1).to_bytes(4, "big")),
        ):
            file.seek(place)
            file.write(right)
    return True


class _Scan:
    """The rows of a table that can be read: (key, data, crc)."""

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        self.failures = 0
        self._connection = connection
        self._query = f"SELECT id, key, data, crc FROM {table} WHERE id BETWEEN ? AND ? ORDER BY id"

    def __iter__(self) -> Iterator[tuple[Any, Any, Any]]:
        try:
            self._connection.execute(self._query, (1, 0)).fetchall()
        except sqlite3.Error:  # there is no such table
            self.failures += 1
            return
        waiting = [(1, self._last())]
        while waiting and self.failures < FAILURES_MAX:
            first, last = waiting.pop()
            try:
                for number, key, data, crc in self._connection.execute(self._query, (first, last)):
                    first = number + 1
                    yield key, data, crc
            except (sqlite3.Error, OverflowError, TypeError):
                self.failures += 1
                if first < last:
                    middle = (first + last) // 2
                    waiting += [(middle + 1, last), (first, middle)]

    def _last(self) -> int:
        with contextlib.suppress(sqlite3.Error, TypeError):
            ((last,),) = self._connection.execute(self._query.replace("id, key, data, crc", "max(id)"), (1, _ROWS_MAX))
            if isinstance(last, int):
                return last
        return _ROWS_MAX
