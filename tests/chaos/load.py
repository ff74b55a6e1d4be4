"""The load: every task of the plan at its time, then what the service says of each when all is over."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import aiohttp

from tests.chaos.client import TaskClient
from tests.chaos.doors import Doors, asked, events_of, status_of
from tests.chaos.history import TERMINAL, TaskHistory
from tests.chaos.plan import Recipe, TaskPlan
from tests.chaos.shipped import ShippedTask

#: How many tasks are asked about at once at the end.
AT_ONCE: Final = 8
SETTLE_S: Final = 60.0


class Load:
    """Runs tasks; `histories` are there from each task's start, so that a run that is cut short has them too.

    `ask_at_once`: what the service says of a task is asked for when its client is done, and not at the very end.
    """

    def __init__(self, doors: Doors, recipes: Sequence[Recipe], *, ask_at_once: bool = False) -> None:
        self._doors = doors
        self._recipes = recipes
        self.histories: list[TaskHistory] = []
        self._ask_at_once = ask_at_once

    async def run(self, plans: Sequence[TaskPlan], grace_s: float) -> None:
        """All tasks, paced; then wait for those under way, at most `grace_s`."""
        running = set()
        for plan in plans:
            await asyncio.sleep(max(0.0, plan.at_s - self._doors.now_s()))
            running.add(asyncio.create_task(self._one(plan)))
        if running:
            _, late = await asyncio.wait(running, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _one(self, plan: TaskPlan) -> None:
        kind = ShippedTask if plan.style == "shipped" else TaskClient
        client = kind(self._doors, plan, self._recipes[plan.recipe])
        self.histories.append(client.history)
        try:
            await client.run()
            if self._ask_at_once and client.history.was_admitted:
                await self._final(client.history)
        except Exception as crashed:
            client.history.problems.append(f"the client crashed: {type(crashed).__name__}: {crashed}")

    async def ask_at_the_end(self) -> None:
        """The final status and the stored stream of every task that was accepted and not asked about yet."""
        room = asyncio.Semaphore(AT_ONCE)

        async def one(history: TaskHistory) -> None:
            async with room:
                await self._final(history)

        await asyncio.gather(*(one(each) for each in self.histories if each.was_admitted and not each.final_status))

    async def _final(self, history: TaskHistory) -> None:
        until_s = self._doors.now_s() + SETTLE_S
        while True:
            history.final_status, told = await status_of(self._doors, history.task_id)
            history.final_state = told.get("state", "")
            if history.final_status != 200 or history.final_state in TERMINAL or self._doors.now_s() > until_s:
                break
            await asyncio.sleep(0.5)
        history.final_finish = told.get("finish_reason") or ""
        error = told.get("error") or {}
        history.final_code, history.final_message = error.get("code", ""), error.get("message", "")
        if history.final_status == 200 and history.final_state in TERMINAL:
            await self._stored(history)

    async def _stored(self, history: TaskHistory) -> None:
        url = f"{self._doors.urls['own']}/v1/tasks/{history.task_id}/stream"
        try:
            async with asyncio.timeout(SETTLE_S), self._doors.http.get(url) as answer:
                if answer.status != 200:
                    history.stored_end = str(answer.status)
                    return
                async for name, data in events_of(answer):
                    if name == "token":
                        history.stored.append((data["i"], data["t"]))
                    elif name == "end":
                        history.stored_end = data["finish_reason"]
                    elif name == "error":
                        history.stored_end = data["code"]
        except (aiohttp.ClientError, OSError, TimeoutError) as broken:
            history.stored_end = f"broken: {type(broken).__name__}"


async def health(doors: Doors, pool: str) -> dict[str, Any]:
    """A pool's health; empty when nobody tells."""
    return (await asked(doors, f"{doors.urls['own']}/v1/pools/{pool}/health", lambda status: status == 200))[1]


async def until_ready(doors: Doors, pools: Sequence[str], timeout_s: float) -> bool:
    """Wait until all replicas of all pools are Ready; false when the time is over first."""
    until_s = doors.now_s() + timeout_s
    while doors.now_s() < until_s:
        told = [await health(doors, pool) for pool in pools]
        if all(each and each["metrics"]["replicas_ready"] == each["metrics"]["replicas_desired"] for each in told):
            return True
        await asyncio.sleep(0.5)
    return False


async def busy_slots(doors: Doors, pools: Sequence[str], timeout_s: float) -> list[str]:
    """What still holds a slot after all tasks ended, once it had time to let go; empty: nothing."""
    until_s = doors.now_s() + timeout_s
    while True:
        told = [(pool, await health(doors, pool)) for pool in pools]
        busy = [
            f"pool {pool}: "
            + (
                f"{each['metrics']['slots_free']} of {each['metrics']['slots_total']} slots free"
                if each
                else "does not tell its health"
            )
            for pool, each in told
            if not each or each["metrics"]["slots_free"] != each["metrics"]["slots_total"]
        ]
        if not busy or doors.now_s() > until_s:
            return busy
        await asyncio.sleep(0.5)
