"""Random schedules of faults: from a seed, all kinds of them, spread over a scenario.

Every fault ends before arrivals do, and no two of one kind meet on one replica, since the end of one would end the
other. The same scenario and seed give the same schedule.
"""

from random import Random
from typing import Any, Final

from pydantic import TypeAdapter

from orchestrator.simulation.faultkinds import Fault
from orchestrator.simulation.scenario import Scenario

#: About how far faults are apart, in seconds. Most recover within that, and some meet.
GAP_S: Final = 6.0
#: Nothing begins in the last part of the run, so that what follows from a fault is seen.
LAST_PART: Final = 0.9
#: Most faults of one schedule.
FAULTS_MAX: Final = 500
#: Why engines go down: half of these may be the doing of what they ran.
CAUSES: Final = ("exit", "stuck", "vram_oom", "xid", "killed", "host_oom", "driver", "actor")

#: How often each kind is drawn, and its longest time in seconds.
KINDS: Final[dict[str, tuple[int, float]]] = {
    "crash": (5, 8),
    "flapping": (1, 10),
    "engine-down": (4, 6),
    "slow": (2, 10),
    "hanging": (2, 4),
    "failing": (2, 6),
    "diverging": (1, 4),
    "reports": (2, 8),
    "clock": (1, 0),
    "cut": (6, 6),
    "scheduler": (4, 5),
    "storage": (2, 6),
}
#: Kinds that are about the service, not about replicas.
SERVICE_KINDS: Final = ("clock", "scheduler", "storage")

_FAULT: Final[TypeAdapter[Fault]] = TypeAdapter(Fault)


def disturbed(scenario: Scenario, seed: int) -> Scenario:
    """The scenario with the faults of a seed in place of its own."""
    return scenario.model_copy(update={"faults": schedule(scenario, seed)})


def schedule(scenario: Scenario, seed: int) -> list[Fault]:
    """The faults of a seed, in the order in which they begin."""
    rng = Random(f"{seed}/schedule")
    names = [f"{name}-{index}" for name, pool in scenario.pools.items() for index in range(pool.replicas)]
    kinds, weights = list(KINDS), [weight for weight, _ in KINDS.values()]
    #: Until when a kind is at work, on a replica or, with "", on the service.
    until_s: dict[tuple[str, str], float] = {}
    found: list[Fault] = []
    at_s, end_s = rng.uniform(0, GAP_S), scenario.seconds * LAST_PART
    while at_s < end_s and len(found) < FAULTS_MAX:
        kind = rng.choices(kinds, weights)[0]
        for_s = round(rng.uniform(0.05, 1) * min(KINDS[kind][1], end_s - at_s) + 0.05, 3)
        fault: dict[str, Any] = {"kind": kind, "at_s": round(at_s, 3), **_fields(kind, for_s, rng)}
        targets = [""] if kind in SERVICE_KINDS else rng.sample(names, _how_many(rng, len(names)))
        free = [name for name in targets if until_s.get((kind, name), 0.0) <= at_s]
        if free:
            if free != [""]:
                fault["replicas"] = free
            # A flapping replica ends its last fall after its time.
            for name in free:
                until_s[kind, name] = at_s + for_s + 2
            found.append(_FAULT.validate_python(fault))
        at_s += rng.expovariate(1 / GAP_S)
    return found


def _fields(kind: str, for_s: float, rng: Random) -> dict[str, Any]:
    """What a fault is like, but for its time and whom it meets."""
    match kind:
        case "crash":
            return {"down_s": for_s}
        case "engine-down":
            return {"down_s": for_s, "why": rng.choice(CAUSES)}
        case "scheduler":
            return {"down_s": for_s, "shutdown_ms": rng.choice((0, 0, 500, 3000))}
        case "clock":
            return {"jump_ms": rng.randrange(-5000, 5000)}
    more: dict[str, Any] = {"for_s": for_s}
    match kind:
        case "flapping":
            more |= {"up_s": round(rng.uniform(0.5, 3), 3), "down_s": round(rng.uniform(0.1, 1), 3)}
        case "slow":
            more["factor"] = round(rng.uniform(2, 8), 2)
        case "hanging":
            more["deaf"] = rng.random() < 0.3
        case "failing":
            more["percent"] = rng.randint(10, 90)
        case "reports":
            more |= {"lost_percent": rng.randrange(15), "duplicate_percent": rng.randrange(30)}
            more["late_ms"] = rng.randrange(500)
    return more


def _how_many(rng: Random, most: int) -> int:
    """Mostly one replica, sometimes several, now and then all."""
    pick = rng.random()
    if pick < 0.6:
        return 1
    return most if pick > 0.92 else rng.randint(1, most)
