"""The fairness policies, by kind: weighted fair queueing and two baselines (ORCH-3075, OC-CORE-1004).

`wfq` shares between classes and tenants by weight and starves nobody; `strict` always serves the
higher class first and does not see tenants; `fifo` serves in order of arrival.
"""

from __future__ import annotations

from contracts.policies import FairnessKind
from orchestrator.core.flows import Fairness, Flow, Tier
from orchestrator.core.ordering import ORDER_BITS, W
from orchestrator.core.ready import Ready
from orchestrator.core.wfq import VIRTUAL, Wfq

__all__ = ["VIRTUAL", "Arrival", "Fairness", "Strict", "Wfq", "make"]


class Strict(Fairness[W]):
    """A higher class always goes first; within a class the tasks of all tenants form one line."""

    def __init__(self) -> None:
        super().__init__()
        self._ready: list[Ready[W]] = []

    def join(self, tier: Tier[W]) -> int:
        self._ready.append(Ready())
        return super().join(tier)

    def activate(self, flow: Flow[W]) -> None:
        super().activate(flow)
        self.moved(flow)

    def moved(self, flow: Flow[W]) -> None:
        first = flow.line.first()
        if first is not None:
            self._ready[flow.tier.index].put(flow, first.key << ORDER_BITS | first.order)

    def select(self) -> Flow[W] | None:
        for tier in self.tiers:
            if tier.active_flows:
                return self._ready[tier.index].first()
        return None

    def distance(self, flow: Flow[W], ahead_tokens: int) -> int:
        tokens = ahead_tokens - flow.line.cost_tokens
        for tier in self.tiers:
            tokens += tier.cost_tokens
            if tier is flow.tier:
                break
        return max(ahead_tokens, tokens)


class Arrival(Fairness[W]):
    """First in, first out over all flows; a flow offers the first task of its line."""

    def __init__(self) -> None:
        super().__init__()
        self._ready: Ready[W] = Ready()

    def activate(self, flow: Flow[W]) -> None:
        super().activate(flow)
        self.moved(flow)

    def moved(self, flow: Flow[W]) -> None:
        first = flow.line.first()
        if first is not None:
            self._ready.put(flow, first.order)

    def select(self) -> Flow[W] | None:
        return self._ready.first()

    def distance(self, flow: Flow[W], ahead_tokens: int) -> int:
        tokens = ahead_tokens - flow.line.cost_tokens
        for tier in self.tiers:
            tokens += tier.cost_tokens
        return max(ahead_tokens, tokens)


def make(kind: FairnessKind) -> Fairness[W]:
    """A policy of this kind, for the tiers of one set; give it to them highest class first."""
    if kind == "wfq":
        return Wfq()
    return Strict() if kind == "strict" else Arrival()
