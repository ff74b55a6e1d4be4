"""Verifies the committed pacts against a running service, with provider states made for real over its public API.

    verify("http://127.0.0.1:8000", HttpStates("http://127.0.0.1:8000").handlers())

The service must know the key `llorch-test-key` and serve three models on llamacpp: `MODEL`;
`SMALL_QUEUE_MODEL` in a pool called `small` with one slot, a queue capacity of 2 and the default
full-queue policies; and `DOWN_MODEL`, whose pool has no ready replica.
"""

import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2
from pact import Verifier

from tests.contract.interactions import KEY
from tests.contract.pact_file import PACT_FILES, PactFile

os.environ.setdefault("PACT_DO_NOT_TRACK", "true")

Parameters = dict[str, Any] | None
StateHandler = Callable[..., None]

#: More than slots and queue of the small pool hold together.
FILL_MAX = 16


def verify(base_url: str, state_handlers: dict[str, StateHandler], request_timeout_ms: int = 60_000) -> None:
    """Replay every interaction of the pacts. Raises RuntimeError when one does not match."""
    for pact_file in PACT_FILES:
        _verify(pact_file, base_url, state_handlers, request_timeout_ms)


def _verify(
    pact_file: PactFile, base_url: str, state_handlers: dict[str, StateHandler], request_timeout_ms: int
) -> None:
    address = urlsplit(base_url)
    verifier = Verifier(pact_file.provider, host=address.hostname or "127.0.0.1")
    verifier.add_transport(protocol="http", port=address.port, scheme=address.scheme)
    verifier.set_request_timeout(request_timeout_ms).set_error_on_empty_pact()
    verifier.add_source(pact_file.path)
    failures: list[str] = []
    verifier.state_handler({name: _noting(make, failures) for name, make in state_handlers.items()}, teardown=True)
    try:
        verifier.verify()
    except RuntimeError as error:
        raise RuntimeError("\n".join([str(error), *failures, verifier.output(strip_ansi=True)])) from None
    if failures:
        raise RuntimeError("\n".join(failures))


def _noting(make: StateHandler, failures: list[str]) -> StateHandler:
    """Note a state that cannot be made and go on: the verifier would ask for it again, ever more slowly."""

    def handle(state: str, action: str, parameters: Parameters) -> None:
        try:
            make(state, action, parameters)
        except Exception as error:
            failures.append(f"state {state!r} ({action}): {error!r}")

    return handle


class HttpStates:
    """Makes each provider state through HTTP.

    `long` is what makes a task of the small pool run until it is canceled; it depends on the
    engine behind it (a model that ends early needs more than a large `max_tokens`).
    """

    def __init__(
        self, base_url: str, key: str = KEY, long: dict[str, Any] | None = None, timeout_s: float = 60.0
    ) -> None:
        self._http = httpx2.Client(base_url=base_url, headers={"Authorization": f"Bearer {key}"}, timeout=timeout_s)
        self._long = long or {"max_tokens": 1500, "deadline_ms": 600_000}
        self._timeout_s = timeout_s
        self._running: list[str] = []

    def close(self) -> None:
        """Cancel what still runs and close the connections."""
        self._clear()
        self._http.close()

    def handlers(self) -> dict[str, StateHandler]:
        """State name to what makes it (`setup`) and undoes it (`teardown`)."""
        states: dict[str, Callable[[dict[str, Any]], None]] = {
            "a finished task": self._finished,
            "a running task": self._running_task,
            "a task that a full queue dropped": self._dropped,
            "a full queue": self._full_queue,
            "a pool without a ready replica": self._down,
        }
        made = {name: self._handler(make, "body") for name, make in states.items()}
        return made | {"a ready pool": self._handler(self._ready_pool, "pool_id")}

    def _handler(self, make: Callable[[Any], None], parameter: str) -> StateHandler:
        def handle(state: str, action: str, parameters: Parameters) -> None:  # noqa: ARG001
            if action == "setup":
                make((parameters or {})[parameter])
            else:
                self._clear()

        return handle

    def _finished(self, body: dict[str, Any]) -> None:
        self._submit(body)
        stream = self._http.get(f"/v1/tasks/{body['task_id']}/stream")
        assert "event: end\n" in stream.text, stream.text

    def _running_task(self, body: dict[str, Any]) -> None:
        self._submit(body | self._long)
        self._running.append(body["task_id"])
        self._wait_for(body["task_id"], "running")

    def _dropped(self, body: dict[str, Any]) -> None:
        """A batch task waits behind a long one; newer batch tasks take its place."""
        self._occupy(body, 900)
        self._submit(body | {"deadline_ms": 600_000})
        for number in range(901, 901 + FILL_MAX):
            if self._state(body["task_id"]) == "dropped":
                return
            self._submit(self._another(body, number), (202, 429))
        self._wait_for(body["task_id"], "dropped")

    def _full_queue(self, body: dict[str, Any]) -> None:
        self._occupy(body, 800)
        for number in range(801, 801 + FILL_MAX):
            if self._submit(self._another(body, number), (202, 429)) == 429:
                return
        raise AssertionError("the queue does not fill")

    def _down(self, body: dict[str, Any]) -> None:
        self._submit(body, (503,))

    def _ready_pool(self, pool_id: str) -> None:
        until = time.monotonic() + self._timeout_s
        while not (answer := self._http.get(f"/v1/pools/{pool_id}/health")).json().get("ready"):
            assert time.monotonic() < until, f"pool {pool_id} is not ready: {answer.text}"
            time.sleep(0.02)

    def _occupy(self, body: dict[str, Any], number: int) -> None:
        """Have a long task hold the pool's only slot."""
        longer = self._another(body, number)
        self._submit(longer)
        self._wait_for(longer["task_id"], "running")

    def _another(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        """A long task beside `body`, new each time this is run."""
        name = f"{time.time_ns() % 10**12:012d}"
        another = body | self._long | {"task_id": f"00000000-0000-4000-{number + 0x8000:04x}-{name}"}
        self._running.append(another["task_id"])
        return another

    def _submit(self, body: dict[str, Any], expected: tuple[int, ...] = (202,)) -> int:
        answer = self._http.post("/v1/tasks", json=body)
        assert answer.status_code in expected, f"{answer.status_code} {answer.text}"
        return answer.status_code

    def _state(self, task_id: str) -> str:
        return str(self._http.get(f"/v1/tasks/{task_id}").json()["state"])

    def _wait_for(self, task_id: str, state: str) -> None:
        until = time.monotonic() + self._timeout_s
        while (found := self._state(task_id)) != state:
            assert time.monotonic() < until, f"task {task_id} is {found}, not {state}"
            time.sleep(0.02)

    def _clear(self) -> None:
        for task_id in self._running:
            self._http.post(f"/v1/tasks/{task_id}/cancel")
        self._running.clear()
