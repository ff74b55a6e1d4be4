"""Starts, breaks and looks at a cluster of raylets on this machine."""

import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import yaml

from adapters.testing.fake_llama_server import free_port, write_fake_binary
from adapters.testing.fake_model import write_fake_model
from adapters.testing.fake_nvml import build_fake_nvml

KEY = "llorch-pool-test-key"
MARK = "LLORCH_TEST_RUN"
NODE = "LLORCH_TEST_NODE"
NVML_STATE = "LLORCH_FAKE_NVML"
BIN = Path(sys.executable).parent
START_TIMEOUT_S = 240
GPUS_PER_NODE = 2
#: Faster than Ray's own ten seconds: a lost node is to be noticed within three. Workers are started when needed:
#: those that Ray has ready beforehand would take this machine's two cores for half a minute.
SYSTEM_CONFIG = {
    "prestart_worker_first_driver": False,
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class PoolCluster:
    """The cluster, the service on it, and an HTTP client of the service."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = uuid.uuid4().hex
        self.port = free_port()
        self.gcs_port = free_port()
        self.broken = directory / "broken"
        self.environment = os.environ | {
            MARK: self.mark,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(24),
            "RAY_USAGE_STATS_ENABLED": "0",
            "LD_LIBRARY_PATH": str(build_fake_nvml(directory / "nvml")),
        }
        self.http = httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=30
        )

    # ------------------------------------------------------------------------ nodes

    def start(self) -> None:
        self._ray_start(
            "head",
            f"--head --port={self.gcs_port} --num-gpus=0 --include-dashboard=false"
            f" --ray-client-server-port={free_port()}",
            f"--system-config={json.dumps(SYSTEM_CONFIG)}",
        )
        for node, zone in (("n1", "a"), ("n2", "b"), ("n3", "a"), ("n4", "b")):
            self.add_node(node, zone)
        self.up()

    def add_node(self, node: str, zone: str) -> None:
        """A raylet with two fake GPUs joins."""
        self.set_gpus(node)
        self._ray_start(
            node,
            f"--address=127.0.0.1:{self.gcs_port} --num-gpus={GPUS_PER_NODE} --labels=zone={zone}",
        )

    def _ray_start(self, node: str, options: str, *more: str) -> None:
        state = self.directory / f"{node}.nvml"
        subprocess.run(
            [
                *(BIN / "ray", "start", "--node-ip-address=127.0.0.1", "--num-cpus=3", "--disable-usage-stats"),
                *(f"--object-store-memory={80 * 1024 * 1024}", f"--dashboard-agent-listen-port={free_port()}"),
                *(f"--metrics-export-port={free_port()}", *options.split(), *more),
            ],
            env=self.environment | {NODE: node, NVML_STATE: str(state)},
            check=True,
            capture_output=True,
            timeout=120,
        )

    def set_gpus(self, node: str, **values: int | str) -> None:
        """What the node's fake driver tells; `gpu0_used_mib=70000` and the like, over healthy defaults."""
        lines = {"count": GPUS_PER_NODE, "uuid_prefix": node}
        lines |= {
            name.replace("_", ".", 1) if name.startswith("gpu") else name: value for name, value in values.items()
        }
        path = self.directory / f"{node}.nvml"
        part = path.with_suffix(".part")
        part.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        part.rename(path)

    def kill_node(self, node: str) -> None:
        """SIGKILL the raylet: what else ran there ends by itself."""
        for pid in self.processes(node=node, word="raylet/raylet"):
            os.kill(pid, signal.SIGKILL)

    # ---------------------------------------------------------------------- service

    def up(self) -> None:
        """`llorch up` with `configuration`, as an operator does it."""
        config = self.directory / "llorch.yaml"
        config.write_text(yaml.safe_dump(self.configuration()))
        self._llorch("up", "--config", str(config), "--address", f"127.0.0.1:{self.gcs_port}", "--port", str(self.port))

    def down(self) -> None:
        """`llorch down`; no placement group may be left, or its GPUs would stay taken."""
        self._llorch("down", "--address", f"127.0.0.1:{self.gcs_port}")
        look = (
            "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR');"
            "from ray.util import placement_group_table as table;"
            "print([group['name'] for group in table().values() if group['state'] != 'REMOVED'])"
        )
        command = [sys.executable, "-c", look, f"127.0.0.1:{self.gcs_port}"]
        left = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=True)
        assert left.stdout.splitlines()[-1] == "[]", left.stdout

    def _llorch(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def configuration(self) -> dict[str, Any]:
        """A pool to kill and roll, one that breaks on cue, one that scales from zero, one without GPUs, one on CPUs."""
        binary = write_fake_binary(self.directory, "--fake-gpu")
        models = {}
        for name in ("main", "main-v2", "broken-v2", "loop", "elastic", "absent", "carved"):
            models[name] = write_fake_model(self.directory / f"{name}.gguf", name)

        def pool(pool_id: str, **changes: Any) -> dict[str, Any]:
            return {
                "id": pool_id,
                "engine": "llamacpp",
                "model": pool_id,
                "model_path": str(models.get(pool_id, "")),
                "slots": 4,
                "drain_ms": 20_000,
                # The fake's text depends on the request alone.
                "batch_invariant": True,
                "reload_timeout_ms": 60_000,
                "restart": {"backoff_min_ms": 300, "backoff_max_ms": 4000},
                "engine_options": {"binary": str(binary), "args": ["--fake-token-ms", "20"]},
            } | changes

        return {
            "pools": [
                pool("main", devices=[0], replicas=2),
                pool(
                    "loop",
                    devices=[1],
                    engine_options={
                        "binary": str(binary),
                        "args": ["--fake-token-ms", "20", "--fake-broken-while", str(self.broken)],
                    },
                ),
                pool(
                    "elastic",
                    devices=[1],
                    replicas=0,
                    slots=1,
                    scaling={"min": 0, "max": 1, "target_wait_ms": 500, "up_after_ms": 500, "down_after_ms": 3000},
                ),
                pool("absent", devices=[7]),
                pool("carved", accelerator="cpu-dev", devices=[]),
                pool("carved-b", model="carved", model_path=str(models["carved"]), accelerator="cpu-dev", devices=[]),
            ],
            "models": [
                {"ref": "main-v2", "engine": "llamacpp", "path": str(models["main-v2"])},
                {
                    "ref": "broken-v2",
                    "engine": "llamacpp",
                    "path": str(models["broken-v2"]),
                    "digest": "sha256:" + "0" * 64,
                },
            ],
            "auth": {"keys": [{"name": "test", "tenant": "test", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]},
            # One ingress: which process dies with which node is up to Ray otherwise.
            "server": {"metrics_interval_ms": 200, "ingress_replicas": 1},
        }

    # ------------------------------------------------------------------------ looks

    def health(self, pool_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/v1/pools/{pool_id}/health")
        assert answer.status_code == 200, answer.text
        health: dict[str, Any] = answer.json()
        return health

    def phases(self, pool_id: str) -> list[str]:
        return sorted(replica["phase"] for replica in self.health(pool_id)["replicas"])

    def until(self, true: Callable[[], bool], what: str, timeout_s: float = 60) -> float:
        """Wait for something; returns the seconds that it took."""
        begun = time.monotonic()
        while not true():
            assert time.monotonic() - begun < timeout_s, f"not within {timeout_s} s: {what}"
            time.sleep(0.02)
        return time.monotonic() - begun

    def until_phases(self, pool_id: str, *phases: str, timeout_s: float = 60) -> float:
        """Wait until a pool's replicas are in exactly these phases."""
        wanted = sorted(phases)
        try:
            return self.until(lambda: self.phases(pool_id) == wanted, f"{pool_id} {wanted}", timeout_s)
        except AssertionError as late:
            raise AssertionError(f"{late}: {json.dumps(self.health(pool_id), indent=1)}") from None

    def body(self, **changes: Any) -> dict[str, Any]:
        plain = {
            "task_id": str(uuid.uuid4()),
            "session_id": str(uuid.uuid4()),
            "workload": "completion",
            "model_ref": "main",
            "engine": "llamacpp",
            "ctx": 2048,
            "priority": "interactive",
            "max_tokens": 20,
            "deadline_ms": 60_000,
            "prompt": "hello",
        }
        return plain | changes

    def submit(self, **changes: Any) -> str:
        answer = self.http.post("/v1/tasks", json=self.body(**changes))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def status(self, task_id: str) -> dict[str, Any]:
        status: dict[str, Any] = self.http.get(f"/v1/tasks/{task_id}").json()
        return status

    # -------------------------------------------------------------------- processes

    def processes(self, *, node: str = "", word: str = "") -> list[int]:
        """Live processes of this cluster; of a node, with a word in their command line."""
        return [pid for pid, env, command in self._live() if (not node or env.get(NODE) == node) and word in command]

    def _live(self) -> Iterator[tuple[int, dict[str, str], str]]:
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                raw = (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            env = dict(line.decode(errors="replace").partition("=")[::2] for line in raw if line)
            if env.get(MARK) == self.mark and command:
                yield int(entry.name), env, command

    def engines(self, model: str = "") -> dict[int, str]:
        """Engine processes by pid, and the GPU that each was given."""
        return {
            pid: env.get("CUDA_VISIBLE_DEVICES", "")
            for pid, env, command in self._live()
            if "--alias" in command and "with_parent" not in command and (not model or f"--alias {model} " in command)
        }

    def actors(self, kind: str) -> list[int]:
        """Processes of Ray actors of a class, or of one that was given a name."""
        return [pid for pid, _, command in self._live() if command.startswith(f"ray::{kind}")]

    def kill_all(self) -> None:
        self.http.close()
        for _ in range(50):
            left = self.processes()
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if not left:
                return
            time.sleep(0.1)
