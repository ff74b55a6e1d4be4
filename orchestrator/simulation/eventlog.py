"""The log of a run: every event with the time it was told, and a digest of the commands it led to.

A log is enough to repeat the scheduler's part of a run without the world. Files that end in `.jsonl` are
one JSON value a line; all others are msgpack, each value with its length in 4 bytes before it. The
first value is the configuration, then time and event of each step, then the digest.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

import msgspec
from msgspec import Struct

from contracts.policies import SchedulerConfig
from contracts.scheduling import AnyCommand, AnyEvent, ServiceRecovered
from orchestrator.core import invariants
from orchestrator.core.scheduler import Scheduler
from orchestrator.simulation.errors import TraceError

LENGTH_BYTES: Final = 4
#: No honest record is longer; a file that is no log is found out here.
RECORD_BYTES_MAX: Final = 64 * 1024 * 1024


class Header(Struct, frozen=True, tag="header"):
    """Opens a log: what the scheduler was configured with."""

    config: SchedulerConfig
    format: int = 1


class Footer(Struct, frozen=True, tag="footer"):
    """Closes a log: what its events led to."""

    steps: int
    commands: str


class Step(Struct, frozen=True, tag="step"):
    """One step of the scheduler."""

    now_ns: int
    event: AnyEvent


Record = Header | Step | Footer


class CommandDigest:
    """sha256 over commands, step by step."""

    def __init__(self) -> None:
        self.steps = 0
        self._sha = hashlib.sha256()
        self._encode = msgspec.msgpack.Encoder().encode

    def add(self, commands: list[AnyCommand]) -> None:
        self.steps += 1
        self._sha.update(self._encode(commands))

    def hex(self) -> str:
        return self._sha.hexdigest()


class EventLog:
    """Writes a log; without a path, only the digests are kept. Use it as a context manager."""

    def __init__(self, path: Path | None = None) -> None:
        self.commands = CommandDigest()
        self._events = hashlib.sha256()
        self._lines = path is not None and path.suffix == ".jsonl"
        self._encode = msgspec.json.Encoder().encode if self._lines else msgspec.msgpack.Encoder().encode
        self._stream: BinaryIO | None = path.open("wb") if path is not None else None

    def begin(self, config: SchedulerConfig) -> None:
        """The run starts with this configuration."""
        self._write(self._encode(Header(config)))

    def append(self, now_ns: int, event: AnyEvent, commands: list[AnyCommand]) -> None:
        """One step of the scheduler."""
        self.commands.add(commands)
        record = self._encode(Step(now_ns, event))
        self._events.update(record)
        self._write(record)

    def events_digest(self) -> str:
        """sha256 over all events and their times."""
        return self._events.hexdigest()

    def _write(self, record: bytes) -> None:
        if self._stream is None:
            return
        if self._lines:
            self._stream.write(record + b"\n")
        else:
            self._stream.write(len(record).to_bytes(LENGTH_BYTES, "big") + record)

    def close(self) -> None:
        """The run is over."""
        if self._stream is not None:
            self._write(self._encode(Footer(self.commands.steps, self.commands.hex())))
            self._stream.close()
            self._stream = None

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Replayed(Struct, frozen=True):
    """What repeating a log gave. `recorded` is the digest in the log; None if the log was cut off."""

    steps: int
    commands: str
    recorded: str | None

    @property
    def same(self) -> bool:
        """Whether every command was the same as when the log was written."""
        return self.commands == self.recorded


def replay(path: Path, *, check_every_steps: int = 0) -> Replayed:
    """Give a log's events to a new scheduler. Raises `TraceError` if the file is no log."""
    config: SchedulerConfig | None = None
    scheduler: Scheduler | None = None
    digest = CommandDigest()
    recorded: str | None = None
    for record in read_log(path):
        match record:
            case Header():
                config = record.config
                scheduler = Scheduler(config)
            case Step() if scheduler is not None and config is not None:
                if isinstance(record.event, ServiceRecovered):
                    # Another scheduler goes on from here.
                    scheduler = Scheduler(config)
                digest.add(scheduler.step(record.now_ns, record.event))
                if check_every_steps and digest.steps % check_every_steps == 0:
                    invariants.check(scheduler)
            case Footer():
                recorded = record.commands
    if scheduler is None:
        raise TraceError(f"{path}: not an event log: it does not begin with a configuration")
    return Replayed(digest.steps, digest.hex(), recorded)


def read_log(path: Path) -> Iterator[Record]:
    """The records of a log in order. Raises `TraceError`; a record that was cut off at the end is left out."""
    try:
        with path.open("rb") as stream:
            yield from _lines(path, stream) if path.suffix == ".jsonl" else _frames(path, stream)
    except OSError as error:
        raise TraceError(f"{path}: cannot read: {error.strerror or error}") from None


def _lines(path: Path, stream: BinaryIO) -> Iterator[Record]:
    decoder = msgspec.json.Decoder(Record)
    for number, line in enumerate(stream, 1):
        if not line.endswith(b"\n"):
            return
        try:
            yield decoder.decode(line)
        except msgspec.DecodeError as error:
            raise TraceError(f"{path}:{number}: not a record of an event log: {error}") from None


def _frames(path: Path, stream: BinaryIO) -> Iterator[Record]:
    decoder = msgspec.msgpack.Decoder(Record)
    while len(length := stream.read(LENGTH_BYTES)) == LENGTH_BYTES:
        size = int.from_bytes(length, "big")
        if size > RECORD_BYTES_MAX:
            raise TraceError(f"{path}: not an event log: a record of {size} bytes")
        raw = stream.read(size)
        if len(raw) < size:
            return
        try:
            yield decoder.decode(raw)
        except msgspec.DecodeError as error:
            raise TraceError(f"{path}: not a record of an event log: {error}") from None
