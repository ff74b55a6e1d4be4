"""Raylets on this machine, the service on them, and their processes, found by a mark in their environment."""

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

import yaml

from adapters.testing.fake_llama_server import free_port

MARK = "LLORCH_TEST_RUN"
NODE = "LLORCH_TEST_NODE"
BIN = Path(sys.executable).parent
START_TIMEOUT_S = 240
#: Faster than Ray's own ten seconds: a lost node is to be noticed within three. Workers are started when needed:
#: those that Ray has ready beforehand would take this machine's two cores for half a minute.
SYSTEM_CONFIG = {
    "prestart_worker_first_driver": False,
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class Raylets:
    """A head and workers, started by `ray start` as an operator does it; what runs on them is the subclass's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        #: The journal's folder, as `configuration` has to name it.
        self.data = directory / "data"
        self.mark = uuid.uuid4().hex
        self.port = free_port()
        self.gcs_port = free_port()
        self.environment = os.environ | {
            MARK: self.mark,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(24),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "60",
        }
        # A raylet ends itself when its agent is not up within 15 seconds; without cached bytecode it often is not.
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def start_head(self, *more: str) -> None:
        """The head, without GPUs."""
        self.ray_start(
            "head",
            f"--head --port={self.gcs_port} --num-gpus=0 --include-dashboard=false"
            f" --ray-client-server-port={free_port()}",
            f"--system-config={json.dumps(SYSTEM_CONFIG)}",
            *more,
        )

    def ray_start(self, node: str, options: str, *more: str) -> None:
        """`ray start` for a node of that name."""
        done = subprocess.run(
            [
                *(BIN / "ray", "start", "--node-ip-address=127.0.0.1", "--num-cpus=3", "--disable-usage-stats"),
                *(f"--object-store-memory={80 * 1024 * 1024}", f"--dashboard-agent-listen-port={free_port()}"),
                *(f"--metrics-export-port={free_port()}", *options.split(), *more),
            ],
            env=self.environment | {NODE: node} | self.node_environment(node),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def node_environment(self, node: str) -> dict[str, str]:  # noqa: ARG002
        """What else is in the environment of everything on a node."""
        return {}

    def kill_node(self, node: str) -> None:
        """SIGKILL the raylet: what else ran there ends by itself."""
        for pid in self.processes(node=node, word="raylet/raylet"):
            os.kill(pid, signal.SIGKILL)

    # ---------------------------------------------------------------------- service

    def configuration(self) -> dict[str, Any]:
        """What `llorch up` is given."""
        raise NotImplementedError

    def up(self) -> None:
        """`llorch up` with `configuration`, as an operator does it."""
        config = self.directory / "llorch.yaml"
        config.write_text(yaml.safe_dump(self.configuration()))
        self.llorch("up", "--config", str(config), "--address", f"127.0.0.1:{self.gcs_port}", "--port", str(self.port))

    def down(self) -> None:
        """`llorch down`; no placement group may be left, or its GPUs would stay taken."""
        self.llorch("down", "--address", f"127.0.0.1:{self.gcs_port}")
        look = (
            "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR');"
            "from ray.util import placement_group_table as table;"
            "print([group['name'] for group in table().values() if group['state'] != 'REMOVED'])"
        )
        command = [sys.executable, "-c", look, f"127.0.0.1:{self.gcs_port}"]
        left = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=True)
        assert left.stdout.splitlines()[-1] == "[]", left.stdout

    def llorch(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    # -------------------------------------------------------------------- processes

    def until(self, true: Callable[[], bool], what: str, timeout_s: float = 60) -> float:
        """Wait for something; returns the seconds that it took."""
        begun = time.monotonic()
        while not true():
            assert time.monotonic() - begun < timeout_s, f"not within {timeout_s} s: {what}"
            time.sleep(0.02)
        return time.monotonic() - begun

    def processes(self, *, node: str = "", word: str = "") -> list[int]:
        """Live processes of this cluster; of a node, with a word in their command line."""
        return [pid for pid, env, command in self.live() if (not node or env.get(NODE) == node) and word in command]

    def live(self) -> Iterator[tuple[int, dict[str, str], str]]:
        """Process id, environment and command line of everything that this cluster started and that lives."""
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
            for pid, env, command in self.live()
            if is_engine(command) and (not model or f"--alias {model} " in command)
        }

    def actors(self, kind: str) -> list[int]:
        """Processes of Ray actors of a class, or of one that was given a name."""
        return [pid for pid, _, command in self.live() if command.startswith(f"ray::{kind}")]

    def leader(self) -> int:
        """The scheduler's process that has the journal's folder, or had it last; 0: none has had it."""
        try:
            return int(json.loads((self.data / "journal.lock").read_text())["pid"])
        except (OSError, ValueError):
            return 0

    def kill_all(self) -> None:
        """SIGKILL whatever lives, until nothing does."""
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


def is_engine(command: str) -> bool:
    """Whether a command line is that of an engine itself, and not of what watches over it."""
    return "--alias" in command and "with_parent" not in command
