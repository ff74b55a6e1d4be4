"""A disk that is full or fails: admissions are given up, all else is kept and written when it works again."""

import asyncio
import shutil
import sqlite3
from pathlib import Path

import pytest

from contracts.journal import ForgottenTask
from orchestrator.cluster.journal import database, writer
from orchestrator.cluster.journal.store import Journal
from tests.unit.cluster.journal_kit import FINISHED, Clock, Heard, kept, opened, put, read
from tests.unit.cluster.journal_writer_process import payload
from tests.unit.cluster.test_journal_kill import start

pytestmark = pytest.mark.req("ORCH-3051")

LARGE = bytes(200_000)


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "RETRY_S", 0.05)


async def fill(journal: Journal, heard: Heard) -> list[str]:
    """Admit tasks of 200 kB, one after the other, until one cannot be kept; those that were."""
    there: list[str] = []
    while not heard.undone:
        task_id = f"large-{len(there)}"
        sequence = journal.put([kept(task_id, len(there))], {task_id: LARGE}, {})
        async with asyncio.timeout(20):
            while heard.until < sequence and not heard.undone:
                await asyncio.sleep(0.001)
        if not heard.undone:
            there.append(task_id)
    return there


async def test_a_full_journal_gives_up_admissions_and_keeps_everything_else(tmp_path: Path) -> None:
    await put(tmp_path, kept("runs"), payloads={"runs": b"p"})
    async with opened(tmp_path, bytes_max=1_650_000) as (journal, _, heard):
        there = await fill(journal, heard)
        assert 2 < len(there) < 8
        assert heard.undone == [f"large-{len(there)}"]
        (reason,) = [told[1] for told in heard.told if told[0] == "failed"]
        assert "full" in str(reason)
        # What is there may go on and end; that needs no room to speak of.
        last = journal.put([kept("runs", outcome=FINISHED)], {}, {"runs": b"tokens"})
        await heard.wait_durable(last)
        await heard.wait_told("restored")
    restored = read(tmp_path)
    assert {task.task.task_id for task in restored.kept.tasks} == {"runs", *there}
    assert restored.transcripts == {"runs": b"tokens"}


async def test_while_nothing_has_room_all_waits_and_forgetting_makes_room(tmp_path: Path) -> None:
    async with opened(tmp_path, bytes_max=1_650_000) as (journal, _, heard):
        there = await fill(journal, heard)
        await heard.wait_told("restored")
        heard.told.clear()
        # An end with a transcript that does not fit: it is no admission, so it waits.
        waits = journal.put([kept(there[0], attempt=1)], {}, {there[0]: LARGE + LARGE})
        await heard.wait_told("failed")
        assert heard.undone == []
        for _ in range(3):
            late = journal.put([kept("late")], {"late": b"p"}, {})
            await asyncio.sleep(0.12)
        assert heard.until < waits
        assert set(heard.undone) == {"late"}
        assert "restored" not in [told[0] for told in heard.told]
        gone = there[1:3]
        last = journal.put([ForgottenTask(task_id) for task_id in gone], {}, {})
        await heard.wait_durable(last)
        await heard.wait_told("restored")
        assert last > late > waits
        assert [told[0] for told in heard.told][-2:] == ["durable", "restored"]
    restored = read(tmp_path)
    assert {task.task.task_id for task in restored.kept.tasks} == {*there} - {*gone}
    assert restored.transcripts == {there[0]: LARGE + LARGE}
    assert "late" not in restored.payloads


async def test_a_commit_that_fails_after_it_reached_the_disk_undoes_its_admissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = writer.Writer._commit
    broken = [True]

    def failing(self: writer.Writer, changes: object) -> None:
        commit(self, changes)  # type: ignore[arg-type]
        if broken.pop() if broken else False:
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(writer.Writer, "_commit", failing)
    await put(tmp_path / "other")  # uses up nothing of the journal below
    broken.append(True)
    async with opened(tmp_path / "data") as (journal, _, heard):
        sequence = journal.put([kept("new"), kept("old", attempt=2)], {"new": b"p"}, {})
        await heard.wait_told("failed")
        await heard.wait_durable(sequence)
        assert heard.undone == ["new"]
    with sqlite3.connect(tmp_path / "data" / "journal.db") as connection:
        assert connection.execute("SELECT key FROM tasks").fetchall() == [(b"old",)]
        assert connection.execute("SELECT count(*) FROM payloads").fetchone() == (0,)
    connection.close()


async def test_a_record_that_cannot_be_written_stops_nothing_that_was_promised(tmp_path: Path) -> None:
    async with opened(tmp_path) as (journal, _, heard):
        await heard.wait_durable(journal.put([kept("good")], {"good": b"p"}, {}))
        journal.put([kept("bad", deadline_ns=object())], {"bad": b"p"}, {})
        await heard.wait_told("failed")
        assert heard.undone == ["bad"]
        await heard.wait_told("restored")
        await heard.wait_durable(journal.put([kept("more", 2)], {"more": b"p"}, {}))
    assert [task.task.task_id for task in read(tmp_path).kept.tasks] == ["good", "more"]


async def test_closing_while_nothing_can_be_written_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError("gone")

    async with opened(tmp_path) as (journal, _, heard):
        await heard.wait_durable(journal.put([kept("a")], {"a": b"p"}, {}))
        monkeypatch.setattr(database, "write", failing)
        journal.put([kept("a", attempt=1)], {}, {})
        await heard.wait_told("failed")
    monkeypatch.undo()
    assert [task.attempt for task in read(tmp_path).kept.tasks] == [0]


def test_a_real_write_error_gives_up_what_was_not_confirmed_and_the_rest_is_sound(tmp_path: Path) -> None:
    """The kernel refuses to let a file grow, in the middle of what sqlite writes."""
    process = start(tmp_path, 1, "400000")
    assert process.stdout is not None
    with process.stdout:
        said: list[str] = []
        while not said or not said[-1].startswith("failed"):
            said.append(process.stdout.readline().decode().strip())
            assert said[-1], said
        process.kill()
        said += [line.decode().strip() for line in process.stdout if line.endswith(b"\n")]
    process.wait()
    confirmed = max(int(line.split()[1]) for line in said if line.startswith("durable"))
    undone = {task_id for line in said if line.startswith("failed ") for task_id in line.split()[1].split(",")}
    assert undone
    aside = tmp_path.with_name("copy")
    shutil.copytree(tmp_path, aside)
    for folder in (tmp_path, aside):
        restored = read(folder, Clock())
        assert restored.damaged == 0
        there = {task.task.task_id for task in restored.kept.tasks}
        first = min(int(task_id[1:]) for task_id in undone)
        assert {f"t{n}" for n in range(1, min(confirmed, first - 1) + 1) if n % 3} <= there
        assert all(restored.payloads[task_id] == payload(int(task_id[1:])) for task_id in restored.payloads)
