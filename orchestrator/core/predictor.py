"""What service will cost, from what service has cost (ORCH-3029, ORCH-3079, ORCH-3081).

Learnt per replica set from tasks that finished. Everything is made of additions, multiplications,
divisions, comparisons and square roots, which every machine rounds alike: the same tasks give the same
forecasts everywhere. Reading changes nothing.
"""

from collections import OrderedDict
from math import sqrt
from typing import Final

from orchestrator.core.averages import Line, Quotient, Ratio
from orchestrator.core.chances import normal_at_most, p_within
from orchestrator.core.lengths import FAMILY_WEIGHT_MIN, LengthTable

#: Decode time per token while neither a self-test nor a task has told it.
TOKEN_NS_GUESS: Final = 20_000_000
#: Prompt tokens are processed together: this many in the time of one decoded token, until tasks have told it.
PREFILL_PER_DECODE_GUESS: Final = 16
#: Time a replica takes to load while none has been seen loading.
LOAD_NS_GUESS: Final = 10_000_000_000
LOAD_MEMORY: Final = 8
BYTES_PER_TOKEN_GUESS: Final = 4.0
COST_TOKENS_GUESS: Final = 256.0
#: Standard deviation of any start and end, whatever the wait: timers, network, steps of the engine.
JITTER_NS: Final = 20_000_000.0
#: So many standard deviations from certain, a chance is told as 1 or 0.
CERTAIN_DEVIATIONS: Final = 4.0
#: How far a tenant's hints are corrected, up or down.
HINT_FACTOR_MAX: Final = 4.0
#: Tenants per replica set of whose hints the worth is kept; the least recently learnt of go.
HINTERS_MAX: Final = 1024


#: What a tenant's hints are worth before any has been seen; never taught.
NEW_HINTER: Final = Ratio()


