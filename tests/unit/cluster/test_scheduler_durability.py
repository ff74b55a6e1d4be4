"""The scheduler's shell and its journal: nothing is told before it is durable, and a restart goes on where it was."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts import messages as wire
from contracts import pools
from contracts import scheduling as ev
from contracts.engine import GenerateRequest
from contracts.errors import OrchError
from contracts.journal import Kept, Record
from contracts.tasks import Outcome
from orchestrator.cluster import durability
from orchestrator.cluster.gateway import ClusterGateway
from orchestrator.cluster.journal import database, folder, writer
from orchestrator.cluster.journal.errors import JournalBusyError
from orchestrator.cluster.journal.store import Storage
from orchestrator.cluster.live import restored
from orchestrator.cluster.scheduler_service import SchedulerService
from tests.unit.cluster.journal_kit import kept, pool, read
from tests.unit.cluster.scripted import HOST, NODE, SECRET, Cluster, collect, submit, task, until
from tests.unit.cluster.scripted_core import CONFIG, REPLICA, Shell, started_view, status

pytestmark = pytest.mark.req("ORCH-3051")

TASK = task("a")
ADMIT = ev.Admit("set", 1, "a", 0, 0, 0)
START = ev.Start("set", "a", 1, "pool-0")
FINISH = ev.Finish("set", "a", Outcome("finished", finish_reason="stop"))


class Store:
    """A journal that makes durable what a test says."""

    def __init__(self) -> None:
        self.puts: list[tuple[list[Record], dict[str, bytes], dict[str, bytes | None]]] = []

    def start(self, listener: Any) -> None:
        self.listener = listener

    def put(self, records: list[Record], payloads: Any, transcripts: Any) -> int:
        self.puts.append((records, dict(payloads), dict(transcripts)))
        return len(self.puts)

    async def close(self) -> None:
        pass


class DurableShell(Shell):
    """A shell over a scripted core and a scripted store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.store = Store()
        self.service._durability.start(self.store)
        self.replica.take()

    def step(self, peer: Any, message: object, *commands: ev.AnyCommand, record: Record | None = None) -> None:
        self.core.kept = [record] if record is not None else []
        self.tell(peer, message, *commands)


@pytest.fixture
async def durable(monkeypatch: pytest.MonkeyPatch) -> DurableShell:
    return DurableShell(monkeypatch)


async def test_an_admission_is_told_and_started_once_it_is_durable(durable: DurableShell) -> None:
    durable.step(durable.ingress, wire.Submit(1, TASK, b"payload", watch=True), ADMIT, START, record=kept("a"))
    durable.core.views["a"] = started_view(TASK)
    assert durable.store.puts == [([kept("a")], {"a": b"payload"}, {})]
    assert (durable.ingress.take(), durable.replica.take()) == ([], [])
    durable.service._durability.durable(1)
    (answer,) = durable.ingress.take()
    assert isinstance(answer, wire.Admitted)
    assert durable.replica.take() == [wire.StartAttempt("a", 1, b"payload")]


async def test_an_end_is_told_and_confirmed_once_it_is_durable_with_its_transcript(durable: DurableShell) -> None:
    durable.step(durable.ingress, wire.Submit(1, TASK, b"payload", watch=True), ADMIT, START, record=kept("a"))
    durable.service._durability.durable(1)
    durable.ingress.take(), durable.replica.take()
    tokens = msgspec.msgpack.encode(["t0"])
    durable.tell(durable.replica, wire.AttemptTranscript("a", 1, tokens))
    ended = ev.AttemptEnded("a", 1, "pool-0", "finished", slot_free=True, tokens_out=1)
    durable.step(durable.replica, ended, FINISH, record=kept("a", attempt=1, outcome=FINISH.outcome))
    assert durable.store.puts[1:] == [([kept("a", attempt=1, outcome=FINISH.outcome)], {}, {"a": tokens})]
    assert (durable.ingress.take(), durable.replica.take()) == ([], [])
    durable.service._durability.durable(2)
    assert durable.ingress.take() == [wire.TaskEnded("a", FINISH.outcome)]
    assert durable.replica.take() == [wire.EndNoted("a", 1)]


