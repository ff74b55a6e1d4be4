"""What the tests of the journal have in common: records of every kind, and a listener that remembers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from contracts.journal import KeptAccount, KeptPool, KeptReplica, KeptSession, KeptTask, Record
from contracts.scheduling import Admit
from contracts.tasks import Outcome, TaskInfo
from orchestrator.cluster.journal.clocks import Clocks
from orchestrator.cluster.journal.store import BYTES_MAX, Journal, Restored

SECOND_NS = 1_000_000_000
FINISHED = Outcome("finished", tokens_out=2, finish_reason="stop")


def task_info(task_id: str) -> TaskInfo:
    return TaskInfo(
        task_id,
        "s",
        "acme",
        "completion",
        "llamacpp",
        "m",
        2048,
        "interactive",
        5,
        60_000,
        1,
        "strict",
        "v1",
        prompt_bytes=5,
        templated=False,
        body_digest=b"d",
    )


def kept(task_id: str, order: int = 1, **changes: object) -> KeptTask:
    fields: dict[str, object] = {
        "task": task_info(task_id),
        "order": order,
        "told": Admit("set", order, task_id, 0, 0, 0),
        "admitted_ns": 5 * SECOND_NS,
        "deadline_ns": 65 * SECOND_NS,
        "prompt_tokens": 3,
        "output_tokens": 5,
    }
    return KeptTask(**(fields | changes))  # type: ignore[arg-type]


def session(session_id: str, until_ns: int = 1000 * SECOND_NS) -> KeptSession:
    return KeptSession("acme", session_id, SECOND_NS, until_ns, 1, 8, 9, 10)


def account(name: str, full_ns: int = 1000 * SECOND_NS) -> KeptAccount:
    return KeptAccount("tenant", name, full_ns, 0)


def pool(pool_id: str, ordinal: int = 1) -> KeptPool:
    return KeptPool(pool_id, "m", 1, False, ordinal, (KeptReplica(f"{pool_id}-0", ordinal, "node", (0, 1), 2),))


class Clock:
    """A machine's clocks: `now_ns` since the boot, and the time of day, which may be set."""

    def __init__(self, boot_id: str = "boot-1", now_ns: int = 10 * SECOND_NS, wall_ns: int = 1_000 * SECOND_NS) -> None:
        self.boot_id = boot_id
        self.now_ns = now_ns
        self.wall_ns = wall_ns

    def clocks(self) -> Clocks:
        return Clocks(self.boot_id, lambda: self.now_ns, lambda: self.wall_ns)


class Heard:
    """A listener that notes what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.until = 0
        self._changed = asyncio.Event()

    def durable(self, sequence: int) -> None:
        self.until = sequence
        self._note("durable", sequence)

    def failed(self, reason: str, undone: tuple[str, ...]) -> None:
        self._note("failed", reason, undone)

    def restored(self) -> None:
        self._note("restored")

    def _note(self, *told: object) -> None:
        self.told.append(told)
        self._changed.set()

    @property
    def undone(self) -> list[str]:
        return [task_id for told in self.told if told[0] == "failed" for task_id in told[2]]  # type: ignore[attr-defined]

    async def wait_durable(self, sequence: int) -> None:
        async with asyncio.timeout(60):
            while self.until < sequence:
                self._changed.clear()
                await self._changed.wait()

    async def wait_told(self, what: str) -> None:
        async with asyncio.timeout(60):
            while what not in [told[0] for told in self.told]:
                self._changed.clear()
                await self._changed.wait()


@contextlib.asynccontextmanager
async def opened(
    folder: Path, bytes_max: int = BYTES_MAX, clock: Clock | None = None
) -> AsyncIterator[tuple[Journal, Restored, Heard]]:
    """A journal that is open and started, and closed in the end."""
    journal, restored = Journal.open(folder, bytes_max, clocks=(clock or Clock()).clocks(), wait_s=0)
    heard = Heard()
    journal.start(heard)
    try:
        yield journal, restored, heard
    finally:
        await journal.close()


async def put(
    folder: Path,
    *records: Record,
    payloads: dict[str, bytes] | None = None,
    transcripts: dict[str, bytes | None] | None = None,
    clock: Clock | None = None,
) -> Restored:
    """Open, put this durably, close; what was there before."""
    async with opened(folder, clock=clock) as (journal, restored, heard):
        await heard.wait_durable(journal.put(list(records), payloads or {}, transcripts or {}))
    return restored


def read(folder: Path, clock: Clock | None = None) -> Restored:
    """What a start would find, without keeping it open."""
    journal, restored = Journal.open(folder, clocks=(clock or Clock()).clocks(), wait_s=0)
    journal._writer.close(0)  # it was never started
    journal._folder.close()
    return restored
