"""`python -m tests.chaos --seconds 600 --seed 7`: break the service all the time, and count what clients notice.

Exit status 0: every line of the audit holds, and every bound (unless `--bounds report`).
"""

import argparse
import asyncio
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Final

from tests.chaos.cluster import KEY, POOLS, ChaosCluster
from tests.chaos.doors import Doors
from tests.chaos.ending import SETTLE_S, log, nothing_left, running_cluster, settle, taken_down
from tests.chaos.faults import Faults
from tests.chaos.load import Load, until_ready
from tests.chaos.logs import log_checks
from tests.chaos.pauses import bounds, pauses
from tests.chaos.plan import KILLS, TROUBLES, faults, recipes, tasks
from tests.chaos.reference import take
from tests.chaos.report import Run, as_json, lines
from tests.chaos.watch import Watch

READY_S: Final = 180.0
#: After the last task was asked for: its deadline, and what its client waits beyond.
GRACE_S: Final = 160.0


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then, too
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)
    made = recipes(arguments.seed)
    run = Run(
        arguments.seed,
        arguments.seconds,
        arguments.only,
        made,
        tasks(arguments.seed, arguments.seconds, made),
        [] if "none" in arguments.only else faults(arguments.seed, arguments.seconds, arguments.only),
    )
    with running_cluster() as cluster:
        asyncio.run(_attack(cluster, run))
        run.checks.append(taken_down(cluster))
        kept = cluster.keep_logs()
    alarms, errors = log_checks(kept)
    run.checks += [nothing_left(cluster), *alarms]
    run.logs = str(kept)
    run.notes.append(errors)
    good = run.holds and (run.bounds_hold or arguments.bounds == "report")
    if arguments.report:
        arguments.report.write_bytes(as_json(run))
    if good:
        cluster.remove_folder()
    sys.stdout.write("\n".join([*lines(run), "" if good else f"logs: {run.logs}"]) + "\n")
    return 0 if good else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="how long load and faults go on")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same plan")
    parser.add_argument("--only", action="append", default=[], choices=[*KILLS, *TROUBLES, "none"], metavar="KIND")
    parser.add_argument("--bounds", choices=["fail", "report"], default="fail", help="what a missed bound does")
    parser.add_argument("--report", type=Path, help="where the JSON goes")
    return parser.parse_args()


async def _attack(cluster: ChaosCluster, run: Run) -> None:
    doors = Doors({"own": cluster.url, "haproxy": cluster.balanced_url}, KEY, POOLS)
    watch = Watch(cluster)
    watch.start()
    injector = Faults(cluster, watch, doors.now_s)
    load = Load(doors, run.recipes)
    run.histories, run.faults = load.histories, injector.records
    try:
        if not await until_ready(doors, list(POOLS), READY_S):
            raise RuntimeError(f"the pools were not ready in {READY_S:.0f} s")
        log.info("taking %d references", len(run.recipes))
        run.reference = await take(doors, run.recipes)
        log.info("%d tasks, %d faults", len(run.plans), len(run.fault_plans))
        doors.restart_clock()
        breaking = threading.Thread(target=injector.run, args=(run.fault_plans,), daemon=True)
        breaking.start()
        await load.run(run.plans, GRACE_S)
        injector.stop()
        await asyncio.to_thread(injector.settle, SETTLE_S)
        await settle(doors, watch, load, run)
        run.pauses = pauses(run.plans, load.histories, run.reference)
        run.bounds = bounds(run.pauses, [each for each in run.faults if each.was_done], load.histories)
    finally:
        injector.stop()
        cluster.clock.set(0)
        watch.stop()
        await doors.http.close()


if __name__ == "__main__":
    sys.exit(main())
