"""One running service for all cluster tests: `llorch run` itself, on real Ray, behind real HAProxy.

Pools: the real model on two replicas; fakes (they say so in `engine_version`) where a test needs
an engine that is slow, dies or stalls on cue; one pool whose GPU no node has.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from adapters.testing.fake_llama_server import free_port, write_fake_binary
from adapters.testing.fake_model import write_fake_model
from tests.contract.interactions import DOWN_MODEL, KEY, MODEL, SMALL_QUEUE_MODEL

OTHER_KEY = "llorch-other-test-key"
START_TIMEOUT_S = 240
STOP_TIMEOUT_S = 60
#: Set in the environment of the service and so of everything that it starts.
MARK = "LLORCH_TEST_RUN"


class Service:
    """The running service and what a client needs to use it."""

    def __init__(self, url: str, ray_address: str, mark: str) -> None:
        self.url = url
        self.ray_address = ray_address
        self.mark = mark
        self.http = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

    def body(self, **changes: Any) -> dict[str, Any]:
        """A valid task on the real model."""
        plain = {
            "task_id": str(uuid.uuid4()),
            "session_id": str(uuid.uuid4()),
            "workload": "completion",
            "model_ref": MODEL,
            "engine": "llamacpp",
            "ctx": 2048,
            "priority": "interactive",
            "max_tokens": 24,
            "deadline_ms": 600_000,  # a busy machine is slow, and admission knows
            "prompt": "The capital of France is",
        }
        return plain | changes

    def submit(self, **changes: Any) -> str:
        """Submit a task that must be admitted; returns its id."""
        answer = self.http.post("/v1/tasks", json=self.body(**changes))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def status(self, task_id: str) -> dict[str, Any]:
        status: dict[str, Any] = self.http.get(f"/v1/tasks/{task_id}").json()
        return status

    def wait_for(self, task_id: str, *states: str, timeout_s: float = 60) -> dict[str, Any]:
        """Wait until the task is in one of these states."""
        until = time.monotonic() + timeout_s
        while (status := self.status(task_id))["state"] not in states:
            assert time.monotonic() < until, f"still {status['state']}, not {states}: {status}"
            time.sleep(0.02)
        return status

    def events(self, task_id: str, after: int | None = None) -> list[tuple[str, dict[str, Any]]]:
        """The whole stream of a task, as (event, data)."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        answer = self.http.get(f"/v1/tasks/{task_id}/stream", headers=headers)
        assert answer.status_code == 200, answer.text
        return parse_events(answer.text)

    def engine_pids(self, pool_id: str) -> list[int]:
        """The engine processes of a pool: children of its replica actors, found by their arguments."""
        model = {"real": MODEL}.get(pool_id, pool_id)
        pids = []
        for pid in marked_pids(self.mark):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"--alias" in arguments and arguments[arguments.index(b"--alias") + 1] == model.encode():
                pids.append(pid)
        return pids


def marked_pids(mark: str) -> list[int]:
    """Every live process that the service of that mark started, itself included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"{MARK}={mark}".encode() in environment.split(b"\0"):
                found.append(int(entry.name))
    return found


def parse_events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Server-sent events; checks that a token's `id:` is its index."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            data = json.loads(fields["data"])
            assert (fields["event"] == "token") == ("id" in fields), block
            assert fields.get("id", str(data.get("i"))) == str(data.get("i")), block
            events.append((fields["event"], data))
    return events


def data_of(events: list[tuple[str, dict[str, Any]]], event: str) -> dict[str, Any]:
    """The data of the first event of that name."""
    return next(data for name, data in events if name == event)


def text_of(events: list[tuple[str, dict[str, Any]]]) -> str:
    """The text of a stream; checks order, gaps and the one terminal event."""
    names = [name for name, _ in events]
    started = names.index("started")
    assert set(names[:started]) <= {"metrics"}  # where a waiting task stands
    assert names[-1] in ("end", "error")
    assert not {"end", "error"} & set(names[:-1])
    indices = [data["i"] for name, data in events if name == "token"]
    assert indices == list(range(indices[0], indices[0] + len(indices))) if indices else True
    return "".join(data["t"] for name, data in events if name == "token")


def fake_pool(pool_id: str, model_file: Path, binary: Path, options: str, **changes: Any) -> dict[str, Any]:
    """A pool on a fake engine; its model has the pool's name unless told otherwise."""
    return {
        "id": pool_id,
        "engine": "llamacpp",
        "model": pool_id,
        "model_path": str(model_file),
        "accelerator": "cpu-dev",
        "slots": 1,
        "engine_options": {"binary": str(binary), "args": options.split()},
    } | changes


