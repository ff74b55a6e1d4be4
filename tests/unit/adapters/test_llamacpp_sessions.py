"""Sessions and the slots that hold their contexts: the bookkeeping, and the adapter on the fake engine."""

import asyncio
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import worker_reset
from adapters.llamacpp import LlamaCppAdapter
from adapters.llamacpp.contexts import ContextMover
from adapters.llamacpp.sessions import (
    FILES_BYTES_MAX,
    FILES_MAX,
    KEPT_NS_MAX,
    SAVED_TOKENS_MIN,
    Sessions,
    Turn,
    session_name,
)
from adapters.llamacpp.slots import SlotTable
from contracts.engine import Chunk, Finish, GenerateRequest
from orchestrator.ingress.submission import parse_submission

Launch = Callable[..., Awaitable[LlamaCppAdapter]]

WORDS = 300
A, B = (" ".join(f"{name}{n}" for n in range(WORDS)) for name in "ab")


def turn_of(sessions: Sessions, slot: int, name: str, tokens: int = WORDS, now_ns: int = 0, size: int = 1000) -> Turn:
    """A whole turn: what was to be moved is, and the slot then holds so many tokens."""
    turn = sessions.begin(slot, name, now_ns)
    moved = Turn(slot, name)
    moved.save, moved.restore = turn.save, turn.restore
    if turn.save:
        sessions.saved(turn, WORDS, size)
    if turn.restore:
        sessions.restored(turn, WORDS)
    turn.tokens = tokens
    sessions.end(turn, now_ns)
    return moved


# ------------------------------------------------------------------------------ bookkeeping


@pytest.mark.req("ORCH-3009")
def test_a_session_goes_back_to_its_slot_and_no_other_takes_it_without_need() -> None:
    table = SlotTable(3)
    sessions = Sessions(3, saves=True)

    def run(prompt: str, name: str) -> int:
        slot = table.take(prompt, sessions.slot_of(name), sessions.costly(0))
        assert slot is not None
        turn_of(sessions, slot, name)
        table.give_back(slot)
        return slot

    first = run("system: be brief. A", "a")
    second = run("system: be brief. B", "b")
    assert second != first
    assert run("system: be brief. A more", "a") == first
    assert run("unlike all", "c") not in (first, second)
    # All three are taken: the least recently used goes. A long shared prefix is worth another one.
    assert run("something else", "d") == second
    long = "x" * 2000
    assert run(long, "a") == first
    assert run(long + "y", "e") == first


@pytest.mark.req("ORCH-3009", "ORCH-3023")
def test_a_displaced_context_is_saved_and_comes_back_once() -> None:
    sessions = Sessions(1, saves=True)
    turn_of(sessions, 0, "a")
    displacing = turn_of(sessions, 0, "b")
    assert (displacing.save, displacing.restore) == ("a", "")
    back = turn_of(sessions, 0, "a")
    assert (back.save, back.restore) == ("b", "a")
    assert sessions.files == ["b"]
    again = turn_of(sessions, 0, "a")
    assert (again.save, again.restore) == ("", "")


@pytest.mark.req("ORCH-3009")
@pytest.mark.parametrize(
    ("saves", "tokens", "later_ns", "size", "kept"),
    [
        (True, SAVED_TOKENS_MIN, 0, 1000, True),
        (True, SAVED_TOKENS_MIN - 1, 0, 1000, False),
        (False, SAVED_TOKENS_MIN, 0, 1000, False),
        (True, SAVED_TOKENS_MIN, KEPT_NS_MAX, 1000, False),
        (True, SAVED_TOKENS_MIN, 0, 0, False),
        (True, SAVED_TOKENS_MIN, 0, FILES_BYTES_MAX + 1, False),
    ],
)
def test_only_what_is_worth_it_and_was_written_is_kept(
    saves: bool, tokens: int, later_ns: int, size: int, kept: bool
) -> None:
    sessions = Sessions(1, saves=saves)
    turn_of(sessions, 0, "a", tokens)
    turn_of(sessions, 0, "b", now_ns=later_ns, size=size)
    assert sessions.files == (["a"] if kept else [])


