"""What durability costs: `python benchmarks/journal.py [--check] [--json FILE] [--folder FOLDER]`.

Admissions are put into the scheduler's journal by 1, 16 and 64 clients at once, each of which puts its next one when
the one before is durable: a record and a payload of 1 kB. Told are records a second, and how long a put takes to be
durable; beside it, the same with the journal off. Disks differ more than anything else here: name one with `--folder`.
"""

import argparse
import asyncio
import gc
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec
import structlog

ROOT: Final = Path(__file__).resolve().parent.parent
# A script's own folder comes first on the path; its modules are meant to be found as `benchmarks.*` only.
sys.path[:] = [str(ROOT), *(place for place in sys.path if place not in (str(ROOT), str(ROOT / "benchmarks")))]

from benchmarks.limits import load_limits, shortfalls  # noqa: E402
from benchmarks.report import percentile  # noqa: E402
from contracts.journal import KeptTask  # noqa: E402
from contracts.scheduling import Admit  # noqa: E402
from contracts.tasks import TaskInfo  # noqa: E402
from orchestrator.cluster.journal.store import Journal, NoJournal, Store  # noqa: E402

CLIENTS: Final = (1, 16, 64)
SECONDS: Final = 3.0
#: Tasks that are kept at once; the oldest make room, as ended ones do.
TASKS: Final = 10_000
PAYLOAD: Final = bytes(1024)


class Row(msgspec.Struct, frozen=True):
    """One line of the table; times in milliseconds."""

    name: str
    records_per_s: float
    p50_ms: float
    p99_ms: float


class Clients:
    """Callers that wait for their puts."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._durable = self._count = 0
        self.took_ms: list[float] = []

    def durable(self, sequence: int) -> None:
        for number in range(self._durable + 1, sequence + 1):
            waiting = self._waiting.pop(number, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        self._durable = sequence

    def failed(self, reason: str, _undone: tuple[str, ...]) -> None:
        raise RuntimeError(f"the journal failed: {reason}")

    def restored(self) -> None:
        """Nothing is tried again here."""

    async def run(self, until: float) -> None:
        """One client, until that time."""
        while time.perf_counter() < until:
            self._count += 1
            task_id = f"task-{self._count % TASKS}"
            begun = time.perf_counter()
            sequence = self._store.put([_task(task_id, self._count)], {task_id: PAYLOAD}, {})
            if sequence:
                waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting[sequence] = waiting
                await waiting
            else:
                await asyncio.sleep(0)
            self.took_ms.append((time.perf_counter() - begun) * 1000)


def _task(task_id: str, order: int) -> KeptTask:
    info = TaskInfo(
        task_id,
        "session",
        "tenant",
        "completion",
        "llamacpp",
        "model",
        2048,
        "interactive",
        256,
        60_000,
        order,
        "strict",
        "v1",
        prompt_bytes=900,
        templated=False,
        body_digest=bytes(32),
    )
    return KeptTask(info, order, Admit("set", order, task_id, 3, 400, 0), order, order, 250, 256)


async def measure(store: Store, clients: int) -> list[float]:
    """How long each put took (ms)."""
    callers = Clients(store)
    store.start(callers)
    until = time.perf_counter() + SECONDS
    await asyncio.gather(*(callers.run(until) for _ in range(clients)))
    await store.close()
    return callers.took_ms


def run_all(folder: Path) -> list[Row]:
    """The journal and no journal, in turn, for each number of clients."""
    rows = []
    for clients in CLIENTS:
        for side in ("journal", "off"):
            gc.collect()
            store: Store = NoJournal()
            if side == "journal":
                store, _ = Journal.open(folder / str(clients))
            took_ms = asyncio.run(measure(store, clients))
            rows.append(
                Row(
                    f"{side}/{clients}",
                    len(took_ms) / SECONDS,
                    percentile(took_ms, 0.5),
                    percentile(took_ms, 0.99),
                )
            )
    return rows


def figures(rows: list[Row]) -> dict[str, float]:
    """What limits can be set on, by name: `side/clients/quantity`."""
    found: dict[str, float] = {}
    for row in rows:
        found[f"{row.name}/records_per_s"] = row.records_per_s
        found[f"{row.name}/p50_ms"], found[f"{row.name}/p99_ms"] = row.p50_ms, row.p99_ms
    single, many = (found[f"journal/{clients}/records_per_s"] for clients in (CLIENTS[0], CLIENTS[-1]))
    found["journal/grouping"] = many / single
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with limits.yaml; exit 1 where a limit is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and figures there")
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure; default: the temporary one")
    asked = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with tempfile.TemporaryDirectory(prefix="llorch-journal-", dir=asked.folder) as folder:
        rows = run_all(Path(folder))
    reached = figures(rows)
    missed = shortfalls(reached, load_limits("journal")) if asked.check else []
    print(f"{'':12}{'records/s':>12}{'p50 ms':>10}{'p99 ms':>10}")
    for row in rows:
        print(f"{row.name:12}{row.records_per_s:12.0f}{row.p50_ms:10.3f}{row.p99_ms:10.3f}")
    if asked.json is not None:
        machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "load": os.getloadavg()[0]}
        found = {"machine": machine, "rows": msgspec.to_builtins(rows), "figures": reached}
        asked.json.write_text(json.dumps(found, indent=2) + "\n")
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
