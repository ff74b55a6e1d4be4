"""A client that does not let go of its task: it posts until it is answered, and attaches until the end is known."""

import asyncio
import json
import uuid
from typing import Final

import aiohttp

from tests.chaos.doors import TRY_AGAIN, Doors, events_of, status_of
from tests.chaos.history import TERMINAL, Attach, Post, TaskHistory
from tests.chaos.plan import Door, Recipe, TaskPlan

#: In place of a code: an answer without our envelope. Serve's own proxy gives some while it comes up.
NOT_OURS: Final = "not ours"
RETRY_S: Final = 0.1
RETRY_MAX_S: Final = 2.0
#: After its deadline a task is given this long to be told of.
PATIENCE_S: Final = 30.0
#: Refused for now, as no replica can serve it in time: a deadline from then on may be met.
_NOT_NOW: Final = "DEADLINE_UNMET"


class TaskClient:
    """Runs one task of the plan; what it sees goes into `history`."""

    def __init__(self, doors: Doors, plan: TaskPlan, recipe: Recipe) -> None:
        self._doors = doors
        self._plan = plan
        self.history = TaskHistory(str(uuid.uuid4()), plan.index, slow=plan.slow_ms > 0)
        self._body = doors.body(recipe, self.history.task_id, plan)
        self._door: Door = plan.door
        self._left = False
        self._canceling: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until the task's end is known, or its time is over by far."""
        now_s = self._doors.now_s
        self.history.first_asked_s = now_s()
        give_up_s = now_s() + self._plan.deadline_ms / 1000 + PATIENCE_S
        if await self._admit(give_up_s):
            wait_s = RETRY_S
            while not self._is_over and now_s() < give_up_s:
                had = self.history.next_index
                await self._attach("GET")
                wait_s = RETRY_S if self.history.next_index > had else min(2 * wait_s, RETRY_MAX_S)
                if not self._is_over:
                    await asyncio.sleep(wait_s)
        if self._canceling is not None:
            await self._canceling

    @property
    def _is_over(self) -> bool:
        return bool(self.history.finish or self.history.code)

    async def _admit(self, give_up_s: float) -> bool:
        """POST, again and again under the same id while there is no answer, or one that says to try again."""
        wait_s = RETRY_S
        while self._doors.now_s() < give_up_s and not self._is_over:
            one_call = self._plan.style == "one_call"
            await (self._attach("POST") if one_call else self._post())
            if self.history.was_admitted:
                return True
            last = self.history.posts[-1]
            if last.status not in (0, *TRY_AGAIN) and last.code not in (_NOT_NOW, NOT_OURS):
                self.history.problems.append(f"refused for good: {last}")
                return False
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RETRY_MAX_S)
        return self.history.was_admitted

    async def _post(self) -> None:
        post = Post(self._doors.now_s(), -1.0, 0)
        self.history.posts.append(post)
        try:
            url = self._doors.urls[self._door] + "/v1/tasks"
            async with self._doors.http.post(url, json=self._body) as answer:
                self._answered(post, answer.status, await answer.read())
        except (aiohttp.ClientError, OSError, TimeoutError) as broken:
            self._broke(broken)
            post.code = type(broken).__name__

    def _broke(self, error: Exception) -> None:
        """Where nobody listens, the other door is next: in front of several nodes a load balancer would see to that."""
        if isinstance(error, aiohttp.ClientConnectorError):
            self._door = "haproxy" if self._door == "own" else "own"

    def _answered(self, post: Post, status: int, body: bytes) -> None:
        post.answered_s, post.status = self._doors.now_s(), status
        if status in (200, 202):
            if not self.history.was_admitted:
                self.history.admitted_s = post.answered_s
        else:
            post.code = _code(body)

    # ------------------------------------------------------------------------- streams

    async def _attach(self, method: str) -> None:
        """One connection that streams; by POST it also submits."""
        history, now_s = self.history, self._doors.now_s
        after = history.next_index - 1 if method == "GET" else -1
        attach = Attach(now_s(), after, self._door)
        post = Post(attach.opened_s, -1.0, 0)
        history.attaches.append(attach)
        url = self._doors.urls[self._door] + "/v1/tasks"
        headers, body = {"Accept": "text/event-stream"}, None
        if method == "POST":
            history.posts.append(post)
            body = self._body
        else:
            url += f"/{history.task_id}/stream"
            if after >= 0:
                headers["Last-Event-ID"] = str(after)
        try:
            async with self._doors.http.request(method, url, json=body, headers=headers) as answer:
                attach.answered_s = now_s()
                if answer.status != 200:
                    attach.ended, attach.code = str(answer.status), _code(await answer.read())
                    post.status, post.code, post.answered_s = answer.status, attach.code, attach.answered_s
                    if answer.status == 404 and method == "GET" and attach.code != NOT_OURS:
                        await self._look(attach.code)
                else:
                    self._answered(post, 200, b"")
                    await self._read(answer, attach)
        except (aiohttp.ClientError, OSError, TimeoutError) as broken:
            self._broke(broken)
            attach.ended, attach.code = "broken", type(broken).__name__
        attach.closed_s = now_s()

    async def _read(self, answer: aiohttp.ClientResponse, attach: Attach) -> None:
        number = len(self.history.attaches) - 1
        async for name, data in events_of(answer):
            if name == "token":
                self.history.arrivals.append((number, data["i"], data["t"], self._doors.now_s()))
                if await self._after_token(data["i"]):
                    attach.ended = "left"
                    return
            elif name == "started":
                if data["replica_id"] not in self.history.replicas[-1:]:
                    self.history.replicas.append(data["replica_id"])
            elif name == "metrics":
                self.history.failovers += bool(data.get("failover"))
            elif name == "end":
                attach.ended = "end"
                self.history.finish, self.history.end_s = data["finish_reason"], self._doors.now_s()
                return
            elif name == "error":
                attach.ended, attach.code = "error", data["code"]
                await self._look(data["code"], data["message"])
                return
        attach.ended = "broken"

    async def _after_token(self, index: int) -> bool:
        """What the plan says is done now; true: leave."""
        plan = self._plan
        if plan.slow_ms:
            await asyncio.sleep(plan.slow_ms / 1000)
        if 0 <= plan.cancel_after <= index and self._canceling is None:
            self._canceling = asyncio.create_task(self._cancel())
        if 0 <= plan.leave_after <= index and not self._left:
            self._left = True
            return True
        return False

    async def _look(self, code: str, message: str = "") -> None:
        """Whether an error is the task's own end: only then it is over."""
        status, told = await status_of(self._doors, self.history.task_id)
        if (status == 200 and told["state"] in TERMINAL) or status == 404:
            self.history.end_s = self._doors.now_s()
            self.history.code, self.history.message = code, message
        else:
            self.history.early_errors.append(f"{code}: {message}")

    async def _cancel(self) -> None:
        """Cancel, until that is answered."""
        self.history.cancel_sent_s = self._doors.now_s()
        url = f"{self._doors.urls[self._door]}/v1/tasks/{self.history.task_id}/cancel"
        for _ in range(60):
            try:
                async with self._doors.http.post(url) as answer:
                    if answer.status // 100 == 2:
                        self.history.cancel_taken = True
                        return
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            await asyncio.sleep(0.5)


def _code(body: bytes) -> str:
    try:
        return str(json.loads(body)["code"])
    except (ValueError, KeyError, TypeError):
        return NOT_OURS
