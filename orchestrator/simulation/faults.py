"""What goes wrong in a scenario, and when.

A fault names its replicas, or how many: then the seed chooses which. Faults of one kind on one
replica must not overlap; the end of one would end the other.
"""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field

from contracts.config_base import Section
from orchestrator.simulation.replica import Link, Replica

if TYPE_CHECKING:
    from orchestrator.simulation.world import World

NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000

Seconds = Annotated[float, Field(ge=0)]
Length = Annotated[float, Field(gt=0)]
Percent = Annotated[float, Field(gt=0, le=100)]
Targets = Annotated[int, Field(ge=1)] | Annotated[list[str], Field(min_length=1)]


class Crash(Section):
    """Replicas die at `at_s` and are started again after `down_s` (left out: never)."""

    kind: Literal["crash"]
    at_s: Seconds
    down_s: Seconds | None = 10
    replicas: Targets = 1


class Flapping(Section):
    """Replicas die again and again, up for `up_s` and down for `down_s`, until `for_s` have passed."""

    kind: Literal["flapping"]
    at_s: Seconds
    for_s: Length
    up_s: Length = 10
    down_s: Length = 1
    replicas: Targets = 1


class EngineDown(Section):
    """The engine stops but its replica lives: it says so, and loads again after `down_s`."""

    kind: Literal["engine-down"]
    at_s: Seconds
    down_s: Length = 10
    replicas: Targets = 1


class Slow(Section):
    """Attempts that start meanwhile take `factor` times as long."""

    kind: Literal["slow"]
    at_s: Seconds
    for_s: Length
    factor: Annotated[float, Field(gt=0)] = 3
    replicas: Targets = 1


class Hanging(Section):
    """Attempts that start meanwhile make no token and never end by themselves; a `deaf` engine ignores stops too."""

    kind: Literal["hanging"]
    at_s: Seconds
    for_s: Length
    deaf: bool = False
    replicas: Targets = 1


class Failing(Section):
    """A share of the attempts that start meanwhile fails before the first token, for a retriable reason."""

    kind: Literal["failing"]
    at_s: Seconds
    for_s: Length
    percent: Percent = 50
    replicas: Targets = 1


class Diverging(Section):
    """Attempts that start meanwhile make other text than every other replica would."""

    kind: Literal["diverging"]
    at_s: Seconds
    for_s: Length
    replicas: Targets = 1


class Reports(Section):
    """What replicas report is lost, repeated or late; late ones overtake each other, by up to `late_ms`."""

    kind: Literal["reports"]
    at_s: Seconds
    for_s: Length
    lost_percent: Annotated[float, Field(ge=0, le=100)] = 0
    duplicate_percent: Annotated[float, Field(ge=0, le=100)] = 0
    late_ms: Annotated[int, Field(ge=0)] = 0
    replicas: Targets = 1


class ClockJump(Section):
    """The scheduler's clock jumps by `jump_ms`, forward or back."""

    kind: Literal["clock"]
    at_s: Seconds
    jump_ms: int


Fault = Annotated[
    Crash | Flapping | EngineDown | Slow | Hanging | Failing | Diverging | Reports | ClockJump,
    Field(discriminator="kind"),
]


class UnknownReplicaError(ValueError):
    """A fault names a replica that the scenario does not have."""


def schedule(world: "World", faults: Sequence[Fault], replicas: Sequence[Replica], seed: int) -> None:
    """Enter all faults into the world's schedule."""
    for number, fault in enumerate(faults):
        rng = Random(f"{seed}/fault/{number}")
        if isinstance(fault, ClockJump):
            world.at(_ns(fault.at_s), world.jump_clock, fault.jump_ms * NS_PER_MS)
            continue
        for replica in _chosen(fault.replicas, replicas, rng):
            _enter(world, fault, replica, rng)


def _enter(world: "World", fault: Fault, replica: Replica, rng: Random) -> None:
    """One fault of one replica: its beginning and, where it has one, its end."""
    begin = _ns(fault.at_s)
    match fault:
        case Crash():
            _crash(world, replica, fault.at_s, fault.down_s)
        case Flapping():
            at_s = fault.at_s
            while at_s < fault.at_s + fault.for_s:
                _crash(world, replica, at_s, fault.down_s)
                at_s += fault.down_s + fault.up_s
        case EngineDown():
            world.at(begin, world.fleet.engine_down, replica)
            world.at(_ns(fault.at_s + fault.down_s), world.fleet.restart, replica)
        case Slow() | Hanging() | Failing() | Diverging() | Reports():
            world.at(begin, _begin, (fault, replica, rng))
            world.at(_ns(fault.at_s + fault.for_s), _end, (fault, replica))


def _crash(world: "World", replica: Replica, at_s: float, down_s: float | None) -> None:
    world.at(_ns(at_s), world.fleet.crash, replica)
    if down_s is not None:
        world.at(_ns(at_s + down_s), world.fleet.restart, replica)


def _begin(what: tuple[Fault, Replica, Random]) -> None:
    fault, replica, rng = what
    match fault:
        case Slow():
            replica.slow = fault.factor
        case Hanging():
            replica.hangs, replica.deaf = True, fault.deaf
        case Failing():
            replica.failing, replica.chance = fault.percent / 100, rng
        case Diverging():
            replica.diverges = True
        case Reports():
            replica.link = Link(rng, fault.lost_percent / 100, fault.duplicate_percent / 100, fault.late_ms * NS_PER_MS)


def _end(what: tuple[Fault, Replica]) -> None:
    fault, replica = what
    match fault:
        case Slow():
            replica.slow = 1.0
        case Hanging():
            replica.hangs = replica.deaf = False
        case Failing():
            replica.failing = 0.0
        case Diverging():
            replica.diverges = False
        case Reports():
            replica.link = None


def _chosen(targets: int | list[str], replicas: Sequence[Replica], rng: Random) -> list[Replica]:
    if isinstance(targets, int):
        return rng.sample(list(replicas), min(targets, len(replicas)))
    known = {replica.replica_id: replica for replica in replicas}
    missing = [name for name in targets if name not in known]
    if missing:
        raise UnknownReplicaError(f"no replica {', '.join(missing)}; there are {', '.join(list(known)[:8])} and so on")
    return [known[name] for name in targets]


def _ns(seconds: float) -> int:
    return int(seconds * NS_PER_S)
