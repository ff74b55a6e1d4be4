"""The llama.cpp adapter: one `llama-server` behind the engine protocol (OC-ADAPT-5001, ORCH-3054, ORCH-3058)."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from msgspec.structs import replace

from adapters.engine_server import ATTACHED_NEED, EngineServer, Launch
from adapters.errors import engine_error, model_error
from adapters.exchange import Address
from adapters.folder import SOCKET_NAME, private_folder
from adapters.http_client import EngineClient
from adapters.llamacpp import calls
from adapters.llamacpp.attempts import ComputeAttempts, SlotAttempts
from adapters.llamacpp.command import server_arguments, server_environment
from adapters.llamacpp.exact import is_batch_invariant, keeps_bytes, may_reuse, slots_of
from adapters.llamacpp.files import model_digest
from adapters.llamacpp.kv import kv_token_bytes
from adapters.llamacpp.memory import cache_types, memory_need
from adapters.llamacpp.pooled import PAIR, compute, pair_tokens
from adapters.llamacpp.pooling import default_pooling
from adapters.llamacpp.preflight import check_gpus, with_binary, with_model
from adapters.llamacpp.protocol import ENGINE, completion_body, error_of_response, metrics_of
from adapters.llamacpp.stream import read_completion
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


class LlamaCppAdapter(EngineServer):
    """Owns one engine process: one model, one device mask (ORCH-3001). See `EngineAdapter` for the methods."""

    ENGINE = ENGINE

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(replace(spec, slots=slots_of(spec)))
        self._empty_prompt: list[int] | None = None
        self._pair_extra = 0
        self._contexts: Path | None = None
        self._token_bytes = 0

    # ------------------------------------------------------------------ process

    async def memory_need(self) -> MemoryNeed:
        if self._spec.endpoint:
            return ATTACHED_NEED
        self._spec = await with_model(self._spec)
        return replace(await asyncio.to_thread(memory_need, self._spec), slots_max=self._spec.slots)

    async def _prepare(self, spec: EngineSpec) -> Launch:
        self._spec = spec = await with_binary(await with_model(spec))
        await check_gpus(spec)
        pooling = await asyncio.to_thread(default_pooling, Path(spec.model_path))
        # Only this user can enter the folder, so only this user can reach the engine.
        folder = private_folder()
        self._contexts = await self._make_contexts_folder(folder) if is_batch_invariant(spec) else None
        api_key = secrets.token_urlsafe(32)
        return Launch(
            address=Address(socket_path=str(folder / SOCKET_NAME)),
            argv=(spec.binary, *server_arguments(spec, folder / SOCKET_NAME, pooling, self._contexts)),
            env=server_environment(spec, api_key),
            headers={"Authorization": f"Bearer {api_key}"},
            secrets=(api_key,),
            folder=folder,
        )

    async def _make_contexts_folder(self, folder: Path) -> Path:
        """Where sessions' contexts go when they leave their slots: for this user alone, removed with the engine."""
        self._token_bytes = await asyncio.to_thread(self._kv_token_bytes)
        contexts = folder / "slots"
        contexts.mkdir(mode=0o700)
        return contexts

    def _kv_token_bytes(self) -> int:
        return kv_token_bytes(Path(self._spec.model_path), *cache_types(self._spec.args))

    async def _is_ready(self, client: EngineClient) -> bool:
        return await client.health("/health")

    def _refusal(self, status: int, body: bytes) -> EngineError:
        return error_of_response(status, body)

    def _new_attempts(self, client: EngineClient) -> SlotAttempts | ComputeAttempts:
        self._empty_prompt = None
        if self._spec.workload != "completion":
            return ComputeAttempts(client, self._alive, self._spec.slots)
        return SlotAttempts(client, self._alive, self._spec.slots, self._contexts, self._token_bytes)

    async def _look_around(self, client: EngineClient) -> None:
        """Learn what an attached server is, and how many tokens the engine puts around a query and a document."""
        if self._spec.endpoint:
            await self._check_attached(client)
        if self._spec.workload == "rerank":
            told = [len(await calls.tokenize(client, text, add_special=False)) for text in PAIR]
            self._pair_extra = await pair_tokens(client) - sum(told)

    async def _check_attached(self, client: EngineClient) -> None:
        """It runs the model of the pool, and no more is sent to it than it has slots: it takes any slot's number."""
        self._spec = await with_model(self._spec)
        props = await calls.props(client)
        theirs, ours = Path(props.model_path).name, Path(self._spec.model_path).name
        if theirs and theirs != ours:
            reason = f"{self._spec.endpoint} serves {theirs!r}, and the pool's `model_path` is {ours!r}"
            raise model_error(self._spec, reason, "correct one of them")
        self._spec = replace(self._spec, slots=min(self._spec.slots, props.total_slots))
        self._attempts = self._new_attempts(client)

    # --------------------------------------------------------------- properties

    async def properties(self) -> EngineProperties:
        """See `EngineAdapter` (ORCH-3032, OC-ADAPT-5011).

        Each slot has a context of its own, so no cache size is told. That a cached prompt gives the same bits as
        a computed one is known of the CPU build with our flags alone: elsewhere the cache is not claimed.
        """
        client, _ = self._running()
        props = await calls.props(client)
        model = Path(self._spec.model_path)
        return EngineProperties(
            engine_version=f"llama.cpp {props.build_info}",
            model_digest=await self._digest(model),
            slots=min(props.total_slots, self._spec.slots),
            ctx=props.default_generation_settings.n_ctx,
            interruptible_decode=self._spec.workload == "completion",
            kv_token_bytes=await asyncio.to_thread(self._kv_token_bytes),
            keeps_kv=is_batch_invariant(self._spec),
            exact=keeps_bytes(self._spec),
        )

    async def _digest(self, model: Path) -> str:
        try:
            return await asyncio.to_thread(model_digest, model)
        except (OSError, ValueError) as error:
            reason = f"the digest of {str(model)!r} cannot be told"
            raise model_error(self._spec, reason, "give the path of the file that the engine runs") from error

    async def metrics(self) -> EngineMetrics:
        client, _ = self._running()
        return metrics_of(await calls.metrics(client), await calls.slots(client))

    async def count_tokens(self, request: GenerateRequest) -> int:
        client, _ = self._running()
        if request.inputs is not None:
            return await self._count_inputs(client, request)
        prompt = await self._prompt(client, request)
        return len(prompt if isinstance(prompt, list) else await calls.tokenize(client, prompt))

    async def _count_inputs(self, client: EngineClient, request: GenerateRequest) -> int:
        self._check_workload(request)
        alone = self._spec.workload == "embedding"
        total = 0
        for text in request.inputs or ():
            total += len(await calls.tokenize(client, text, add_special=alone))
        if not alone:
            query = len(await calls.tokenize(client, request.prompt or "", add_special=False))
            total += len(request.inputs or ()) * (query + self._pair_extra)
        return total

    # --------------------------------------------------------------- generation

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        """See `EngineAdapter`. A stream that was canceled through `cancel` just ends, without a `Finish`.

        Raises EngineError: REPLICA_EXHAUSTED when all slots are taken, WORKER_RESET when the engine breaks off.
        """
        client, attempts = self._running()
        attempt = attempts.begin(attempt_key)
        try:
            self._check_workload(request)
            if request.workload != "completion":
                async for item in compute(attempt, client, request):
                    if type(item) is Finish:
                        attempts.end(attempt)
                    yield item
                return
            prompt = await attempt.run(self._prompt(client, request))
            if prompt is None:
                return
            assert isinstance(attempts, SlotAttempts)
            turn = attempts.take_slot(attempt, request, prompt)
            known = await attempts.prepare_slot(attempt, turn)
            if known is None:
                return
            body = completion_body(request, prompt, turn.slot, slot_known=known and may_reuse(self._spec))
            response = await attempt.run(attempt.keep(client.open("/completion", body)))
            if response is None or attempt.canceled:
                return
            async for item in read_completion(attempt, response, turn):
                if type(item) is Finish:
                    attempts.end(attempt)
                yield item
        finally:
            attempts.end(attempt)

    async def _prompt(self, client: EngineClient, request: GenerateRequest) -> str | list[int]:
        """The prompt as the engine gets it; an empty one becomes the model's start token."""
        self._check_workload(request)
        prompt = request.prompt or ""
        if request.messages is not None:
            prompt = await calls.apply_template(client, [msgspec.to_builtins(message) for message in request.messages])
        if prompt:
            return prompt
        if self._empty_prompt is None:
            self._empty_prompt = await self._start_tokens(client)
        return self._empty_prompt

    def _check_workload(self, request: GenerateRequest) -> None:
        served = self._spec.workload
        if request.workload != served or (request.inputs is None) != (served == "completion"):
            message = f"this pool serves {served}, not {request.workload}"
            raise engine_error("INVALID_PARAMS", message, engine=ENGINE, retriable=False)

    async def _start_tokens(self, client: EngineClient) -> list[int]:
        """What stands for nothing: the engine answers an empty prompt with an empty stream."""
        tokens = await calls.tokenize(client, "")
        if not tokens:
            props = await calls.props(client)
            tokens = await calls.tokenize(client, props.bos_token or props.eos_token, add_special=False)
        if not tokens:
            raise engine_error(
                "INVALID_PARAMS", "this model has no token to start from; give a prompt", engine=ENGINE, retriable=False
            )
        return tokens
