"""What a run amounts to: load, goodput, waits, refusals, fairness, and whether promises were kept."""

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from orchestrator.simulation.honesty import Honesty, honesty
from orchestrator.simulation.job import NEVER
from orchestrator.simulation.ledger import Column, Ledger, Lost
from orchestrator.simulation.scenario import Scenario
from orchestrator.simulation.shares import ShareReport, class_shares, tenant_shares

if TYPE_CHECKING:
    from orchestrator.simulation.world import World

NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000
#: A set that is busier than this on average has long queues whenever arrivals come in bursts.
BUSY_TARGET: Final = 0.8


class Spread(Struct, frozen=True):
    """Percentiles by nearest rank, in milliseconds."""

    tasks: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float


class Group(Struct, frozen=True):
    """The tasks of one class or one tenant. `on_time` ones finished by their client's deadline.

    The two shares leave out what clients canceled. `tokens` are output tokens of tasks on time. A wait runs
    from admission to the start, `first_token` from the first submission.
    """

    submitted: int
    admitted: int
    finished: int
    canceled: int
    on_time: int
    on_time_of_submitted: float
    on_time_of_admitted: float
    tokens: int
    wait: Spread | None
    first_token: Spread | None


class Load(Struct, frozen=True):
    """Slots that there were and that all tasks would have needed, refused ones included, on average.

    Needed at the speed that replicas have when 80 % of their slots are busy; `replicas_needed` keeps them there.
    """

    replicas: int
    slots: int
    slots_needed: float
    replicas_needed: int
    utilisation: float


class Goodput(Struct, frozen=True):
    """What was done in time, per second of arrivals. Tokens are output tokens."""

    tasks_per_s: float
    tokens_per_s: float