async def test_a_cancel_is_confirmed_behind_an_end_that_is_durable_also_while_the_disk_is_full(
    durable: DurableShell,
) -> None:
    durable.step(durable.ingress, wire.Submit(1, TASK, b"payload", watch=True), ADMIT, record=kept("a"))
    durable.service._durability.durable(1)
    durable.ingress.take()
    cancel = wire.Cancel(7, "a", TASK.tenant)
    durable.step(durable.ingress, cancel, FINISH, record=kept("a", outcome=FINISH.outcome))
    durable.service._durability.failed("disk I/O error", ())
    durable.step(durable.ingress, cancel, ev.AnswerCancel("set", 3, found=True))
    assert durable.ingress.take() == []
    durable.service._durability.restored()
    durable.service._durability.durable(len(durable.store.puts))
    assert durable.ingress.take() == [wire.TaskEnded("a", FINISH.outcome), wire.Done(7)]


async def test_every_end_that_a_replica_tells_is_confirmed_known_or_not(durable: DurableShell) -> None:
    old = ev.AttemptEnded("long-gone", 3, "pool-0", "finished", slot_free=True)
    durable.tell(durable.replica, ev.ReplicaReady(REPLICA, 1, (), (old,)))
    durable.tell(durable.replica, ev.AttemptEnded("unknown", 1, "pool-0", "failed", slot_free=True))
    assert durable.replica.take() == [wire.EndNoted("long-gone", 3), wire.EndNoted("unknown", 1)]
    # So is one that comes with the word that its engine is not there.
    durable.tell(durable.replica, ev.ReplicaLoading("pool-0", "pool", 1, (old,)))
    assert durable.replica.take() == [wire.EndNoted("long-gone", 3)]


async def test_a_journal_that_fails_refuses_its_admissions_and_tells_the_core(durable: DurableShell) -> None:
    durable.step(durable.ingress, wire.Submit(1, TASK, b"payload"), ADMIT, record=kept("a"))
    durable.service._durability.failed("disk I/O error", ("a",))
    (refused,) = durable.ingress.take()
    assert isinstance(refused, wire.Failed)
    error = refused.error
    assert (refused.req, error.code, error.policy_label, error.retriable) == (1, "ADMISSION_REJECT", "reject", True)
    assert error.retry_after_ms
    assert "disk I/O error" in error.message
    assert durable.core.events[-1] == ev.JournalFailed("disk I/O error", ("a",))
    durable.service._durability.restored()
    assert durable.core.events[-1] == ev.JournalRestored()


async def test_a_commit_that_does_not_return_counts_as_a_failure_until_it_does(
    durable: DurableShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durability, "STALL_S", 0.02)
    durable.step(durable.ingress, wire.Submit(1, TASK, b"payload"), ADMIT, record=kept("a"))
    await until(lambda: isinstance(durable.core.events[-1], ev.JournalFailed))
    assert durable.core.events[-1].undone == ()  # type: ignore[union-attr]
    assert durable.ingress.take() == []
    durable.service._durability.durable(1)
    assert durable.core.events[-1] == ev.JournalRestored()
    assert isinstance(durable.ingress.take()[0], wire.Admitted)


async def test_a_dropped_transcript_goes_from_the_journal(durable: DurableShell) -> None:
    durable.step(
        durable.replica, ev.SlotReleased("a", 1, "pool-0"), ev.DropTranscript("set", "a"), record=kept("a", attempt=1)
    )
    assert durable.store.puts == [([kept("a", attempt=1)], {}, {"a": None})]


async def test_a_replica_is_ordered_once_its_incarnation_is_durable(durable: DurableShell) -> None:
    manager: Any = type(durable.ingress)("manager", "pool-manager")
    durable.service._opened(manager)
    assert len(manager.take()) == 1
    order = pools.OrderReplica("set", pools.ReplicaOrder("pool-0", 2, "pool", "m", "node", (0,)))
    launch = pools.LaunchEngine("set", "pool-0", 2)
    durable.step(manager, pools.NodesSeen(()), order, launch, record=pool("pool", 2))
    assert (manager.take(), durable.replica.take()) == ([], [])
    durable.service._durability.durable(1)
    assert (manager.take(), durable.replica.take()) == ([order], [wire.Launch(2)])


# ------------------------------------------------------------------ lost and found again


def lose(shell: DurableShell) -> None:
    shell.step(shell.ingress, wire.Submit(1, TASK, b"payload", watch=True), ADMIT)
    shell.core.views["a"] = started_view(TASK)
    shell.step(shell.replica, ev.SlotReleased("x", 1, "pool-0"), START)
    shell.ingress.take(), shell.replica.take()
    shell.step(shell.replica, ev.ReplicaUnready("pool-0", "it died"), ev.Pause("set", "a", 1, 0, "lost"))


