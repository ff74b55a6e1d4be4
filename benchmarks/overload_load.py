"""The load of the overload case: seeded arrivals in an open loop, and what became of each of them.

A client sends its task when its time has come, however the others fare, in one call, and never tries
again: what is refused or late is lost to it. One process and one event loop drive everything; by how much
sends were late is measured, so that the driver can be ruled out as the bottleneck.
"""

import asyncio
import json
import math
import random
import time
import uuid
from typing import Final

import msgspec

from benchmarks.exchange import BrokenExchange, Exchange, Response
from benchmarks.streams import Expected

HOST: Final = "127.0.0.1"
CONNECT_TIMEOUT_S: Final = 10.0
NS_PER_MS: Final = 1_000_000
#: Code of a stream that had not ended when its client was sent home.
OPEN: Final = "open"
_STARTED: Final = b"event: started"
_TOKEN: Final = b"event: token\n"


class Mix(msgspec.Struct, frozen=True):
    """One class of arrivals. Deadlines are uniform, lengths lognormal with this mean, cut at `tokens_max`."""

    priority: str
    share: float
    deadline_min_ms: int
    deadline_max_ms: int
    tokens_mean: float
    tokens_sigma: float
    tokens_max: int


class Arrival(msgspec.Struct, frozen=True):
    """A task to come: `at_ms` after the begin, and `tokens` long, which only the engine knows."""

    number: int
    at_ms: float
    priority: str
    deadline_ms: int
    tokens: int
    tokens_max: int

    @property
    def prompt(self) -> str:
        return f"tell about item {self.number} fake-length={self.tokens}"

    @property
    def seed(self) -> int:
        return self.number


class Ending(msgspec.Struct):
    """What a client saw; times count from its submission.

    `code` is the error that refused or ended the task, or `OPEN`; empty: it finished. `waited_ms` of a task
    that never started is how long it had waited until then. `wrong` tells what must not happen.
    """

    arrival: Arrival
    lag_ms: float = 0.0
    status: int = 0
    code: str = ""
    started: bool = False
    waited_ms: float = 0.0
    ended_ms: float = 0.0
    tokens: int = 0
    body: bytes = b""
    wrong: str = ""

    @property
    def met(self) -> bool:
        return self.code == "" and self.ended_ms <= self.arrival.deadline_ms


def plan(mixes: tuple[Mix, ...], rate_per_s: float, duration_s: float, seed: int) -> list[Arrival]:
    """Poisson arrivals, the same for the same arguments."""
    draw = random.Random(seed)
    arrivals: list[Arrival] = []
    at_s = draw.expovariate(rate_per_s)
    while at_s < duration_s:
        mix = draw.choices(mixes, [mix.share for mix in mixes])[0]
        location = math.log(mix.tokens_mean) - mix.tokens_sigma**2 / 2
        arrivals.append(
            Arrival(
                number=len(arrivals),
                at_ms=at_s * 1000,
                priority=mix.priority,
                deadline_ms=round(draw.uniform(mix.deadline_min_ms, mix.deadline_max_ms)),
                tokens=min(mix.tokens_max, max(1, round(draw.lognormvariate(location, mix.tokens_sigma)))),
                tokens_max=mix.tokens_max,
            )
        )
        at_s += draw.expovariate(rate_per_s)
    return arrivals


class _Client(Exchange):
    """A connection that also tells whether the request under way has started."""

    @property
    def marked_ns(self) -> int:
        return self._first_ns


class OpenLoop:
    """Plays arrivals against one model of the service. Connections are kept and used again."""

    def __init__(self, port: int, model: str, keys: dict[str, str]) -> None:
        """`keys` holds the API key of each class."""
        self._port = port
        self._model = model
        self._keys = keys
        self._idle: list[_Client] = []
        self._busy: list[_Client] = []
        self._closing = False

    async def play(self, arrivals: list[Arrival], tail_s: float) -> list[Ending]:
        """Send all arrivals at their times; `tail_s` after the last one, those still open are given up."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        clients = []
        for arrival in arrivals:
            due = begun + arrival.at_ms / 1000
            await asyncio.sleep(due - loop.time())
            ending = Ending(arrival)
            clients.append((ending, asyncio.create_task(self._submit(ending, due))))
        await asyncio.wait([task for _, task in clients], timeout=tail_s)
        self._closing = True
        for exchange in self._busy:
            exchange.close()  # leaving a one-call stream cancels its task
        for _, task in clients:
            await task
        for exchange in self._idle:
            exchange.close()
        return [ending for ending, _ in clients]

    async def _submit(self, ending: Ending, due: float) -> None:
        exchange = await self._connection()
        self._busy.append(exchange)
        sent_ns = time.perf_counter_ns()
        ending.lag_ms = (asyncio.get_running_loop().time() - due) * 1000
        response: Response | None = None
        try:
            response = await exchange.request(self._message(ending.arrival), _STARTED)
        except BrokenExchange as error:
            ending.code, ending.wrong = OPEN, "" if self._closing else str(error)
        ended_ns = time.perf_counter_ns()
        self._busy.remove(exchange)
        started_ns = response.first_ns if response is not None else exchange.marked_ns
        ending.started = started_ns > 0
        ending.waited_ms = ((started_ns or ended_ns) - sent_ns) / NS_PER_MS
        ending.ended_ms = (ended_ns - sent_ns) / NS_PER_MS
        if response is not None:
            self._idle.append(exchange)
            read_response(ending, response)

    async def _connection(self) -> _Client:
        while self._idle:
            exchange = self._idle.pop()
            if exchange.open:
                return exchange
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, exchange = await asyncio.get_running_loop().create_connection(_Client, HOST, self._port)
        return exchange

    def _message(self, arrival: Arrival) -> bytes:
        task_id = str(uuid.uuid4())
        body = json.dumps(
            {
                "task_id": task_id,
                "session_id": task_id,
                "workload": "completion",
                "model_ref": self._model,
                "engine": "llamacpp",
                "ctx": 2048,
                "priority": arrival.priority,
                "max_tokens": arrival.tokens_max,
                "deadline_ms": arrival.deadline_ms,
                "seed": arrival.seed,
                "prompt": arrival.prompt,
            }
        )
        return (
            f"POST /v1/tasks HTTP/1.1\r\nhost: {HOST}\r\nauthorization: Bearer {self._keys[arrival.priority]}\r\n"
            f"accept: text/event-stream\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        ).encode()


def read_response(ending: Ending, response: Response) -> None:
    """Take a complete response apart: its error code, or its tokens."""
    ending.status = response.status
    if response.status != 200:
        ending.code = json.loads(response.body).get("code", f"HTTP {response.status}")
        return
    ending.body = response.body
    ending.tokens = response.body.count(_TOKEN)
    last = response.body[:-2].rpartition(b"\n\n")[2]
    if last.startswith(b"event: error\n"):
        ending.code = json.loads(last.partition(b"data: ")[2])["code"]


def check_text(ending: Ending) -> None:
    """Compare a finished stream with what the fake engine writes undisturbed, byte by byte."""
    if ending.code == "":
        arrival = ending.arrival
        ending.wrong = Expected(arrival.prompt, arrival.seed, arrival.tokens).service_violation(ending.body)