class Report(Struct, frozen=True):
    """Everything that is counted. The same scenario and seed give an equal report."""

    scenario: str
    seed: int
    counted_s: float
    steps: int
    load: Load
    goodput: Goodput
    total: Group
    classes: dict[str, Group]
    tenants: dict[str, Group]
    refused_submissions: dict[str, int]
    outcomes: dict[str, int]
    preemptions: int
    retried_attempts: int
    lost: Lost
    replays: int
    class_shares: ShareReport
    tenant_shares: dict[str, ShareReport]
    honesty: Honesty

    def to_json(self) -> bytes:
        """The report as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


class _Tally:
    """Running sums of a group."""

    __slots__ = ("admitted", "canceled", "finished", "first_ns", "on_time", "submitted", "tokens", "waits_ns")

    def __init__(self) -> None:
        self.submitted = self.admitted = self.finished = self.canceled = self.on_time = self.tokens = 0
        self.waits_ns: list[int] = []
        self.first_ns: list[int] = []

    def add(self, other: "_Tally") -> None:
        self.submitted += other.submitted
        self.admitted += other.admitted
        self.finished += other.finished
        self.canceled += other.canceled
        self.on_time += other.on_time
        self.tokens += other.tokens
        self.waits_ns += other.waits_ns
        self.first_ns += other.first_ns

    def group(self) -> Group:
        submitted, admitted = self.submitted - self.canceled, self.admitted - self.canceled
        return Group(
            submitted=self.submitted,
            admitted=self.admitted,
            finished=self.finished,
            canceled=self.canceled,
            on_time=self.on_time,
            on_time_of_submitted=self.on_time / submitted if submitted else 0.0,
            on_time_of_admitted=self.on_time / admitted if admitted else 0.0,
            tokens=self.tokens,
            wait=spread(self.waits_ns),
            first_token=spread(self.first_ns),
        )


def build_report(world: "World", scenario: Scenario, seed: int) -> Report:
    """Add up a run that is over."""
    ledger, fleet, horizon_ns = world.clients.ledger, world.fleet, world.horizon_ns
    counted_ns = max(1, horizon_ns - ledger.count_from_ns)
    tallies = _tallies(ledger)
    meters = ledger.flows.meters
    classes: dict[str, _Tally] = {name: _Tally() for name in scenario.scheduler.classes}
    tenants: dict[str, _Tally] = {}
    total = _Tally()
    for meter, tally in zip(meters, tallies, strict=True):
        classes.setdefault(meter.priority, _Tally()).add(tally)
        tenants.setdefault(meter.tenant, _Tally()).add(tally)
        total.add(tally)
    for meter in meters:
        meter.settle(horizon_ns)
    fleet.settle()
    window_ns = int(scenario.window_s * NS_PER_S)
    windows = (-(-ledger.count_from_ns // window_ns), horizon_ns // window_ns)
    counted_s = counted_ns / NS_PER_S
    return Report(
        scenario=scenario.name,
        seed=seed,
        counted_s=counted_s,
        steps=world.steps,
        load=_load(world, counted_ns),
        goodput=Goodput(total.on_time / counted_s, total.tokens / counted_s),
        total=total.group(),
        classes={name: tally.group() for name, tally in classes.items()},
        tenants={name: tenants[name].group() for name in sorted(tenants)},
        refused_submissions=dict(sorted(ledger.refusals.items())),
        outcomes=_outcomes(ledger),
        preemptions=sum(count for (count,) in ledger.columns(Column.PREEMPTIONS)),
        retried_attempts=ledger.retried,
        lost=Lost(ledger.lost, ledger.adopted, world.recoveries),
        replays=ledger.replays,
        class_shares=class_shares(meters, *windows),
        tenant_shares=tenant_shares(meters, *windows),
        honesty=honesty(ledger),
    )


def spread(values_ns: list[int]) -> Spread | None:
    """Mean and percentiles; None for no values."""
    if not values_ns:
        return None
    values_ns.sort()
    count = len(values_ns)

    def at(percent: int) -> float:
        return values_ns[max(0, -(-count * percent // 100) - 1)] / NS_PER_MS

    return Spread(count, sum(values_ns) / count / NS_PER_MS, at(50), at(90), at(99))


def _tallies(ledger: Ledger) -> list[_Tally]:
    """One tally for each flow."""
    tallies = [_Tally() for _ in ledger.flows.meters]
    finished = [outcome == "finished" for outcome in ledger.outcomes]
    canceled = [outcome.startswith("canceled") for outcome in ledger.outcomes]
    rows = ledger.columns(
        Column.FLOW,
        Column.OUTCOME,
        Column.ARRIVED_NS,
        Column.DEADLINE_NS,
        Column.ADMITTED_NS,
        Column.STARTED_NS,
        Column.FIRST_NS,
        Column.ENDED_NS,
        Column.OUTPUT_TOKENS,
    )
    for flow, outcome, arrived_ns, deadline_ns, admitted_ns, started_ns, first_ns, ended_ns, tokens in rows:
        tally = tallies[flow]
        tally.submitted += 1
        if admitted_ns == NEVER:
            continue
        tally.admitted += 1
        if started_ns != NEVER:
            tally.waits_ns.append(started_ns - admitted_ns)
        if first_ns != NEVER:
            tally.first_ns.append(first_ns - arrived_ns)
        tally.canceled += canceled[outcome]
        if finished[outcome]:
            tally.finished += 1
            if ended_ns <= deadline_ns:
                tally.on_time += 1
                tally.tokens += tokens
    return tallies


def _outcomes(ledger: Ledger) -> dict[str, int]:
    counts = [0] * len(ledger.outcomes)
    for (code,) in ledger.columns(Column.OUTCOME):
        counts[code] += 1
    return {name: count for name, count in sorted(zip(ledger.outcomes, counts, strict=True)) if count}


def _load(world: "World", counted_ns: int) -> Load:
    """Offered load by Little's law: mean busy slots = arrivals per second x seconds each would take alone."""
    ledger, fleet, replicas = world.clients.ledger, world.fleet, list(world.fleet.replicas.values())
    slots = sum(replica.slots for replica in replicas)
    start_ns = sum(replica.slots * replica.speed.start_ns for replica in replicas) / slots
    prefill_ns = sum(replica.slots * replica.speed.prefill_ns for replica in replicas) / slots
    decode_ns = sum(replica.slots * replica.speed.busy_decode_ns(BUSY_TARGET * replica.slots) for replica in replicas)
    decode_ns /= slots
    offered_ns = 0.0
    for prompt, output in ledger.columns(Column.PROMPT_TOKENS, Column.OUTPUT_TOKENS):
        offered_ns += start_ns + prefill_ns * prompt + decode_ns * (output - 1)
    needed = offered_ns / counted_ns
    per_replica = slots / len(replicas)
    return Load(
        replicas=len(replicas),
        slots=slots,
        slots_needed=needed,
        replicas_needed=max(1, -int(-needed // (BUSY_TARGET * per_replica))),
        utilisation=fleet.busy_ns / fleet.ready_ns if fleet.ready_ns else 0.0,
    )
