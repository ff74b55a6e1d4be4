"""Puts tasks into a journal until it is killed, and says on standard output what was told to be durable.

`python -m tests.unit.cluster.journal_writer_process FOLDER FIRST [FILE_BYTES_MAX]`: a line "durable N" for each commit,
"failed IDS", "restored". Task n is `kept("t<n>", n)` with payload and transcript made of n; every third is forgotten
three puts later, every other one ends. A limit on the size of files makes the disk "full".
"""

import asyncio
import os
import resource
import sys
from pathlib import Path

import structlog

from contracts.journal import ForgottenTask, Record
from orchestrator.cluster.journal.store import Journal
from tests.unit.cluster.journal_kit import FINISHED, Clock, kept

FORGOTTEN_AFTER = 3


def payload(number: int) -> bytes:
    return number.to_bytes(4, "big") * (1 + number % 700)


def changes(number: int) -> tuple[list[Record], dict[str, bytes], dict[str, bytes | None]]:
    """What put `number` is about: its own task, the end of the one before, the forgetting of an older one."""
    records: list[Record] = [kept(f"t{number}", number)]
    transcripts: dict[str, bytes | None] = {}
    if number % 2 and number > 1:
        records.append(kept(f"t{number - 1}", number - 1, outcome=FINISHED))
        transcripts[f"t{number - 1}"] = payload(number - 1)[::-1]
    older = number - FORGOTTEN_AFTER
    if older > 0 and older % 3 == 0:
        records.append(ForgottenTask(f"t{older}"))
    return records, {f"t{number}": payload(number)}, transcripts


class Sayer:
    """Says what it is told, at once: the process may be killed at any time."""

    def __init__(self, first: int) -> None:
        self.before = first - 1

    def durable(self, sequence: int) -> None:
        say(f"durable {self.before + sequence}")

    def failed(self, _reason: str, undone: tuple[str, ...]) -> None:
        say("failed " + ",".join(undone))

    def restored(self) -> None:
        say("restored")


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def run(folder: Path, first: int) -> None:
    journal, _ = Journal.open(folder, clocks=Clock().clocks())
    journal.start(Sayer(first))
    say("open")
    number = first
    while True:
        for _ in range(5):
            journal.put(*changes(number))
            number += 1
        await asyncio.sleep(0.0005)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if len(sys.argv) > 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2])))
