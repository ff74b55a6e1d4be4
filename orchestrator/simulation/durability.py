"""What a step tells waits until what it changed is durable, as it does at the scheduler's shell (ORCH-3051).

Commits take `commit_ns` and follow one another; each takes in what was put meanwhile. While the disk is full nothing
becomes durable: the admissions that nobody was told of are given up, and only what would overtake a waiting message
about the same task waits with it.
"""

from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final

from contracts import scheduling as ev
from contracts.journal import KeptTask, Record
from orchestrator.simulation.job import Job
from orchestrator.simulation.journal import Journal

if TYPE_CHECKING:
    from orchestrator.simulation.world import World

NS_PER_MS: Final = 1_000_000
#: A commit that failed is tried again after this.
RETRY_NS: Final = 1000 * NS_PER_MS


class Noted:
    """Told to a replica: the ends of these attempts are known and durable."""

    def __init__(self, ends: tuple[ev.AttemptEnded, ...]) -> None:
        self.ends = ends
        self.task_id = ends[0].task_id
        self.replica_id = ends[0].replica_id


class TakenUp:
    """Told to who watches a task: its attempt is not lost, the replica that runs it is back."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.task_id = job.task_id


class Undelivered:
    """A message that waited for longer than the link lived which it was for."""

    def __init__(self, what: Any) -> None:
        self.what = what


class Durability:
    """The journal and the line of what waits for it. `disk_full` is set and cleared by faults."""

    def __init__(self, world: "World", commit_ns: int) -> None:
        self.journal = Journal()
        self.disk_full = False
        self.failures = 0
        self._world = world
        self._commit_ns = commit_ns
        #: Sequence, task, message, and the link that it goes over (0 where it goes over none).
        self._line: deque[tuple[int, str, Any, int]] = deque()
        #: What the commit under way writes, and what waits for the next one.
        self._batch: list[Record] = []
        self._records: list[Record] = []
        self._put = self._durable = self._under_way = 0
        self._is_down = False
        #: While it is: how many messages about a task wait.
        self._waiting: dict[str, int] = {}
        #: Counts the lives of the scheduler: a commit of an earlier one is void.
        self._life = 0
        self._disturb: tuple[Callable[[Any], None], Any, Random] | None = None

    def step(self, event: ev.AnyEvent, commands: list[ev.AnyCommand], records: list[Record]) -> None:
        """Carry out what a step commands, once it may be."""
        sequence = 0
        if records:
            self._put += 1
            sequence = self._put
            self._records += records
            if not self._under_way:
                self._begin()
        for command in commands:
            self._post(sequence, self._subject_of(command), command)
        ends = _ends(event)
        if ends:
            noted = Noted(ends)
            self._post(sequence, noted.task_id, noted)

    def taken_up(self, job: Job) -> None:
        """Tell who watches a task that it goes on; behind what is still to be told of it."""
        self._post(0, job.task_id, TakenUp(job))

    def crash(self, chance: Random) -> None:
        """The scheduler dies: what waited is never told. The commit under way may have come through or not."""
        if self._batch and not self.disk_full and chance.random() < 0.5:
            self.journal.put(self._batch)
        self._life += 1
        self._line.clear()
        self._waiting.clear()
        self._batch, self._records = [], []
        self._durable = self._put
        self._under_way = 0
        self._is_down = False

    def disturb(self, act: Callable[[Any], None], argument: Any, chance: Random) -> None:
        """Have something happen in the midst of the next commit: that is when the most can go wrong."""
        self._disturb = (act, argument, chance)

    # ------------------------------------------------------------------ the line

    def _post(self, sequence: int, subject: str, what: Any) -> None:
        # The timer is the shell's own, nobody is told of it.
        if isinstance(what, ev.SetTimer) or (sequence <= self._durable and not self._must_wait(subject)):
            self._world.perform(what)
            return
        self._line.append((sequence, subject, what, self._link_of(what)))
        if self._is_down and subject:
            self._waiting[subject] = self._waiting.get(subject, 0) + 1

    def _subject_of(self, command: ev.AnyCommand) -> str:
        """The task that a command is about; also of the answer to a cancel, which must not come before the end."""
        if isinstance(command, ev.AnswerCancel):
            job = self._world.clients.cancels.get(command.request)
            return "" if job is None else job.task_id
        return getattr(command, "task_id", "")

    def _must_wait(self, subject: str) -> bool:
        return subject in self._waiting if self._is_down else bool(self._line)

    def _flush(self) -> None:
        line, life = self._line, self._life
        while line and line[0][0] <= self._durable and self._life == life:
            _, subject, what, link = line.popleft()
            if self._is_down and subject:
                self._waiting[subject] -= 1
                if not self._waiting[subject]:
                    del self._waiting[subject]
            self._send(what, link)

    def _link_of(self, what: Any) -> int:
        replica = self._world.fleet.replicas.get(getattr(what, "replica_id", ""))
        return 0 if replica is None else replica.links

    def _send(self, what: Any, link: int) -> None:
        """Carry something out that waited; what was for a link that is no more does not arrive."""
        self._world.perform(what if link == self._link_of(what) else Undelivered(what))

    # ------------------------------------------------------------------ commits

    def _begin(self) -> None:
        self._under_way = self._put
        self._batch, self._records = self._records, []
        self._world.at(self._world.now_ns + self._commit_ns, self._commit, self._life)
        if self._disturb is not None:
            act, argument, chance = self._disturb
            self._disturb = None
            self._world.at(self._world.now_ns + int(chance.random() * self._commit_ns), act, argument)

    def _commit(self, life: int) -> None:
        if life != self._life:
            return
        if self.disk_full:
            self._fail()
            self._world.at(self._world.now_ns + RETRY_NS, self._commit, self._life)
            return
        self.journal.put(self._batch)
        self._batch = []
        self._durable, self._under_way = self._under_way, 0
        # Before what waited is told, so that what follows from it waits its turn.
        if self._records:
            self._begin()
        self._flush()
        if self._is_down and self._life == life:
            self._is_down = False
            self._waiting.clear()
            self._world.tell(ev.JournalRestored())

    def _fail(self) -> None:
        if self._is_down:
            return
        self.failures += 1
        undone = {
            what.task_id: None for _, _, what, _ in self._line if isinstance(what, ev.Admit) and not what.replayed
        }
        self._batch = [record for record in self._batch if _subject(record) not in undone]
        self._records = [record for record in self._records if _subject(record) not in undone]
        line, self._line = self._line, deque()
        self._is_down = True
        for sequence, subject, what, link in line:
            if isinstance(what, ev.Admit) and subject in undone:
                self._world.clients.undone(what)
            elif subject in undone or (sequence <= self._durable and subject not in self._waiting):
                self._send(what, link)
            else:
                self._line.append((sequence, subject, what, link))
                if subject:
                    self._waiting[subject] = self._waiting.get(subject, 0) + 1
        self._world.tell(ev.JournalFailed("no space left on device", tuple(undone)))


def _subject(record: Record) -> str:
    """The task of a record; "" for others."""
    return record.task.task_id if isinstance(record, KeptTask) else ""


def _ends(event: ev.AnyEvent) -> tuple[ev.AttemptEnded, ...]:
    """The ends that an event tells of, which its replica is to be told are noted."""
    if isinstance(event, ev.AttemptEnded):
        return (event,)
    return event.ended if isinstance(event, ev.ReplicaReady) else ()
