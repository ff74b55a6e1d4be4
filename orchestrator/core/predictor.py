"""What service will cost, from what service has cost (ORCH-3029).

All in integers. Two moving means are kept per replica set, of the slot time of a task and of its
output tokens; their quotient is the slot time per output token, in which long tasks weigh as much as
they last. Prompt processing is in it, because it takes slot time too.
"""

from typing import Final

from contracts.tasks import TaskInfo

#: A new sample moves a mean by a 1/8 of the difference.
WEIGHT: Final = 8
#: Fixed-point scale of the mean token count, so that small differences are not rounded away.
SCALE: Final = 1024
#: Decode time per token while neither a self-test nor a task has told it.
TOKEN_NS_GUESS: Final = 20_000_000
#: Time a replica takes to load while none has been seen loading.
LOAD_NS_GUESS: Final = 10_000_000_000


class Predictor:
    """Moving means of one replica set. Durations are `_ns`."""

    def __init__(self) -> None:
        self._self_test_ns = TOKEN_NS_GUESS
        self._slot_ns = 0
        self._tokens_scaled = 0
        self._load_ns = 0

    def self_tested(self, token_ns: int) -> None:
        """A replica measured its decode time per token; it counts until a task has been served."""
        if token_ns > 0:
            self._self_test_ns = token_ns

    def served(self, slot_ns: int, tokens_out: int) -> None:
        """A task finished: it held its slot for `slot_ns` and made `tokens_out` tokens."""
        tokens_scaled = max(1, tokens_out) * SCALE
        if self._tokens_scaled == 0:
            self._slot_ns, self._tokens_scaled = slot_ns, tokens_scaled
            return
        self._slot_ns += (slot_ns - self._slot_ns) // WEIGHT
        self._tokens_scaled += (tokens_scaled - self._tokens_scaled) // WEIGHT

    def loaded(self, load_ns: int) -> None:
        """A replica became Ready `load_ns` after it began to load."""
        self._load_ns = self._load_ns + (load_ns - self._load_ns) // WEIGHT if self._load_ns else load_ns

    @property
    def token_ns(self) -> int:
        """Slot time per output token."""
        if self._tokens_scaled == 0:
            return self._self_test_ns
        return max(1, self._slot_ns * SCALE // self._tokens_scaled)

    @property
    def load_ns(self) -> int:
        """How long a replica takes from its start to Ready."""
        return self._load_ns or LOAD_NS_GUESS

    def expected_tokens(self, task: TaskInfo) -> int:
        """Output tokens to reckon with: the caller's hint, else the mean, never above `max_tokens`."""
        mean = -(-self._tokens_scaled // SCALE)
        return max(1, min(task.max_tokens, task.expected_tokens or mean or task.max_tokens))

    def work_ns(self, tokens: int, slots: int) -> int:
        """How long `slots` slots take together for `tokens` output tokens."""
        return tokens * self.token_ns // max(1, slots)
