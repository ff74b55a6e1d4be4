"""Rates and quotas of tenants and clients (ORCH-3006, ORCH-3036, ORCH-3077).

A look at a bound never changes it; only what is admitted, started or ended is charged.
"""

from __future__ import annotations

from collections import OrderedDict
from math import ceil
from typing import Final, Protocol, TypeVar

from contracts.policies import RatePolicy, SchedulerConfig, TenantPolicy

NS_PER_S: Final = 1_000_000_000
NS_PER_MIN: Final = 60 * NS_PER_S
BYTES_PER_MB: Final = 1024 * 1024
#: Rates are kept as whole nanoseconds a unit; slower than one in thirty years is no rate.
RPS_MIN: Final = 1e-9
#: Idle tenants and clients are dropped, a few at a time, while more than this many are known.
ENTRIES_MAX: Final = 4096
ENTRIES_PER_SWEEP: Final = 2

NO_WAIT: Final = (0, "")


class Gcra:
    """A token bucket as a generic cell rate algorithm: one integer of state.

    Virtual scheduling as in ITU-T I.371, annex A: `full_ns` is the theoretical arrival time, the instant
    from which the whole burst is there again. Intervals are rounded up, so a rate is never exceeded.
    """

    __slots__ = ("burst", "full_ns", "interval_ns")

    def __init__(self, interval_ns: int, burst: int) -> None:
        if interval_ns < 1:
            raise ValueError(f"the interval must be at least 1 ns, got {interval_ns}")
        if burst < 1:
            raise ValueError(f"burst must be at least 1, got {burst}")
        self.interval_ns = interval_ns
        self.burst = burst
        self.full_ns = 0

    @classmethod
    def from_rate(cls, rate: RatePolicy) -> Gcra:
        """A bucket of `burst` requests that refills at `rps`."""
        if not RPS_MIN <= rate.rps < float("inf"):
            raise ValueError(f"rps must be a number of at least {RPS_MIN:g}, got {rate.rps}")
        return cls(ceil(NS_PER_S / rate.rps), rate.burst)

    @classmethod
    def per_minute(cls, tokens: int) -> Gcra:
        """A bucket that holds a whole minute's tokens."""
        if tokens < 1:
            raise ValueError(f"tokens_per_min must be at least 1, got {tokens}")
        return cls(-(-NS_PER_MIN // tokens), tokens)

    def wait_ns(self, now_ns: int, units: int = 1) -> int:
        """Nanoseconds until `units` may be taken; 0: now. More than the burst waits for a full bucket."""
        spare = self.burst - units if units < self.burst else 0
        wait = self.full_ns - now_ns - spare * self.interval_ns
        return wait if wait > 0 else 0

    def take(self, now_ns: int, units: int = 1) -> None:
        """Charge `units`, unasked: the caller looked at `wait_ns`, or corrects an earlier charge upwards.

        What exceeds the burst is owed, and later takers wait for it.
        """
        base = self.full_ns if self.full_ns > now_ns else now_ns
        self.full_ns = base + units * self.interval_ns

    def give_back(self, now_ns: int, units: int) -> None:
        """Undo the charge of `units`; a full bucket stays full."""
        if self.full_ns > now_ns:
            self.full_ns = max(now_ns, self.full_ns - units * self.interval_ns)

    def idle(self, now_ns: int) -> bool:
        """Whether the bucket is full, so that a new one would do as well."""
        return self.full_ns <= now_ns


class TenantQuota:
    """What one tenant has in use across all sets, and what it may (ORCH-3036, ORCH-3077).

    `live` counts tasks from `admit` to `settle`, `running` and `kv_bytes` those from `started` to `ended`.
    """

    __slots__ = ("kv_bytes", "kv_bytes_max", "live", "name", "policy", "rate", "running", "tokens", "weight")

    def __init__(self, name: str, policy: TenantPolicy) -> None:
        self.name = name
        self.policy = policy
        self.weight = policy.weight
        self.live = 0
        self.running = 0
        self.kv_bytes = 0
        self._check("weight", policy.weight)
        self._check("max_concurrent", policy.max_concurrent)
        self._check("kv_mb", policy.kv_mb)
        self.kv_bytes_max: int | None = None if policy.kv_mb is None else policy.kv_mb * BYTES_PER_MB
        try:
            self.rate = None if policy.rate is None else Gcra.from_rate(policy.rate)
            self.tokens = None if policy.tokens_per_min is None else Gcra.per_minute(policy.tokens_per_min)
        except ValueError as error:
            raise ValueError(f"tenant {name}: {error}") from None

    def _check(self, field: str, value: int | None) -> None:
        if value is not None and value < 1:
            raise ValueError(f"tenant {self.name}: {field} must be at least 1, got {value}")

    def wait_ns(self, now_ns: int, tokens: int) -> tuple[int, str]:
        """How long until a task of `tokens` may be admitted, and which bound says so; 0 and "": now."""
        rate_ns = 0 if self.rate is None else self.rate.wait_ns(now_ns)
        tokens_ns = 0 if self.tokens is None else self.tokens.wait_ns(now_ns, tokens)
        if not rate_ns and not tokens_ns:
            return NO_WAIT
        if tokens_ns > rate_ns:
            return tokens_ns, f"{self.policy.tokens_per_min} tokens/min of tenant {self.name}"
        rps = 0.0 if self.policy.rate is None else self.policy.rate.rps
        return rate_ns, f"{rps:g} requests/s of tenant {self.name}"

    def admit(self, now_ns: int, tokens: int) -> None:
        """Charge a task for which `wait_ns` is 0; answered by one `settle`."""
        self.live += 1
        if self.rate is not None:
            self.rate.take(now_ns)
        if self.tokens is not None:
            self.tokens.take(now_ns, tokens)

    def settle(self, now_ns: int, asked_tokens: int, used_tokens: int) -> None:
        """A task that was admitted at `asked_tokens` is over, however it ended, and used `used_tokens`."""
        self.live -= 1
        if self.tokens is None:
            return
        if used_tokens < asked_tokens:
            self.tokens.give_back(now_ns, asked_tokens - used_tokens)
        elif used_tokens > asked_tokens:
            self.tokens.take(now_ns, used_tokens - asked_tokens)

    def fits(self, kv_bytes: int) -> bool:
        """Whether a task of that much KV is within the bound at all; if not, it is to be refused at admission."""
        return self.kv_bytes_max is None or kv_bytes <= self.kv_bytes_max

    def may_start(self, kv_bytes: int) -> bool:
        """Whether a task of that much KV may start beside what runs; if not, it waits.

        By itself it always may: nothing makes room for one that turned out to be larger than `kv_mb` once admitted.
        """
        most = self.policy.max_concurrent
        return not self.running or ((most is None or self.running < most) and self.fits(self.kv_bytes + kv_bytes))

    def started(self, kv_bytes: int) -> None:
        """A task started and holds that much KV."""
        self.running += 1
        self.kv_bytes += kv_bytes

    def ended(self, kv_bytes: int) -> None:
        """A task that started with that much KV let go of it."""
        self.running -= 1
        self.kv_bytes -= kv_bytes

    def idle(self, now_ns: int) -> bool:
        """Whether nothing is in use or owed, so that a new record would do as well."""
        return (
            not self.live
            and not self.running
            and (self.rate is None or self.rate.idle(now_ns))
            and (self.tokens is None or self.tokens.idle(now_ns))
        )


class _Entry(Protocol):
    def idle(self, now_ns: int) -> bool: ...


_EntryT = TypeVar("_EntryT", bound=_Entry)


class Quotas:
    """All tenants and clients that are in use, and a bounded number of others (ORCH-3006, ORCH-3036).

    Tenants without a policy of their own have the default's numbers, each for itself. A quota that was looked
    up stays the tenant's as long as a task of it lives; look it up anew for every submission.
    """

    __slots__ = ("_client_rates", "_clients", "_default_rate", "_default_tenant", "_tenant_policies", "_tenants")

    def __init__(self, config: SchedulerConfig) -> None:
        self._tenant_policies: dict[str, TenantPolicy] = {}
        for policy in config.tenants:
            if policy.tenant in self._tenant_policies:
                raise ValueError(f"tenant {policy.tenant} is configured twice")
            TenantQuota(policy.tenant, policy)
            self._tenant_policies[policy.tenant] = policy
        if config.default_tenant is not None:
            TenantQuota("(default)", config.default_tenant)
        self._default_tenant = config.default_tenant
        self._client_rates = dict(config.clients)
        self._default_rate = config.default_client
        for name, rate in self._client_rates.items():
            _client(name, rate)
        if self._default_rate is not None:
            _client("(default)", self._default_rate)
        self._tenants: OrderedDict[str, TenantQuota] = OrderedDict()
        self._clients: OrderedDict[str, Gcra] = OrderedDict()

    def tenant(self, name: str) -> TenantQuota | None:
        """The tenant's quota; None: the tenant is not configured and there is no default."""
        quota = self._tenants.get(name)
        if quota is None:
            policy = self._tenant_policies.get(name, self._default_tenant)
            if policy is None:
                return None
            quota = self._tenants[name] = TenantQuota(name, policy)
        return quota

    def client(self, name: str) -> Gcra | None:
        """The client's bucket of requests; None: no bound."""
        bucket = self._clients.get(name)
        if bucket is None:
            rate = self._client_rates.get(name, self._default_rate)
            if rate is None:
                return None
            bucket = self._clients[name] = _client(name, rate)
        return bucket

    def sweep(self, now_ns: int) -> None:
        """Drop idle entries beyond `ENTRIES_MAX`; constant time, to be called once for every submission."""
        _drop_idle(self._tenants, now_ns)
        _drop_idle(self._clients, now_ns)

    def __len__(self) -> int:
        return len(self._tenants) + len(self._clients)


def _client(name: str, rate: RatePolicy) -> Gcra:
    try:
        return Gcra.from_rate(rate)
    except ValueError as error:
        raise ValueError(f"client {name}: {error}") from None


def _drop_idle(entries: OrderedDict[str, _EntryT], now_ns: int) -> None:
    """Look at the next few in turn: two a call outrun the one that a submission may add."""
    for _ in range(ENTRIES_PER_SWEEP):
        if len(entries) <= ENTRIES_MAX:
            return
        name, entry = entries.popitem(last=False)
        if not entry.idle(now_ns):
            entries[name] = entry
