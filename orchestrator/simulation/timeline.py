"""How many tasks wait and how many slots are busy, sampled over the run; for pictures."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from orchestrator.simulation.world import World

#: Samples over the time in which tasks arrive.
SAMPLES: Final = 400


class Timeline:
    """Samples at equal distances from the start until the end of arrivals."""

    def __init__(self, world: "World", priorities: list[str]) -> None:
        self.at_s: list[float] = []
        self.waiting: dict[str, list[int]] = {name: [] for name in priorities}
        self.busy: list[int] = []
        self._world = world
        self._gap_ns = max(1, world.horizon_ns // SAMPLES)
        world.at(self._gap_ns, self._sample, None)

    def _sample(self, _: None) -> None:
        world = self._world
        if world.now_ns > world.horizon_ns:
            return
        self.at_s.append(world.now_ns / 1e9)
        for name, series in self.waiting.items():
            series.append(world.clients.ledger.flows.waiting(name))
        self.busy.append(sum(len(replica.running) for replica in world.fleet.replicas.values()))
        world.at(world.now_ns + self._gap_ns, self._sample, None)
