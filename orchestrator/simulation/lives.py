"""Lives and links of replicas: they crash, load and come up, and their links to the scheduler are cut and made anew.

A replica goes on while it has no link, and tells over a new one what it runs and what ended meanwhile.
"""

from random import Random
from typing import TYPE_CHECKING, Final

from contracts import scheduling as ev
from contracts.pools import FaultKind
from orchestrator.simulation.replica import Replica

if TYPE_CHECKING:
    from orchestrator.simulation.fleet import Fleet
    from orchestrator.simulation.world import World

NS_PER_MS: Final = 1_000_000
#: How long it takes until the scheduler sees that a replica's connection ended, or that it is back.
DETECT_NS: Final = 10 * NS_PER_MS
#: How long replicas take to find a scheduler that was started anew, at most.
RETURN_NS_MAX: Final = 500 * NS_PER_MS


class Lives:
    """What happens to replicas, other than the attempts they run."""

    def __init__(self, world: "World", fleet: "Fleet") -> None:
        self._world = world
        self._fleet = fleet

    # ------------------------------------------------------------------ engines

    def come_up(self) -> None:
        """All replicas are Ready from the beginning."""
        for replica in self._fleet.replicas.values():
            replica.state = "loading"
            self._ready((replica, replica.generation))

    def crash(self, replica: Replica) -> None:
        """A replica dies, whatever it was doing."""
        self._take_down(replica, ev.ReplicaLost(replica.replica_id, "its connection ended"))

    def engine_down(self, what: tuple[Replica, FaultKind]) -> None:
        """A replica's engine ends; the replica lives and says so."""
        replica, kind = what
        self._take_down(replica, ev.ReplicaUnready(replica.replica_id, "the engine ended", kind))

    def restart(self, replica: Replica) -> None:
        """A replica that is down loads its model again."""
        if replica.state != "down":
            return
        replica.state = "loading"
        replica.linked = self._world.is_up
        replica.links += 1
        replica.loss_untold = False
        heard_ns = self._world.now_ns + DETECT_NS
        self._world.at(heard_ns, self._loads, (replica, replica.generation))
        self._world.at(heard_ns + replica.speed.load_ns, self._ready, (replica, replica.generation))

    def _loads(self, what: tuple[Replica, int]) -> None:
        replica, generation = what
        if replica.state == "loading" and replica.generation == generation and replica.linked:
            self._world.tell(ev.ReplicaLoading(replica.replica_id, replica.pool_id))

    def _ready(self, what: tuple[Replica, int]) -> None:
        replica, generation = what
        if replica.state == "loading" and replica.generation == generation:
            replica.state = "ready"
            replica.up_ns = self._world.now_ns
            if replica.linked:
                self._world.tell(ev.ReplicaReady(replica.info))

    def _take_down(self, replica: Replica, event: ev.ReplicaLost | ev.ReplicaUnready) -> None:
        if replica.state == "down":
            return
        self._fleet.void(replica)
        replica.state = "down"
        if replica.linked:
            self._world.at(self._world.now_ns + DETECT_NS, self._tell, (event, self._world.recoveries))

    def _tell(self, what: tuple[ev.AnyEvent, int]) -> None:
        """Tell what a link's end says, unless that was a link to a scheduler that is gone."""
        event, recoveries = what
        if recoveries == self._world.recoveries:
            self._world.tell(event)

    # ------------------------------------------------------------------ links

    def cut(self, replica: Replica) -> None:
        """A replica's link ends; it goes on all the same."""
        if replica.linked:
            replica.linked = False
            replica.loss_untold = True
            self._world.at(self._world.now_ns + DETECT_NS, self._lost, replica)

    def relink(self, replica: Replica) -> None:
        """A replica has a link again; that it had lost it is told first."""
        if replica.linked or not self._world.is_up:
            return
        self._lost(replica)
        replica.linked = True
        replica.links += 1
        if replica.state == "loading":
            self._world.tell(ev.ReplicaLoading(replica.replica_id, replica.pool_id))
        elif replica.state == "ready":
            self._fleet.tell_return(replica)

    def _lost(self, replica: Replica) -> None:
        if replica.loss_untold:
            replica.loss_untold = False
            self._world.tell(ev.ReplicaLost(replica.replica_id, "its connection ended"))

    def all_cut(self) -> None:
        """The scheduler died: no replica has a link to it, and there is nobody to be told."""
        for replica in self._fleet.replicas.values():
            replica.linked = replica.loss_untold = False

    def all_return(self, chance: Random) -> None:
        """Another scheduler is there: replicas find it, one after the other."""
        for replica in self._fleet.replicas.values():
            self._world.at(self._world.now_ns + int(chance.random() * RETURN_NS_MAX), self.relink, replica)
