"""The small service as its processes: started together, killed together."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import aiohttp

from adapters.testing.fake_llama_server import free_port

PARTS: Final = ("scheduler", "replicas", "ingress")
READY_S: Final = 60.0


class SmallService:
    """Scheduler, replicas and ingress on one folder. `url` is where the ingress listens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        (folder / "port").write_text(str(self._port))
        self.url = f"http://127.0.0.1:{self._port}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._log = (folder / "log").open("ab")

    async def start(self) -> None:
        """Start all processes; they find each other when they are up."""
        run = self._folder / "run"
        run.mkdir(exist_ok=True)
        (self._folder / "endpoint").unlink(missing_ok=True)
        environment = os.environ | {"LLORCH_RUN_DIR": str(run), "TMPDIR": str(run)}
        for part in PARTS:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.powercut.part", part, str(self._folder)],
                    env=environment,
                    stdout=self._log,
                    stderr=self._log,
                    start_new_session=True,
                )
            )

    def kill(self) -> None:
        """SIGKILL to every process at once."""
        for process in self._processes:
            os.killpg(process.pid, signal.SIGKILL)

    async def dead(self) -> None:
        """Wait until they are gone, and remove the sockets that they left."""
        for process in self._processes:
            await asyncio.to_thread(process.wait)
        self._processes.clear()
        for left in sorted((self._folder / "run").rglob("*"), reverse=True):
            left.rmdir() if left.is_dir() else left.unlink()

    async def until_ready(self) -> None:
        """Wait until tasks can be served. Raises TimeoutError with the end of the log."""
        until = time.monotonic() + READY_S
        async with aiohttp.ClientSession() as http:
            while time.monotonic() < until:
                try:
                    async with http.get(f"{self.url}/readyz") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)
        log = (self._folder / "log").read_text(errors="replace")
        raise TimeoutError(f"not ready within {READY_S} s: {log[-4000:]}")
