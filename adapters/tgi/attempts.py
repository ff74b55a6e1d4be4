"""Attempts on a TGI server: its gauges say when nothing of a broken-off one is left."""

from collections.abc import Callable

from adapters.attempts import Attempt, Attempts
from adapters.http_client import EngineClient
from adapters.tgi import calls
from adapters.tgi.metrics import holds_at_most
from adapters.tgi.protocol import ENGINE


class GaugedAttempts(Attempts):
    """The attempts of one engine, which must serve nobody else: it tells how many requests it has, not which."""

    def __init__(self, client: EngineClient, alive: Callable[[], bool], limit: int) -> None:
        super().__init__(ENGINE, limit, alive, self._is_dropped)
        self._client = client

    async def _is_dropped(self, attempt: Attempt) -> bool:
        """TGI drops a request whose connection is closed when it is about to make the next token of it."""
        del attempt
        return holds_at_most(await calls.metrics(self._client), self.live)
