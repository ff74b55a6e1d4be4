"""The vLLM adapter: one OpenAI-compatible vLLM server behind the engine protocol (OC-ADAPT-5001, ORCH-3058)."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from typing import Final

from msgspec.structs import replace

from adapters.attempts import CANCEL_WAIT_MS, Attempt, Attempts
from adapters.engine_server import ATTACHED_NEED, EngineServer, Launch
from adapters.errors import engine_error, model_error
from adapters.exactness import in_flight, is_exact_as_launched, is_invariant
from adapters.exchange import Address
from adapters.folder import SOCKET_NAME, private_folder, remove_folder
from adapters.http_client import EngineClient
from adapters.vllm import calls
from adapters.vllm.command import server_arguments, server_environment
from adapters.vllm.memory import kv_cache_bytes, memory_need
from adapters.vllm.model import kv_token_bytes, model_digest, read_config
from adapters.vllm.options import kv_value_bytes
from adapters.vllm.pooling import GROUP_INPUTS, pooled
from adapters.vllm.preflight import check_environment, check_gpus, is_batch_invariant, with_binary, with_model
from adapters.vllm.protocol import ENGINE, completion_body, error_of_response
from adapters.vllm.stream import read_completion
from contracts.engine import Chunk, EngineError, EngineMetrics, EngineProperties, EngineSpec, Finish, GenerateRequest
from contracts.gpus import MemoryNeed

_COUNTS_AT_ONCE: Final = 8


class VllmAdapter(EngineServer):
    """One vLLM server: one model, one device mask (ORCH-3001). See `EngineAdapter` for the methods.

    It gives equal texts for equal tasks only while each runs alone. A server that is attached to is not known to keep
    that, so it is called exact only where the pool declares it (`batch_invariant`).
    """

    ENGINE = ENGINE

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(replace(spec, slots=in_flight(spec, known=is_batch_invariant(spec))))
        self._ctx = spec.ctx

    # ------------------------------------------------------------------ process

    async def memory_need(self) -> MemoryNeed:
        if self._spec.endpoint:
            self._check_told_digest()
            return replace(ATTACHED_NEED, slots_max=self._spec.slots)
        self._spec = await with_model(self._spec)
        return await asyncio.to_thread(memory_need, self._spec)

    async def _prepare(self, spec: EngineSpec) -> Launch:
        check_environment(spec)
        self._spec = spec = await with_model(await with_binary(spec))
        cache_bytes = await asyncio.to_thread(kv_cache_bytes, spec)
        # Only this user can enter the folder, so only this user can reach the engine.
        folder = private_folder()
        try:
            await check_gpus(spec, folder)
        except BaseException:
            remove_folder(folder)
            raise
        api_key = secrets.token_urlsafe(32)
        return Launch(
            address=Address(socket_path=str(folder / SOCKET_NAME)),
            argv=(spec.binary, *server_arguments(spec, folder / SOCKET_NAME, cache_bytes)),
            env=server_environment(spec, folder, api_key),
            headers={"Authorization": f"Bearer {api_key}"},
            secrets=(api_key,),
            folder=folder,
            tree=True,
        )

    async def _is_ready(self, client: EngineClient) -> bool:
        return await client.health("/health")

    async def _look_around(self, client: EngineClient) -> None:
        """Have it compute once: there are faults with which an engine is healthy until it is used."""
        self._check_told_digest()
        served = await calls.served_model(client, self._spec.model)
        self._ctx = served.max_model_len or self._spec.ctx
        try:
            await calls.compute_one(client, self._spec.model, self._spec.workload)
        except EngineError as error:
            message = f"the engine answers its health check and cannot compute: {error.info.message}"
            raise self._unready(message, error.kind, self._child.stderr_tail if self._child else ()) from error

    def _check_told_digest(self) -> None:
        """Raises EngineError (POOL_UNREADY, kind `model`) for a digest that an attached server does not show."""
        spec = self._spec
        if spec.endpoint and spec.model_digest and spec.model_digest.lower() != _digest_of_name(spec):
            reason = f"whether {spec.endpoint} serves {spec.model_digest} cannot be checked: it tells a name only"
            raise model_error(spec, reason, "take out `model_digest`, or take out `endpoint` and give `model_path`")

    def _refusal(self, status: int, body: bytes) -> EngineError:
        return error_of_response(status, body)

    def _new_attempts(self, client: EngineClient) -> Attempts:
        async def has_let_go(attempt: Attempt) -> bool:
            """Whether the engine computes for others again.

            Its gauges do not show a request in its first long step. But it takes what it is told in order and
            between steps: once it has answered a request that came after the connection was closed, it has dropped
            what was on that connection, and where it runs one request at a time, it had to.
            """
            del attempt
            spec = self._spec
            await calls.compute_one(client, spec.model, spec.workload, timeout_s=CANCEL_WAIT_MS / 1000)
            return True

        return Attempts(ENGINE, self._spec.slots, self._alive, has_let_go)

    @property
    def _is_pooling(self) -> bool:
        return self._spec.workload != "completion"

    @property
    def _group_inputs(self) -> int:
        """How many inputs go at once. A launched server has as many rows in a batch as slots, one where that matters.

        An attached one may compute all that it gets in one batch.
        """
        spec = self._spec
        is_alone = spec.determinism == "strict" and not is_invariant(spec, known=is_batch_invariant(spec))
        return 1 if spec.endpoint and is_alone else GROUP_INPUTS

    # --------------------------------------------------------------- properties

    async def properties(self) -> EngineProperties:
        """See `EngineAdapter` (ORCH-3032, OC-ADAPT-5011).

        The digest is that of the model's folder. Of an attached server's model nothing but its name is known: there
        it is the digest of that. Its prefix cache is not claimed: what it holds rounds differently.
        """
        client, _ = self._running()
        spec = self._spec
        digest, token_bytes = _digest_of_name(spec), 0
        if not spec.endpoint:
            digest = await asyncio.to_thread(model_digest, spec)
            config = await asyncio.to_thread(read_config, spec)
            token_bytes = kv_token_bytes(config, kv_value_bytes(spec, config))
        return EngineProperties(
            engine_version=f"vllm {await calls.version(client)}",
            model_digest=digest,
            slots=spec.slots,
            ctx=self._ctx,
            interruptible_decode=True,
            kv_token_bytes=token_bytes,
            exact=is_exact_as_launched(spec, known=is_batch_invariant(spec)),
        )

    async def metrics(self) -> EngineMetrics:
        client, _ = self._running()
        return await calls.metrics(client)

    async def count_tokens(self, request: GenerateRequest) -> int:
        """See `EngineAdapter`. A rerank's query counts once, as the engine counts it for models that embed it."""
        client, _ = self._running()
        self._check(request)
        if not self._is_pooling:
            prompt = await self._prompt(client, request)
            return len(prompt if isinstance(prompt, list) else await calls.tokenize(client, self._spec.model, prompt))
        inputs = request.inputs or []
        total = len(await calls.tokenize(client, self._spec.model, request.prompt)) if request.prompt else 0
        for begin in range(0, len(inputs), _COUNTS_AT_ONCE):
            group = inputs[begin : begin + _COUNTS_AT_ONCE]
            counted = await asyncio.gather(*(calls.tokenize(client, self._spec.model, text) for text in group))
            total += sum(len(tokens) for tokens in counted)
        return total

    # --------------------------------------------------------------- completion

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        """See `EngineAdapter`. A stream that was canceled through `cancel` just ends, without a `Finish`.

        Where `max_tokens` would go beyond the context the engine stops there, with `length`. Raises EngineError:
        REPLICA_EXHAUSTED when all slots are taken, WORKER_RESET when the engine breaks off.
        """
        client, attempts = self._running()
        self._check(request)
        attempt = attempts.begin(attempt_key)
        try:
            if self._is_pooling:
                items = pooled(client, self._spec.model, attempt, request, self._group_inputs)
            else:
                items = self._completion(client, attempt, request)
            async for item in items:
                if type(item) is Finish:
                    attempts.end(attempt)
                yield item
        finally:
            attempts.end(attempt)

    async def _completion(
        self, client: EngineClient, attempt: Attempt, request: GenerateRequest
    ) -> AsyncIterator[Chunk | Finish]:
        prompt = await attempt.run(self._prompt(client, request))
        if prompt is None:
            return
        body = completion_body(self._spec, attempt.key, request, prompt)
        response = await attempt.run(attempt.keep(client.open("/v1/completions", body)))
        if response is None or attempt.canceled:
            return
        async for item in read_completion(attempt, response):
            yield item

    async def _prompt(self, client: EngineClient, request: GenerateRequest) -> str | list[int]:
        """The prompt as the engine gets it; an empty one, which it refuses, becomes the model's start token."""
        if request.messages is not None:
            return await calls.templated(client, self._spec.model, request.messages)
        if request.prompt:
            return request.prompt
        start = None if self._spec.endpoint else (await asyncio.to_thread(read_config, self._spec)).start_token
        if start is None:
            message = "this model has no token to start from; give a prompt"
            raise engine_error("INVALID_PARAMS", message, engine=ENGINE, retriable=False)
        return [start]

    def _check(self, request: GenerateRequest) -> None:
        if request.workload != self._spec.workload or (request.inputs is not None) != self._is_pooling:
            message = f"this pool serves {self._spec.workload}, not {request.workload}"
            raise engine_error("INVALID_PARAMS", message, engine=ENGINE, retriable=False)


def _digest_of_name(spec: EngineSpec) -> str:
    return f"sha256:{hashlib.sha256(spec.model.encode()).hexdigest()}"