@pytest.mark.req("ORCH-3009", "ORCH-3023")
async def test_a_loss_is_told_when_it_is_made_good_and_then_as_a_failover(durable: DurableShell) -> None:
    lose(durable)
    assert durable.ingress.take() == []
    durable.core.views["a"] = started_view(TASK, 2)
    again = ev.Start("set", "a", 2, "pool-0", resume_tokens=4, resume_digest=9)
    durable.step(durable.replica, ev.SlotReleased("y", 1, "pool-0"), again)
    (started,) = durable.ingress.take()
    assert isinstance(started, wire.TaskStarted)
    metrics = started.metrics
    assert (metrics.failover, metrics.resumed, metrics.kv_warmth, metrics.kv_migrated) == (True, True, False, False)
    assert (started.kv_warmth, started.resume_tokens, metrics.preempted) == (False, 4, None)
    durable.core.statuses["a"] = status(TASK, "running")
    durable.tell(durable.ingress, wire.GetPlan(7, "a", "acme"))
    (plan,) = durable.ingress.take()
    assert isinstance(plan, wire.TaskPlan)
    assert (plan.metrics.failover, plan.metrics.resumed, plan.metrics.kv_warmth) == (None, None, False)


@pytest.mark.req("ORCH-3009")
async def test_an_attempt_that_turns_out_to_run_is_told_to_those_only_who_do_not_know(durable: DurableShell) -> None:
    lose(durable)
    late: Any = type(durable.ingress)("ingress", "late")
    durable.tell(late, wire.Watch(5, "a", "acme"))
    assert late.take() == [wire.Task(5, TASK)]
    durable.core.statuses["a"] = status(TASK, "running")
    running = (ev.RunningAttempt("a", 1, 3, 7), ev.RunningAttempt("unknown", 1))
    durable.tell(durable.replica, ev.ReplicaReady(REPLICA, 1, running))
    (started,) = late.take()
    assert isinstance(started, wire.TaskStarted)
    assert (started.attempt, started.metrics.failover) == (1, None)
    assert durable.ingress.take() == []
    durable.tell(durable.replica, ev.ReplicaReady(REPLICA, 1, running))
    assert late.take() == []


@pytest.mark.req("ORCH-3045")
async def test_tokens_that_differ_are_told_to_the_core_and_counted(durable: DurableShell) -> None:
    lose(durable)
    durable.tell(durable.ingress, ev.TokensDiverged("a", 1))
    assert durable.core.events[-1] == ev.TokensDiverged("a", 1)
    durable.tell(durable.ingress, ev.TokensDiverged("gone", 1))
    durable.tell(durable.ingress, wire.GetMetrics(1))
    page = durable.ingress.take()[-1].text.decode()  # type: ignore[attr-defined]
    assert 'determinism_mismatches_total{engine="llamacpp"} 1.0' in page.splitlines()
    assert "preemptions_total{" not in page


def test_a_task_is_restored_as_waiting_with_what_its_last_attempt_was() -> None:
    never = restored(kept("a"), b"p")
    assert (never.attempt, never.lost, never.paused, never.set_id) == (0, False, False, "set")
    fields = {"attempt": 2, "start": ev.Start("set", "a", 2, "pool-1", resume_tokens=4), "started_ns": 9}
    running = restored(kept("a", **fields, over_attempt=1), b"p")
    assert (running.attempt, running.replica_id, running.resume_tokens) == (2, "pool-1", 4)
    assert (running.lost, running.paused, running.preempted) == (True, False, False)
    paused = restored(kept("a", **fields, over_attempt=2, preemptions=1), b"p")
    assert (paused.lost, paused.paused, paused.preempted) == (False, True, True)
    lost = restored(kept("a", **fields, over_attempt=2, lost_attempt=2, preemptions=1), b"p")
    assert (lost.lost, lost.paused) == (True, False)


# ------------------------------------------------------------- with a journal on disk