@pytest.mark.req("ORCH-3021")
def test_files_are_bounded_in_number_size_and_age() -> None:
    sessions = Sessions(1, saves=True)
    names = [f"{n}" for n in range(FILES_MAX + 3)]
    for name in names:
        turn_of(sessions, 0, name)
    assert sessions.files == names[2:-1]
    turn_of(sessions, 0, "large", size=FILES_BYTES_MAX - 5000)
    assert len(sessions.files) == 6
    assert sessions.files_bytes <= FILES_BYTES_MAX
    # What a token takes is known by now: a context that cannot fit drops nothing.
    turn_of(sessions, 0, "huge", 10 * WORDS)
    files = sessions.files
    assert turn_of(sessions, 0, "next").save == ""
    assert sessions.files == files
    turn_of(sessions, 0, "late", now_ns=KEPT_NS_MAX)
    assert sessions.files == []


@pytest.mark.req("ORCH-3009")
def test_a_turn_that_was_canceled_on_the_way_leaves_the_file_it_had_not_read() -> None:
    sessions = Sessions(2, saves=True)
    for name in ("a", "b"):
        turn_of(sessions, 0, name)
    broken = sessions.begin(0, "a", 0)
    assert (broken.save, broken.restore) == ("b", "a")
    # Another turn of the session, meanwhile, neither waits for the file nor takes it.
    assert sessions.begin(1, "a", 0).restore == ""
    sessions.forget("a")
    sessions.end(broken, 0)
    assert sessions.files == ["a"]
    assert sessions.slot_of("a") is None
    assert sessions.begin(0, "a", 0).restore == "a"


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["move", "end", "end", "forget"]),
        st.integers(0, 2),
        st.sampled_from(["a", "b", "c", ""]),
        st.sampled_from([300, 600, 0]),
        st.sampled_from([1000, 700 * 2**20, 0]),
        st.sampled_from([0, 0, 100 * 10**9]),
    ),
    max_size=40,
)


@pytest.mark.req("ORCH-3009", "ORCH-3021", "ORCH-3023")
@settings(max_examples=200, deadline=None)
@given(OPERATIONS)
def test_a_context_is_in_one_place_and_files_stay_within_bounds(
    operations: list[tuple[str, int, str, int, int, int]],
) -> None:
    sessions = Sessions(3, saves=True, token_bytes=1000)
    turns: dict[int, Turn] = {}
    now_ns = 0
    for what, slot, name, tokens, size, pause_ns in operations:
        now_ns += pause_ns
        turn = turns.get(slot)
        if what == "forget":
            sessions.forget(name)
            assert sessions.slot_of(name) is None
        elif turn is None:
            turns[slot] = turn = sessions.begin(slot, name, now_ns)
            assert not turn.save or turn.save != name
            assert turn.restore in ("", name)
            assert not turn.restore or turn.tokens == 0
        elif what == "move" and turn.save:
            sessions.saved(turn, tokens, size)
        elif what == "move" and turn.restore:
            sessions.restored(turn, tokens)
        elif what == "end":
            turn.tokens = 0 if turn.restore else tokens
            sessions.end(turns.pop(slot), now_ns)
        moving = [n for t in turns.values() for n in (t.save, t.restore) if n]
        assert len(set(moving)) == len(moving)
        assert set(moving) <= set(sessions.files)
        owners = [held.name for held in sessions._held if held.name]
        assert len(set(owners)) == len(owners)
        assert not any(sessions.slot_of(n) is not None for n in sessions.files if n not in moving)
        assert len(sessions.files) <= FILES_MAX
        assert sessions.files_bytes <= FILES_BYTES_MAX
    for turn in turns.values():
        sessions.end(turn, now_ns)
    # Nothing stays under way: given time, all files go.
    sessions.begin(0, "", now_ns + KEPT_NS_MAX)
    assert sessions.files == []


