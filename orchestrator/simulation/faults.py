"""When the faults of a scenario begin and end, and what they do to the world.

A fault names its replicas, or how many: then the seed chooses which. Faults of one kind on one
replica must not overlap; the end of one would end the other.
"""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Final

from orchestrator.simulation.faultkinds import (
    ClockJump,
    Crash,
    Cut,
    Diverging,
    EngineDown,
    Failing,
    Fault,
    Flapping,
    Hanging,
    Reports,
    SchedulerDown,
    Slow,
    Storage,
)
from orchestrator.simulation.replica import Link, Replica

if TYPE_CHECKING:
    from orchestrator.simulation.world import World

NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000


class UnknownReplicaError(ValueError):
    """A fault names a replica that the scenario does not have."""


def schedule(world: "World", faults: Sequence[Fault], replicas: Sequence[Replica], seed: int) -> None:
    """Enter all faults into the world's schedule."""
    for number, fault in enumerate(faults):
        rng = Random(f"{seed}/fault/{number}")
        if isinstance(fault, ClockJump | SchedulerDown | Storage):
            _of_service(world, fault, rng)
            continue
        for replica in chosen(fault.replicas, replicas, rng):
            _enter(world, fault, replica, rng)


def needs_journal(faults: Sequence[Fault]) -> bool:
    """Whether any of the faults is about what outlives the scheduler."""
    return any(isinstance(fault, SchedulerDown | Storage) for fault in faults)


def _of_service(world: "World", fault: ClockJump | SchedulerDown | Storage, rng: Random) -> None:
    begin = _ns(fault.at_s)
    match fault:
        case ClockJump():
            world.at(begin, world.jump_clock, fault.jump_ms * NS_PER_MS)
        case SchedulerDown() if fault.shutdown_ms:
            world.at(begin, world.ask_to_end, (fault.shutdown_ms, _ns(fault.down_s), rng))
        case SchedulerDown():
            world.at(begin, world.kill_scheduler, (_ns(fault.down_s), rng))
        case Storage():
            world.at(begin, world.fill_disk, True)
            world.at(_ns(fault.at_s + fault.for_s), world.fill_disk, False)


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
            world.at(begin, world.fleet.lives.engine_down, (replica, fault.why))
            world.at(_ns(fault.at_s + fault.down_s), world.fleet.lives.restart, replica)
        case Cut():
            world.at(begin, world.fleet.lives.cut, replica)
            world.at(_ns(fault.at_s + fault.for_s), world.fleet.lives.relink, replica)
        case Slow() | Hanging() | Failing() | Diverging() | Reports():
            world.at(begin, _begin, (fault, replica, rng))
            world.at(_ns(fault.at_s + fault.for_s), _end, (fault, replica))


def _crash(world: "World", replica: Replica, at_s: float, down_s: float | None) -> None:
    world.at(_ns(at_s), world.fleet.lives.crash, replica)
    if down_s is not None:
        world.at(_ns(at_s + down_s), world.fleet.lives.restart, replica)


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


def chosen(targets: int | list[str], replicas: Sequence[Replica], rng: Random) -> list[Replica]:
    """The replicas of a fault."""
    if isinstance(targets, int):
        return rng.sample(list(replicas), min(targets, len(replicas)))
    known = {replica.replica_id: replica for replica in replicas}
    missing = [name for name in targets if name not in known]
    if missing:
        raise UnknownReplicaError(f"no replica {', '.join(missing)}; there are {', '.join(list(known)[:8])} and so on")
    return [known[name] for name in targets]


def _ns(seconds: float) -> int:
    return int(seconds * NS_PER_S)
