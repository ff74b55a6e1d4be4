"""Flows of waiting tasks, their classes, and what both tell the fairness policy (ORCH-3075, OC-CORE-1004).

A flow is one tenant in one priority class of a replica set; a tier is one class. Tasks enter and
leave through the flow, which keeps the sums of its tier right and tells the policy when it begins
and ends to have tasks that may start.
"""

from __future__ import annotations

from typing import Final, Generic

from contracts.policies import QueuePolicy
from orchestrator.core.ordering import Line, W
from orchestrator.core.shares import Shares

#: A flow record costs little; this many may lie idle before they are looked through.
IDLE_SLACK: Final = 64


class Flow(Generic[W]):
    """The waiting tasks of one tenant in one class.

    `tag` is its virtual start time in units of `wfq.VIRTUAL`; `sequence` numbers its activation. `active`:
    it has waiting tasks and is not `blocked` by a quota. `reserved` counts places promised to tasks
    whose prompts are being measured, `running` charges that were not corrected yet. `version` fences
    what the policy has noted about it. `spare_ns`, `delay_ns` per token and `unchecked` are kept for `deadlines`.
    """

    __slots__ = (
        "active",
        "blocked",
        "delay_ns",
        "line",
        "policy",
        "priority",
        "recent",
        "reserved",
        "running",
        "sequence",
        "spare_ns",
        "tag",
        "tenant",
        "tier",
        "unchecked",
        "version",
        "weight",
    )

    def __init__(self, tier: Tier[W], tenant: str, weight: int) -> None:
        self.tier = tier
        self.tenant = tenant
        self.weight = positive(weight, f"tenant {tenant!r}")
        self.priority = tier.policy.priority
        self.policy = tier.policy
        self.line: Line[W] = Line()
        self.active = False
        self.blocked = False
        self.reserved = 0
        self.running = 0
        self.tag = 0
        self.sequence = 0
        self.version = 0
        self.spare_ns = 0.0
        self.delay_ns = 0.0
        self.unchecked = 0
        self.recent = 0.0

    def push(self, item: W) -> None:
        """Let a task wait; its key is set."""
        line = self.line
        line.push(item)
        tier = self.tier
        fairness = tier.fairness
        cost_tokens = item.cost_tokens
        tier.waiting += 1
        tier.cost_tokens += cost_tokens
        fairness.waiting += 1
        fairness.cost_tokens += cost_tokens
        if self.active:
            if line.first() is item:
                fairness.moved(self)
        elif not self.blocked:
            fairness.activate(self)

    def pop(self) -> W:
        """Take the task that starts next. Raises `IndexError` when none waits. `charge` it afterwards."""
        item = self.line.pop()
        self._left(item, True)
        return item

    def discard(self, item: W) -> None:
        """Take a waiting task out of the line. Raises `KeyError` when it does not wait here."""
        at_head = self.line.first() is item
        if at_head:
            self.line.pop()
        else:
            self.line.discard(item)
        self._left(item, at_head)

    def block(self, blocked: bool) -> None:
        """Say whether the tenant is at a quota of what may run: its tasks then wait."""
        self.blocked = blocked
        startable = not blocked and len(self.line) > 0
        if startable and not self.active:
            self.tier.fairness.activate(self)
        elif self.active and not startable:
            self.tier.fairness.deactivate(self)

    def reserve(self) -> None:
        """Promise a place to a task that is being measured."""
        self.reserved += 1
        self.tier.reserved += 1
        self.tier.fairness.reserved += 1

    def release(self) -> None:
        """Take the promise back: the task waits, started or ended."""
        self.reserved -= 1
        self.tier.reserved -= 1
        self.tier.fairness.reserved -= 1

    def _left(self, item: W, at_head: bool) -> None:
        tier = self.tier
        fairness = tier.fairness
        cost_tokens = item.cost_tokens
        tier.waiting -= 1
        tier.cost_tokens -= cost_tokens
        fairness.waiting -= 1
        fairness.cost_tokens -= cost_tokens
        if self.active:
            if not self.line:
                fairness.deactivate(self)
            elif at_head:
                fairness.moved(self)


