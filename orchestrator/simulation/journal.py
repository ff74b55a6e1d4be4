"""The journal of a simulated scheduler: the last record of every subject, which is what one on disk comes to."""

from collections.abc import Iterable

from contracts.journal import (
    ForgottenSession,
    ForgottenTask,
    Kept,
    KeptAccount,
    KeptPool,
    KeptSession,
    KeptTask,
    Record,
)


class Journal:
    """What the next scheduler begins with. It is no longer than what is alive."""

    def __init__(self) -> None:
        self.tasks: dict[str, KeptTask] = {}
        self._sessions: dict[tuple[str, str], KeptSession] = {}
        self._accounts: dict[tuple[str, str], KeptAccount] = {}
        self._pools: dict[str, KeptPool] = {}

    def put(self, records: Iterable[Record]) -> None:
        """Take in what a step changed."""
        for record in records:
            if isinstance(record, KeptTask):
                self.tasks[record.task.task_id] = record
            elif isinstance(record, ForgottenTask):
                self.tasks.pop(record.task_id, None)
            elif isinstance(record, KeptSession):
                self._sessions[record.tenant, record.session_id] = record
            elif isinstance(record, ForgottenSession):
                self._sessions.pop((record.tenant, record.session_id), None)
            elif isinstance(record, KeptAccount):
                self._accounts[record.kind, record.name] = record
            else:
                self._pools[record.pool_id] = record

    def kept(self) -> Kept:
        """All of it."""
        return Kept(
            tuple(self.tasks.values()),
            tuple(self._sessions.values()),
            tuple(self._accounts.values()),
            tuple(self._pools.values()),
        )
