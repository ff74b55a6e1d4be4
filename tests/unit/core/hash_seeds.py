"""What code prints in processes with different hash seeds: the order of a set, for one, depends on them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SEEDS = ("1", "2")
TIMEOUT_S = 100


def printed(code: str) -> set[str]:
    """What `code` prints under each of the seeds; the processes run beside each other."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in SEEDS
    ]
    found = set()
    try:
        for process in processes:
            told, errors = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, errors
            found.add(told.strip())
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return found
