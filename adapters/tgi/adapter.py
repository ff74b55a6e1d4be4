"""The TGI adapter: one Text Generation Inference server behind the engine protocol (OC-ADAPT-5001, ORCH-3058)."""

import asyncio
import contextlib
import hashlib
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from adapters.attempts import Attempt, Attempts
from adapters.engine_server import ATTACHED_NEED, EngineServer, Launch
from adapters.errors import engine_error, model_error
from adapters.exactness import in_flight, is_exact_as_launched
from adapters.exchange import Address
from adapters.folder import private_folder
from adapters.http_client import EngineClient
from adapters.ports import free_ports
from adapters.tgi import calls
from adapters.tgi.attempts import GaugedAttempts
from adapters.tgi.command import BATCH_INVARIANT, HOST, launcher_command, launcher_environment
from adapters.tgi.metrics import metrics_of
from adapters.tgi.model import checked_model, kv_token_bytes, memory_need, model_digest
from adapters.tgi.prompts import Prompts
from adapters.tgi.protocol import ENGINE, Info, error_of_response, generate_body, invalid
from adapters.tgi.stream import GenerationReader
from contracts.engine import (
    Chunk,
    EngineError,
    EngineMetrics,
    EngineProperties,
    EngineSpec,
    Finish,
    GenerateRequest,
)
from contracts.gpus import MemoryNeed

_LAUNCHER: Final = "text-generation-launcher"


