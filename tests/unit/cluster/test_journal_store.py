"""The journal as its shell uses it: what was durable is there again, coalesced, on whichever clock."""

import asyncio
import os
import sqlite3
import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.journal import ForgottenSession, ForgottenTask, Kept
from orchestrator.cluster.journal import database, writer
from orchestrator.cluster.journal.errors import JournalBusyError, JournalFolderError, JournalVersionError
from orchestrator.cluster.journal.rows import Changes
from orchestrator.cluster.journal.store import Journal, NoJournal, Storage, default_folder, open_store
from tests.unit.cluster.journal_kit import FINISHED, SECOND_NS, Clock, Heard, account, kept, opened, pool, put, session

pytestmark = pytest.mark.req("ORCH-3051")


async def test_all_that_was_put_is_there_again(tmp_path: Path) -> None:
    everything = (kept("a"), kept("b", 2), session("s"), account("acme"), pool("pool"))
    first = await put(
        tmp_path, *everything, payloads={"a": b"prompt a", "b": b"prompt b"}, transcripts={"a": b"tokens of a"}
    )
    assert first == (Kept(), {}, {}, 1, 0)
    restored = await put(tmp_path)
    assert restored.kept == Kept((kept("a"), kept("b", 2)), (session("s"),), (account("acme"),), (pool("pool"),))
    assert restored.payloads == {"a": b"prompt a", "b": b"prompt b"}
    assert restored.transcripts == {"a": b"tokens of a"}
    assert (restored.epoch, restored.damaged) == (2, 0)


async def test_a_later_record_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    await put(tmp_path, kept("a"), pool("pool"), session("s"), payloads={"a": b"p"})
    later = replace(session("s"), turns=2)
    await put(tmp_path, kept("a", attempt=1), kept("a", attempt=2), pool("pool", 7), later)
    restored = await put(tmp_path)
    assert restored.kept == Kept((kept("a", attempt=2),), (later,), (), (pool("pool", 7),))


async def test_an_end_takes_the_payload_along_and_forgetting_takes_all(tmp_path: Path) -> None:
    names = ("a", "b")
    await put(tmp_path, *map(kept, names), session("s"), payloads=dict.fromkeys(names, b"p"))
    await put(tmp_path, kept("a", outcome=FINISHED), transcripts={"a": b"t", "b": b"u"})
    restored = await put(tmp_path, ForgottenTask("b"), ForgottenSession("acme", "s"))
    assert (restored.payloads, restored.transcripts) == ({"b": b"p"}, {"a": b"t", "b": b"u"})
    restored = await put(tmp_path, transcripts={"a": None})
    assert restored[:3] == (Kept((kept("a", outcome=FINISHED),)), {}, {"a": b"t"})
    assert (await put(tmp_path))[:3] == (Kept((kept("a", outcome=FINISHED),)), {}, {})
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        assert connection.execute("SELECT count(*) FROM payloads").fetchone() == (0,)
    connection.close()


async def test_durable_is_told_in_order_and_covers_all_that_came_before(tmp_path: Path) -> None:
    async with opened(tmp_path) as (journal, _, heard):
        numbers = [journal.put([kept(f"t{n}", n)], {f"t{n}": b"p"}, {}) for n in range(500)]
        await heard.wait_durable(numbers[-1])
    told = [sequence for _, sequence in heard.told]
    assert numbers == list(range(1, 501))
    assert told == sorted(told)
    assert len(told) < 100  # many in a transaction
    restored = await put(tmp_path)
    assert sorted(task.order for task in restored.kept.tasks) == list(range(500))


async def test_closing_makes_durable_what_waits(tmp_path: Path) -> None:
    async with opened(tmp_path) as (journal, _, heard):
        last = [journal.put([kept(f"t{n}", n)], {f"t{n}": b"p"}, {}) for n in range(50)][-1]
    await asyncio.sleep(0)
    assert heard.until == last
    assert len((await put(tmp_path)).kept.tasks) == 50


