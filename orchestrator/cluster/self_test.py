"""What an engine must show before its replica is Ready: results, a cancel, and its metrics (ORCH-3049)."""

import asyncio
import contextlib
import time
from typing import Any, Final, NamedTuple

import msgspec

from contracts.api import Rank, Workload
from contracts.engine import Chunk, EngineAdapter, EngineError, EngineSpec, Finish, GenerateRequest
from contracts.errors import ErrorInfo

TIMEOUT_S: Final = 60.0
#: About as many tokens: enough for what each of them takes to show beside what any task takes.
LONG_WORDS: Final = 256
BYTES_PER_TOKEN_GUESS: Final = 4
_INPUTS: Final = ["The capital of France is Paris.", "Queues are fair when nobody starves."]
#: The first task of each workload is run to its end, the second is canceled after what comes first of it.
TASKS: Final[dict[Workload, tuple[GenerateRequest, GenerateRequest]]] = {
    "completion": (
        GenerateRequest(task_id="self-test", max_tokens=8, seed=1, prompt="The capital of France is"),
        GenerateRequest(task_id="self-test-cancel", max_tokens=64, seed=1, prompt="Once upon a time"),
    ),
    "embedding": (
        GenerateRequest(task_id="self-test", max_tokens=1, seed=1, workload="embedding", inputs=_INPUTS),
        GenerateRequest(task_id="self-test-cancel", max_tokens=1, seed=1, workload="embedding", inputs=_INPUTS * 4),
    ),
    "rerank": (
        GenerateRequest(task_id="self-test", max_tokens=1, seed=1, workload="rerank", prompt="France", inputs=_INPUTS),
        GenerateRequest(
            task_id="self-test-cancel", max_tokens=1, seed=1, workload="rerank", prompt="France", inputs=_INPUTS * 4
        ),
    ),
}
_RESULTS: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    "embedding": msgspec.json.Decoder(list[float]),
    "rerank": msgspec.json.Decoder(Rank),
}


class Shown(NamedTuple):
    """What the self-test found: time per token (`ReplicaInfo.token_ns`) and the size of an embedding as text."""

    token_ns: int
    result_bytes: int = 0


class _Computed(NamedTuple):
    """How long some inputs took, how many tokens they have, and how long the first result is."""

    took_ns: int
    tokens: int
    result_bytes: int


async def self_test(adapter: EngineAdapter, spec: EngineSpec) -> Shown:
    """Readiness is generated tokens or numbers, not a health page. Raises EngineError (POOL_UNREADY)."""
    whole, canceled = TASKS[spec.workload]
    try:
        async with asyncio.timeout(TIMEOUT_S):
            shown = await (_decode if spec.workload == "completion" else _compute)(adapter, spec, whole)
            await _cancel(adapter, spec, canceled)
            await _metrics(adapter, spec)
    except TimeoutError:
        raise _failed(spec, f"did not end within {TIMEOUT_S:.0f} s") from None
    return shown


async def _decode(adapter: EngineAdapter, spec: EngineSpec, request: GenerateRequest) -> Shown:
    times_ns, finished = [], False
    async for item in adapter.generate("self-test", request):
        if isinstance(item, Finish):
            finished = True
        else:
            times_ns.append(time.monotonic_ns())
    if not times_ns or not finished:
        raise _failed(spec, f"generated {len(times_ns)} pieces of text and {'an' if finished else 'no'} end")
    return Shown(max(1, (times_ns[-1] - times_ns[0]) // max(1, len(times_ns) - 1)))


async def _compute(adapter: EngineAdapter, spec: EngineSpec, request: GenerateRequest) -> Shown:
    """Results of few and of many tokens, and the time that each token more took."""
    short = await _results(adapter, spec, request)
    # No vocabulary makes more tokens than bytes, and a template may take the other half of the context.
    words = max(1, min(LONG_WORDS, spec.ctx // 2 // len("word ")))
    longer = await _results(adapter, spec, msgspec.structs.replace(request, inputs=[" ".join(["word"] * words)]))
    more_tokens = longer.tokens - short.tokens
    # Where the short ones took longer, as a first task may, there is no slope: the mean has to do.
    token_ns = (longer.took_ns - short.took_ns) // more_tokens if more_tokens > 0 else 0
    if token_ns <= 0:
        token_ns = longer.took_ns // longer.tokens
    return Shown(max(1, token_ns), short.result_bytes if spec.workload == "embedding" else 0)


async def _results(adapter: EngineAdapter, spec: EngineSpec, request: GenerateRequest) -> "_Computed":
    """One result for each input, their tokens (about, where the engine does not count) and their time."""
    inputs = request.inputs or []
    began_ns, results, finish = time.monotonic_ns(), list[str](), None
    async for item in adapter.generate("self-test", request):
        if isinstance(item, Chunk):
            results.append(item.text)
        else:
            finish = item
    took_ns = time.monotonic_ns() - began_ns
    if len(results) != len(inputs) or finish is None:
        raise _failed(spec, f"gave {len(results)} results for {len(inputs)} inputs and {'an' if finish else 'no'} end")
    try:
        decoded = [_RESULTS[spec.workload].decode(result) for result in results]
    except msgspec.DecodeError as error:
        raise _failed(spec, f"gave a result that is no {spec.workload}: {error}") from None
    if not all(decoded):
        raise _failed(spec, "gave an embedding without numbers")
    tokens = finish.tokens_in or len("".join(inputs).encode()) // BYTES_PER_TOKEN_GUESS
    return _Computed(took_ns, max(1, tokens), len(results[0]))


async def _cancel(adapter: EngineAdapter, spec: EngineSpec, request: GenerateRequest) -> None:
    """The slot must be free when `cancel` returns; it raises EngineError when the engine does not let go of it."""
    async with contextlib.aclosing(adapter.generate("self-test-cancel", request)) as generated:  # type: ignore[type-var]
        async for _ in generated:
            break
        else:
            raise _failed(spec, "generated nothing to cancel")
        await adapter.cancel("self-test-cancel")


async def _metrics(adapter: EngineAdapter, spec: EngineSpec) -> None:
    metrics = await adapter.metrics()
    if metrics.requests_processing is None and metrics.tokens_out_total is None:
        raise _failed(spec, "found no metrics: the engine tells neither of requests nor of tokens")


def _failed(spec: EngineSpec, what: str) -> EngineError:
    info = ErrorInfo("POOL_UNREADY", f"the self-test {what}", engine=spec.engine, pool_id=spec.pool_id, retriable=True)
    return EngineError(info)
