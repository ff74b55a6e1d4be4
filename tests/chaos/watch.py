"""Looks at the processes of the cluster all the time: who lives, and since when everybody is there."""

import threading
import time
from collections.abc import Mapping
from typing import Final

from tests.chaos.cluster import HAPROXY_MANAGER, WHOLE, ChaosCluster

PERIOD_S: Final = 0.25


class Watch:
    """Process ids by kind, renewed a few times a second by a thread of its own. `whole` is how many there should be."""

    def __init__(self, cluster: ChaosCluster, whole: Mapping[str, int] = WHOLE) -> None:
        self._cluster = cluster
        self.whole = dict(whole)
        self._stop = threading.Event()
        self._seen: dict[str, dict[int, str]] = cluster.by_kind()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def alive(self, kind: str) -> dict[int, str]:
        """Processes of a kind with their nodes, as last seen."""
        return self._seen.get(kind, {})

    def is_whole(self, kind: str, without: int = 0) -> bool:
        """Whether all of a kind live; `without` does not count: it was just killed."""
        wanted = self.whole[kind] if kind != "haproxy" else max(1, len(self.alive(HAPROXY_MANAGER)))
        return len(self.alive(kind).keys() - {without}) >= wanted

    def all_whole(self) -> bool:
        return all(self.is_whole(kind) for kind in self.whole)

    def missing(self) -> list[str]:
        counts = [(kind, len(self.alive(kind)), count) for kind, count in self.whole.items()]
        return [f"{kind}: {there} of {count}" for kind, there, count in counts if not self.is_whole(kind)]

    def until_whole(self, timeout_s: float) -> bool:
        """Wait until every kind is there in full; false when the time is over first."""
        deadline_s = time.monotonic() + timeout_s
        while not self.all_whole():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(PERIOD_S)
        return True

    def _look(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self._seen = self._cluster.by_kind()
