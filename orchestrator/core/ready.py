"""Active flows by rank, the lowest first (ORCH-3075).

A binary heap in which an outdated entry stays until it comes up or the outdated ones outnumber the
others: a change costs one push. An entry is outdated when its flow's `version` has moved on.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import Final, Generic

from orchestrator.core.flows import Flow
from orchestrator.core.ordering import W

OUTDATED_SLACK: Final = 64


class Ready(Generic[W]):
    """The flows that have a task to start. Equal ranks go by activation."""

    __slots__ = ("_entries", "_kept")

    def __init__(self) -> None:
        #: (rank, sequence, version, flow); flows themselves are never compared: a sequence belongs to one.
        self._entries: list[tuple[int, int, int, Flow[W]]] = []
        self._kept = 0

    def __len__(self) -> int:
        """Entries, outdated ones included."""
        return len(self._entries)

    def put(self, flow: Flow[W], rank: int) -> None:
        """Give an active flow this rank, instead of the one it had."""
        entries = self._entries
        at_head = len(entries) > 0 and entries[0][3] is flow
        flow.version += 1
        entry = (rank, flow.sequence, flow.version, flow)
        if at_head:
            heapreplace(entries, entry)
            return
        heappush(entries, entry)
        if len(entries) > 2 * self._kept + OUTDATED_SLACK:
            self._sweep()

    def first(self) -> Flow[W] | None:
        """The flow of the lowest rank; one whose version has moved on does not count."""
        entries = self._entries
        while entries:
            entry = entries[0]
            if entry[2] == entry[3].version:
                return entry[3]
            heappop(entries)
        return None

    def _sweep(self) -> None:
        self._entries = [entry for entry in self._entries if entry[2] == entry[3].version]
        heapify(self._entries)
        self._kept = len(self._entries)