class Predictor:
    """What one replica set has learnt. Durations are `_ns`.

    `decode_ns` is the time from one output token to the next, `cost_ns` the mean slot time per cost token:
    read several times for every task, so they are kept, and change only when something is learnt.
    """

    def __init__(self, *, decodes: bool = True) -> None:
        #: How many prompt tokens go into the time that the self-test measures: where nothing is decoded, it is theirs.
        self._prefill_guess = PREFILL_PER_DECODE_GUESS if decodes else 1
        self.decode_ns = TOKEN_NS_GUESS if decodes else TOKEN_NS_GUESS // PREFILL_PER_DECODE_GUESS
        self.cost_ns = float(self.decode_ns)
        self._self_test_ns = self.decode_ns
        self._load_ns = 0
        self._decode = Quotient()
        self._prefill = Line()
        self._slot = Quotient()
        self._bytes = Quotient()
        self._lengths = LengthTable()
        self._hints: OrderedDict[str, Ratio] = OrderedDict()

    # ------------------------------------------------------------------ learning

    def self_tested(self, token_ns: int) -> None:
        """A replica measured its time per token; it counts until a task has been served."""
        if token_ns > 0:
            self._self_test_ns = token_ns
            self._reckon()

    def loaded(self, load_ns: int) -> None:
        """A replica became Ready `load_ns` after it began to load."""
        self._load_ns = self._load_ns + (load_ns - self._load_ns) // LOAD_MEMORY if self._load_ns else load_ns

    def served(
        self,
        tenant: str,
        workload: str,
        prompt_bytes: int,
        tokens_in: int,
        tokens_cached: int,
        tokens_out: int,
        max_tokens: int,
        first_token_ns: int,
        decode_ns: int,
        slot_ns: int,
        hit_limit: bool,
        hint: int | None = None,
    ) -> None:
        """A task finished.

        `first_token_ns` is from the start of the attempt to its first token, `decode_ns` from there to its
        last, `slot_ns` how long it held its slot; `hit_limit`: it was ended by a limit of tokens.
        """
        if decode_ns > 0 and tokens_out > 1:
            self._decode.learn(decode_ns, tokens_out - 1)
        if first_token_ns > 0:
            self._prefill.learn(tokens_in - tokens_cached if tokens_in > tokens_cached else 1, first_token_ns)
        if prompt_bytes > 0 and tokens_in > 0:
            self._bytes.learn(prompt_bytes, tokens_in)
        self._slot.learn(slot_ns, tokens_in + tokens_out or 1)
        self._reckon()
        self._lengths.add(tenant, workload, tokens_out, hit_limit)
        if hint is not None and hint > 0:
            self._hinted(tenant, min(hint, max_tokens), tokens_out)

    def prefilled(self, prompt_bytes: int, tokens_in: int, tokens_cached: int, prefill_ns: int, slot_ns: int) -> None:
        """A task that decodes nothing finished: all of its time went into its inputs."""
        if tokens_in <= 0:
            return
        if prefill_ns > 0:
            self._prefill.learn(tokens_in - tokens_cached if tokens_in > tokens_cached else 1, prefill_ns)
        if prompt_bytes > 0:
            self._bytes.learn(prompt_bytes, tokens_in)
        self._slot.learn(slot_ns, tokens_in)
        self._reckon()

    def _reckon(self) -> None:
        self.decode_ns = max(1, int(self._decode.value(self._self_test_ns)))
        self.cost_ns = max(1.0, self._slot.value(self._self_test_ns))

    def _hinted(self, tenant: str, hint: int, tokens_out: int) -> None:
        ratio = self._hints.get(tenant)
        if ratio is None:
            if len(self._hints) >= HINTERS_MAX:
                self._hints.popitem(last=False)
            ratio = self._hints[tenant] = Ratio()
        else:
            self._hints.move_to_end(tenant)
        ratio.learn(hint, tokens_out)

    # ------------------------------------------------------------------ times

    @property
    def load_ns(self) -> int:
        """How long a replica takes from its start to Ready."""
        return self._load_ns or LOAD_NS_GUESS

    @property
    def mean_cost(self) -> float:
        """Mean cost tokens of a task: prompt and output."""
        return self._slot.under or COST_TOKENS_GUESS

    def prefill_ns(self, prompt_tokens: int) -> int:
        """Time to the first output token, with `prompt_tokens` to be processed for it."""
        line = self._prefill
        if not line.samples:
            return prompt_tokens * self._self_test_ns // self._prefill_guess + self._self_test_ns
        return int(line.start + line.slope * prompt_tokens)

    def service_ns(self, prompt_tokens: int, output_tokens: int) -> int:
        """How long a task holds a slot; the first output token comes with the prefill."""
        service_ns = self.prefill_ns(prompt_tokens)
        if output_tokens > 1:
            service_ns += self.decode_ns * (output_tokens - 1)
        return service_ns if service_ns > 1 else 1

    # ------------------------------------------------------------------ sizes

    def prompt_tokens(self, prompt_bytes: int) -> int:
        """About how many tokens a prompt of `prompt_bytes` has; at least 1."""
        return max(1, int(prompt_bytes / self._bytes.value(BYTES_PER_TOKEN_GUESS) + 0.5))

    def expected_output(self, tenant: str, workload: str, max_tokens: int, hint: int | None) -> int:
        """Output tokens to reckon with, 1 to `max_tokens`.

        The caller's hint, corrected by how the tenant's hints have turned out; else the mean of the
        tenant's outputs of this workload, or of the whole set's; else `max_tokens`.
        """
        if hint is not None and hint > 0:
            expected = hint * hint_factor(self._hints.get(tenant, NEW_HINTER))
        else:
            expected = self._lengths.of(tenant, workload).mean(max_tokens)
        tokens = int(expected + 0.5)
        if tokens > max_tokens:
            return max_tokens
        return tokens if tokens > 1 else 1

    def knows_lengths(self, tenant: str, workload: str) -> bool:
        """Whether enough outputs were seen to say how long such ones are."""
        return self._lengths.of(tenant, workload).weight >= FAMILY_WEIGHT_MIN

    def outputs_by(self, tenant: str, workload: str, max_tokens: int, limit_tokens: int, made_tokens: int = 0) -> float:
        """Chance that the output ends within `limit_tokens`, given that it did not within `made_tokens`."""
        return self._lengths.of(tenant, workload).p_at_most(limit_tokens, max_tokens, made_tokens)

    def low_output(self, tenant: str, workload: str, max_tokens: int) -> int:
        """What nine outputs in ten are at least as long as."""
        return self._lengths.of(tenant, workload).quantile(0.1, max_tokens)

    # ------------------------------------------------------------------ deadlines

    def on_time(
        self,
        tenant: str,
        workload: str,
        max_tokens: int,
        hint: int | None,
        slack_ns: int,
        wait_ns: int,
        wait_spread: float,
        prefill_ns: int,
    ) -> float:
        """Chance that waiting, prefill and decoding take `slack_ns` at most; never falls as the slack grows.

        The wait is taken as normal with a standard deviation of `wait_spread` of its mean. `max_tokens` 0: nothing
        is decoded.
        """
        if slack_ns <= 0:
            return 0.0
        decode_ns = self._decode.value(self._self_test_ns)
        deviation = wait_spread * wait_ns + JITTER_NS
        left = float(slack_ns - wait_ns - prefill_ns)
        if max_tokens < 1:
            return normal_at_most(left / deviation)
        longest = decode_ns * (max_tokens - 1)
        if left - longest >= CERTAIN_DEVIATIONS * deviation:
            return 1.0
        if left <= -CERTAIN_DEVIATIONS * deviation:
            return 0.0
        # No output is longer than the longest, so that the chance is never below that of the longest.
        surely = normal_at_most((left - longest) / deviation)
        # From here on lengths count from the first token, which comes with the prefill.
        left += decode_ns
        variance = deviation * deviation
        if hint is not None and hint > 0:
            ratio = self._hints.get(tenant, NEW_HINTER)
            mean = decode_ns * hint * hint_factor(ratio)
            off = mean * ratio.spread()
            return max(surely, normal_at_most((left - mean) / sqrt(variance + off * off)))
        return max(surely, p_within(self._lengths.of(tenant, workload), left, decode_ns, max_tokens, variance))


def hint_factor(ratio: Ratio) -> float:
    """What to multiply a hint by."""
    return max(1.0 / HINT_FACTOR_MAX, min(HINT_FACTOR_MAX, ratio.factor()))
