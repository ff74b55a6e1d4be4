"""The llama.cpp adapter: one `llama-server` behind the engine protocol (OC-ADAPT-5001, ORCH-3054, ORCH-3058)."""

import asyncio
import secrets
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec

from adapters.child import ChildProcess
from adapters.errors import engine_error
from adapters.faults import classify
from adapters.llamacpp.attempts import Attempts
from adapters.llamacpp.client import LlamaClient
from adapters.llamacpp.command import server_arguments, server_environment
from adapters.llamacpp.digest import model_digest
from adapters.llamacpp.folder import SOCKET_NAME, private_folder
from adapters.llamacpp.kv import kv_token_bytes
from adapters.llamacpp.memory import cache_types, memory_need
from adapters.llamacpp.preflight import check_gpus, with_binary, with_model
from adapters.llamacpp.protocol import ENGINE, completion_body, metrics_of
from adapters.llamacpp.stream import read_completion
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
from contracts.pools import FaultKind

_HEALTH_INTERVAL_S: Final = 0.05


class LlamaCppAdapter:
    """Owns one engine process: one model, one device mask (ORCH-3001). See `EngineAdapter` for the methods.

    After the process has ended, `close` and `launch` bring up another one in its place.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._child: ChildProcess | None = None
        self._client: LlamaClient | None = None
        self._attempts: Attempts | None = None
        self._folder: Path | None = None
        self._empty_prompt: list[int] | None = None

    # ------------------------------------------------------------------ process

    async def memory_need(self) -> MemoryNeed:
        self._spec = await with_model(self._spec)
        return await asyncio.to_thread(memory_need, self._spec)

    async def launch(self) -> None:
        await self.close()
        self._spec = spec = await with_binary(await with_model(self._spec))
        await check_gpus(spec)
        # Only this user can enter the folder, so only this user can reach the engine.
        self._folder = private_folder()
        socket_path = self._folder / SOCKET_NAME
        api_key = secrets.token_urlsafe(32)
        self._child = ChildProcess(
            [*spec.command_prefix, spec.binary, *server_arguments(spec, socket_path)],
            server_environment(spec, api_key),
            secrets=(api_key,),
        )
        self._client = LlamaClient(socket_path, api_key)
        self._attempts = Attempts(self._client, self._child, spec.slots)
        try:
            async with asyncio.timeout(spec.ready_timeout_ms / 1000):
                await self._until_healthy(self._child, self._client)
        except TimeoutError:
            message = f"the engine was not ready after {spec.ready_timeout_ms} ms{_last_line(self._child)}"
            tail = self._child.stderr_tail
            await self.close()
            raise self._unready(message, "launch", tail) from None
        except BaseException:
            await self.close()
            raise

    async def _until_healthy(self, child: ChildProcess, client: LlamaClient) -> None:
        while not await client.health():
            if child.status is not None:
                message = f"the engine ended while starting: {_status_text(child)}"
                raise self._unready(message, self._why_ended(child), child.stderr_tail)
            await asyncio.sleep(_HEALTH_INTERVAL_S)

    def _why_ended(self, child: ChildProcess) -> FaultKind:
        return classify(child.status, child.stderr_tail, child.oom_killed, gpu=self._spec.accelerator == "gpu")

    def _unready(self, message: str, kind: FaultKind = "launch", tail: tuple[str, ...] = ()) -> EngineError:
        return engine_error("POOL_UNREADY", message, engine=ENGINE, retriable=True, kind=kind, stderr_tail=tail)

    @property
    def pid(self) -> int | None:
        """Process id of the running engine."""
        return self._child.pid if self._child is not None and self._child.status is None else None

    async def wait_exit(self) -> EngineExit:
        child, *_ = self._running()
        status = await child.wait()
        return EngineExit(status=status, stderr_tail=child.stderr_tail, kind=self._why_ended(child))

    async def healthy(self) -> bool:
        return self._client is not None and await self._client.health()

    async def close(self) -> None:
        child, client, attempts, folder = self._child, self._client, self._attempts, self._folder
        self._child = self._client = self._attempts = self._folder = self._empty_prompt = None
        if child is not None:
            await child.stop()
        if attempts is not None:
            await attempts.close()
        if client is not None:
            await client.close()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    # --------------------------------------------------------------- properties

    async def properties(self) -> EngineProperties:
        """See `EngineAdapter` (ORCH-3032, OC-ADAPT-5011).

        Each slot has a context of its own, so no cache size is told. That a cached prompt gives the same bits as
        a computed one is known of the CPU build with our flags alone: elsewhere the cache is not claimed.
        """
        _, client, _ = self._running()
        props = await client.props()
        model = Path(self._spec.model_path)
        return EngineProperties(
            engine_version=f"llama.cpp {props.build_info}",
            model_digest=await asyncio.to_thread(model_digest, model),
            slots=props.total_slots,
            ctx=props.default_generation_settings.n_ctx,
            interruptible_decode=True,
            kv_token_bytes=await asyncio.to_thread(kv_token_bytes, model, *cache_types(self._spec.args)),
            keeps_kv=self._spec.accelerator == "cpu-dev" and not self._spec.args,
        )

    async def metrics(self) -> EngineMetrics:
        _, client, _ = self._running()
        return metrics_of(await client.metrics(), await client.slots())

    async def count_tokens(self, request: GenerateRequest) -> int:
        _, client, _ = self._running()
        prompt = await self._prompt(client, request)
        return len(prompt if isinstance(prompt, list) else await client.tokenize(prompt))

    # --------------------------------------------------------------- completion

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        """See `EngineAdapter`. A stream that was canceled through `cancel` just ends, without a `Finish`.

        Raises EngineError: REPLICA_EXHAUSTED when all slots are taken, WORKER_RESET when the engine breaks off.
        """
        _, client, attempts = self._running()
        attempt = attempts.begin(attempt_key)
        try:
            prompt = await attempt.run(self._prompt(client, request))
            if prompt is None:
                return
            body = completion_body(request, prompt, attempts.take_slot(attempt, prompt))
            response = await attempt.run(attempt.keep(client.open_completion(body)))
            if response is None or attempt.canceled:
                return
            async for item in read_completion(attempt, response):
                if type(item) is Finish:
                    attempts.end(attempt)
                yield item
        finally:
            attempts.end(attempt)

    async def cancel(self, attempt_key: str) -> None:
        """See `EngineAdapter`. Raises EngineError (WORKER_RESET) when the engine holds on to the slot."""
        if self._attempts is not None:
            await self._attempts.cancel(attempt_key)

    async def _prompt(self, client: LlamaClient, request: GenerateRequest) -> str | list[int]:
        """The prompt as the engine gets it; an empty one becomes the model's start token."""
        if request.workload != "completion" or request.inputs is not None:
            raise engine_error(
                "INVALID_PARAMS",
                f"this pool serves completions, not {request.workload}",
                engine=ENGINE,
                retriable=False,
            )
        prompt = request.prompt or ""
        if request.messages is not None:
            prompt = await client.apply_template([msgspec.to_builtins(message) for message in request.messages])
        if prompt:
            return prompt
        if self._empty_prompt is None:
            self._empty_prompt = await self._start_tokens(client)
        return self._empty_prompt

    async def _start_tokens(self, client: LlamaClient) -> list[int]:
        """What stands for nothing: the engine answers an empty prompt with an empty stream."""
        tokens = await client.tokenize("")
        if not tokens:
            props = await client.props()
            tokens = await client.tokenize(props.bos_token or props.eos_token, add_special=False)
        if not tokens:
            raise engine_error(
                "INVALID_PARAMS", "this model has no token to start from; give a prompt", engine=ENGINE, retriable=False
            )
        return tokens

    def _running(self) -> tuple[ChildProcess, LlamaClient, Attempts]:
        if self._child is None or self._client is None or self._attempts is None:
            raise self._unready("the engine is not running")
        return self._child, self._client, self._attempts


def _last_line(child: ChildProcess) -> str:
    return f": {child.stderr_tail[-1]}" if child.stderr_tail else ""


def _status_text(child: ChildProcess) -> str:
    if child.status == -signal.SIGILL:
        return "its binary uses instructions that this CPU lacks (SIGILL)"
    return f"exit status {child.status}{_last_line(child)}"
