"""Files that were damaged or cut: what is sound is there again, what is not is left out, told of and kept aside."""

import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from contracts.journal import ForgottenSession, Kept, KeptTask
from orchestrator.cluster.journal import database, folder, recovery
from orchestrator.cluster.journal.rows import checksum, encode, session_key
from orchestrator.cluster.journal.salvage import salvage
from orchestrator.cluster.journal.store import Journal, Restored
from tests.unit.cluster.journal_kit import (
    FINISHED,
    SECOND_NS,
    Clock,
    account,
    kept,
    opened,
    pool,
    put,
    read,
    session,
)

pytestmark = pytest.mark.req("ORCH-3051")
TASKS = 120


def payload(number: int) -> bytes:
    return bytes([number % 251]) * (37 * number % 6000 + 1)


async def filled(place: Path) -> None:
    async with opened(place) as (journal, _, heard):
        for number in range(TASKS):
            records = [kept(f"t{number}", number), session(f"s{number}"), account(f"tenant-{number}")]
            last = journal.put([*records, pool(f"pool-{number % 4}")], {f"t{number}": payload(number)}, {})
        await heard.wait_durable(last)


def check(restored: Restored) -> int:
    """Whatever is there is exactly as it was put; how many tasks are."""
    live = [task for task in restored.kept.tasks if task.outcome is None]
    for task in live:
        assert task == kept(f"t{task.order}", task.order)
        assert restored.payloads[f"t{task.order}"] == payload(task.order)
    for task in restored.kept.tasks:
        assert task in live or task == kept(f"t{task.order}", task.order, outcome=task.outcome, ended_ns=Clock().now_ns)
    for each in restored.kept.sessions:
        assert each == session(each.session_id)
    for held in restored.kept.accounts:
        assert held == account(held.name)
    return len(live)


async def test_bytes_flipped_anywhere_lose_no_more_than_what_they_hit(tmp_path: Path) -> None:
    await filled(tmp_path / "whole")
    whole = (tmp_path / "whole" / "journal.db").read_bytes()
    chance = random.Random(5)
    # All over the file, and more often where sqlite itself looks first.
    places = [*range(0, 100, 7), *(chance.randrange(len(whole)) for _ in range(60))]
    there = []
    for count, place in enumerate(places):
        data = tmp_path / str(count)
        data.mkdir()
        broken = bytearray(whole)
        broken[place] ^= 1 << chance.randrange(8)
        (data / "journal.db").write_bytes(broken)
        there.append(check(read(data)))
        assert check(read(data)) == there[-1]  # and it is sound from then on
        shutil.rmtree(data)
    assert sum(number >= TASKS - 60 for number in there) >= len(there) - 3
    assert max(there) == TASKS


