"""Tasks, replicas and outcomes: the nouns that events and commands are about."""

from typing import Final, Literal

from msgspec import Struct

from contracts.errors import ErrorInfo

#: What the results of one embedding or rerank may take as text, all inputs together: they are held in memory whole,
#: by the replica, the scheduler and the ingress, and travel in one message.
RESULT_BYTES_MAX: Final = 16 * 1024 * 1024


class TaskInfo(Struct, frozen=True, gc=False):
    """All the scheduler knows of a task. The prompt itself travels beside it as an opaque payload.

    `prompt_bytes` is the UTF-8 length of the text the engine will see; a byte-level vocabulary
    never makes more tokens than that, so it bounds the prompt without a tokenizer.
    `templated` prompts (chat messages) grow by their template and are always measured.
    `body_digest` identifies the request body for idempotency (same id, same digest: same task).
    `client` names the API key that sent it. `determinism` is empty where the request leaves it to the set.

    An embedding or a rerank has `items` inputs, of which the longest takes `longest_input_bytes` with the query
    that it is ranked for; `prompt_bytes` sums up what the engine will see of all of them.
    """

    task_id: str
    session_id: str
    tenant: str
    workload: str
    engine: str
    model_ref: str
    ctx: int
    priority: str
    max_tokens: int
    deadline_ms: int
    seed: int
    determinism: str
    sampler_profile_version: str
    prompt_bytes: int
    templated: bool
    body_digest: bytes
    correlation_id: str = ""
    expected_tokens: int | None = None
    kv_hint: str | None = None
    cancel_on_disconnect: bool = False
    labels: dict[str, str] | None = None
    client: str = ""
    items: int = 1
    longest_input_bytes: int = 0

    @property
    def decodes(self) -> bool:
        """Whether tokens are generated: only a completion's are; the others end with their prompt."""
        return self.workload == "completion"

    @property
    def output_max_tokens(self) -> int:
        """Most tokens that may be generated."""
        return self.max_tokens if self.decodes else 0


class ReplicaInfo(Struct, frozen=True):
    """One replica: one engine process on one device mask (ORCH-3001).

    `token_ns` is the time per token that its self-test measured, of decoding or, where nothing is decoded, of the
    input; the predictor starts from it until tasks have been served. `kv_tokens` is how many tokens its KV cache
    holds (0: each slot has its own `ctx`), `kv_token_bytes` the size of one. `keeps_kv` engines find the KV of a
    session's last turn again. `distance` ranks replicas by topology, near ones first (ORCH-3013). `gpu_uuids` are
    the GPUs it really runs on: no two replicas may have one in common. `exact`: equal tasks give equal bytes on it.
    `result_bytes` is what its self-test's embedding took as text (0: it made none).
    """

    replica_id: str
    pool_id: str
    engine: str
    engine_version: str
    model_digest: str
    ctx: int
    slots: int
    sampler_profile_version: str
    accelerator: str
    node_id: str
    devices: tuple[str, ...] = ()
    token_ns: int = 0
    interruptible_decode: bool = False
    zone: str = ""
    kv_tokens: int = 0
    kv_token_bytes: int = 0
    keeps_kv: bool = False
    distance: int = 0
    gpu_uuids: tuple[str, ...] = ()
    exact: bool = True
    result_bytes: int = 0


class Budgets(Struct, frozen=True, omit_defaults=True):
    """What is left of a session's budgets; None: no bound (ORCH-3099)."""

    tokens: int | None = None
    time_ms: int | None = None
    cost_micros: int | None = None


class Outcome(Struct, frozen=True, omit_defaults=True):
    """The one terminal outcome of a task."""

    state: Literal["finished", "failed", "canceled", "dropped"]
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    first_token_ms: int | None = None
    decode_ms: int = 0
    finish_reason: Literal["stop", "length", "canceled"] | None = None
    stop_sequence: str | None = None
    error: ErrorInfo | None = None
