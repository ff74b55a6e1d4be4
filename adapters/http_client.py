"""HTTP to one engine: bounded calls, and opened streams of tokens.

Each request has a connection of its own: engines drop idle ones after seconds, and a POST that meets such a drop
must not be repeated blindly.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp
import msgspec

from adapters.errors import worker_reset
from adapters.exchange import Address, ResponseStream, open_stream
from contracts.engine import EngineError

_CALL_TIMEOUT_S: Final = 10.0
_HEALTH_TIMEOUT_S: Final = 2.0
_ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
_REFUSAL_BYTES_MAX: Final = 1024 * 1024

encode: Final = msgspec.json.Encoder().encode

#: Makes the engine's refusal, HTTP status and body, an error of ours.
ErrorMapping = Callable[[int, bytes], EngineError]


class EngineClient:
    """All calls raise EngineError: the engine's own refusals mapped, a broken connection as WORKER_RESET."""

    def __init__(self, engine: str, address: Address, headers: Mapping[str, str], refusal: ErrorMapping) -> None:
        self._engine = engine
        self._address = address
        self._headers = dict(headers)
        self._refusal = refusal
        connector: aiohttp.BaseConnector
        if address.socket_path:
            connector = aiohttp.UnixConnector(path=address.socket_path, limit=0, force_close=True)
        else:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(
            base_url=f"http://{address.authority}",
            connector=connector,
            headers={**headers, "Content-Type": "application/json", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def health(self, path: str) -> bool:
        """Whether the engine answers 200 there, soon."""
        try:
            timeout = aiohttp.ClientTimeout(total=_HEALTH_TIMEOUT_S)
            async with self._session.get(path, timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = _CALL_TIMEOUT_S
    ) -> bytes:
        """The body of a 200 answer, of at most 64 MiB."""
        data = None if body is None else encode(body)
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, path, data=data, timeout=timeout) as response:
                answer = bytearray()
                async for part in response.content.iter_any():
                    answer += part
                    if len(answer) > _ANSWER_BYTES_MAX:
                        raise worker_reset(f"the engine's answer to {path} never ends", self._engine)
        except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError
            raise worker_reset(f"the engine did not answer {path}", self._engine) from error
        if response.status != 200:
            raise self._refusal(response.status, bytes(answer))
        return bytes(answer)

    async def open(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> ResponseStream:
        """Start a stream and return once the engine answers with a 200; the caller closes it."""
        try:
            stream = await open_stream(self._address, path, encode(body), {**self._headers, **(headers or {})})
            if stream.status == 200:
                return stream
            try:
                refusal = b""
                while len(refusal) <= _REFUSAL_BYTES_MAX and (part := await stream.read()):
                    refusal += part
            finally:
                stream.close()
        except OSError as error:
            raise worker_reset("the engine closed the connection before it answered", self._engine) from error
        raise self._refusal(stream.status, refusal)
