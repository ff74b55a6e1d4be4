"""The workload: a few small tasks at once, and which of them were promised."""

import asyncio
import random
import time
import uuid
from typing import Any, Final

import aiohttp

from tests.powercut.fleet import SPEC
from tests.powercut.service import SmallService

CLIENTS: Final = 8
PROMPTS: Final = tuple(f"prompt {number} of few" for number in range(6))
SEEDS: Final = (1, 2, 3)
MAX_TOKENS: Final = 40
#: Longest pause of a client between two tasks, so that kills fall among admissions.
PAUSE_MAX_S: Final = 0.1


def body(prompt: str, seed: int) -> dict[str, Any]:
    """A task whose text follows from prompt and seed alone."""
    return {
        "task_id": str(uuid.uuid4()),
        "session_id": str(uuid.uuid4()),
        "workload": "completion",
        "model_ref": SPEC.model,
        "engine": SPEC.engine,
        "ctx": SPEC.ctx,
        "priority": "interactive",
        "max_tokens": MAX_TOKENS,
        "deadline_ms": 3_600_000,
        "prompt": prompt,
        "seed": seed,
        "sampling": {"temperature": 0.8},
    }


class Submitter:
    """Submits `tasks` tasks from a handful of clients, with short pauses."""

    def __init__(self, service: SmallService, rng: random.Random, tasks: int) -> None:
        self._service = service
        self._rng = rng
        self._bodies = [body(rng.choice(PROMPTS), rng.choice(SEEDS)) for _ in range(tasks)]
        self._accepted: dict[str, tuple[str, int]] = {}

    async def run_for(self, seconds: float) -> dict[str, tuple[str, int]]:
        """Submit until the time is over; (prompt, seed) by task id of all that were answered 202."""
        until = time.monotonic() + seconds
        async with aiohttp.ClientSession() as http:
            clients = [asyncio.create_task(self._client(http)) for _ in range(CLIENTS)]
            await asyncio.sleep(max(0.0, until - time.monotonic()))
            for client in clients:
                client.cancel()
            for failed in await asyncio.gather(*clients, return_exceptions=True):
                if isinstance(failed, Exception):
                    raise failed
        return self._accepted

    async def _client(self, http: aiohttp.ClientSession) -> None:
        while True:
            await asyncio.sleep(self._rng.uniform(0, PAUSE_MAX_S))
            if not self._bodies:
                return
            task = self._bodies.pop()
            # The same task until it is answered: a repetition must not make a second one of it.
            while not await self._is_accepted(http, task):
                await asyncio.sleep(0.02)

    async def _is_accepted(self, http: aiohttp.ClientSession, task: dict[str, Any]) -> bool:
        try:
            async with http.post(f"{self._service.url}/v1/tasks", json=task) as answer:
                if answer.status == 202:
                    self._accepted[task["task_id"]] = (task["prompt"], task["seed"])
                    return True
        except aiohttp.ClientError:
            pass
        return False
