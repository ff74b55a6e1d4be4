"""A process that writes the journal is killed, again and again: nothing confirmed is missing, nothing is half there."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.cluster.journal.store import Restored
from tests.unit.cluster.journal_kit import FINISHED, kept, read
from tests.unit.cluster.journal_writer_process import FORGOTTEN_AFTER, payload

pytestmark = pytest.mark.req("ORCH-3051")
ROOT = Path(__file__).parents[3]


def start(folder: Path, first: int, *more: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.unit.cluster.journal_writer_process", str(folder), str(first), *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def killed(process: "subprocess.Popen[bytes]", after_s: float) -> list[str]:
    """Kill it that long after it opened the journal; what it said until then."""
    assert process.stdout is not None
    with process.stdout:
        lines = [process.stdout.readline()]
        assert lines == [b"open\n"]
        time.sleep(after_s)
        process.kill()
        lines += process.stdout.readlines()
    process.wait()
    return [line.decode().rstrip("\n") for line in lines if line.endswith(b"\n")]


def check(restored: Restored, confirmed: int) -> int:
    """What is there is the state after some put from `confirmed` on, whole; the number of that put."""
    tasks = {task.order: task for task in restored.kept.tasks}
    last = max(tasks, default=0)
    assert last >= confirmed
    assert restored.damaged == 0
    for number in range(1, last + 1):
        task_id = f"t{number}"
        if number % 3 == 0 and number <= last - FORGOTTEN_AFTER:
            assert number not in tasks
            assert task_id not in restored.payloads
            assert task_id not in restored.transcripts
        elif number % 2 == 0 and number < last:
            assert tasks[number] == kept(task_id, number, outcome=FINISHED)
            assert restored.transcripts[task_id] == payload(number)[::-1]
            assert task_id not in restored.payloads
        else:
            assert tasks[number] == kept(task_id, number)
            assert restored.payloads[task_id] == payload(number)
            assert task_id not in restored.transcripts
    return last


def test_whenever_it_is_killed_what_was_confirmed_is_there_and_nothing_in_part(tmp_path: Path) -> None:
    chance = random.Random(3051)
    last, epochs = 0, []
    for _ in range(12):
        said = killed(start(tmp_path, last + 1), chance.random() * 0.15)
        confirmed = max([last, *(int(line.split()[1]) for line in said if line.startswith("durable "))])
        restored = read(tmp_path)
        last = check(restored, confirmed)
        epochs.append(restored.epoch)
    assert last > 100
    assert epochs == sorted(set(epochs))
