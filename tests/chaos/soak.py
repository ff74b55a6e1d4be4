"""`python -m tests.chaos.soak --minutes 30`: paced load without faults; no process of the service may grow.

Exit status 0: every process is flat after the warm-up, and the audit of the tasks holds.
"""

import argparse
import asyncio
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Final

import msgspec

from tests.chaos.cluster import HAPROXY_MANAGER, KEY, POOLS, ChaosCluster
from tests.chaos.doors import Doors
from tests.chaos.ending import log, nothing_left, running_cluster, settle, taken_down
from tests.chaos.load import Load, until_ready
from tests.chaos.logs import log_checks
from tests.chaos.plan import recipes, tasks
from tests.chaos.reference import take
from tests.chaos.report import Run, audit_lines, columns
from tests.chaos.slopes import Growth, Sample, growth
from tests.chaos.watch import Watch

PERIOD_S: Final = 10.0
WARM_UP_S: Final = 300.0
#: Of a short run, this share is warm-up.
WARM_UP_SHARE: Final = 0.4
READY_S: Final = 180.0
GRACE_S: Final = 160.0
#: Shorter than the warm-up: from then on, as many results are forgotten as are added.
RESULTS_TTL_MS: Final = 120_000
#: Ray's and Serve's own daemons are told of, and have no limit here.
NOT_OURS: Final = ("node", "head", "gcs", "serve controller", "serve proxy", HAPROXY_MANAGER)


class Samples:
    """Looks at every process by kind, every ten seconds, in a thread of its own."""

    def __init__(self, cluster: ChaosCluster, doors: Doors) -> None:
        self._cluster = cluster
        self._doors = doors
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="samples", daemon=True)
        #: By kind and process id.
        self.taken: dict[tuple[str, int], list[Sample]] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(PERIOD_S):
            for kind, pids in self._cluster.by_kind().items():
                for pid in pids:
                    try:
                        self.taken.setdefault((kind, pid), []).append(sample(pid, self._doors.now_s()))
                    except OSError:
                        continue


def sample(pid: int, at_s: float) -> Sample:
    """Memory and file descriptors of a process. Raises OSError when it is gone."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, kib, *_ = line.split()
        sizes[name] = int(kib) * 1024
    return Sample(at_s, sizes["Rss:"], sizes["Pss:"], len(list(Path(f"/proc/{pid}/fd").iterdir())))


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="where the samples go, as JSON")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then, too
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)
    seconds = arguments.minutes * 60
    made = recipes(arguments.seed)
    run = Run(arguments.seed, seconds, ["none"], made, tasks(arguments.seed, seconds, made), [])
    with running_cluster(results_ttl_ms=RESULTS_TTL_MS) as cluster:
        taken = asyncio.run(_soak(cluster, run))
        run.checks.append(taken_down(cluster))
        kept = cluster.keep_logs()
    alarms, errors = log_checks(kept)
    run.checks += [nothing_left(cluster), *alarms]
    run.logs = str(kept)
    run.notes.append(errors)
    warm_up_s = min(WARM_UP_S, WARM_UP_SHARE * seconds)
    grown = {key: growth(samples, warm_up_s) for key, samples in sorted(taken.items())}
    good = run.holds and not any(each.faults for (kind, _), each in grown.items() if kind not in NOT_OURS)
    if arguments.report:
        told = {f"{kind} {pid}": samples for (kind, pid), samples in taken.items()}
        arguments.report.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1))
    if good:
        cluster.remove_folder()
    sys.stdout.write(
        "\n".join([*audit_lines(run), "", *_lines(grown), "", *run.notes, "" if good else f"logs: {run.logs}"]) + "\n"
    )
    return 0 if good else 1


async def _soak(cluster: ChaosCluster, run: Run) -> dict[tuple[str, int], list[Sample]]:
    doors = Doors({"own": cluster.url, "haproxy": cluster.balanced_url}, KEY, POOLS)
    watch, samples, load = Watch(cluster), Samples(cluster, doors), Load(doors, run.recipes, ask_at_once=True)
    watch.start()
    try:
        if not await until_ready(doors, list(POOLS), READY_S):
            raise RuntimeError(f"the pools were not ready in {READY_S:.0f} s")
        run.reference = await take(doors, run.recipes)
        run.histories = load.histories
        doors.restart_clock()
        samples.start()
        log.info("%d tasks", len(run.plans))
        await load.run(run.plans, GRACE_S)
        samples.stop()
        await settle(doors, watch, load, run)
    finally:
        watch.stop()
        await doors.http.close()
    return samples.taken


def _lines(grown: dict[tuple[str, int], Growth]) -> list[str]:
    head = ("process", "pid", "samples", "RSS", "RSS/min", "PSS/min", "fds first", "fds last", "fds/min", "")
    rows: list[tuple[str, ...]] = [head]
    for (kind, pid), each in grown.items():
        sizes = (f"{each.rss_mb:.0f} MB", f"{each.rss_slope_mb:+.2f} MB", f"{each.pss_slope_mb:+.2f} MB")
        fds = (f"{each.fds_first:.0f}", f"{each.fds_last:.0f}", f"{each.fds_slope:+.2f}")
        verdict = "not ours" if kind in NOT_OURS else "; ".join(each.faults) or "flat"
        rows.append((kind, str(pid), str(each.samples), *sizes, *fds, verdict))
    return columns(rows)


if __name__ == "__main__":
    sys.exit(main())
