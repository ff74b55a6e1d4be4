"""How a run of chaos or soak begins and ends: the cluster up, all settled, asked, audited and taken down."""

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.chaos.audit import Check, audit
from tests.chaos.cluster import POOLS, ChaosCluster
from tests.chaos.doors import Doors
from tests.chaos.load import Load, busy_slots, until_ready
from tests.chaos.report import Run
from tests.chaos.watch import Watch

SETTLE_S: Final = 120.0
SLOTS_S: Final = 30.0
DOWN_S: Final = 20.0
log = logging.getLogger("chaos")


@contextlib.contextmanager
def running_cluster(**changes: Any) -> Iterator[ChaosCluster]:
    """The cluster, up; everything of it is killed in the end, and its folder stays. `changes`: see ChaosCluster."""
    directory = Path(tempfile.mkdtemp(prefix="lc-"))
    log.info("starting the cluster in %s", directory)
    cluster = ChaosCluster(directory, **changes)
    try:
        cluster.start()
        yield cluster
    except BaseException:
        log.info("cut short; its logs are under %s", directory / "ray")
        raise
    finally:
        cluster.go_on()
        cluster.kill_all()


async def settle(doors: Doors, watch: Watch, load: Load, run: Run) -> None:
    """Wait until all is well, then ask for every outcome and audit."""
    begun_s = time.monotonic()
    whole = await asyncio.to_thread(watch.until_whole, SETTLE_S)
    ready = await until_ready(doors, list(POOLS), SETTLE_S)
    log.info("settled after %.1f s; asking for %d outcomes", time.monotonic() - begun_s, len(load.histories))
    await load.ask_at_the_end()
    busy = await busy_slots(doors, list(POOLS), SLOTS_S)
    run.checks += audit(run.plans, load.histories, run.reference)
    run.checks.append(Check("all processes are back", "", () if whole else tuple(watch.missing())))
    run.checks.append(Check("all replicas are ready", "", () if ready else ("not all of them, see the logs",)))
    run.checks.append(Check("no attempt goes on after the end", "", tuple(busy)))


def taken_down(cluster: ChaosCluster) -> Check:
    """`llorch down` ends all of the service, and leaves Ray."""
    name = "`llorch down` leaves nothing"
    try:
        cluster.down()
        cluster.until(lambda: not cluster.service_processes(), "the service's processes end", DOWN_S)
    except AssertionError as failed:
        return Check(name, "", (str(failed)[-500:], *cluster.service_processes()))
    return Check(name, "", ())


def nothing_left(cluster: ChaosCluster) -> Check:
    """After Ray itself was killed."""
    return Check("no process is left", "", tuple(cluster.commands()))