async def test_a_whole_page_of_noise_costs_its_rows_only(tmp_path: Path) -> None:
    await filled(tmp_path / "whole")
    whole = (tmp_path / "whole" / "journal.db").read_bytes()
    chance = random.Random(7)
    kept_by_page = []
    for page in sorted(chance.sample(range(10, len(whole) // database.PAGE_BYTES), 12)):
        data = tmp_path / str(page)
        data.mkdir()
        at = page * database.PAGE_BYTES
        broken = whole[:at] + chance.randbytes(database.PAGE_BYTES) + whole[at + database.PAGE_BYTES :]
        (data / "journal.db").write_bytes(broken)
        with capture_logs() as logs:
            kept_by_page.append(check(read(data)))
        assert any(line["log_level"] == "error" for line in logs)
    assert min(kept_by_page) > 0
    assert sorted(kept_by_page)[len(kept_by_page) // 2] >= TASKS - 40


async def test_a_row_that_does_not_verify_is_left_out_told_of_and_kept_aside(tmp_path: Path) -> None:
    await put(tmp_path, kept("a", resume_tokens=3), kept("b", 2), payloads={"a": b"p", "b": b"q"})
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        connection.execute("UPDATE payloads SET data = x'00' WHERE key = ?", (b"a",))
    connection.close()
    with capture_logs() as logs:
        restored = read(tmp_path)
    # The task that nobody could run without it has ended, which is what its client is told.
    given_up, live = restored.kept.tasks
    assert (live, restored.payloads, restored.damaged) == (kept("b", 2), {"b": b"q"}, 1)
    assert given_up.outcome is not None
    assert given_up.outcome.error is not None
    assert (given_up.outcome.state, given_up.outcome.tokens_out, given_up.ended_ns) == ("failed", 3, Clock().now_ns)
    assert (given_up.outcome.error.code, given_up.outcome.error.retriable) == ("INTERNAL", False)
    assert "submit it again" in given_up.outcome.error.message
    errors = [(line["event"], line.get("table"), line.get("why")) for line in logs if line["log_level"] == "error"]
    assert errors == [
        ("journal.row_damaged", "payloads", "its checksum is wrong"),
        ("journal.payload_lost", None, None),
        ("journal.rows_left_out", None, None),
    ]
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        aside = connection.execute("SELECT source, key, data FROM damaged ORDER BY id").fetchall()
    connection.close()
    assert aside == [("payloads", b"a", b"\0")]
    again = read(tmp_path)
    assert (again.kept.tasks, again.payloads, again.damaged) == ((given_up, live), {"b": b"q"}, 0)


async def test_rows_that_strayed_to_another_task_are_found_out(tmp_path: Path) -> None:
    await put(tmp_path, kept("a", outcome=FINISHED), kept("b", 2, outcome=FINISHED), transcripts={"a": b"A", "b": b"B"})
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        for before, after in ((b"a", b"-"), (b"b", b"a"), (b"-", b"b")):
            connection.execute("UPDATE transcripts SET key = ? WHERE key = ?", (after, before))
    connection.close()
    restored = read(tmp_path)
    assert (restored.transcripts, restored.damaged) == ({}, 2)


async def test_of_two_rows_of_one_subject_the_later_one_counts(tmp_path: Path) -> None:
    before, after = session("s", until_ns=500 * SECOND_NS), session("s", until_ns=900 * SECOND_NS)
    await put(tmp_path, before, session("t"))
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        key, data = session_key("acme", "s"), encode(after)
        row = (77, key, data, checksum("sessions", key, data))
        connection.execute("INSERT INTO sessions (id, key, data, crc) VALUES (?, ?, ?, ?)", row)
    connection.close()
    restored = await put(tmp_path)
    assert restored.damaged == 1
    assert set(restored.kept.sessions) == {after, session("t")}
    assert set((await put(tmp_path, ForgottenSession("acme", "s"))).kept.sessions) == {after, session("t")}
    assert read(tmp_path).kept.sessions == (session("t"),)


async def test_what_is_kept_aside_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "ASIDE_MAX", 5)
    for _ in range(3):
        await put(tmp_path, *[session(f"s{n}") for n in range(10)])
        with sqlite3.connect(tmp_path / "journal.db") as connection:
            connection.execute("UPDATE sessions SET crc = crc + 1")
        connection.close()
        assert read(tmp_path).damaged == 10
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        assert connection.execute("SELECT count(*) FROM damaged").fetchone()[0] <= 5
    connection.close()


# ---------------------------------------------------------------------- whole files


@pytest.mark.parametrize("content", [b"no database at all, but some text " * 200, b"SQLite format 3\0" + bytes(9000)])
async def test_a_file_that_is_no_journal_is_set_aside_and_a_new_one_begun(tmp_path: Path, content: bytes) -> None:
    await put(tmp_path, kept("a"), payloads={"a": b"p"})
    (tmp_path / "journal.db").write_bytes(content)
    with capture_logs() as logs:
        restored = read(tmp_path)
    assert restored[:3] == (Kept(), {}, {})
    assert restored.epoch == 2  # known without the journal
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [
        "journal.damaged",
        "journal.started_anew",
    ]
    (aside,) = tmp_path.glob("journal-damaged-*.db")
    assert aside.read_bytes() == content
    await put(tmp_path, kept("b"), payloads={"b": b"p"})
    assert [task.task.task_id for task in read(tmp_path).kept.tasks] == ["b"]


async def test_a_file_that_was_cut_short_gives_what_is_left_of_it(tmp_path: Path) -> None:
    await filled(tmp_path / "whole")
    whole = (tmp_path / "whole" / "journal.db").read_bytes()
    for share in (0.2, 0.5, 0.9, 0.99):
        data = tmp_path / str(share)
        data.mkdir()
        (data / "journal.db").write_bytes(whole[: int(len(whole) * share)])
        there = check(read(data))
        assert there > 0 or share < 0.9
        assert check(read(data)) == there


async def test_only_the_last_damaged_files_are_kept(tmp_path: Path) -> None:
    for _ in range(folder.DAMAGED_MAX + 2):
        await put(tmp_path)
        (tmp_path / "journal.db").write_bytes(b"noise" * 1000)
    read(tmp_path)
    assert len(list(tmp_path.glob("journal-damaged-*.db"))) == folder.DAMAGED_MAX


async def test_an_empty_file_is_a_new_journal(tmp_path: Path) -> None:
    (tmp_path / "journal.db").touch()
    assert (await put(tmp_path, kept("a"), payloads={"a": b"p"})).epoch == 1
    assert not list(tmp_path.glob("journal-damaged*"))
    assert [task.task.task_id for task in read(tmp_path).kept.tasks] == ["a"]


async def test_salvage_ends_whatever_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "noise.db").write_bytes(random.Random(1).randbytes(50_000))
    assert salvage(tmp_path / "noise.db") == ([], False)


# ------------------------------------------------------------------- the log of sqlite


async def test_a_log_cut_anywhere_gives_the_state_after_some_commit(tmp_path: Path) -> None:
    """What a machine that lost power leaves: recovery gives a prefix of the commits, never parts of one."""
    live = tmp_path / "live"
    commits = 60
    async with opened(live) as (journal, _, heard):
        for number in range(commits):
            # In each commit: a task, its end one later, and a pool that counts along.
            records: list[object] = [kept(f"t{number}", number), pool("pool", number)]
            if number:
                records.append(kept(f"t{number - 1}", number - 1, outcome=FINISHED))
            await heard.wait_durable(journal.put(records, {f"t{number}": payload(number)}, {}))  # type: ignore[arg-type]
        database_bytes, log_bytes = (live / "journal.db").read_bytes(), (live / "journal.db-wal").read_bytes()
    assert len(log_bytes) > commits * database.PAGE_BYTES
    chance = random.Random(11)
    states = set()
    for count in range(25):
        data = tmp_path / str(count)
        data.mkdir()
        (data / "journal.db").write_bytes(database_bytes)
        cut = bytearray(log_bytes[: chance.randrange(len(log_bytes))])
        if count % 2 and cut:  # and one with a torn page before the cut
            cut[chance.randrange(len(cut))] ^= 255
        (data / "journal.db-wal").write_bytes(cut)
        states.add(_state(read(data)))
        shutil.rmtree(data)
    assert len(states) > 10


def _state(restored: Restored) -> int:
    tasks: list[KeptTask] = sorted(restored.kept.tasks, key=lambda task: task.order)
    last = len(tasks) - 1
    assert restored.damaged == 0
    assert [task.order for task in tasks] == list(range(last + 1))
    assert [task.outcome for task in tasks] == [FINISHED] * last + [None] * bool(tasks)
    assert [each.ordinal for each in restored.kept.pools] == [last] * bool(tasks)
    assert restored.payloads == ({f"t{last}": payload(last)} if tasks else {})
    return last


async def test_a_lost_log_does_not_take_the_epoch_back(tmp_path: Path) -> None:
    for _ in range(3):
        await put(tmp_path, clock=Clock())
    backup = (tmp_path / "journal.db").read_bytes()
    await put(tmp_path)
    (tmp_path / "journal.db").write_bytes(backup)
    journal, restored = Journal.open(tmp_path, clocks=Clock().clocks())
    assert restored.epoch == 5
    await journal.close()
