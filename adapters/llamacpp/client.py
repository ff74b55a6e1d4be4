"""HTTP to one llama-server over its Unix socket: bounded calls, and one opened completion stream."""

from pathlib import Path
from typing import Any, Final

import aiohttp

from adapters.llamacpp import protocol
from adapters.llamacpp.exchange import CompletionStream, open_stream
from adapters.llamacpp.protocol import worker_reset

_CALL_TIMEOUT_S: Final = 10.0
_HEALTH_TIMEOUT_S: Final = 2.0
_READ_BUFFER_BYTES: Final = 256 * 1024


class LlamaClient:
    """All calls raise EngineError: the engine's own refusals mapped, a broken connection as WORKER_RESET."""

    def __init__(self, socket_path: Path, api_key: str) -> None:
        # A fresh connection per request: the engine drops idle ones after seconds, and a POST that
        # meets such a drop must not be repeated blindly.
        self._socket_path = socket_path
        self._api_key = api_key
        self._session = aiohttp.ClientSession(
            base_url="http://engine",
            connector=aiohttp.UnixConnector(path=str(socket_path), limit=0, force_close=True),
            headers={"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            read_bufsize=_READ_BUFFER_BYTES,
        )

    async def close(self) -> None:
        await self._session.close()

    async def health(self) -> bool:
        """Whether the engine says that it is ready."""
        try:
            timeout = aiohttp.ClientTimeout(total=_HEALTH_TIMEOUT_S)
            async with self._session.get("/health", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def props(self) -> protocol.Props:
        return protocol.decode_props(await self._call("GET", "/props"))

    async def slots(self) -> list[protocol.Slot]:
        return protocol.decode_slots(await self._call("GET", "/slots"))

    async def metrics(self) -> dict[str, float]:
        return protocol.parse_metrics(await self._call("GET", "/metrics"))

    async def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids just as `/completion` makes them of a prompt: special tokens parsed, and added by default."""
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return protocol.decode_tokens(await self._call("POST", "/tokenize", body)).tokens

    async def apply_template(self, messages: list[dict[str, str]]) -> str:
        """The prompt that the model's own chat template makes of `messages`."""
        return protocol.decode_templated(await self._call("POST", "/apply-template", {"messages": messages})).prompt

    async def open_completion(self, body: dict[str, Any]) -> CompletionStream:
        """Start a completion and return once its slot works on it; the caller closes the response."""
        try:
            stream = await open_stream(self._socket_path, "/completion", self._api_key, protocol.encode(body))
            if stream.status == 200:
                return stream
            try:
                refusal = b""
                while part := await stream.read():
                    refusal += part
            finally:
                stream.close()
        except OSError as error:
            raise worker_reset("the engine closed the connection before it answered") from error
        raise protocol.error_of_response(stream.status, refusal)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        data = None if body is None else protocol.encode(body)
        timeout = aiohttp.ClientTimeout(total=_CALL_TIMEOUT_S)
        try:
            async with self._session.request(method, path, data=data, timeout=timeout) as response:
                answer = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise worker_reset(f"the engine did not answer {path}") from error
        if response.status != 200:
            raise protocol.error_of_response(response.status, answer)
        return answer
