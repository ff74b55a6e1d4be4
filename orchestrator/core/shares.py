"""What part of the lately served cost each flow and class had (ORCH-3076).

A decayed sum without a clock: what was served counts half as much once a certain number of tokens
has been served after it. Instead of letting every sum shrink, the unit in which new tokens are
added grows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic

from orchestrator.core.ordering import W

if TYPE_CHECKING:
    from orchestrator.core.flows import Flow, Tier

HALF_LIFE_TOKENS: Final = 1 << 17
#: One charge ages the past by at most this many halvings; the sums are rebased before floats end.
HALVINGS_MAX: Final = 64.0
UNIT_MAX: Final = 2.0**200


class Shares(Generic[W]):
    """Keeps `recent` of the flows and tiers of one set."""

    __slots__ = ("_recent", "_tiers", "_unit")

    def __init__(self, tiers: list[Tier[W]]) -> None:
        self._tiers = tiers
        self._recent = 0.0
        self._unit = 1.0

    def charge(self, flow: Flow[W], cost_tokens: int) -> None:
        """Tokens of a started task."""
        self._unit *= 2.0 ** min(cost_tokens / HALF_LIFE_TOKENS, HALVINGS_MAX)
        self.correct(flow, cost_tokens)
        if self._unit > UNIT_MAX:
            self._rebase()

    def correct(self, flow: Flow[W], delta_tokens: int) -> None:
        """Tokens that a started task took over (or under) its charge."""
        served = delta_tokens * self._unit
        flow.recent += served
        flow.tier.recent += served
        self._recent += served

    def of(self, part: Flow[W] | Tier[W]) -> float:
        """The share of a flow or a tier, 0 to 1."""
        return min(1.0, max(0.0, part.recent / self._recent)) if self._recent > 0.0 else 0.0

    def _rebase(self) -> None:
        for tier in self._tiers:
            tier.recent /= self._unit
            for flow in tier.flows.values():
                flow.recent /= self._unit
        self._recent /= self._unit
        self._unit = 1.0
