"""Which row a subject has is known outside of the file: that must stay true whatever becomes of a transaction."""

import sqlite3
from pathlib import Path

import pytest

from contracts.journal import ForgottenTask
from orchestrator.cluster.journal import database, writer
from orchestrator.cluster.journal.places import Places
from orchestrator.cluster.journal.rows import PAYLOADS, TABLES, TASKS
from tests.unit.cluster.journal_kit import FINISHED, SECOND_NS, Clock, account, kept, opened, put, read

pytestmark = pytest.mark.req("ORCH-3051")


def known(places: Places) -> int:
    return sum(len(numbers) for numbers in places._numbers.values())


def rows(folder: Path) -> dict[str, int]:
    """How many rows each table has."""
    connection = sqlite3.connect(folder / "journal.db")
    try:
        return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES}
    finally:
        connection.close()


def test_a_subject_keeps_its_number_and_numbers_are_given_once() -> None:
    places = Places()
    places.found((TASKS, b"read"), 7)
    first, second = places.given((TASKS, b"a")), places.given((PAYLOADS, b"a"))
    assert (first, second) == (8, 9)
    assert (places.given((TASKS, b"a")), places.known((PAYLOADS, b"a")), places.given((TASKS, b"read"))) == (8, 9, 7)
    places.gone([(TASKS, b"a"), (TASKS, b"never")])
    assert places.known((TASKS, b"a")) is None
    assert places.given((TASKS, b"a")) == 10


async def test_a_deletion_that_was_rolled_back_is_made_by_the_next_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(tmp_path, kept("a"), kept("b", 2), payloads={"a": b"p", "b": b"q"})
    monkeypatch.setattr(writer, "RETRY_S", 0.01)
    write, broken = database.write, [True]

    def failing(connection: sqlite3.Connection, changes: dict[object, object], places: Places) -> object:
        done = write(connection, changes, places)  # type: ignore[arg-type]
        if broken and broken.pop():
            raise sqlite3.OperationalError("disk I/O error")
        return done

    async with opened(tmp_path) as (journal, _, heard):
        monkeypatch.setattr(database, "write", failing)
        await heard.wait_durable(journal.put([ForgottenTask("a"), kept("b", 2, attempt=1)], {}, {}))
        assert [told[0] for told in heard.told] == ["failed", "durable"]
    assert read(tmp_path).kept.tasks == (kept("b", 2, attempt=1),)
    assert (rows(tmp_path)[TASKS], rows(tmp_path)[PAYLOADS]) == (1, 1)


async def test_a_change_of_a_task_that_was_read_replaces_its_row(tmp_path: Path) -> None:
    await put(tmp_path, kept("a"), kept("b", 2), payloads={"a": b"p", "b": b"q"})
    await put(tmp_path, kept("a", outcome=FINISHED), kept("c", 3), payloads={"c": b"r"}, transcripts={"a": b"t"})
    restored = read(tmp_path)
    assert {task.task.task_id: task.outcome for task in restored.kept.tasks} == {"a": FINISHED, "b": None, "c": None}
    assert (restored.payloads, restored.transcripts) == ({"b": b"q", "c": b"r"}, {"a": b"t"})
    assert (rows(tmp_path)[TASKS], rows(tmp_path)[PAYLOADS]) == (3, 2)


async def test_what_came_and_went_takes_no_memory(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock=clock) as (journal, _, heard):
        places = journal._writer._places
        before = known(places)
        for n in range(50):
            journal.put([kept(f"t{n}"), account(f"a{n}", 20 * SECOND_NS)], {f"t{n}": b"p"}, {})
            journal.put([kept(f"t{n}", outcome=FINISHED)], {}, {f"t{n}": b"tokens"})
            await heard.wait_durable(journal.put([ForgottenTask(f"t{n}")], {}, {}))
        assert known(places) == before + 50  # the accounts
        clock.now_ns += writer.UPKEEP_NS
        await heard.wait_durable(journal.put([kept("last")], {"last": b"p"}, {}))
        assert known(places) == before + 2
