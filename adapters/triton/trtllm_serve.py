"""`--llorch-mode=trtllm-serve`, in beta: TensorRT-LLM's own OpenAI-compatible server instead of Triton (ORCH-3057).

Not verified against a real server: it needs a GPU that none of the tests has. Written from its sources (the field
names of `openai_protocol.py`, which refuses any other) and tested against a scripted peer. Its completions are those
of vLLM's server, of which it is an offspring, so that adapter's reading of them is used.

It takes no key and listens on the loopback only, where other users of the machine can reach it too. It has no way to
count tokens, and its metrics are no Prometheus page: none are mapped. Nor does it tell when it has let go of a
request, so it is called exact only where the pool declares it (`batch_invariant`). `engine_options.binary` is the
program; by default the `trtllm-serve` on the path.
"""

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from adapters.answers import UNREADABLE
from adapters.attempts import CANCEL_WAIT_MS, Attempt, Attempts
from adapters.engine_server import ATTACHED_NEED, EngineServer, Launch
from adapters.errors import engine_error
from adapters.exactness import in_flight, is_invariant
from adapters.exchange import Address
from adapters.gpus import gpu_count
from adapters.http_client import EngineClient
from adapters.ports import free_ports
from adapters.tgi.command import HOST
from adapters.triton.options import read_options
from adapters.triton.protocol import ENGINE
from adapters.vllm import calls, protocol
from adapters.vllm.memory import memory_need
from adapters.vllm.model import model_digest
from adapters.vllm.stream import read_completion
from contracts.engine import Chunk, EngineError, EngineMetrics, EngineProperties, EngineSpec, Finish, GenerateRequest
from contracts.gpus import MemoryNeed

PROGRAM: Final = "trtllm-serve"
#: What of a request to vLLM this server does not know, and refuses.
_UNKNOWN: Final = ("request_id", "cache_salt", "bad_words")


class _Refusal(Struct, frozen=True):
    message: str


_decode_refusal: Final = msgspec.json.Decoder(_Refusal).decode