@pytest.mark.req("ORCH-3009")
async def test_a_call_without_an_answer_means_that_the_slot_is_not_known(tmp_path: Path) -> None:
    class Silent:
        async def call(self, method: str, path: str, body: object) -> bytes:
            raise worker_reset(f"the engine did not answer {method} {path} {body}", "llamacpp")

    sessions = Sessions(1, saves=True)
    turn_of(sessions, 0, "a")
    turn_of(sessions, 0, "b")
    # Written late, after its call was given up.
    (tmp_path / "late").write_bytes(b"x")
    turn = sessions.begin(0, "a", 0)
    assert await ContextMover(cast(Any, Silent()), tmp_path, sessions).move(turn) is False
    assert (turn.save, turn.restore, turn.tokens) == ("", "", 0)
    assert sessions.files == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.req("ORCH-3009")
def test_a_session_that_began_anew_while_it_was_saved_or_restored_leaves_no_file() -> None:
    sessions = Sessions(2, saves=True)
    turn_of(sessions, 0, "a")
    displacing = sessions.begin(0, "b", 0)
    anew = sessions.begin(1, "a", 0)
    sessions.saved(displacing, WORDS, 1000)
    assert sessions.files == []
    for turn in (displacing, anew):
        turn.tokens = WORDS
        sessions.end(turn, 0)
    turn_of(sessions, 1, "c")
    restoring = sessions.begin(1, "a", 0)
    assert restoring.restore == "a"
    turn_of(sessions, 0, "a")
    sessions.end(restoring, 0)
    assert "a" not in sessions.files
    assert sessions.slot_of("a") == 0


@pytest.mark.req("ORCH-3009")
@pytest.mark.parametrize("missing", [0, 1])
async def test_a_file_that_is_shorter_than_was_said_does_not_count(tmp_path: Path, missing: int) -> None:
    """A disk may be found full after the engine was told that all is written."""

    class Writing:
        async def call(self, method: str, path: str, body: dict[str, str]) -> bytes:
            assert (method, path) == ("POST", "/slots/0?action=save")
            (tmp_path / body["filename"]).write_bytes(b"x" * (1000 - missing))
            return b'{"n_saved":300,"n_written":1000}'

    sessions = Sessions(1, saves=True)
    turn_of(sessions, 0, "a")
    turn = sessions.begin(0, "b", 0)
    assert await ContextMover(cast(Any, Writing()), tmp_path, sessions).move(turn) is True
    assert [path.name for path in tmp_path.iterdir()] == sessions.files == ([] if missing else ["a"])


@pytest.mark.req("ORCH-3023", "OC-CTRL-2010")
def test_sessions_of_two_tenants_with_one_id_are_two() -> None:
    body = (
        b'{"task_id":"6f1f1d3c-7a55-4cf5-9a39-0d6f1f6e3c11","session_id":"0f8b8a3e-90c4-4a7e-8f55-2f4c6d1b7a22",'
        b'"workload":"completion","model_ref":"m","engine":"llamacpp","ctx":64,"priority":"interactive",'
        b'"max_tokens":4,"deadline_ms":1000,"prompt":"x"}'
    )
    ids = {parse_submission(body, tenant, "c", one_call=True).request.session_id for tenant in ("one", "two")}
    assert len(ids) == 2
    assert len({session_name(each) for each in ids} | {session_name("")}) == 3


