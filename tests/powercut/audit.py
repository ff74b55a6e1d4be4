"""Whether everything that was promised was kept."""

import asyncio
import json
import time
from typing import Any

import aiohttp

from tests.powercut.service import SmallService
from tests.powercut.tasks import PROMPTS, SEEDS, body

Task = tuple[str, int]


class Audit:
    """What was promised, and the texts that an undisturbed service gives."""

    def __init__(self) -> None:
        self._promised: dict[str, Task] = {}
        self._texts: dict[Task, str] = {}
        self._states: dict[str, int] = {}
        self._attempts: dict[int, int] = {}

    @property
    def count(self) -> int:
        return len(self._promised)

    def promised(self, tasks: dict[str, Task]) -> None:
        """These were answered 202."""
        self._promised |= tasks

    async def learn(self, service: SmallService) -> None:
        """Take down the text of each task while nothing goes wrong."""
        async with aiohttp.ClientSession() as http:
            for prompt in PROMPTS:
                for seed in SEEDS:
                    task = body(prompt, seed)
                    async with http.post(f"{service.url}/v1/tasks", json=task) as answer:
                        assert answer.status == 202, await answer.text()
                    self._texts[prompt, seed] = await self._text(http, service, task["task_id"])
                    self._promised[task["task_id"]] = (prompt, seed)

    async def look(self, service: SmallService, settle_s: float) -> list[str]:
        """What is wrong with the promised tasks, each in a line; they get `settle_s` to end."""
        findings = []
        until = time.monotonic() + settle_s
        async with aiohttp.ClientSession() as http:
            for task_id, task in self._promised.items():
                finding = await self._judge(http, service, task_id, task, until)
                if finding:
                    findings.append(f"{task_id} {task}: {finding}")
        return findings

    async def _judge(
        self, http: aiohttp.ClientSession, service: SmallService, task_id: str, task: Task, until: float
    ) -> str:
        status = await self._status(http, service, task_id)
        while status.get("state") in ("queued", "running", "stopping", "measuring") and time.monotonic() < until:
            await asyncio.sleep(0.05)
            status = await self._status(http, service, task_id)
        state = str(status.get("state", "missing"))
        self._states[state] = self._states.get(state, 0) + 1
        if state != "finished":
            return f"missing or not finished: {status}"
        self._attempts[status["attempt"]] = self._attempts.get(status["attempt"], 0) + 1
        text = await self._text(http, service, task_id)
        return "" if text == self._texts[task] else f"another text: {text!r}"

    async def _status(self, http: aiohttp.ClientSession, service: SmallService, task_id: str) -> dict[str, Any]:
        async with http.get(f"{service.url}/v1/tasks/{task_id}") as answer:
            status: dict[str, Any] = await answer.json()
            return status

    async def _text(self, http: aiohttp.ClientSession, service: SmallService, task_id: str) -> str:
        """The text of a stream whose indices are in order, up to its end."""
        tokens: list[dict[str, Any]] = []
        name = ""
        async with http.get(f"{service.url}/v1/tasks/{task_id}/stream") as answer:
            async for line in answer.content:
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data" and name == "token":
                    tokens.append(json.loads(value))
        if name != "end" or [token["i"] for token in tokens] != list(range(len(tokens))):
            return f"<a stream of {len(tokens)} tokens that ended with {name!r}>"
        return "".join(token["t"] for token in tokens)

    def table(self, runs: int, took_s: float) -> str:
        """For people."""
        missing = self.count - self._states.get("finished", 0)
        return "\n".join(
            (
                f"power cuts        {runs} in {took_s:.0f} s",
                f"accepted          {self.count}",
                f"ended as          {', '.join(f'{count} {state}' for state, count in sorted(self._states.items()))}",
                f"by attempt        {', '.join(f'{count} in {n}' for n, count in sorted(self._attempts.items()))}",
                f"missing           {missing}",
            )
        )
