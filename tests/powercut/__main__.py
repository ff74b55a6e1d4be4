"""Kills every process of a small service at random points, over and over, and looks for what was promised.

    python -m tests.powercut --runs 200 --seed 1

Each run starts the service on the folder that the run before it left, submits a few tasks, and kills all processes
with SIGKILL at a random point: while it starts, while tasks are admitted, run, and end. After the last run every task
that was ever answered 202 must be known, must have ended, and must have the text that an undisturbed run gives.
Exits with 1 if one does not.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.powercut.audit import Audit
from tests.powercut.service import SmallService
from tests.powercut.tasks import Submitter

#: So many of the kills come while the processes start, within this time; the others once they serve.
EARLY_PART = 0.2
EARLY_MAX_S = 2.0
#: About as long as the tasks of a run take to be submitted and to end.
KILL_MAX_S = 1.2
TASKS_PER_RUN = 60
#: How long what is left may take at the end, and how many seconds a run may take to answer.
SETTLE_S = 120


async def main(runs: int, seed: int, folder: Path) -> int:
    """The number of things that were found wrong."""
    rng = random.Random(seed)
    service = SmallService(folder)
    audit = Audit()
    began = time.monotonic()
    try:
        await service.start()
        await service.until_ready()
        await audit.learn(service)
        for run in range(runs):
            submitter = Submitter(service, rng, TASKS_PER_RUN)
            if rng.random() < EARLY_PART:
                kill_after_s = rng.uniform(0.05, EARLY_MAX_S)
            else:
                await service.until_ready()
                kill_after_s = rng.uniform(0.0, KILL_MAX_S)
            accepted = await submitter.run_for(kill_after_s)
            service.kill()
            await service.dead()
            audit.promised(accepted)
            print(
                f"run {run + 1}/{runs}: killed after {kill_after_s:.2f} s, {len(accepted)} tasks accepted,"
                f" {audit.count} so far",
                flush=True,
            )
            await service.start()
        await service.until_ready()
        findings = await audit.look(service, SETTLE_S)
    finally:
        service.kill()
        await service.dead()
    print(audit.table(runs, time.monotonic() - began))
    for finding in findings[:20]:
        print(finding)
    return len(findings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="powercut", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llorch-powercut-") as place:
        sys.exit(1 if asyncio.run(main(asked.runs, asked.seed, Path(place))) else 0)
