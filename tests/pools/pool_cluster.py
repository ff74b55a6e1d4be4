"""Starts, breaks and looks at a cluster of raylets on this machine."""

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import httpx2

from adapters.testing.fake_llama_server import write_fake_binary
from adapters.testing.fake_model import write_fake_model
from adapters.testing.fake_nvml import build_fake_nvml
from tests.pools.raylets import Raylets

KEY = "llorch-pool-test-key"
NVML_STATE = "LLORCH_FAKE_NVML"
GPUS_PER_NODE = 2


class PoolCluster(Raylets):
    """The cluster, the service on it, and an HTTP client of the service."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.broken = directory / "broken"
        self.environment["LD_LIBRARY_PATH"] = str(build_fake_nvml(directory / "nvml"))
        self.http = httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=30
        )

    # ------------------------------------------------------------------------ nodes

    def start(self) -> None:
        """All nodes, and the service on them."""
        self.start_head()
        for node, zone in (("n1", "a"), ("n2", "b"), ("n3", "a"), ("n4", "b")):
            self.add_node(node, zone)
        self.up()

    def add_node(self, node: str, zone: str) -> None:
        """A raylet with two fake GPUs joins."""
        self.set_gpus(node)
        self.ray_start(
            node,
            f"--address=127.0.0.1:{self.gcs_port} --num-gpus={GPUS_PER_NODE} --labels=zone={zone}",
        )

    def node_environment(self, node: str) -> dict[str, str]:
        return {NVML_STATE: str(self.directory / f"{node}.nvml")}

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

    # ---------------------------------------------------------------------- service

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

        sha256 = hashlib.sha256(KEY.encode()).hexdigest()
        key = {"name": "test", "tenant": "test", "sha256": sha256, "roles": ["submit", "operate", "observe"]}
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
            "auth": {"keys": [key]},
            # One ingress: which process dies with which node is up to Ray otherwise.
            "server": {"metrics_interval_ms": 200, "ingress_replicas": 1},
            "storage": {"data_dir": str(self.data)},
        }

    # ------------------------------------------------------------------------ looks

    def health(self, pool_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/v1/pools/{pool_id}/health")
        assert answer.status_code == 200, answer.text
        health: dict[str, Any] = answer.json()
        return health

    def phases(self, pool_id: str) -> list[str]:
        return sorted(replica["phase"] for replica in self.health(pool_id)["replicas"])

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

    def kill_all(self) -> None:
        self.http.close()
        super().kill_all()
