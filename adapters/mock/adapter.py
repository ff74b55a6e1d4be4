"""The mock adapter: the shared adapter pieces over a real socket, with an engine that does as it is told."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from msgspec.structs import replace

from adapters.answers import decoded
from adapters.attempts import Attempt, Attempts
from adapters.engine_server import ATTACHED_NEED, EngineServer, Launch, killed_or
from adapters.errors import engine_error, model_error
from adapters.exactness import in_flight
from adapters.exchange import Address
from adapters.faults import classify
from adapters.folder import SOCKET_NAME, private_folder
from adapters.http_client import EngineClient
from adapters.mock.engine import MockEngine, MockModel
from adapters.mock.faults import MockFaults
from adapters.mock.wire import ENGINE, MockInfo, MockRequest, decode_count, decode_info, read_generation, refusal_of
from adapters.profiles import parameters
from contracts.engine import (
    Chunk,
    EngineError,
    EngineExit,
    EngineMetrics,
    EngineProperties,
    EngineSpec,
    Finish,
    GenerateRequest,
)
from contracts.gpus import MemoryNeed

#: The mock's sampling parameters are called as llama.cpp's are.
_PROFILE = "llamacpp"


class MockAdapter(EngineServer):
    """See `EngineAdapter` for the methods. With an `endpoint` in the spec it attaches to whoever speaks its dialect."""

    ENGINE = ENGINE

    def __init__(self, spec: EngineSpec, faults: MockFaults | None = None) -> None:
        super().__init__(replace(spec, slots=in_flight(spec, known=True)))
        self._faults = faults or MockFaults()
        self._engine: MockEngine | None = None

    # ------------------------------------------------------------------------ process

    async def memory_need(self) -> MemoryNeed:
        self._check_model(self._spec)
        return ATTACHED_NEED

    def _check_model(self, spec: EngineSpec) -> None:
        if spec.model_path and not Path(spec.model_path).is_file():
            raise model_error(spec, f"there is no file {spec.model_path}", "put it there")

    async def _prepare(self, spec: EngineSpec) -> Launch:
        self._check_model(spec)
        folder, api_key = private_folder(), secrets.token_urlsafe(32)
        self._engine = MockEngine(MockModel(spec.model, spec.slots, spec.ctx), self._faults, api_key)
        await asyncio.sleep(self._faults.launch_ms / 1000)
        await self._engine.listen(folder / SOCKET_NAME)
        address = Address(socket_path=str(folder / SOCKET_NAME))
        return Launch(address=address, headers={"Authorization": f"Bearer {api_key}"}, folder=folder)

    async def _is_ready(self, client: EngineClient) -> bool:
        if self._faults.fail_at_launch and self._engine is not None:
            end = self._exit(self._engine)
            message = f"the engine ended while starting: {self._faults.last_words}"
            raise self._unready(message, end.kind, end.stderr_tail)
        return await client.health("/health")

    def _alive(self) -> bool:
        return super()._alive() if self._engine is None else self._engine.status is None

    async def wait_exit(self) -> EngineExit:
        """See `EngineAdapter`. A dead engine that still answers its health check is not seen to have ended."""
        engine = self._engine
        if engine is None:
            return await super().wait_exit()
        await engine.exited.wait()
        if self._faults.lie_in_health:
            await asyncio.Event().wait()
        return self._exit(engine)

    def _exit(self, engine: MockEngine) -> EngineExit:
        words = (self._faults.last_words,) if self._faults.last_words else ()
        kind = killed_or(classify(engine.status, words, gpu=True), engine.status)
        return EngineExit(status=engine.status or 0, stderr_tail=words, kind=kind)

    def kill(self) -> None:
        """End the engine as SIGKILL ends a process."""
        if self._engine is not None:
            self._engine.end()

    async def close(self) -> None:
        """See `EngineAdapter`."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()
        await super().close()

    # ------------------------------------------------------------------------ dialect

    def _refusal(self, status: int, body: bytes) -> EngineError:
        return refusal_of(status, body)

    def _new_attempts(self, client: EngineClient) -> Attempts:
        async def is_released(attempt: Attempt) -> bool:
            return attempt.key not in (await self._info(client)).running

        return Attempts(ENGINE, self._spec.slots, self._alive, is_released)

    async def _info(self, client: EngineClient) -> MockInfo:
        return decoded(decode_info, await client.call("GET", "/info"), "/info", ENGINE)

    async def properties(self) -> EngineProperties:
        """See `EngineAdapter`. The digest is that of the model's name: no file says what the text follows from."""
        info = await self._info(self._running()[0])
        digest = hashlib.sha256(self._spec.model.encode()).hexdigest()
        return EngineProperties(
            engine_version=info.version,
            model_digest=f"sha256:{digest}",
            slots=min(info.slots, self._spec.slots),
            ctx=info.ctx,
            interruptible_decode=True,
            exact=True,
        )

    async def metrics(self) -> EngineMetrics:
        info = await self._info(self._running()[0])
        return EngineMetrics(
            requests_processing=len(info.running),
            requests_waiting=0,
            tokens_in_total=info.tokens_in,
            tokens_out_total=info.tokens_out,
        )

    async def count_tokens(self, request: GenerateRequest) -> int:
        answer = await self._running()[0].call("POST", "/tokenize", {"prompt": _prompt(self._spec, request)})
        return decoded(decode_count, answer, "/tokenize", ENGINE)

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        """See `EngineAdapter`."""
        client, attempts = self._running()
        body = _body(self._spec, attempt_key, request)
        attempt = attempts.begin(attempt_key)
        try:
            response = await attempt.run(attempt.keep(client.open("/generate", body)))
            if response is None or attempt.canceled:
                return
            async for item in read_generation(attempt, response):
                if type(item) is Finish:
                    attempts.end(attempt)
                yield item
        finally:
            attempts.end(attempt)


def _prompt(spec: EngineSpec, request: GenerateRequest) -> str:
    if request.workload != spec.workload or request.inputs is not None:
        message = f"this pool serves {spec.workload}, not {request.workload}"
        raise engine_error("INVALID_PARAMS", message, engine=ENGINE, retriable=False)
    if request.messages is not None:
        return "".join(f"<{message.role}> {message.content}\n" for message in request.messages)
    return request.prompt or ""


def _body(spec: EngineSpec, key: str, request: GenerateRequest) -> dict[str, object]:
    try:
        told = parameters(_PROFILE, request.sampler_profile_version, request.sampling, request.seed)
    except EngineError as error:
        raise EngineError(replace(error.info, engine=ENGINE)) from error
    body = MockRequest(
        key=key,
        prompt=_prompt(spec, request),
        max_tokens=request.max_tokens,
        seed=msgspec.convert(told["seed"], int),
        temperature=msgspec.convert(told["temperature"], float),
        stop=msgspec.convert(told["stop"], list[str]),
    )
    result: dict[str, object] = msgspec.to_builtins(body)
    return result
