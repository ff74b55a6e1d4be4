"""Records as rows: which table a subject is in, under which key, and how a row is told from a damaged one."""

import zlib
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from contracts.journal import (
    ForgottenSession,
    ForgottenTask,
    KeptAccount,
    KeptPool,
    KeptSession,
    KeptTask,
    Record,
)

TASKS: Final = "tasks"
PAYLOADS: Final = "payloads"
TRANSCRIPTS: Final = "transcripts"
SESSIONS: Final = "sessions"
ACCOUNTS: Final = "accounts"
POOLS: Final = "pools"
META: Final = "meta"
#: In the order in which they are written: small ones first.
TABLES: Final = (META, POOLS, ACCOUNTS, SESSIONS, TASKS, PAYLOADS, TRANSCRIPTS)

#: A table and a key in it.
Subject = tuple[str, bytes]
#: What a subject is to have: a record, bytes as they are, or nothing.
Value = Record | bytes | None

encode: Final = msgspec.msgpack.Encoder().encode


def checksum(table: str, key: bytes, data: bytes) -> int:
    """CRC-32 over the row's place and content, so that a row that strayed to another key is found out too."""
    return zlib.crc32(data, zlib.crc32(key, zlib.crc32(table.encode())))


def is_sound(table: str, key: object, data: object, crc: object) -> bool:
    """Whether a row read from a file is one that was written there."""
    return isinstance(key, bytes) and isinstance(data, bytes) and crc == checksum(table, key, data)


def over_at(value: Value) -> int | None:
    """The instant (ns) from which a row says nothing any more; None: it goes when its subject is forgotten."""
    if isinstance(value, KeptAccount):
        return max(value.requests_full_ns, value.tokens_full_ns)
    return None


def session_key(tenant: str, session_id: str) -> bytes:
    return encode((tenant, session_id))


class Changes:
    """What waits to be written, the latest of each subject: no longer than there are subjects."""

    __slots__ = ("admitted", "rows", "sequence")

    def __init__(self) -> None:
        self.rows: dict[Subject, Value] = {}
        #: Tasks whose admission is among the changes.
        self.admitted: dict[str, None] = {}
        #: Of the last `put` that is among them.
        self.sequence = 0

    def put(
        self,
        sequence: int,
        records: Iterable[Record],
        payloads: Mapping[str, bytes],
        transcripts: Mapping[str, bytes | None],
    ) -> None:
        """Take in what one step changed. A payload comes with its task's admission, and only then."""
        rows = self.rows
        self.sequence = sequence
        for task_id, payload in payloads.items():
            rows[PAYLOADS, task_id.encode()] = payload
            self.admitted[task_id] = None
        for task_id, tokens in transcripts.items():
            rows[TRANSCRIPTS, task_id.encode()] = tokens
        for record in records:
            if isinstance(record, KeptTask):
                key = record.task.task_id.encode()
                rows[TASKS, key] = record
                if record.outcome is not None:  # nothing will run it again
                    rows[PAYLOADS, key] = None
            elif isinstance(record, ForgottenTask):
                self._forget(record.task_id)
            elif isinstance(record, KeptSession):
                rows[SESSIONS, session_key(record.tenant, record.session_id)] = record
            elif isinstance(record, ForgottenSession):
                rows[SESSIONS, session_key(record.tenant, record.session_id)] = None
            elif isinstance(record, KeptAccount):
                rows[ACCOUNTS, encode((record.kind, record.name))] = record
            elif isinstance(record, KeptPool):
                rows[POOLS, record.pool_id.encode()] = record

    def give_up_admissions(self) -> tuple[str, ...]:
        """Undo the admissions among the changes; their tasks.

        Their rows become deletions: a commit whose failure was reported may have reached the disk all the same.
        """
        undone = tuple(self.admitted)
        for task_id in undone:
            self._forget(task_id)
        self.admitted.clear()
        return undone

    def add(self, later: "Changes") -> None:
        """Take in changes that were put after these."""
        self.rows.update(later.rows)
        self.admitted.update(later.admitted)
        self.sequence = max(self.sequence, later.sequence)

    def _forget(self, task_id: str) -> None:
        key = task_id.encode()
        self.rows[TASKS, key] = self.rows[PAYLOADS, key] = self.rows[TRANSCRIPTS, key] = None