class Tier(Generic[W]):
    """One priority class of a set: its flows by tenant, and sums over them.

    `tag` is its virtual start time among the classes, `virtual` the virtual time of its flows. Made
    highest class first: the policy numbers them so (`index`).
    """

    __slots__ = (
        "active_flows",
        "cost_tokens",
        "fairness",
        "flows",
        "index",
        "kept",
        "policy",
        "recent",
        "reserved",
        "sequence",
        "tag",
        "virtual",
        "waiting",
        "weight",
    )

    def __init__(self, policy: QueuePolicy, fairness: Fairness[W]) -> None:
        self.policy = policy
        self.weight = positive(policy.weight, f"class {policy.priority!r}")
        self.flows: dict[str, Flow[W]] = {}
        self.kept = 0
        self.active_flows = 0
        self.waiting = 0
        self.cost_tokens = 0
        self.reserved = 0
        self.tag = 0
        self.virtual = 0
        self.sequence = 0
        self.recent = 0.0
        self.fairness = fairness
        self.index = fairness.join(self)

    def flow(self, tenant: str, weight: int) -> Flow[W]:
        """The tenant's flow, made with this weight when there is none."""
        flow = self.flows.get(tenant)
        if flow is None:
            if len(self.flows) >= 2 * self.kept + IDLE_SLACK:
                self._drop_idle()
            flow = self.flows[tenant] = Flow(self, tenant, weight)
        return flow

    def _drop_idle(self) -> None:
        """Forget flows that carry no history: idle ones that the virtual time has caught up with."""
        if not self.active_flows:
            # The end of a busy time: what was served before counts no longer (SFQ, Goyal et al. 1996, step 2).
            self.virtual = max([self.virtual, *[flow.tag for flow in self.flows.values()]])
        self.flows = {
            tenant: flow
            for tenant, flow in self.flows.items()
            if flow.line or flow.reserved or flow.running > 0 or flow.tag > self.virtual
        }
        self.kept = len(self.flows)


class Fairness(Generic[W]):
    """Chooses between flows, over the tiers of one set (ORCH-3075).

    Subclasses choose; this base numbers activations and observes shares. `waiting`, `cost_tokens` and
    `reserved` sum over the tiers. Every task that is started is
    charged once, and corrected once when its attempt is over, also by 0.
    """

    def __init__(self) -> None:
        self.tiers: list[Tier[W]] = []
        self.waiting = 0
        self.cost_tokens = 0
        self.reserved = 0
        self._activations = 0
        self._shares: Shares[W] = Shares(self.tiers)

    def join(self, tier: Tier[W]) -> int:
        """Take in a tier, the highest first; gives its number."""
        self.tiers.append(tier)
        return len(self.tiers) - 1

    def activate(self, flow: Flow[W]) -> None:
        """The flow begins to have tasks that may start."""
        self._activations += 1
        flow.sequence = self._activations
        flow.active = True
        tier = flow.tier
        if not tier.active_flows:
            tier.sequence = self._activations
        tier.active_flows += 1

    def deactivate(self, flow: Flow[W]) -> None:
        """The flow has no task that may start: it is empty or blocked."""
        flow.active = False
        flow.version += 1
        flow.tier.active_flows -= 1

    def moved(self, flow: Flow[W]) -> None:
        """Another task became the first of an active flow."""

    def select(self) -> Flow[W] | None:
        """The flow whose first task starts next; None when none is active."""
        raise NotImplementedError

    def charge(self, flow: Flow[W], cost_tokens: int) -> None:
        """A task of the flow was started at that cost."""
        flow.running += 1
        self._shares.charge(flow, cost_tokens)

    def correct(self, flow: Flow[W], delta_tokens: int) -> None:
        """A started task's attempt is over and cost that much more (or less) than was charged."""
        flow.running -= 1
        self._shares.correct(flow, delta_tokens)

    def distance(self, flow: Flow[W], ahead_tokens: int) -> int:
        """Estimate: cost tokens that start in the set before a task that has `ahead_tokens` ahead in its flow."""
        raise NotImplementedError

    def share(self, part: Flow[W] | Tier[W]) -> float:
        """What part of the lately served cost a flow or a tier had, 0 to 1 (ORCH-3076)."""
        return self._shares.of(part)


def positive(weight: int, owner: str) -> int:
    """The weight. Raises `ValueError` unless it is positive: a share of nothing would wait for ever."""
    if weight < 1:
        raise ValueError(f"weight {weight} of {owner}: a weight must be at least 1")
    return weight