async def test_the_file_is_as_large_as_what_is_alive(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock=clock) as (journal, _, heard):
        for number in range(2000):
            records = [kept(f"t{number}", number), *([ForgottenTask(f"t{number - 20}")] if number >= 20 else [])]
            last = journal.put(records, {f"t{number}": bytes(4000)}, {})
            if number % 10 == 0:
                await heard.wait_durable(last)
        await heard.wait_durable(last)
        names = [f"large-{number}" for number in range(100)]
        await heard.wait_durable(journal.put([kept(name) for name in names], dict.fromkeys(names, bytes(200_000)), {}))
        await heard.wait_durable(journal.put([ForgottenTask(name) for name in names], {}, {}))
        for _ in range(8):  # free pages are given back a part at a time
            clock.now_ns += writer.UPKEEP_NS
            await heard.wait_durable(journal.put([session("s")], {}, {}))
    assert (tmp_path / "journal.db").stat().st_size < 6_000_000


def test_what_waits_is_no_longer_than_there_are_subjects() -> None:
    changes = Changes()
    for attempt in range(1000):
        changes.put(attempt, [kept("a", attempt=attempt), session("s"), account("acme"), pool("pool")], {}, {"a": b"t"})
    assert len(changes.rows) == 5
    assert changes.sequence == 999


def test_giving_up_admissions_deletes_them_and_nothing_else() -> None:
    changes = Changes()
    changes.put(1, [kept("old", attempt=2)], {}, {"old": b"t"})
    changes.put(2, [kept("new")], {"new": b"p"}, {})
    assert changes.give_up_admissions() == ("new",)
    assert changes.give_up_admissions() == ()
    assert {subject: value for subject, value in changes.rows.items() if value is not None} == {
        ("tasks", b"old"): kept("old", attempt=2),
        ("transcripts", b"old"): b"t",
    }
    assert changes.rows["tasks", b"new"] is None
    assert changes.rows["payloads", b"new"] is None


# ------------------------------------------------------------------------- clocks


async def test_setting_the_time_of_day_changes_nothing_within_a_boot(tmp_path: Path) -> None:
    clock = Clock()
    await put(tmp_path, kept("a"), session("s"), payloads={"a": b"p"}, clock=clock)
    clock.now_ns += SECOND_NS
    clock.wall_ns -= 10**15
    restored = await put(tmp_path, clock=clock)
    assert restored.kept == Kept((kept("a"),), (session("s"),))


async def test_after_a_reboot_instants_are_as_long_ago_as_they_are(tmp_path: Path) -> None:
    clock = Clock()
    await put(tmp_path, kept("a"), session("s"), payloads={"a": b"p"}, clock=clock)
    # Down for 20 s; its clock shows 3 s.
    after = Clock("boot-2", 3 * SECOND_NS, clock.wall_ns + 20 * SECOND_NS)
    by_ns = 3 * SECOND_NS - (clock.now_ns + 20 * SECOND_NS)
    for _ in range(2):  # moved once, not at each start
        restored = await put(tmp_path, clock=after)
        (task,) = restored.kept.tasks
        assert task.deadline_ns == 65 * SECOND_NS + by_ns
        assert task.admitted_ns == 5 * SECOND_NS + by_ns
        assert restored.kept.sessions[0].until_ns == 1000 * SECOND_NS + by_ns


async def test_sessions_and_buckets_whose_time_is_over_are_deleted(tmp_path: Path) -> None:
    clock = Clock()
    over, full = session("over", 20 * SECOND_NS), account("over", 20 * SECOND_NS)
    await put(tmp_path, over, session("s"), full, account("acme"), account("plain", 0), clock=clock)
    clock.now_ns = 21 * SECOND_NS
    restored = await put(tmp_path, clock=clock)
    assert restored.kept == Kept((), (session("s"),), (account("acme"),))
    later = clock.now_ns + writer.UPKEEP_NS
    async with opened(tmp_path, clock=clock) as (journal, _, heard):
        await heard.wait_durable(journal.put([account("short", later)], {}, {}))
        clock.now_ns = later
        await heard.wait_durable(journal.put([session("s")], {}, {}))
        with sqlite3.connect(tmp_path / "journal.db") as connection:
            assert connection.execute("SELECT count(*) FROM accounts").fetchone() == (1,)
        connection.close()