class StoredCluster(Cluster):
    """A cluster whose scheduler has a journal, and can be ended and started again."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self.storage = Storage(str(folder))
        self.scheduler = self.new_scheduler()

    def new_scheduler(self) -> SchedulerService:
        return SchedulerService(self.config, SECRET, storage=self.storage)

    async def restart(self) -> None:
        await self.scheduler.close()
        self.scheduler = self.new_scheduler()
        self.endpoint = await self.scheduler.start(NODE, HOST)


async def test_waiting_tasks_and_results_are_there_after_a_restart(tmp_path: Path) -> None:
    running = StoredCluster(tmp_path)
    await running.start()
    running.start_replica()
    gateway = running.gateway()
    try:
        await running.ready(gateway)
        assert (await running.locate()).epoch == 1
        await submit(gateway, "done", 5)
        texts, _ = await collect(gateway, "done")
        running.adapters[0].gate.clear()
        for name in ("runs-1", "runs-2", "waits"):
            await submit(gateway, name, 6, prompt="gated")
        await until(lambda: {"runs-1/1", "runs-2/1"} <= running.adapters[0].active)
        await running.restart()
        assert (await running.locate()).epoch == 2
        other = running.gateway()
        await running.ready(other)
        assert (await other.status("done", "acme")).state == "finished"
        assert (await collect(other, "done"))[0] == texts
        running.adapters[-1].gate.set()
        for name in ("runs-1", "runs-2", "waits"):
            assert "".join((await collect(other, name))[0]) == "".join(f"t{n} " for n in range(6))
        # The same request is the same task, before and after.
        await submit(other, "done", 5)
        assert (await collect(other, "done"))[0] == texts
    finally:
        await running.close()
    assert {each.task.task_id for each in read(tmp_path).kept.tasks} == {"done", "runs-1", "runs-2", "waits"}


async def _state(gateway: ClusterGateway, task_id: str) -> str:
    """How a task stands, as soon as that is durable."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(OrchError):
                return (await gateway.status(task_id, "acme")).state
            await asyncio.sleep(0.01)


async def test_a_full_disk_refuses_new_tasks_with_a_retry_hint_and_goes_on_with_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "RETRY_S", 0.05)
    write, full = database.write, [False]

    def failing(*arguments: Any) -> Any:
        if full[0]:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(database, "write", failing)
    running = StoredCluster(tmp_path)
    await running.start()
    running.start_replica()
    gateway = running.gateway()
    try:
        await running.ready(gateway)
        running.adapters[0].gate.clear()
        await submit(gateway, "runs", 6, prompt="gated")
        following = asyncio.create_task(collect(gateway, "runs"))
        await until(lambda: "runs/1" in running.adapters[0].active)
        full[0] = True
        for name in ("new-1", "new-2"):
            with pytest.raises(OrchError) as refused:
                await gateway.submit(task(name), GenerateRequest(name, 5, 1, prompt="plain"))
            info = refused.value.info
            assert (info.code, info.policy_label, info.retriable) == ("ADMISSION_REJECT", "reject", True)
            assert info.retry_after_ms
            assert "No space left" in info.message
        running.adapters[0].gate.set()
        assert len((await following)[0]) == 6
        full[0] = False
        assert await _state(gateway, "runs") == "finished"
        async with asyncio.timeout(20):
            while True:  # as its client was told to
                with contextlib.suppress(OrchError):
                    await submit(gateway, "new-1", 5)
                    break
                await asyncio.sleep(0.01)
        assert len((await collect(gateway, "new-1"))[0]) == 5
    finally:
        await running.close()
    assert {each.task.task_id for each in read(tmp_path).kept.tasks} == {"runs", "new-1"}


async def test_a_shutdown_lets_running_tasks_end_and_leaves_waiting_ones_to_the_next_start(tmp_path: Path) -> None:
    running = StoredCluster(tmp_path)
    await running.start()
    running.start_replica()
    gateway = running.gateway()
    try:
        await running.ready(gateway)
        running.adapters[0].gate.clear()
        for name in ("runs-1", "runs-2", "waits"):
            await submit(gateway, name, 6, prompt="gated")
        await until(lambda: {"runs-1/1", "runs-2/1"} <= running.adapters[0].active)
        ending = asyncio.create_task(running.scheduler.shutdown(20_000))
        await asyncio.sleep(0.05)
        assert not ending.done()
        running.adapters[0].gate.set()
        left = await ending
        assert (left.running, left.waiting) == (0, 1)
        with pytest.raises(OrchError):
            await submit(gateway, "late", 5)
    finally:
        await running.close()
    assert [each.task.task_id for each in read(tmp_path).kept.tasks if each.outcome is None] == ["waits"]


async def test_two_services_on_one_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LOCK_WAIT_S", 0)
    first = SchedulerService(CONFIG, SECRET, storage=Storage(str(tmp_path)))
    await first.start(NODE, HOST)
    try:
        with pytest.raises(JournalBusyError):
            await SchedulerService(CONFIG, SECRET, storage=Storage(str(tmp_path))).start(NODE, HOST)
    finally:
        await first.close()
    assert read(tmp_path).kept == Kept()
