"""A damaged journal is salvaged as a whole or not at all: nothing is lost where that fails or is cut short."""

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.journal import database, folder
from orchestrator.cluster.journal.errors import JournalFolderError
from tests.unit.cluster.journal_kit import kept, opened, read

pytestmark = pytest.mark.req("ORCH-3051")
TASKS = 30


class Killed(BaseException):
    """The process ends here."""


async def damage(place: Path) -> None:
    """A journal whose header is wrong and whose rows are whole, all of them in its log."""
    source = place.parent / "source"
    async with opened(source) as (journal, _, heard):
        for number in range(TASKS):
            last = journal.put([kept(f"t{number}", number)], {f"t{number}": bytes(3000)}, {})
        await heard.wait_durable(last)
        with contextlib.closing(sqlite3.connect(source / "journal.db")) as connection:
            connection.execute("PRAGMA user_version = 9")
        shutil.copytree(source, place)
    assert (place / "journal.db-wal").stat().st_size > TASKS * 3000


def tasks(place: Path) -> int:
    restored = read(place)
    assert len(restored.payloads) == len(restored.kept.tasks)
    return len(restored.kept.tasks)


async def test_a_damaged_journal_gives_its_rows_and_its_log_and_is_kept(tmp_path: Path) -> None:
    data = tmp_path / "data"
    await damage(data)
    assert tasks(data) == TASKS
    (aside,) = data.glob("journal-damaged-*.db")
    with contextlib.closing(sqlite3.connect(aside)) as connection:
        assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (TASKS,)
    assert {each.name for each in data.iterdir()} - {f"{aside.name}{end}" for end in ("", "-wal", "-shm")} == {
        "journal.db",
        "journal.lock",
    }
    assert tasks(data) == TASKS


async def test_a_full_disk_leaves_the_damaged_journal_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    await damage(data)

    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(database, "write", full)
        for _ in range(2):
            with pytest.raises(JournalFolderError, match="disk is full"):
                read(data)
    assert not list(data.glob("journal-d*")) + list(data.glob("journal-n*"))
    assert tasks(data) == TASKS


async def test_a_salvage_that_is_cut_short_anywhere_is_finished_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    await damage(data)
    steps = 0
    while True:  # ends once a start is not killed any more
        place = tmp_path / str(steps)
        shutil.copytree(data, place)
        if not _killed_at(steps, place, monkeypatch):
            break
        assert tasks(place) == TASKS, f"killed at step {steps}"
        assert tasks(place) == TASKS
        assert not list(place.glob("journal-draft*")) + list(place.glob("journal-new*"))
        steps += 1
    assert steps >= 8  # writes, renames and what makes them durable


def _killed_at(step: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Start with a process that dies before its so-and-so-manieth change of the folder."""
    left = [step]

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*arguments)

        patched.setattr(owner, name, call)

    with monkeypatch.context() as patched:
        counted(folder.os, "rename")
        counted(folder.os, "fsync")
        counted(folder.Folder, "drop_draft")
        counted(database, "make_ready")
        counted(database, "write")
        counted(database, "empty_log")
        try:
            read(place)
        except Killed:
            return True
    return False


async def test_what_a_salvage_left_half_done_is_undone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    await damage(data)
    (data / "journal-draft.db").write_bytes(b"not whole")
    (data / "journal-draft.db-wal").write_bytes(b"not whole")
    assert tasks(data) == TASKS
    assert not os.path.exists(data / "journal-draft.db-wal")
