"""The replicas' side of the world: carries out what replicas are told and reports what becomes of it."""

from typing import TYPE_CHECKING, Final, Literal

from contracts import scheduling as ev
from contracts.errors import ErrorInfo
from orchestrator.simulation.errors import BrokenPromiseError
from orchestrator.simulation.job import NEVER
from orchestrator.simulation.replica import Attempt, Replica

if TYPE_CHECKING:
    from orchestrator.simulation.world import World

NS_PER_MS: Final = 1_000_000
#: How long it takes until the scheduler sees that a replica's connection ended, or that it is back.
DETECT_NS: Final = 10 * NS_PER_MS
#: How long counting a prompt's tokens takes.
MEASURE_NS: Final = 2 * NS_PER_MS
#: How often replicas with a KV cache of a known size report how full it is.
GAUGE_NS: Final = 1000 * NS_PER_MS
#: About what one token adds to a transcript.
TOKEN_BYTES: Final = 5

Result = Literal["finished", "stopped", "failed"]


class Fleet:
    """All replicas. `busy_ns` and `ready_ns` are slot time between `count_from_ns` and the end of arrivals."""

    def __init__(self, world: "World", replicas: list[Replica], *, progress_ns: int, count_from_ns: int) -> None:
        self.replicas = {replica.replica_id: replica for replica in replicas}
        self.busy_ns = 0
        self.ready_ns = 0
        self._world = world
        self._progress_ns = progress_ns
        self._count_from_ns = count_from_ns
        #: Bound once, since there is one such event for every task.
        self._when_it_ends = self._ends
        #: Ends that got lost on their way; told again when the scheduler asks to stop the attempt.
        self._unheard: dict[tuple[str, int], tuple[Replica, ev.AttemptEnded]] = {}

    def come_up(self) -> None:
        """All replicas are Ready from the beginning."""
        for replica in self.replicas.values():
            replica.state = "loading"
            self._ready((replica, replica.generation))
            if replica.info.kv_tokens:
                self._world.at(GAUGE_NS, self._gauge, replica)

    # ------------------------------------------------------------------ commands

    def start(self, command: ev.Start) -> None:
        world = self._world
        job = world.clients.started(command)
        replica = self.replicas[command.replica_id]
        if replica.state != "ready":
            return  # it is down, and the scheduler is about to hear of it
        if len(replica.running) >= replica.slots:
            raise BrokenPromiseError(f"{job.task_id} starts on {replica.replica_id}, whose slots are all taken")
        attempt = replica.begin(world.now_ns, job, command)
        if attempt.ends_ns:
            world.at(attempt.ends_ns, self._when_it_ends, attempt)
        if self._progress_ns and attempt.first_ns:
            world.at(world.now_ns + self._progress_ns, self._progresses, attempt)

    def stop(self, command: ev.Stop) -> None:
        world, key = self._world, (command.task_id, command.attempt)
        unheard = self._unheard.pop(key, None)
        if unheard is not None:
            self._report(*unheard)
            return
        attempt = self.replicas[command.replica_id].running.get(key)
        if attempt is not None and not attempt.deaf:
            world.at(world.now_ns + attempt.replica.speed.stop_ns, self._stops, attempt)

    def measure(self, command: ev.MeasurePrompt) -> None:
        replica = self.replicas[command.replica_id]
        self._world.at(self._world.now_ns + MEASURE_NS, self._measures, (replica, replica.generation, command))

    def refused(self, command: ev.RefuseReplica) -> None:
        raise BrokenPromiseError(f"{command.replica_id} was refused: {command.reason}")

    # ------------------------------------------------------------------ attempts

    def _ends(self, attempt: Attempt) -> None:
        if not attempt.over:
            self._end(attempt, "failed" if attempt.fails else "finished")

    def _stops(self, attempt: Attempt) -> None:
        if not attempt.over:
            self._end(attempt, "stopped")

    def _end(self, attempt: Attempt, result: Result) -> None:
        """The attempt is over; its slot is free now, or when the engine let go of it."""
        world, replica, job = self._world, attempt.replica, attempt.job
        now_ns = world.now_ns
        self._count(attempt)
        tokens = attempt.tokens_at(now_ns)
        slot_free = result == "finished" or not replica.speed.release_ns
        reason: Literal["stop", "length"] | None = None
        if result == "finished":
            reason = "stop" if tokens < job.info.max_tokens else "length"
        # By position, in the order of the contract: by name it would cost four times as much, for every task.
        event = ev.AttemptEnded(
            job.task_id,
            attempt.number,
            replica.replica_id,
            result,
            slot_free,
            job.prompt_tokens,
            tokens,
            attempt.cached_tokens,
            attempt.first_ns - attempt.started_ns if tokens else 0,
            attempt.decode_ns * (tokens - 1) if tokens else 0,
            TOKEN_BYTES * tokens,
            reason,
            None,
            ErrorInfo("WORKER_RESET", attempt.fails, retriable=True) if result == "failed" else None,
            replica.digest(job, tokens),
        )
        if slot_free:
            del replica.running[job.task_id, attempt.number]
        else:
            world.at(now_ns + replica.speed.release_ns, self._releases, (attempt, replica.generation))
        if result == "finished" and replica.info.keeps_kv:
            replica.keep(job)
        if replica.link is None:
            world.tell(event)
        else:
            self._report(replica, event)

    def _releases(self, what: tuple[Attempt, int]) -> None:
        attempt, generation = what
        replica = attempt.replica
        if replica.generation == generation:
            del replica.running[attempt.job.task_id, attempt.number]
            self._report(replica, ev.SlotReleased(attempt.job.task_id, attempt.number, replica.replica_id))

    def _progresses(self, attempt: Attempt) -> None:
        if attempt.over:
            return
        world, job = self._world, attempt.job
        tokens = attempt.tokens_at(world.now_ns)
        if tokens:
            digest = attempt.replica.digest(job, tokens)
            self._report(attempt.replica, ev.TokensProgressed(job.task_id, attempt.number, tokens, digest))
        world.at(world.now_ns + self._progress_ns, self._progresses, attempt)

    def _measures(self, what: tuple[Replica, int, ev.MeasurePrompt]) -> None:
        replica, generation, command = what
        job = self._world.clients.jobs.get(command.task_id)
        if job is not None and replica.generation == generation and not replica.hangs:
            self._report(replica, ev.PromptMeasured(command.task_id, command.measurement, job.prompt_tokens))

    def _count(self, attempt: Attempt) -> None:
        """Enter what an attempt did into the books; it does no more."""
        now_ns, job = self._world.now_ns, attempt.job
        attempt.over = True
        if job.first_ns == NEVER and attempt.first_ns and attempt.first_ns <= now_ns:
            job.first_ns = attempt.first_ns
        self.busy_ns += self._counted(attempt.started_ns, now_ns)

    def _counted(self, from_ns: int, to_ns: int) -> int:
        """How much of a stretch of time counts."""
        begin = from_ns if from_ns > self._count_from_ns else self._count_from_ns
        end = to_ns if to_ns < self._world.horizon_ns else self._world.horizon_ns
        return end - begin if end > begin else 0

    def settle(self) -> None:
        """Count what is still under way as far as it got."""
        for replica in self.replicas.values():
            for attempt in replica.running.values():
                if not attempt.over:
                    self.busy_ns += self._counted(attempt.started_ns, self._world.now_ns)
            if replica.state == "ready":
                self.ready_ns += self._counted(replica.up_ns, self._world.now_ns) * replica.slots

    # ------------------------------------------------------------------ replicas

    def crash(self, replica: Replica) -> None:
        """A replica dies, whatever it was doing."""
        self._take_down(replica, ev.ReplicaLost(replica.replica_id, "its connection ended"))

    def engine_down(self, replica: Replica) -> None:
        """A replica's engine ends; the replica lives and says so."""
        self._take_down(replica, ev.ReplicaUnready(replica.replica_id, "the engine ended"))

    def restart(self, replica: Replica) -> None:
        """A replica that is down loads its model again."""
        if replica.state != "down":
            return
        replica.state = "loading"
        heard_ns = self._world.now_ns + DETECT_NS
        self._world.at(heard_ns, self._world.tell, ev.ReplicaLoading(replica.replica_id, replica.pool_id))
        self._world.at(heard_ns + replica.speed.load_ns, self._ready, (replica, replica.generation))

    def _ready(self, what: tuple[Replica, int]) -> None:
        replica, generation = what
        if replica.state == "loading" and replica.generation == generation:
            replica.state = "ready"
            replica.up_ns = self._world.now_ns
            self._world.tell(ev.ReplicaReady(replica.info))

    def _take_down(self, replica: Replica, event: ev.ReplicaLost | ev.ReplicaUnready) -> None:
        if replica.state == "down":
            return
        if replica.state == "ready":
            self.ready_ns += self._counted(replica.up_ns, self._world.now_ns) * replica.slots
        replica.state = "down"
        for attempt in replica.void():
            self._count(attempt)
        self._unheard = {key: entry for key, entry in self._unheard.items() if entry[0] is not replica}
        self._world.at(self._world.now_ns + DETECT_NS, self._world.tell, event)

    def _gauge(self, replica: Replica) -> None:
        world = self._world
        if replica.state == "ready":
            self._report(replica, ev.ReplicaReported(replica.replica_id, replica.kv_used_permille()))
        world.at(world.now_ns + GAUGE_NS, self._gauge, replica)

    # ------------------------------------------------------------------ reports

    def _report(self, replica: Replica, event: ev.AnyEvent) -> None:
        """Tell the scheduler, as well as the replica's link carries it."""
        if replica.link is None:
            self._world.tell(event)
            return
        delays_ns = replica.link.delays()
        if not delays_ns and isinstance(event, ev.AttemptEnded):
            self._unheard[event.task_id, event.attempt] = (replica, event)
        for delay_ns in delays_ns:
            self._world.at(self._world.now_ns + delay_ns, self._world.tell, event)
