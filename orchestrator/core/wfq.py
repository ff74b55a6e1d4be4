"""Weighted fair queueing over classes, and over tenants within each (ORCH-3075, ORCH-3076).

Hierarchical start-time fair queueing: every class and every flow has a virtual start tag, and the
lowest goes first. A start of cost c moves a tag on by c / weight; the virtual time of a level is the
tag that was served last, and whoever has been away starts from there.

- Goyal, Vin, Cheng: "Start-time Fair Queuing", SIGCOMM 1996. Two flows f and g that are active
  throughout an interval differ by |W_f/w_f - W_g/w_g| <= c_f/w_f + c_g/w_g, with W the cost charged in
  it and c the largest cost of one task (theorem 1), whatever else is served and however fast.
- Jin, Chase, Kaur: "Interposed proportional sharing for a storage service utility", SIGMETRICS 2004:
  the same with several slots.

A charge is an expectation; the correction at a task's end moves the tags by the difference, so that
the bound on what was really used grows by the corrections still outstanding on the slots.
"""

from __future__ import annotations

from typing import Final, Generic

from orchestrator.core.flows import Fairness, Flow, Tier
from orchestrator.core.ordering import W
from orchestrator.core.ready import Ready

#: Virtual time of one token at weight 1.
VIRTUAL: Final = 1 << 20
#: The pace of a class is learned over about this many steps of its virtual time, and used from so many on.
PACE_STEPS: Final = 128
PACE_STEPS_MIN: Final = 8


class _Level(Generic[W]):
    """What is kept of one tier: its active flows, and how fast the set serves while it moves on.

    `ties` counts the active flows of each tag. The pace is the quotient of two moving means: tokens
    charged to the whole set, and virtual time of the tier, between two steps of the latter.
    """

    __slots__ = ("marked", "ready", "since_tokens", "since_virtual", "steps", "ties", "tokens", "virtual", "weight")

    def __init__(self) -> None:
        self.ready: Ready[W] = Ready()
        self.weight = 0
        self.ties: dict[int, int] = {}
        self.marked = False
        self.since_tokens = 0
        self.since_virtual = 0
        self.steps = 0
        self.tokens = 0.0
        self.virtual = 0.0

    def learn(self, virtual: int, charged: int) -> None:
        """The tier serves at this virtual time, when the set had been charged so many tokens."""
        if self.marked:
            moved = virtual - self.since_virtual
            if moved <= 0:
                return
            self.steps = min(self.steps + 1, PACE_STEPS)
            self.virtual += (moved - self.virtual) / self.steps
            self.tokens += (charged - self.since_tokens - self.tokens) / self.steps
        self.marked = True
        self.since_virtual = virtual
        self.since_tokens = charged

    def tie(self, tag: int) -> None:
        self.ties[tag] = self.ties.get(tag, 0) + 1

    def untie(self, tag: int) -> None:
        count = self.ties[tag] - 1
        if count:
            self.ties[tag] = count
        else:
            del self.ties[tag]