def configuration(directory: Path) -> dict[str, Any]:
    """Few pools, each with a purpose."""
    binary = write_fake_binary(directory)
    model_file = write_fake_model(directory / "fake.gguf")
    slow = "--fake-token-ms 20"
    # What is full is shown by tasks that are much longer than their deadlines; the oldest gives way.
    patient = {"on_time_percent_min": 0, "eviction": "lru"}
    small = {"model": SMALL_QUEUE_MODEL, "queue": {"capacity": 2}, "admission": patient}
    shed = {"queue": {"capacity": 2, "full_policy": "shed-low-priority"}, "admission": patient}
    return {
        "pools": [
            {"id": "real", "engine": "llamacpp", "model": MODEL, "accelerator": "cpu-dev", "slots": 4, "replicas": 2},
            fake_pool("small", model_file, binary, slow, **small),
            fake_pool("shed", model_file, binary, slow, **shed),
            fake_pool("fragile", model_file, binary, slow, slots=4),
            fake_pool("embed", model_file, binary, "", workload="embedding", slots=2),
            fake_pool("rank", model_file, binary, "", workload="rerank", determinism="best_effort"),
            fake_pool("stalling", model_file, binary, "--fake-stall-after 20", timeouts={"idle_ms": 1000}),
            {
                "id": "down",
                "engine": "llamacpp",
                "model": DOWN_MODEL,
                "model_path": str(model_file),
                "devices": [0],
                "engine_options": {"binary": str(binary)},
            },
        ],
        "auth": {
            "keys": [
                {
                    "name": name,
                    "tenant": name,
                    "sha256": hashlib.sha256(key.encode()).hexdigest(),
                    "roles": ["submit", "operate", "observe"],
                }
                for name, key in (("pact", KEY), ("other", OTHER_KEY))
            ]
        },
        "server": {"body_max_bytes": 100_000, "metrics_interval_ms": 200},
    }


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`llorch run` with `configuration`; ended by SIGINT, after which nothing of it may be left."""
    directory = tmp_path_factory.mktemp("service")
    config = directory / "llorch.yaml"
    config.write_text(yaml.safe_dump(configuration(directory)))
    mark, dev_file, log = uuid.uuid4().hex, directory / ".llorch" / "dev.json", directory / "run.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "run", "--config", str(config), "--port", str(free_port())],
            cwd=directory,
            env=os.environ | {MARK: mark},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + START_TIMEOUT_S
        while "ready: http" not in log.read_text():
            assert process.poll() is None, f"llorch run ended:\n{log.read_text()}"
            assert time.monotonic() < until, f"not ready in time:\n{log.read_text()}"
            time.sleep(0.2)
        assert dev_file.stat().st_mode & 0o777 == 0o600
        found = json.loads(dev_file.read_text())
        running = Service(found["url"], found["ray_address"], mark)
        # A service is ready with one replica of each pool; the tests count on the slots of both real ones.
        while [each["phase"] for each in running.http.get("/v1/pools/real/health").json()["replicas"]] != ["ready"] * 2:
            assert time.monotonic() < until, f"not all replicas are ready:\n{log.read_text()}"
            time.sleep(0.2)
        yield running
        running.http.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_TIMEOUT_S) == 0, log.read_text()
        assert not dev_file.exists()
        until = time.monotonic() + STOP_TIMEOUT_S
        while left := marked_pids(mark):
            assert time.monotonic() < until, f"left behind: {[Path(f'/proc/{p}/cmdline').read_bytes() for p in left]}"
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            process.kill()
        for pid in marked_pids(mark):
            os.kill(pid, signal.SIGKILL)