# ---------------------------------------------------------------------------- on the engine


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake engine tells what its slots held."""
    monkeypatch.setenv("LLORCH_FAKE_ARGS", "--fake-cache")


def request(prompt: str, session_id: str, **fields: object) -> GenerateRequest:
    return GenerateRequest(task_id="t", max_tokens=4, seed=7, prompt=prompt, session_id=session_id, **fields)  # type: ignore[arg-type]


async def run(adapter: LlamaCppAdapter, what: GenerateRequest) -> tuple[str, int]:
    """Text, and how much of the prompt was cached."""
    items = [item async for item in adapter.generate("k", what)]
    finish = items[-1]
    assert isinstance(finish, Finish)
    return "".join(item.text for item in items if isinstance(item, Chunk)), finish.tokens_cached


def contexts(adapter: LlamaCppAdapter) -> Path:
    assert adapter._folder is not None
    return adapter._folder / "slots"


@pytest.mark.req("ORCH-3009", "ORCH-3023", "OC-ADAPT-5002")
@pytest.mark.usefixtures("told")
async def test_a_session_finds_its_context_after_another_one_had_the_slot(launch: Launch) -> None:
    adapter = await launch(slots=1, ctx=1024)
    folder = contexts(adapter)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    first, cached = await run(adapter, request(A, "tenant/session-a"))
    assert cached == 0
    assert (await run(adapter, request(B, "tenant/session-b")))[1] == 0
    assert [path.name for path in folder.iterdir()] == [session_name("tenant/session-a")]
    assert "session-a" not in session_name("tenant/session-a")
    assert await run(adapter, request(A, "tenant/session-a")) == (first, WORDS - 1)
    assert [path.name for path in folder.iterdir()] == [session_name("tenant/session-b")]
    await adapter.close()
    assert not folder.exists()


@pytest.mark.req("ORCH-3009")
@pytest.mark.usefixtures("told")
async def test_a_cold_task_neither_restores_nor_keeps(launch: Launch) -> None:
    adapter = await launch(slots=1, ctx=1024)
    for what in (request(A, "a"), request(B, "b")):
        await run(adapter, what)
    assert (await run(adapter, request(A, "a", kv_hint="cold")))[1] == 0
    assert [path.name for path in contexts(adapter).iterdir()] == [session_name("b")]
    assert (await run(adapter, request(B, "b")))[1] == WORDS - 1
    assert (await run(adapter, request(A, "a")))[1] == 0


@pytest.mark.req("ORCH-3009")
@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("trouble", ["save", "cut", "garbage", "gone"])
async def test_a_move_that_fails_only_costs_time(launch: Launch, trouble: str) -> None:
    adapter = await launch(slots=1, ctx=1024)
    file = contexts(adapter) / session_name("a")
    expected, _ = await run(adapter, request(A, "a"))
    if trouble == "save":
        contexts(adapter).rmdir()
    await run(adapter, request(B, "b"))
    if trouble == "save":
        contexts(adapter).mkdir()
    elif trouble == "gone":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[:-1] if trouble == "cut" else b"x" * len(content))
    assert await run(adapter, request(A, "a")) == (expected, 0)
    assert not file.exists()
    # Both sessions are as well off as any afterwards.
    await run(adapter, request(B, "b"))
    assert await run(adapter, request(A, "a")) == (expected, WORDS - 1)


@pytest.mark.req("ORCH-3009", "ORCH-3017")
async def test_cancel_amid_a_move_frees_the_slot(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLORCH_FAKE_ARGS", "--fake-cache --fake-context-ms 60000")
    adapter = await launch(slots=1, ctx=1024)
    await run(adapter, request(A, "a"))
    stuck = asyncio.create_task(run_all(adapter, "stuck", request(B, "b")))
    file = contexts(adapter) / session_name("a")
    async with asyncio.timeout(10):
        while not file.exists():
            await asyncio.sleep(0.005)
        await adapter.cancel("stuck")
    assert await stuck == []
    # Whether the context was saved is not known, and nothing is to be saved of the other one: no move.
    assert (await run(adapter, request(B, "b")))[1] == 0


async def run_all(adapter: LlamaCppAdapter, key: str, what: GenerateRequest) -> list[Chunk | Finish]:
    return [item async for item in adapter.generate(key, what)]


@pytest.mark.req("ORCH-3009", "ORCH-3045")
async def test_nothing_is_saved_where_a_restored_context_is_not_known_to_be_exact(launch: Launch) -> None:
    adapter = await launch("-t", "2", slots=1, ctx=1024)
    assert not contexts(adapter).exists()
    for what in (request(A, "a"), request(B, "b"), request(A, "a")):
        await run(adapter, what)
    assert (await adapter.properties()).keeps_kv is False
