"""The load driver, a process of its own: jobs come as JSON lines on stdin, results leave on stdout.

A job opens its connections first, then keeps each of them busy with its share of the requests, one
after the other: a closed loop with `streams` requests in flight.
"""

import asyncio
import json
import os
import sys
import time
import uuid
from typing import Final, Literal

import msgspec
import uvloop

from benchmarks.exchange import BrokenExchange, Exchange, Response
from benchmarks.streams import Expected

Target = Literal["direct", "one_call", "two_calls", "admit"]

VIOLATIONS_TOLD_MAX: Final = 5
CONNECT_TIMEOUT_S: Final = 10.0
REQUEST_TIMEOUT_S: Final = 120.0
_TOKEN_DIRECT: Final = b'"stop":false'
_TOKEN_SERVICE: Final = b"event: token"


class Job(msgspec.Struct, frozen=True):
    """`requests` requests of `tokens` tokens each over `streams` connections.

    The connections begin evenly spread over `spread_ms`; 0: all at once.
    """

    target: Target
    port: int
    model: str
    streams: int
    requests: int
    tokens: int
    spread_ms: float = 0.0
    key: str = ""
    prompt: str = "measure what the queue adds"
    seed: int = 7


class Result(msgspec.Struct):
    """What a job measured. `violations` counts requests that went wrong; `told` describes the first of them.

    `seconds` is from the first request to the last response; of a spread job it is how long a
    connection was busy on average, because at its edges not all of them are.
    """

    seconds: float
    requests: int
    tokens: int
    first_token_ms: list[float]
    cpu_s: float
    violations: int
    told: list[str]


class Run:
    """One job under way."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._expected = Expected(job.prompt, job.seed, job.tokens)
        self._messages = [_messages(job) for _ in range(job.requests)]
        self._first_token_ms: list[float] = []
        self._done = 0
        self._violations: list[str] = []
        self._busy_ns: list[int] = []

    async def perform(self) -> Result:
        connections = await asyncio.gather(*(self._connect() for _ in range(self._job.streams)))
        cpu_s, begun_ns = time.process_time(), time.perf_counter_ns()
        await asyncio.gather(*(self._work(connection, n) for n, connection in enumerate(connections)))
        took_ns = time.perf_counter_ns() - begun_ns
        if self._job.spread_ms:
            took_ns = sum(self._busy_ns) // len(self._busy_ns)
        return Result(
            seconds=took_ns / 1e9,
            requests=self._done,
            tokens=0 if self._job.target == "admit" else self._done * self._job.tokens,
            first_token_ms=self._first_token_ms,
            cpu_s=time.process_time() - cpu_s,
            violations=len(self._violations),
            told=self._violations[:VIOLATIONS_TOLD_MAX],
        )

    async def _connect(self) -> Exchange:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            loop = asyncio.get_running_loop()
            _, exchange = await loop.create_connection(Exchange, "127.0.0.1", self._job.port)
        return exchange

    async def _work(self, exchange: Exchange, number: int) -> None:
        streams = self._job.streams
        await asyncio.sleep(self._job.spread_ms / 1000 * number / streams)
        begun_ns = time.perf_counter_ns()
        for messages in self._messages[number::streams]:
            if not exchange.open:
                exchange = await self._connect()
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    wrong = await self._serve(exchange, messages)
            except (BrokenExchange, TimeoutError) as error:
                wrong = f"{type(error).__name__}: {error}"
                exchange.close()
            if wrong:
                self._violations.append(wrong)
            else:
                self._done += 1
        self._busy_ns.append(time.perf_counter_ns() - begun_ns)
        exchange.close()

    async def _serve(self, exchange: Exchange, messages: tuple[bytes, bytes]) -> str:
        """One request, or two where the stream is asked for apart; what was wrong with it."""
        target, (first, second) = self._job.target, messages
        begun_ns = time.perf_counter_ns()
        if target == "direct":
            response = await exchange.request(first, _TOKEN_DIRECT)
        elif target == "one_call":
            response = await exchange.request(first, _TOKEN_SERVICE)
        else:
            response = await exchange.request(first)
            if response.status != 202 or target == "admit":
                return _unless(response, 202)
            response = await exchange.request(second, _TOKEN_SERVICE)
        self._first_token_ms.append((response.first_ns - begun_ns) / 1e6)
        check = self._expected.direct_violation if target == "direct" else self._expected.service_violation
        return _unless(response, 200) or check(response.body)


def _unless(response: Response, status: int) -> str:
    return "" if response.status == status else f"status {response.status}: {response.body[:200]!r}"


def _messages(job: Job) -> tuple[bytes, bytes]:
    """The bytes of a request, and of the one that follows it in two-call mode."""
    if job.target == "direct":
        body = {"prompt": job.prompt, "n_predict": job.tokens, "seed": job.seed, "stream": True}
        return _request("POST /completion", "", json.dumps(body)), b""
    task_id = str(uuid.uuid4())
    body = {
        "task_id": task_id,
        "session_id": task_id,
        "workload": "completion",
        "model_ref": job.model,
        "engine": "llamacpp",
        "ctx": 2048,
        "priority": "interactive",
        "max_tokens": job.tokens,
        "deadline_ms": 600_000,
        "seed": job.seed,
        "prompt": job.prompt,
    }
    headers = f"authorization: Bearer {job.key}\r\n"
    accept = "accept: text/event-stream\r\n"
    one_call = accept if job.target == "one_call" else ""
    return (
        _request("POST /v1/tasks", headers + one_call, json.dumps(body)),
        _request(f"GET /v1/tasks/{task_id}/stream", headers + accept, ""),
    )


def _request(what: str, headers: str, body: str) -> bytes:
    length = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body else ""
    return f"{what} HTTP/1.1\r\nhost: 127.0.0.1\r\n{headers}{length}\r\n{body}".encode()


def main() -> None:
    parent = os.getppid()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            if os.getppid() != parent:
                break
            result = runner.run(Run(msgspec.json.decode(line, type=Job)).perform())
            sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
