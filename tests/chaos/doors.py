"""How the service is reached: its doors, tasks as JSON, answers that are asked for until they come."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import aiohttp

from orchestrator.sse import SseParser
from tests.chaos.plan import Recipe, TaskPlan

#: Silence after which a connection counts as dead; the server beats far more often.
SILENCE_MAX_S: Final = 30.0
#: What HTTP says while it cannot say whether a task is there.
TRY_AGAIN: Final = (429, 500, 502, 503, 504)


class Doors:
    """How the service is reached: URLs by door, an HTTP session, the clock of the run."""

    def __init__(self, urls: dict[str, str], key: str, models: dict[str, str]) -> None:
        self.urls = urls
        self.models = models
        self.key = key
        self._zero_s = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=SILENCE_MAX_S)
        self.http = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key}"}, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)
        )

    def restart_clock(self) -> None:
        """The load begins now."""
        self._zero_s = time.monotonic()

    def now_s(self) -> float:
        return time.monotonic() - self._zero_s

    def body(self, recipe: Recipe, task_id: str, plan: TaskPlan | None = None) -> dict[str, Any]:
        """The JSON of a task. It asks not to be cancelled when its connection breaks."""
        session = str(uuid.uuid5(uuid.NAMESPACE_OID, f"session-{plan.session}")) if plan and plan.session >= 0 else ""
        return {
            "task_id": task_id,
            "session_id": session or str(uuid.uuid4()),
            "workload": "completion",
            "model_ref": self.models[recipe.pool],
            "engine": "llamacpp",
            "ctx": 2048,
            "priority": "interactive",
            "max_tokens": recipe.max_tokens,
            "deadline_ms": plan.deadline_ms if plan else 120_000,
            "seed": recipe.seed,
            "determinism": "strict",
            "prompt": recipe.prompt,
            "cancel_on_disconnect": False,
        }


async def events_of(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Server-sent events of a response, as they come."""
    parser = SseParser()
    async for chunk in answer.content.iter_any():
        for name, data in parser.feed(chunk):
            yield name, json.loads(data)


async def status_of(doors: Doors, task_id: str) -> tuple[int, dict[str, Any]]:
    """`GET /v1/tasks/{id}` until something but "try again" is answered, at most 30 times; (0, {}) if never."""
    return await asked(doors, f"{doors.urls['own']}/v1/tasks/{task_id}", lambda status: status not in TRY_AGAIN)


async def asked(doors: Doors, url: str, good: Callable[[int], bool]) -> tuple[int, dict[str, Any]]:
    """The JSON at a URL, asked for until it is answered well, at most 30 times."""
    for _ in range(30):
        try:
            async with doors.http.get(url) as answer:
                if good(answer.status):
                    return answer.status, await answer.json()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            pass  # nobody there, or an answer that is not the service's
        await asyncio.sleep(0.3)
    return 0, {}
