"""Paced load on a pool: short tasks at a steady rate, each outcome kept."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx2

from tests.pools.pool_cluster import KEY, PoolCluster


class Done(NamedTuple):
    """How a task ended: its HTTP status, error code (empty: none), model digest, and the tokens it was given."""

    status: int
    code: str
    digest: str
    tokens: list[str]
    began_s: float


class PacedLoad:
    """Submits a task every `interval_s`, each with its stream in one call, from threads of its own."""

    def __init__(self, cluster: PoolCluster, interval_s: float, **changes: Any) -> None:
        self._cluster = cluster
        self._interval_s = interval_s
        self._changes = changes
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.done: list[Done] = []

    @contextmanager
    def running(self) -> Iterator["PacedLoad"]:
        """Load until the end of the block, then wait for what is under way."""
        pacer = threading.Thread(target=self._pace)
        pacer.start()
        try:
            yield self
        finally:
            self._stop.set()
            pacer.join()
            for thread in self._threads:
                thread.join()

    def _pace(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            thread = threading.Thread(target=self._one)
            thread.start()
            self._threads.append(thread)
            due += self._interval_s
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _one(self) -> None:
        body, began_s = self._cluster.body(**self._changes), time.monotonic()
        headers = {"Authorization": f"Bearer {KEY}", "Accept": "text/event-stream"}
        answer = httpx2.post(f"http://127.0.0.1:{self._cluster.port}/v1/tasks", json=body, headers=headers, timeout=60)
        if answer.status_code != 200:
            self.done.append(Done(answer.status_code, answer.json()["code"], "", [], began_s))
            return
        events = parse(answer.text)
        tokens = [data["t"] for name, data in events if name == "token"]
        assert [data["i"] for name, data in events if name == "token"] == list(range(len(tokens)))
        name, last = events[-1]
        digest = next((data["model_digest"] for name, data in events if name == "started"), "")
        self.done.append(Done(200, last["code"] if name == "error" else "", digest, tokens, began_s))

    @property
    def failures(self) -> list[Done]:
        return [done for done in self.done if done.code]


def parse(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Server-sent events as (event, data)."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            events.append((fields["event"], json.loads(fields["data"])))
    return events
