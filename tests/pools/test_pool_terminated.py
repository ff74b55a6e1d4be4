"""SIGTERM, as a rolling restart sends it: what runs in the process, or through it, ends first, and nobody notices."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.pools.load import parse
from tests.pools.pool_cluster import KEY, PoolCluster
from tests.pools.table import TABLE
from tests.pools.test_pool_recovery import BACK_TIMEOUT_S, as_desired, one_actor, settle
from tests.pools.test_pool_schedulers import scheduler, standby

STREAMS = 6
#: At 20 ms each a stream takes 2 s: less than a replica (10 s) and an ingress (5 s) give what they have.
TOKENS = 100


def ingress(cluster: PoolCluster) -> int:
    (pid,) = cluster.actors("ServeReplica:llorch:Ingress")
    return pid


VICTIMS: dict[str, Callable[[PoolCluster], int]] = {
    "replica actor": one_actor,
    "ingress": ingress,
    "scheduler": scheduler,
    "scheduler that stands by": standby,
}


class Streams:
    """Streams in one call each, read to their end without a second try."""

    def __init__(self, cluster: PoolCluster) -> None:
        self._url = f"http://127.0.0.1:{cluster.port}/v1/tasks"
        self._bodies = [cluster.body(max_tokens=TOKENS, seed=seed) for seed in range(STREAMS)]
        self._pool = ThreadPoolExecutor(STREAMS)
        self._begun: list[str] = []
        self.texts = [self._pool.submit(self._read, body) for body in self._bodies]

    @property
    def begun(self) -> int:
        """How many have a token."""
        return len(self._begun)

    def events(self) -> list[list[tuple[str, dict[str, Any]]]]:
        """What each stream gave, once all are over."""
        with self._pool:
            return [parse(text.result()) for text in self.texts]

    def _read(self, body: dict[str, Any]) -> str:
        headers = {"Authorization": f"Bearer {KEY}", "Accept": "text/event-stream"}
        text, seen = "", False
        with httpx2.stream("POST", self._url, json=body, headers=headers, timeout=60) as answer:
            for part in answer.iter_text():
                text += part
                if not seen and "event: token" in text:
                    seen = True
                    self._begun.append(body["task_id"])
        return text


@pytest.mark.req("ORCH-3051", "ORCH-3011")
@pytest.mark.parametrize("victim", VICTIMS)
def test_streams_go_through_the_ordered_end_of_a_process(cluster: PoolCluster, victim: str) -> None:
    settle(cluster)
    streams = Streams(cluster)
    cluster.until(lambda: streams.begun == STREAMS, "every stream has tokens")
    pid = VICTIMS[victim](cluster)
    os.kill(pid, signal.SIGTERM)
    begun = time.monotonic()
    for events in streams.events():
        names = [name for name, _ in events]
        assert [data["i"] for name, data in events if name == "token"] == list(range(TOKENS)), events[-3:]
        assert (names.count("started"), names[-1]) == (1, "end"), events[-3:]
        assert not [data for name, data in events if name == "metrics" and data.get("failover")]
    cluster.until(lambda: not os.path.exists(f"/proc/{pid}"), "it has ended")

    def back() -> bool:
        with contextlib.suppress(httpx2.HTTPError, AssertionError, ValueError):
            return VICTIMS[victim](cluster) != pid and as_desired(cluster) and bool(cluster.submit(max_tokens=1))
        return False

    cluster.until(back, "back", BACK_TIMEOUT_S)
    TABLE.add(f"SIGTERM of a {victim}", f"{STREAMS} streams go on", time.monotonic() - begun)