class TgiAdapter(EngineServer):
    """One TGI server: one model, one device mask (ORCH-3001). See `EngineAdapter` for the methods.

    A server that is attached to must serve this pool alone: its gauges are how a cancel is proved. It gives equal
    texts for equal tasks only with `PREFIX_CACHING=0` in its environment, as a launched one of a strict pool has. It
    does not tell whether it has that, so it is called exact only where the pool declares it (`batch_invariant`).
    """

    ENGINE = ENGINE

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(replace(spec, slots=in_flight(spec, known=BATCH_INVARIANT)))
        self._prompts: Prompts | None = None

    # ------------------------------------------------------------------ process

    async def memory_need(self) -> MemoryNeed:
        self._check_workload()
        if self._spec.endpoint:
            return replace(ATTACHED_NEED, slots_max=self._spec.slots)
        return await asyncio.to_thread(memory_need, self._spec)

    async def launch(self) -> None:
        """See `EngineAdapter`. Raises EngineError (INVALID_PARAMS) for embeddings and rerank, which TGI lacks."""
        self._check_workload()
        await super().launch()

    def _check_workload(self) -> None:
        spec = self._spec
        if spec.workload != "completion":
            raise invalid(
                f"pool {spec.pool_id} is for {spec.workload}, and TGI serves completions only; use another engine"
            )

    async def _prepare(self, spec: EngineSpec) -> Launch:
        await asyncio.to_thread(checked_model, spec)
        self._spec = spec = _with_binary(spec)
        folder = private_folder()
        api_key = secrets.token_urlsafe(32)
        port, prometheus_port, master_port = free_ports(3)
        return Launch(
            address=Address(host=HOST, port=port),
            argv=tuple(launcher_command(spec, folder, port, prometheus_port, master_port)),
            env=launcher_environment(spec, api_key),
            headers={"Authorization": f"Bearer {api_key}"},
            secrets=(api_key,),
            folder=folder,
            tree=True,
        )

    async def _is_ready(self, client: EngineClient) -> bool:
        """Its health check is honest: after a failed generation it answers 200 only once the model computes again."""
        return await client.health("/health")

    async def _look_around(self, client: EngineClient) -> None:
        """Whether this is a TGI server that takes our key, and has the model that it must have."""
        try:
            info = await calls.info(client)
            await calls.tokenize(client, "ready")
        except EngineError as error:
            raise self._unready(f"the server is up and of no use: {error.info.message}") from None
        wanted = self._spec.model_digest.lower()
        if self._spec.endpoint and wanted and wanted != _told_digest(info):
            reason = f"{self._spec.endpoint} serves {info.model_id!r}, {_told_digest(info)}, and must serve {wanted}"
            raise model_error(self._spec, reason, "start it with the right model, or correct `model_digest`")

    def _refusal(self, status: int, body: bytes) -> EngineError:
        return error_of_response(status, body)

    def _new_attempts(self, client: EngineClient) -> Attempts:
        self._prompts = Prompts(client)
        return GaugedAttempts(client, self._alive, self._spec.slots)

    # --------------------------------------------------------------- properties

    async def properties(self) -> EngineProperties:
        """See `EngineAdapter` (ORCH-3032, OC-ADAPT-5011).

        The digest is that of the model's folder. An attached server's folder cannot be read from here: there it is
        the digest of the name and revision that the server tells, `<model_id>@<model_sha>`.
        """
        client, _ = self._running()
        info = await calls.info(client)
        spec = self._spec
        return EngineProperties(
            engine_version=info.engine_version,
            model_digest=_told_digest(info) if spec.endpoint else await asyncio.to_thread(model_digest, spec),
            slots=min(spec.slots, info.max_concurrent_requests),
            ctx=info.max_total_tokens,
            interruptible_decode=True,
            kv_token_bytes=0 if spec.endpoint else await asyncio.to_thread(kv_token_bytes, spec),
            exact=is_exact_as_launched(spec, known=BATCH_INVARIANT),
        )

    async def metrics(self) -> EngineMetrics:
        client, _ = self._running()
        return metrics_of(await calls.metrics(client))

    async def count_tokens(self, request: GenerateRequest) -> int:
        self._running()
        assert self._prompts is not None
        return await self._prompts.count(await self._prompts.text(request))

    # --------------------------------------------------------------- completion

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        """See `EngineAdapter`. A stream that was canceled through `cancel` just ends, without a `Finish`.

        Raises EngineError: REPLICA_EXHAUSTED when all slots are taken, WORKER_RESET when the engine breaks off.
        """
        client, attempts = self._running()
        prompts = self._prompts
        assert prompts is not None
        attempt = attempts.begin(attempt_key)
        try:
            prompt = await attempt.run(prompts.text(request))
            if prompt is None:
                return
            body = generate_body(request, prompt)
            response = await attempt.run(attempt.keep(client.open("/generate_stream", body)))
            if response is None or attempt.canceled:
                return
            stops = (request.sampling.stop if request.sampling else None) or ()
            reader = GenerationReader(attempt, request.max_tokens, stops, lambda: prompts.count(prompt))
            async for item in reader.read(response):
                if type(item) is Finish:
                    await self._let_go(attempts, attempt)
                yield item
        finally:
            attempts.end(attempt)

    async def _let_go(self, attempts: Attempts, attempt: Attempt) -> None:
        """Leave the slot before the end is told: whoever hears of it may send the next task at once."""
        if attempt.finished:
            attempts.end(attempt)
            return
        # The text is whole even where the engine is slow to stop; its slot then stays taken meanwhile.
        with contextlib.suppress(EngineError):
            await attempts.cancel(attempt.key)


def _with_binary(spec: EngineSpec) -> EngineSpec:
    """`spec` with the launcher's path. Raises EngineError (POOL_UNREADY)."""
    binary = spec.binary or shutil.which(_LAUNCHER) or ""
    if Path(binary).is_file():
        return replace(spec, binary=binary)
    problem = f"engine binary {binary!r} does not exist" if binary else f"there is no {_LAUNCHER} on PATH"
    message = f"{problem}; set `engine_options.binary` to one, or `engine_options.endpoint` to a server that runs"
    raise engine_error("POOL_UNREADY", message, engine=ENGINE, retriable=True)


def _told_digest(info: Info) -> str:
    name = f"{info.model_id}@{info.model_sha or ''}"
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