async def test_a_session_whose_time_is_over_lives_on_while_a_task_of_it_does(tmp_path: Path) -> None:
    clock = Clock()
    await put(tmp_path, kept("a"), session("s", 20 * SECOND_NS), payloads={"a": b"p"}, clock=clock)
    clock.now_ns = 21 * SECOND_NS
    assert len((await put(tmp_path, kept("a", outcome=FINISHED), clock=clock)).kept.sessions) == 1
    assert (await put(tmp_path, clock=clock)).kept.sessions == ()


# ------------------------------------------------------------------------ the folder


async def test_a_folder_has_one_scheduler_at_a_time(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(JournalBusyError, match=rf"process {os.getpid()}.*storage\.data_dir"):
            Journal.open(tmp_path, wait_s=0)
    await put(tmp_path)


async def test_a_scheduler_waits_for_the_one_before_it(tmp_path: Path) -> None:
    async with opened(tmp_path):
        waiting = asyncio.create_task(asyncio.to_thread(Journal.open, tmp_path, clocks=Clock().clocks(), wait_s=20))
        await asyncio.sleep(0.1)
        assert not waiting.done()
    second, restored = await waiting
    assert restored.epoch == 2
    second.start(Heard())
    await second.close()


async def test_only_its_user_can_read_what_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "below" / "data"
    async with opened(folder) as (journal, _, heard):
        await heard.wait_durable(journal.put([kept("a")], {"a": b"p"}, {}))
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
        assert {file.name for file in folder.iterdir()} >= {"journal.db", "journal.db-wal", "journal.lock"}


def test_a_folder_that_cannot_be_used_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalFolderError, match=r"storage\.data_dir"):
        Journal.open(tmp_path / "file" / "data")
    (tmp_path / "data" / "journal.db").mkdir(parents=True)
    with pytest.raises(JournalFolderError, match=r"storage\.data_dir"):
        Journal.open(tmp_path / "data")
    Path(tmp_path / "data" / "journal.db").rmdir()
    journal, _ = Journal.open(tmp_path / "data", wait_s=0)  # and the folder was let go
    asyncio.run(journal.close())


async def test_a_journal_of_a_later_release_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    await put(tmp_path, kept("a"), payloads={"a": b"p"})
    connection = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    release = database.encode(database._Release(2, "9.8.7"))
    row = (release, database.checksum("meta", b"release", release), b"release")
    connection.execute("UPDATE meta SET data = ?, crc = ? WHERE key = ?", row)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    before = (tmp_path / "journal.db").read_bytes()
    with pytest.raises(JournalVersionError, match=r"version 2, written by release 9\.8\.7.*up to version 1"):
        Journal.open(tmp_path)
    assert (tmp_path / "journal.db").read_bytes() == before
    assert not list(tmp_path.glob("journal-damaged*"))


async def test_without_a_journal_all_counts_as_durable_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, restored = open_store(Storage(str(tmp_path / "data"), journal=False))
    assert restored == (Kept(), {}, {}, 0, 0)
    assert isinstance(store, NoJournal)
    heard = Heard()
    store.start(heard)
    assert store.put([kept("a")], {"a": b"p"}, {}) == 0
    await store.close()
    assert (heard.told, list(tmp_path.iterdir())) == ([], [])
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine" / "llorch"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # to be ignored, as the specification says
    assert default_folder() == Path.home() / ".local" / "share" / "llorch"
