"""Tasks run by the Python client that the project ships: it has to take broken streams up again by itself."""

import asyncio
import uuid
from typing import Final

import msgspec

from contracts.api import End, Metrics, Started, TaskRequest, Token
from contracts.errors import OrchError
from orchestrator.client import Client
from orchestrator.client_errors import CannotConnectError, StreamBrokenError
from tests.chaos.client import RETRY_MAX_S, RETRY_S
from tests.chaos.doors import Doors
from tests.chaos.history import Attach, Post, TaskHistory
from tests.chaos.plan import Recipe, TaskPlan

SUBMITS_MAX: Final = 60


class ShippedTask:
    """One task through `orchestrator.client`; its reconnects are its own and are not seen here."""

    def __init__(self, doors: Doors, plan: TaskPlan, recipe: Recipe) -> None:
        self._doors = doors
        self._plan = plan
        self.history = TaskHistory(str(uuid.uuid4()), plan.index)
        self._request = msgspec.convert(doors.body(recipe, self.history.task_id, plan), TaskRequest, strict=False)
        self._cancels: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Submit, again while nobody answers or says to try again; then one call of `stream` to the end."""
        history, now_s = self.history, self._doors.now_s
        history.first_asked_s = now_s()
        async with Client(self._doors.urls[self._plan.door], self._doors.key) as client:
            if not await self._submit(client):
                return
            attach = Attach(now_s(), -1, self._plan.door, now_s())
            history.attaches.append(attach)
            try:
                await self._stream(client)
                attach.ended = "end"
            except (StreamBrokenError, CannotConnectError) as gave_up:
                history.problems.append(f"the shipped client gave up: {gave_up}")
            except OrchError as failed:
                history.code, history.message = failed.info.code, failed.info.message
                attach.ended, history.end_s = "error", now_s()
            attach.closed_s = now_s()
            await asyncio.gather(*self._cancels)

    async def _submit(self, client: Client) -> bool:
        wait_s = RETRY_S
        for _ in range(SUBMITS_MAX):
            post = Post(self._doors.now_s(), -1.0, 0)
            self.history.posts.append(post)
            try:
                await client.submit(self._request)
                post.status = 202
                self.history.admitted_s = post.answered_s = self._doors.now_s()
                return True
            except CannotConnectError as failed:
                post.code = type(failed).__name__
            except OrchError as refused:
                post.status, post.code, post.answered_s = refused.http_status, refused.info.code, self._doors.now_s()
                if refused.info.retriable is False:
                    self.history.problems.append(f"refused for good: {refused}")
                    return False
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RETRY_MAX_S)
        return False

    async def _stream(self, client: Client) -> None:
        history, now_s = self.history, self._doors.now_s
        async for event in client.stream(history.task_id):
            match event:
                case Token():
                    history.arrivals.append((0, event.i, event.t, now_s()))
                    if 0 <= self._plan.cancel_after <= event.i and history.cancel_sent_s < 0:
                        self._cancels.add(asyncio.create_task(self._cancel(client)))
                        history.cancel_sent_s = now_s()
                case Started():
                    history.replicas.append(event.replica_id)
                case Metrics():
                    history.failovers += bool(event.failover)
                case End():
                    history.finish, history.end_s = event.finish_reason, now_s()

    async def _cancel(self, client: Client) -> None:
        for _ in range(SUBMITS_MAX):
            try:
                await client.cancel(self.history.task_id)
                self.history.cancel_taken = True
                return
            except (CannotConnectError, OrchError):
                await asyncio.sleep(0.5)
