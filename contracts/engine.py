"""The protocol behind which every engine looks the same (ORCH-3045, ORCH-3058, OC-ADAPT-5001).

An adapter owns one engine: a process that it launched, or one that runs already and that it attached to.
`generate` yields text as the engine makes it and ends with exactly one `Finish`, or raises `EngineError`;
a stream that just stops is an error, never an end.
"""

from collections.abc import AsyncIterator, Callable
from typing import Literal, Protocol

from msgspec import Struct

from contracts.api import Determinism, Message, Sampling, Workload
from contracts.errors import ErrorInfo
from contracts.gpus import MemoryNeed
from contracts.pools import FaultKind


class GenerateRequest(Struct, frozen=True, omit_defaults=True):
    """What an engine needs of a task. Encoded as msgpack it is the payload beside `TaskInfo`.

    A completion has `prompt` or `messages`; an embedding has `inputs`; a rerank has its query in `prompt` and
    its documents in `inputs`. `session_id` is unique across tenants; tasks of one session go on where it ended.
    """

    task_id: str
    max_tokens: int
    seed: int
    workload: str = "completion"
    sampler_profile_version: str = "v1"
    prompt: str | None = None
    messages: list[Message] | None = None
    inputs: list[str] | None = None
    sampling: Sampling | None = None
    kv_hint: str | None = None
    session_id: str = ""


class Chunk(Struct, frozen=True, gc=False):
    """Text that the engine made. `tokens` counts the engine tokens it completes (at least 1).

    An embedding or a rerank yields one chunk of one token per input, in the order of the inputs, whose text is JSON:
    the numbers of the embedding as an array, or the document's `{"index": int, "score": float}`.
    """

    text: str
    tokens: int = 1


class Finish(Struct, frozen=True, gc=False):
    """The end of a generation. `tokens_in` counts the prompt, `tokens_cached` what of it was reused."""

    finish_reason: Literal["stop", "length"]
    tokens_in: int
    tokens_cached: int = 0
    stop_sequence: str | None = None


class EngineSpec(Struct, frozen=True):
    """What to run: one engine, one model, one device mask.

    `binary` and `model_path` are resolved file paths; `args` are extra command-line arguments.
    `model_digest` (`sha256:<hex>`, empty: any) is what the model's file must have. `zone` is where the replica
    stands. `devices` is the mask as GPU indices of the node, `gpu_uuids` the same GPUs as the engine must see
    them, and `tensor_split` the share of the model that each takes (ORCH-3012). `command_prefix` goes before
    the engine's own command line (an absolute path first), to bind it to a NUMA node, where `numa` allows it.

    `endpoint` is where an engine runs already (`http://host:port`, or `unix:` and a path); it is then attached to and
    never started or ended, with the key that the variable `api_key_env` holds. `env` is added to the environment of
    one that is launched. `determinism` is what the pool promises: `strict` keeps as many tasks in flight as the
    engine can run without one changing the tokens of another. `batch_invariant` says, where the adapter cannot know
    it, that this engine on this hardware was shown to have that property with all its slots in use.
    """

    engine: str
    pool_id: str
    replica_id: str
    model: str
    model_path: str
    ctx: int
    slots: int
    accelerator: Literal["gpu", "cpu-dev"]
    sampler_profile_version: str = "v1"
    binary: str = ""
    args: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    ready_timeout_ms: int = 120_000
    zone: str = ""
    model_digest: str = ""
    gpu_uuids: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()
    command_prefix: tuple[str, ...] = ()
    incarnation: int = 0
    model_ref: str = ""
    numa: bool = True
    workload: Workload = "completion"
    determinism: Determinism = "strict"
    batch_invariant: bool | None = None
    endpoint: str = ""
    api_key_env: str = ""
    env: tuple[tuple[str, str], ...] = ()


class EngineProperties(Struct, frozen=True):
    """What the running engine says of itself (ORCH-3032). `model_digest` is `sha256:<hex>` of the file.

    `interruptible_decode`: a stop frees the slot amid decoding (ORCH-3086). `kv_tokens` is the size of a
    KV cache that all slots share (0: each slot has a `ctx` of its own) and `kv_token_bytes` what a token
    takes in it (0: not known). `keeps_kv`: a prompt that goes on where an earlier one ended is not
    computed anew, with the same result as if it were (ORCH-3009, ORCH-3045).
    """

    engine_version: str
    model_digest: str
    slots: int
    ctx: int
    interruptible_decode: bool = False
    kv_tokens: int = 0
    kv_token_bytes: int = 0
    keeps_kv: bool = False
    exact: bool = False


class EngineMetrics(Struct, frozen=True):
    """A scrape of the engine's own metrics mapped to the contract; None where it does not say."""

    requests_processing: int | None = None
    requests_waiting: int | None = None
    kv_cache_usage_ratio: float | None = None
    tokens_in_total: int | None = None
    tokens_out_total: int | None = None


class EngineExit(Struct, frozen=True):
    """How an engine process ended: exit status (negative: signal), its last stderr lines, and what that means."""

    status: int
    stderr_tail: tuple[str, ...] = ()
    kind: FaultKind = "exit"


class EngineError(Exception):
    """An engine refused or failed; `info` is what a client may see.

    `kind` says what to make of it when it comes from bringing the engine up, `stderr_tail` what the engine said last.
    """

    def __init__(self, info: ErrorInfo, kind: FaultKind = "launch", stderr_tail: tuple[str, ...] = ()) -> None:
        super().__init__(f"{info.code}: {info.message}")
        self.info = info
        self.kind = kind
        self.stderr_tail = stderr_tail


class EngineAdapter(Protocol):
    """One engine process behind the protocol. Methods are coroutines of one event loop."""

    async def memory_need(self) -> MemoryNeed:
        """What the engine will take, reckoned from the model's file and the spec before anything is launched.

        Raises EngineError (POOL_UNREADY, kind `model`) for a model that is missing, unreadable or another one.
        """

    async def launch(self) -> None:
        """Start the process, or attach to the one that runs, and return when it answers its health check.

        Raises EngineError (POOL_UNREADY) when it exits or stays silent past `ready_timeout_ms`.
        """

    async def wait_exit(self) -> EngineExit:
        """Return when the engine process has ended, however it ended, or an attached one no longer answers."""

    async def healthy(self) -> bool:
        """Whether the engine answers its health check now."""

    async def properties(self) -> EngineProperties:
        """Version, digest and limits as the engine itself reports them."""

    async def count_tokens(self, request: GenerateRequest) -> int:
        """Prompt length in engine tokens, template and special tokens included; of all inputs, where there are.

        Raises EngineError (INVALID_PARAMS) where the engine has no way to tell.
        """

    def generate(self, attempt_key: str, request: GenerateRequest) -> AsyncIterator[Chunk | Finish]:
        """Run one attempt. Closing the iterator (or `cancel`) stops the engine's work on it."""

    async def cancel(self, attempt_key: str) -> None:
        """Stop an attempt and return when the engine has let go of its slot. Unknown keys are fine."""

    async def metrics(self) -> EngineMetrics:
        """Scrape the engine's metrics."""

    async def close(self) -> None:
        """End the process: SIGTERM, then SIGKILL after a bounded wait; let go of an attached one. Safe to repeat."""


AdapterFactory = Callable[[EngineSpec], EngineAdapter]
