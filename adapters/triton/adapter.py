"""The Triton adapter: one `tritonserver` behind the engine protocol (OC-ADAPT-5060, ORCH-3057, ORCH-3058)."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator

import msgspec

from adapters.attempts import Attempt, Attempts
from adapters.errors import engine_error
from adapters.exactness import in_flight, is_exact_as_launched, is_invariant
from adapters.http_client import EngineClient
from adapters.triton import calls, repository
from adapters.triton.completion import open_responses, read_text
from adapters.triton.embedding import embed
from adapters.triton.inputs import completion_inputs, stop_strings
from adapters.triton.protocol import ENGINE, ModelConfig, active_requests, is_dead, metrics_of
from adapters.triton.server import TritonServer
from adapters.triton.text import Text
from contracts.engine import Chunk, EngineError, EngineMetrics, EngineProperties, EngineSpec, Finish, GenerateRequest


class TritonAdapter(TritonServer):
    """Owns one server that serves one model. See `EngineAdapter` for the methods, `options` for its arguments."""

    # --------------------------------------------------------------- properties

    async def properties(self) -> EngineProperties:
        """See `EngineAdapter` (ORCH-3032, OC-ADAPT-5070)."""
        client, _ = self._running()
        server = await calls.metadata(client)
        trtllm = repository.trtllm_version(self._config)
        ctx = self._config.parameter("max_seq_len")
        known = self._config.batch_invariant
        tells_release = active_requests(await self._samples()) is not None
        return EngineProperties(
            engine_version=f"triton {server.version}" + (f" tensorrt_llm {trtllm}" if trtllm else ""),
            model_digest=await self._digest(),
            slots=in_flight(self._spec, known=known),
            ctx=int(ctx) if ctx.isdecimal() else self._spec.ctx,
            interruptible_decode=tells_release,
            exact=is_shown_exact(self._spec, self._config, tells_release=tells_release),
        )

    async def _digest(self) -> str:
        if not self._spec.endpoint:
            return await asyncio.to_thread(
                repository.repository_digest, self._spec, repository.repository_of(self._spec)
            )
        # The files of an attached server are out of sight: its configuration stands for them.
        return self._spec.model_digest or f"sha256:{hashlib.sha256(msgspec.json.encode(self._config)).hexdigest()}"

    async def metrics(self) -> EngineMetrics:
        _, attempts = self._running()
        return metrics_of(await self._samples(), attempts.live)

    async def count_tokens(self, request: GenerateRequest) -> int:
        """See `EngineAdapter`: by the repository's `preprocessing` model, where it has one."""
        client, _ = self._running()
        counter = self._counter
        if counter is None:
            message = (
                f"the engine {ENGINE} cannot count tokens: its repository has no model `{repository.PREPROCESSING}`"
            )
            raise engine_error("INVALID_PARAMS", message, engine=ENGINE, retriable=False)
        texts = request.inputs or [str(completion_inputs(self._config, request)["text_input"])]
        return sum([await calls.prompt_length(client, counter, text) for text in texts])

    # --------------------------------------------------------------- completion

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        """See `EngineAdapter`. A stream that was canceled through `cancel` just ends, without a `Finish`."""
        client, attempts = self._running()
        if request.workload != self._spec.workload:
            message = f"this pool serves {self._spec.workload}, not {request.workload}"
            raise engine_error("INVALID_PARAMS", message, engine=ENGINE, retriable=False)
        attempt = attempts.begin(attempt_key)
        try:
            embeds = self._spec.workload == "embedding"
            items = self._vectors(client, attempt, request) if embeds else self._text(client, attempt, request)
            async for item in items:
                if type(item) is Finish:
                    await self._let_go(attempts, attempt)
                yield item
        except EngineError as error:
            self._dead = self._dead or is_dead(error.info.message)
            raise
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

    def _vectors(
        self, client: EngineClient, attempt: Attempt, request: GenerateRequest
    ) -> AsyncIterator[Chunk | Finish]:
        return embed(client, self._config, attempt, self._computing, request)

    async def _text(
        self, client: EngineClient, attempt: Attempt, request: GenerateRequest
    ) -> AsyncIterator[Chunk | Finish]:
        inputs = completion_inputs(self._config, request)
        tokens_in: int | None = 0
        if self._counter is not None and not self._config.has_output("num_input_tokens"):
            tokens_in = await attempt.run(calls.prompt_length(client, self._counter, str(inputs["text_input"])))
        if tokens_in is None:
            return
        responses = await open_responses(attempt, self._grpc or client, self._config, inputs)
        if responses is None or attempt.canceled:
            return
        text = Text(
            max_tokens=request.max_tokens,
            stops=stop_strings(request),
            tells_reason=self._config.has_output("finish_reason"),
            tokens_in=tokens_in,
        )
        async for item in read_text(attempt, responses, text):
            yield item


def is_shown_exact(spec: EngineSpec, config: ModelConfig, *, tells_release: bool) -> bool:
    """Whether equal tasks give equal tokens (ORCH-3045).

    One at a time is one at a time only where it is known when the engine has let go of the last one.
    """
    known = config.batch_invariant
    return is_invariant(spec, known=known) or (tells_release and is_exact_as_launched(spec, known=known))
