"""Circuit breakers: a pool that misses its SLO for a class gets no more of it for a while (ORCH-3040).

The states are those of Nygard, "Release It!", 2007: closed lets all through, open none, half-open a few
probes whose results decide.
"""

from __future__ import annotations

from typing import Literal

from contracts.policies import BreakerPolicy
from orchestrator.core.records import NS_PER_MS

BreakerState = Literal["closed", "open", "half-open"]


class Breaker:
    """The breaker of one pool for one class.

    Samples are counted in halves of the window: the current one and the one before, so what is judged reaches
    back between half a window and a whole one, and takes constant space.
    """

    __slots__ = (
        "_good",
        "_half",
        "_half_ns",
        "_open_ns",
        "_opened_until_ns",
        "_policy",
        "_previous_samples",
        "_previous_violations",
        "_probes",
        "_renew_ns",
        "_samples",
        "_tripped",
        "_violations",
    )

    def __init__(self, policy: BreakerPolicy) -> None:
        if not 1 <= policy.violations_percent <= 100:
            raise ValueError(f"violations_percent must be 1 to 100, got {policy.violations_percent}")
        _check("window_ms", policy.window_ms)
        _check("samples_min", policy.samples_min)
        _check("open_ms", policy.open_ms)
        _check("probes", policy.probes)
        self._policy = policy
        self._half_ns = policy.window_ms * NS_PER_MS // 2
        self._open_ns = policy.open_ms * NS_PER_MS
        # while closed: counts of the current half-window and of the one before
        self._half = 0
        self._samples = 0
        self._violations = 0
        self._previous_samples = 0
        self._previous_violations = 0
        # once tripped: open until then, half-open after
        self._tripped = False
        self._opened_until_ns = 0
        self._probes = 0
        self._good = 0
        self._renew_ns = 0

    def state(self, now_ns: int) -> BreakerState:
        """Where the breaker stands."""
        if not self._tripped:
            return "closed"
        return "open" if now_ns < self._opened_until_ns else "half-open"

    def wait_ns(self, now_ns: int) -> int:
        """Nanoseconds until a task may be let through; 0: now."""
        if not self._tripped:
            return 0
        if now_ns < self._opened_until_ns:
            return self._opened_until_ns - now_ns
        if self._probes < self._policy.probes or now_ns >= self._renew_ns:
            return 0
        return self._renew_ns - now_ns

    def allows(self, now_ns: int) -> bool:
        """Whether a task may be let through now. Changes nothing."""
        return self.wait_ns(now_ns) == 0

    def admitted(self, now_ns: int) -> None:
        """A task was let through: a probe, if the breaker is half-open."""
        if not self._tripped or not self.allows(now_ns):
            return
        if self._probes == self._policy.probes:
            # Probes that have not reported for so long may never do: others take their places.
            self._probes = self._good
        self._probes += 1
        self._renew_ns = now_ns + self._open_ns

    def observe(self, now_ns: int, violated: bool) -> None:
        """An attempt ended; `violated`: it missed the SLO or failed."""
        if self._tripped:
            self._observe_probe(now_ns, violated)
            return
        self._turn_to(now_ns // self._half_ns)
        self._samples += 1
        self._violations += violated
        samples = self._samples + self._previous_samples
        violations = self._violations + self._previous_violations
        policy = self._policy
        if samples >= policy.samples_min and violations * 100 >= policy.violations_percent * samples:
            self._trip(now_ns)

    def _observe_probe(self, now_ns: int, violated: bool) -> None:
        """Without a probe under way the report is of a task from before, and old news."""
        if self._probes == self._good:
            return
        if violated:
            self._trip(now_ns)
            return
        self._good += 1
        if self._good == self._policy.probes:
            self._tripped = False
            self._samples = self._violations = 0
            self._previous_samples = self._previous_violations = 0

    def _trip(self, now_ns: int) -> None:
        self._tripped = True
        self._opened_until_ns = now_ns + self._open_ns
        self._probes = 0
        self._good = 0

    def _turn_to(self, half: int) -> None:
        if half == self._half:
            return
        following = half == self._half + 1
        self._previous_samples = self._samples if following else 0
        self._previous_violations = self._violations if following else 0
        self._samples = 0
        self._violations = 0
        self._half = half


def _check(field: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{field} must be at least 1, got {value}")