class Wfq(Fairness[W]):
    """Shares by weight, whoever asks how much."""

    def __init__(self) -> None:
        super().__init__()
        self._levels: list[_Level[W]] = []
        self._virtual = 0
        self._charged = 0

    def join(self, tier: Tier[W]) -> int:
        self._levels.append(_Level())
        return super().join(tier)

    def activate(self, flow: Flow[W]) -> None:
        tier = flow.tier
        level = self._levels[tier.index]
        flow.tag = max(flow.tag, self._flow_floor(tier))
        if not tier.active_flows:
            tier.tag = max(tier.tag, self._tier_floor())
            level.marked = False
        super().activate(flow)
        level.weight += flow.weight
        level.tie(flow.tag)
        level.ready.put(flow, flow.tag)

    def deactivate(self, flow: Flow[W]) -> None:
        super().deactivate(flow)
        level = self._levels[flow.tier.index]
        level.weight -= flow.weight
        level.untie(flow.tag)

    def select(self) -> Flow[W] | None:
        tier = self._lowest()
        return None if tier is None else self._levels[tier.index].ready.first()

    def charge(self, flow: Flow[W], cost_tokens: int) -> None:
        super().charge(flow, cost_tokens)
        tier = flow.tier
        level = self._levels[tier.index]
        # Who starts without having waited starts now, not in the past.
        start = flow.tag if flow.active else max(flow.tag, self._flow_floor(tier))
        first = level.ready.first()
        # A start out of turn (a slot handed over) says nothing about how fast the time moves.
        if first is None or first.tag >= start:
            tier.virtual = start
        if tier.active_flows:
            level.learn(tier.virtual, self._charged)
        else:
            level.marked = False
        self._move(flow, start + cost_tokens * VIRTUAL // flow.weight)
        self._virtual = tier.tag if tier.active_flows else max(tier.tag, self._tier_floor())
        tier.tag = self._virtual + cost_tokens * VIRTUAL // tier.weight
        self._charged += cost_tokens

    def correct(self, flow: Flow[W], delta_tokens: int) -> None:
        super().correct(flow, delta_tokens)
        if delta_tokens:
            self._move(flow, flow.tag + delta_tokens * VIRTUAL // flow.weight)
            flow.tier.tag += delta_tokens * VIRTUAL // flow.tier.weight

    def distance(self, flow: Flow[W], ahead_tokens: int) -> int:
        tier = flow.tier
        level = self._levels[tier.index]
        tag = flow.tag if flow.active else max(flow.tag, self._flow_floor(tier))
        own_way = ahead_tokens * VIRTUAL // flow.weight
        first = level.ready.first()
        way = own_way + (tag - first.tag if first is not None and first.tag < tag else 0)
        ties = level.ties.get(tag + own_way, 0)
        if flow.active and not own_way:
            # Which of its equals go before it is not kept: half of them.
            ties = (ties - 1) // 2
        within = ties * tier.cost_tokens // tier.waiting if tier.waiting else 0
        if level.steps >= PACE_STEPS_MIN:
            paced = int(way * level.tokens / level.virtual)
        else:
            paced = 0
            weight = level.weight if flow.active else level.weight + flow.weight
            within = min(tier.cost_tokens, within + way * weight // VIRTUAL)
        return max(ahead_tokens, paced + within + self._others(tier, within))

    def _others(self, tier: Tier[W], within_tokens: int) -> int:
        """Tokens of the other tiers until this one has its turn and has served so many; at most what waits there."""
        tag = tier.tag if tier.active_flows else max(tier.tag, self._tier_floor())
        waiting = tokens = 0
        for other in self.tiers:
            if other is not tier and other.active_flows:
                waiting += other.cost_tokens
                tokens += max(0, tag - other.tag) * other.weight // VIRTUAL
                tokens += within_tokens * other.weight // tier.weight
        return min(waiting, tokens)

    def _lowest(self) -> Tier[W] | None:
        """The active tier of the lowest tag; of equal ones, the one that became active first."""
        lowest: Tier[W] | None = None
        for tier in self.tiers:
            if tier.active_flows and (
                lowest is None or tier.tag < lowest.tag or (tier.tag == lowest.tag and tier.sequence < lowest.sequence)
            ):
                lowest = tier
        return lowest

    def _flow_floor(self, tier: Tier[W]) -> int:
        """Where a flow of the tier begins: its virtual time, or lower where a refund has left an active flow lower."""
        first = self._levels[tier.index].ready.first()
        return tier.virtual if first is None else min(tier.virtual, first.tag)

    def _tier_floor(self) -> int:
        lowest = self._lowest()
        return self._virtual if lowest is None else min(self._virtual, lowest.tag)

    def _move(self, flow: Flow[W], tag: int) -> None:
        if flow.active:
            level = self._levels[flow.tier.index]
            level.untie(flow.tag)
            level.tie(tag)
            flow.tag = tag
            level.ready.put(flow, tag)
        else:
            flow.tag = tag
