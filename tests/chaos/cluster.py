"""The cluster that the chaos suite breaks: a head, two workers, two ingress replicas, HAProxy, two pools.

Real: Ray, its raylets and actors, HAProxy, sockets, processes, the journal, llama.cpp with a real model. Fake, and it
says so in `engine_version`: the engine of the pool `fake`, so that most of the load leaves this machine's cores alone.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any, Final

from adapters.llamacpp.models import bundled_model_path
from adapters.llamacpp.provision import find_engine
from adapters.testing.fake_llama_server import free_port, write_fake_binary
from adapters.testing.fake_model import write_fake_model
from orchestrator.cluster.channel import RUN_FOLDER
from orchestrator.cluster.local import THROUGHPUT_ENVIRONMENT
from tests.chaos.clock import MovedClock
from tests.pools.raylets import Raylets, is_engine

KEY: Final = "llorch-chaos-key"
REAL_MODEL: Final = "smollm2-135m-instruct"
FAKE_MODEL: Final = "fake"
POOLS: Final = {"real": REAL_MODEL, "fake": FAKE_MODEL}
#: Serve puts a node's id of 56 characters behind it, and HAProxy takes no path of a socket over 97.
DIRECTORY_MAX: Final = 23
WORKERS: Final = ("w1", "w2")
#: A raylet ends itself when its agent is slow to start, which happens on a busy machine.
JOIN_TRIES: Final = 3
#: How many processes of a kind there are when all is well.
WHOLE: Final = {
    "engine": 4,
    "replica": 4,
    "ingress": 2,
    "scheduler": 1,
    "standby": 1,
    "manager": 1,
    "node": 2,
    "haproxy": 1,
}
#: Serve runs one on the head and on each node with an ingress replica, and each keeps one HAProxy.
HAPROXY_MANAGER: Final = "haproxy manager"
_TITLES: Final = {
    "ray::ReplicaActor": "replica",
    "ray::ServeReplica": "ingress",
    "ray::SchedulerActor": "scheduler",
    "ray::PoolManagerActor": "manager",
    "ray::ServeController": "serve controller",
    "ray::ProxyActor": "serve proxy",
    "ray::HAProxyManager": HAPROXY_MANAGER,
}


class ChaosCluster(Raylets):
    """The cluster, and where its processes are."""

    def __init__(self, directory: Path, results_ttl_ms: int = 7_200_000) -> None:
        if len(str(directory)) > DIRECTORY_MAX:
            raise ValueError(f"{directory} is too long for HAProxy's sockets: point TMPDIR at a shorter folder")
        super().__init__(directory)
        self.results_ttl_ms = results_ttl_ms
        self.haproxy_port = free_port()
        self.clock = MovedClock(directory)
        (directory / "run").mkdir()
        # All nodes are this machine: their HAProxies share one port.
        own = {RUN_FOLDER: str(directory / "run"), "SERVE_SOCKET_REUSE_PORT_ENABLED": "1"}
        # Ray's workers are nice by default, and would stand behind whatever else this machine does.
        own["RAY_worker_niceness"] = "0"
        self.environment |= THROUGHPUT_ENVIRONMENT | own
        self._joined = len(WORKERS)

    @property
    def url(self) -> str:
        """The ingress replicas' own listener."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def balanced_url(self) -> str:
        """HAProxy."""
        return f"http://127.0.0.1:{self.haproxy_port}"

    def start(self) -> None:
        """All nodes, and the service on them; returns when HTTP answers."""
        self.start_head(f"--temp-dir={self.directory / 'ray'}")
        for node in WORKERS:
            self.add_node(node)
        self.up()

    def add_node(self, node: str = "") -> str:
        """A worker joins, under a name that was not there before. One that does not come up is cleared away first."""
        tries = 0
        while True:
            tries += 1
            if not node:
                self._joined += 1
                node = f"w{self._joined}"
            try:
                self.ray_start(node, f"--address=127.0.0.1:{self.gcs_port} --num-gpus=0")
                return node
            except (AssertionError, subprocess.SubprocessError):
                for pid in self.processes(node=node):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if tries == JOIN_TRIES:
                    raise
                node = ""

    def node_environment(self, node: str) -> dict[str, str]:
        """All nodes are this machine, so each needs files and ports of its own for HAProxy."""
        own = self.directory / node
        own.mkdir(exist_ok=True)
        return self.clock.environment | {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(own / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(own / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(own),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(own / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(own / "metrics.sock"),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        }

    def configuration(self) -> dict[str, Any]:
        """Two pools, generous times, and results that outlast the run."""
        fake = write_fake_binary(self.directory)
        common = {
            "engine": "llamacpp",
            "accelerator": "cpu-dev",
            "replicas": 2,
            "restart": {"backoff_min_ms": 300, "backoff_max_ms": 2000, "breaker_failures": 100},
        }
        fakes = {
            "id": "fake",
            "model": FAKE_MODEL,
            "model_path": str(write_fake_model(self.directory / "fake.gguf")),
            "slots": 4,
            # The fake's text depends on the request alone.
            "batch_invariant": True,
            "engine_options": {
                "binary": str(fake),
                "args": ["--fake-first-token-ms", "30", "--fake-token-ms", "20"],
            },
        }
        real = {
            "id": "real",
            "model": REAL_MODEL,
            "model_path": str(bundled_model_path(REAL_MODEL)),
            "slots": 2,
            "engine_options": {"binary": str(find_engine(None, accelerator="cpu-dev"))},
        }
        roles = ["submit", "operate", "observe"]
        key = {"name": "chaos", "tenant": "chaos", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "roles": roles}
        return {
            "pools": [common | fakes, common | real],
            "auth": {"keys": [key]},
            "server": {"metrics_interval_ms": 500, "ingress_replicas": 2, "haproxy_port": self.haproxy_port},
            "results": {"ttl_ms": self.results_ttl_ms, "tasks_max": 100_000},
            "storage": {"data_dir": str(self.data)},
        }

    def haproxy_serves(self) -> bool:
        """Whether the service answers through HAProxy."""
        try:
            with urllib.request.urlopen(f"{self.balanced_url}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, ValueError):
            return False

    def by_kind(self) -> dict[str, dict[int, str]]:
        """Live processes by what they are, each with the name of its node."""
        found: dict[str, dict[int, str]] = {kind: {} for kind in WHOLE}
        leader = self.leader()
        for pid, env, command in self.live():
            kind = kind_of(command)
            if kind == "scheduler" and pid != leader:
                kind = "standby"
            if kind:
                found.setdefault(kind, {})[pid] = env.get("LLORCH_TEST_NODE", "")
        return found

    def service_processes(self) -> list[str]:
        """What lives of the service itself: not Ray's daemons, nor Serve's."""
        ours = ("engine", "replica", "ingress", "scheduler", "standby", "manager", "haproxy")
        return [f"{kind} {pid}" for kind, pids in self.by_kind().items() if kind in ours for pid in pids]

    def commands(self) -> list[str]:
        """Command lines of everything that lives."""
        return [f"{pid}: {command[:200]}" for pid, _, command in self.live()]

    def keep_logs(self) -> Path:
        """Copy what the service and Ray logged to where it outlives the cluster."""
        kept = self.directory / "logs"
        for logs in (self.directory / "ray").glob("session_2*/logs"):
            shutil.copytree(logs, kept, dirs_exist_ok=True, ignore_dangling_symlinks=True)
        return kept

    def remove_folder(self) -> None:
        """Everything of the run, logs included."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def go_on(self) -> None:
        """Whatever was stopped runs again, and the clock is right."""
        self.clock.set(0)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def kind_of(command: str) -> str:
    """What a process of the service or of Ray is, by its command line; empty: nothing that matters."""
    if is_engine(command):
        return "engine"
    if "raylet/raylet " in command:
        return "node" if " --head" not in command else "head"
    if "/haproxy" in command.partition(" ")[0]:
        return "haproxy"
    if "gcs_server" in command.partition(" ")[0]:
        return "gcs"
    return next((kind for title, kind in _TITLES.items() if command.startswith(title)), "")