class TrtllmServeAdapter(EngineServer):
    """Beta, and unverified: one `trtllm-serve`, launched or attached to. See `EngineAdapter` for the methods."""

    ENGINE = ENGINE

    def __init__(self, spec: EngineSpec) -> None:
        args = read_options(spec).args
        super().__init__(replace(spec, args=args, slots=in_flight(spec, known=False)))
        if spec.workload != "completion":
            raise _invalid(f"pool {spec.pool_id}: {PROGRAM} serves completions only here; use another engine")

    # ------------------------------------------------------------------ process

    async def memory_need(self) -> MemoryNeed:
        if self._spec.endpoint:
            return replace(ATTACHED_NEED, slots_max=self._spec.slots)
        return await asyncio.to_thread(memory_need, self._spec)

    async def _prepare(self, spec: EngineSpec) -> Launch:
        binary = spec.binary or shutil.which(PROGRAM)
        if not binary or not os.path.isfile(binary):
            message = f"there is no {PROGRAM}; install TensorRT-LLM, or let `engine_options.binary` name the program"
            raise self._unready(message)
        (port,) = free_ports(1)
        return Launch(
            address=Address(host=HOST, port=port),
            argv=(os.path.abspath(binary), *server_arguments(spec, port)),
            env=server_environment(spec),
            tree=True,
        )

    async def _is_ready(self, client: EngineClient) -> bool:
        return await client.health("/health")

    async def _look_around(self, client: EngineClient) -> None:
        """Have it compute once: it may be healthy until it is used."""
        try:
            await calls.compute_one(client, self._spec.model, "completion")
        except EngineError as error:
            message = f"the engine answers its health check and cannot compute: {error.info.message}"
            raise self._unready(message, error.kind) from error

    def _refusal(self, status: int, body: bytes) -> EngineError:
        try:
            told = protocol.WireError(message=_decode_refusal(body).message)
        except UNREADABLE:
            return _ours(protocol.error_of_response(status, body))
        return _ours(protocol.error_of(told, status))

    def _new_attempts(self, client: EngineClient) -> Attempts:
        async def has_let_go(attempt: Attempt) -> bool:
            """Whether it computes for others: it tells nothing of its requests."""
            del attempt
            await calls.compute_one(client, self._spec.model, "completion", timeout_s=CANCEL_WAIT_MS / 1000)
            return True

        return Attempts(ENGINE, self._spec.slots, self._alive, has_let_go)

    # --------------------------------------------------------------- properties

    async def properties(self) -> EngineProperties:
        """See `EngineAdapter`. The digest of an attached server's model is that of its name."""
        client, _ = self._running()
        spec = self._spec
        try:
            version = await calls.version(client)
        except EngineError as error:
            raise _ours(error) from error
        if spec.endpoint:
            digest = spec.model_digest or f"sha256:{hashlib.sha256(spec.model.encode()).hexdigest()}"
        else:
            digest = await asyncio.to_thread(model_digest, spec)
        return EngineProperties(
            engine_version=f"{PROGRAM} {version}",
            model_digest=digest,
            slots=spec.slots,
            ctx=spec.ctx,
            exact=is_invariant(spec, known=False),
        )

    async def metrics(self) -> EngineMetrics:
        self._running()
        return EngineMetrics()

    async def count_tokens(self, request: GenerateRequest) -> int:
        del request
        raise _invalid(f"{PROGRAM} cannot count tokens")

    # --------------------------------------------------------------- completion

    async def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        """See `EngineAdapter`. A stream that was canceled through `cancel` just ends, without a `Finish`."""
        client, attempts = self._running()
        body = completion_body(self._spec, attempt_key, request)
        attempt = attempts.begin(attempt_key)
        try:
            response = await attempt.run(attempt.keep(client.open("/v1/completions", body)))
            if response is None or attempt.canceled:
                return
            async for item in read_completion(attempt, response):
                if type(item) is Finish:
                    attempts.end(attempt)
                yield item
        except EngineError as error:
            raise _ours(error) from error
        finally:
            attempts.end(attempt)


def completion_body(spec: EngineSpec, attempt_key: str, request: GenerateRequest) -> dict[str, Any]:
    """Body of `POST /v1/completions`. Raises EngineError (INVALID_PARAMS) for what cannot be asked."""
    if request.workload != "completion":
        raise _invalid(f"this pool serves completions, not {request.workload}")
    if not request.prompt:
        raise _invalid(f"{PROGRAM} needs a `prompt` that is not empty, with the chat template applied")
    body = protocol.completion_body(spec, attempt_key, request, request.prompt)
    return {name: value for name, value in body.items() if name not in _UNKNOWN}


def server_arguments(spec: EngineSpec, port: int) -> list[str]:
    """The command line behind the binary (OC-ADAPT-5002)."""
    return [
        *("serve", spec.model_path, "--host", HOST, "--port", str(port)),
        *("--max_batch_size", str(spec.slots), "--max_seq_len", str(spec.ctx)),
        *("--tp_size", str(max(gpu_count(spec), 1))),
        *spec.args,
    ]


def server_environment(spec: EngineSpec) -> dict[str, str]:
    """The environment: exactly the devices of the mask (ORCH-3011), and nothing of this process's Python."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if spec.accelerator == "cpu-dev":
        env["CUDA_VISIBLE_DEVICES"] = ""
    elif spec.gpu_uuids or spec.devices:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpu_uuids or spec.devices)
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return env


def _ours(error: EngineError) -> EngineError:
    """The same error under this engine's name."""
    return EngineError(replace(error.info, engine=ENGINE), error.kind, error.stderr_tail)


def _invalid(message: str) -> EngineError:
    return engine_error("INVALID_PARAMS", message, engine=ENGINE, retriable=False)
