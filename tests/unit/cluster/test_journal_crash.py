"""A journal's thread that ends by a bug takes the process along: nothing would be durable any more."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.journal import database, writer
from tests.unit.cluster.journal_kit import kept, opened
from tests.unit.cluster.scripted import until

pytestmark = pytest.mark.req("ORCH-3051")


class DeafLog:
    """A log whose lines cannot be written."""

    def __getattr__(self, level: str) -> Any:
        def write(*_event: object, **_fields: object) -> None:
            raise OSError(28, f"no room for a line at level {level}")

        return write


async def test_the_process_ends_with_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(writer.os, "_exit", statuses.append)

    def broken(_writer: writer.Writer, _changes: object) -> None:
        raise KeyError("a bug")

    async with opened(tmp_path) as (journal, _, heard):
        monkeypatch.setattr(writer.Writer, "_write", broken)
        journal.put([kept("a")], {"a": b"p"}, {})
        await until(lambda: statuses)
        assert heard.told == []
    assert statuses == [1]


async def test_the_core_hears_of_a_failure_before_the_log_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the line fails as the disk does, admissions are given up all the same."""
    statuses: list[int] = []

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async with opened(tmp_path) as (journal, _, heard):
        with monkeypatch.context() as patched:
            patched.setattr(writer.os, "_exit", statuses.append)
            patched.setattr(writer, "log", DeafLog())
            patched.setattr(database, "write", full)
            journal.put([kept("a")], {"a": b"p"}, {})
            await until(lambda: statuses)
        assert heard.told[0] == ("failed", "database or disk is full", ("a",))
