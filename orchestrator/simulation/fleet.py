"""The replicas' side of the world: carries out what replicas are told and reports what becomes of it."""

from typing import TYPE_CHECKING, Final, Literal

from contracts import scheduling as ev
from contracts.errors import ErrorInfo
from orchestrator.simulation import mishaps
from orchestrator.simulation.durability import Noted, Undelivered
from orchestrator.simulation.errors import BrokenPromiseError
from orchestrator.simulation.job import NEVER
from orchestrator.simulation.lives import Lives
from orchestrator.simulation.replica import Attempt, Replica

if TYPE_CHECKING:
    from orchestrator.simulation.world import World

NS_PER_MS: Final = 1_000_000
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
        self.lives = Lives(world, self)

    def come_up(self) -> None:
        """All replicas are Ready from the beginning."""
        self.lives.come_up()
        for replica in self.replicas.values():
            if replica.info.kv_tokens:
                self._world.at(GAUGE_NS, self._gauge, replica)

    # ------------------------------------------------------------------ commands

    def start(self, command: ev.Start) -> None:
        world = self._world
        job = world.clients.watchers.started(command)
        replica = self.replicas[command.replica_id]
        mishaps.deliver(job, world.now_ns)
        if replica.state != "ready" or not replica.linked:
            return  # the scheduler is about to hear of it
        if len(replica.running) >= replica.slots:
            raise BrokenPromiseError(f"{job.task_id} starts on {replica.replica_id}, whose slots are all taken")
        attempt = job.last = replica.begin(world.now_ns, job, command)
        if job.poison or attempt.differs:
            mishaps.expect(world, attempt)
        if attempt.ends_ns:
            world.at(attempt.ends_ns, self._when_it_ends, attempt)
        if self._progress_ns and attempt.first_ns:
            world.at(world.now_ns + self._progress_ns, self._progresses, attempt)

    def stop(self, command: ev.Stop) -> None:
        world, key = self._world, (command.task_id, command.attempt)
        replica = self.replicas[command.replica_id]
        if not replica.linked:
            return
        unheard = replica.unconfirmed.get(key)
        if unheard is not None:
            self._report(replica, unheard)
            return
        attempt = replica.running.get(key)
        if attempt is not None and not attempt.deaf:
            world.at(world.now_ns + attempt.replica.speed.stop_ns, self._stops, attempt)

    def measure(self, command: ev.MeasurePrompt) -> None:
        replica = self.replicas[command.replica_id]
        if not replica.linked:
            return
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
            ErrorInfo("WORKER_RESET", attempt.fails, retriable=attempt.retriable) if result == "failed" else None,
            replica.digest(job, tokens),
        )
        if slot_free:
            del replica.running[job.task_id, attempt.number]
        else:
            world.at(now_ns + replica.speed.release_ns, self._releases, (attempt, replica.generation))
        if result == "finished" and replica.info.keeps_kv:
            replica.keep(job)
        if replica.link is None and replica.linked and world.durability is None:
            world.tell(event)
        else:
            replica.unconfirmed[job.task_id, attempt.number] = event
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
        attempt.made_tokens = attempt.tokens_at(now_ns)
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

    def void(self, replica: Replica) -> None:
        """A replica or its engine ends, and with it all that it runs."""
        if replica.state == "ready":
            self.ready_ns += self._counted(replica.up_ns, self._world.now_ns) * replica.slots
        for attempt in replica.void():
            self._count(attempt)

    def tell_return(self, replica: Replica) -> None:
        """Tell over a new link what a replica runs; what of that is taken up was never lost for who watches."""
        world = self._world
        world.tell(replica.returns(world.now_ns))
        if world.durability is None:
            replica.unconfirmed.clear()
        for attempt in list(replica.running.values()):
            record = world.scheduler.state.tasks.get(attempt.job.task_id)
            if record is not None and record.state == "running" and record.attempt == attempt.number:
                world.taken_up(attempt.job)

    def undelivered(self, late: Undelivered) -> None:
        """A command did not arrive, because its link had ended; of a start the books tell all the same."""
        if isinstance(late.what, ev.Start):
            mishaps.deliver(self._world.clients.watchers.started(late.what), self._world.now_ns)

    def noted(self, noted: Noted) -> None:
        """The scheduler knows these ends for good."""
        for event in noted.ends:
            replica = self.replicas[event.replica_id]
            if replica.linked:
                replica.unconfirmed.pop((event.task_id, event.attempt), None)

    def _gauge(self, replica: Replica) -> None:
        world = self._world
        if replica.state == "ready":
            self._report(replica, ev.ReplicaReported(replica.replica_id, replica.kv_used_permille()))
        world.at(world.now_ns + GAUGE_NS, self._gauge, replica)

    # ------------------------------------------------------------------ reports

    def _report(self, replica: Replica, event: ev.AnyEvent) -> None:
        """Tell the scheduler, as well as the replica's link carries it."""
        if not replica.linked:
            return
        if replica.link is None:
            self._world.tell(event)
            return
        delays_ns = replica.link.delays()
        if delays_ns and self._world.durability is None and isinstance(event, ev.AttemptEnded):
            replica.unconfirmed.pop((event.task_id, event.attempt), None)
        for delay_ns in delays_ns:
            self._world.at(self._world.now_ns + delay_ns, self._world.tell, event)
