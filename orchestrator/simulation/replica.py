"""A replica as the world has it: how long an attempt takes there, and what is wrong with it.

An attempt is one event, its end; its first token and how far it is at any time are computed. It starts
after `start_ns`, reads the part of its prompt that is not in the KV cache at `prefill_ns` a token,
and decodes at `decode_ns` a token. With other slots busy at its start decoding is slower by
`slowdown` each; that stays so until its end, although slots come and go meanwhile.
"""

from random import Random
from typing import Final

from msgspec import Struct

from contracts.scheduling import AttemptEnded, ReplicaReady, RunningAttempt, Start
from contracts.tasks import ReplicaInfo
from orchestrator.simulation.job import Job

#: Digests of a task's first n tokens: the same on every replica, different for every n and seed.
_DIGEST_FACTOR: Final = 0x9E3779B97F4A7C15
_DIGEST_MASK: Final = (1 << 63) - 1
#: What a diverging replica's digests differ by.
_DIVERGENCE: Final = 0x5DEECE66D


class Speed(Struct, frozen=True):
    """How fast the replicas of a pool are, and how long they take for all else."""

    start_ns: int
    prefill_ns: int
    decode_ns: int
    slowdown: float
    stop_ns: int
    release_ns: int
    load_ns: int

    def busy_decode_ns(self, busy: float) -> float:
        """Time per token with so many slots busy."""
        return self.decode_ns * (1 + self.slowdown * max(0.0, busy - 1))


class Attempt:
    """One run of one task. `ends_ns` is when it ends by itself, 0 if it never does; `fails` why it fails.

    `diverges`: it makes other text than every other replica would; `differs`: other text than was delivered before.
    Once it is `over`, it has made `made_tokens`.
    """

    __slots__ = (
        "cached_tokens",
        "deaf",
        "decode_ns",
        "differs",
        "diverges",
        "ends_ns",
        "fails",
        "first_ns",
        "job",
        "made_tokens",
        "number",
        "over",
        "replica",
        "started_ns",
    )

    def __init__(self, job: Job, number: int, replica: "Replica", started_ns: int) -> None:
        """One that hangs; `Replica.begin` makes it run."""
        self.job = job
        self.number = number
        self.replica = replica
        self.started_ns = started_ns
        self.first_ns = 0
        self.decode_ns = 1
        self.ends_ns = 0
        self.cached_tokens = 0
        self.fails = ""
        self.deaf = False
        self.over = False
        self.made_tokens = 0
        self.diverges = replica.diverges
        self.differs = job.delivered_tokens > 0 and job.delivered_diverges != replica.diverges

    @property
    def retriable(self) -> bool:
        """Whether its failure is: another text would be another one each time."""
        return not self.differs

    def tokens_at(self, now_ns: int) -> int:
        """How many tokens it has made by then."""
        if not self.first_ns or now_ns < self.first_ns:
            return 0
        return min(self.job.output_tokens, 1 + (now_ns - self.first_ns) // self.decode_ns)


class Link:
    """The way of reports from a replica: how many copies of one arrive, and how late."""

    __slots__ = ("_chance", "_duplicate", "_late_ns", "_lost")

    def __init__(self, chance: Random, lost: float, duplicate: float, late_ns: int) -> None:
        self._chance = chance
        self._lost = lost
        self._duplicate = duplicate
        self._late_ns = late_ns

    def delays(self) -> tuple[int, ...]:
        """The delay of each copy, in nanoseconds; none if the report is lost."""
        if self._chance.random() < self._lost:
            return ()
        copies = 2 if self._chance.random() < self._duplicate else 1
        return tuple(int(self._chance.random() * self._late_ns) for _ in range(copies))


class Replica:
    """One replica. `generation` counts its lives: what an earlier one had planned does not happen."""

    __slots__ = (
        "chance",
        "deaf",
        "diverges",
        "failing",
        "generation",
        "hangs",
        "info",
        "kv",
        "link",
        "linked",
        "links",
        "loss_untold",
        "pool_id",
        "replica_id",
        "running",
        "slots",
        "slow",
        "speed",
        "state",
        "unconfirmed",
        "up_ns",
    )

    def __init__(self, info: ReplicaInfo, speed: Speed) -> None:
        self.info = info
        self.replica_id = info.replica_id
        self.pool_id = info.pool_id
        self.slots = info.slots
        self.speed = speed
        self.state = "down"
        self.generation = 0
        self.up_ns = 0
        #: Attempts by task and number; one that has ended stays until its slot is free.
        self.running: dict[tuple[str, int], Attempt] = {}
        #: Tokens of each session's last turn, least recently used first; only of engines that keep them.
        self.kv: dict[str, int] = {}
        #: What its reports go through while they get lost on their way.
        self.link: Link | None = None
        #: Whether it has a connection to the scheduler, and whether the scheduler is still to learn that it had none.
        self.linked = True
        self.loss_untold = False
        #: Counts its links: what was to be sent over an earlier one never arrives.
        self.links = 0
        #: Ends of which it does not know that the scheduler knows.
        self.unconfirmed: dict[tuple[str, int], AttemptEnded] = {}
        self.slow = 1.0
        self.hangs = False
        self.deaf = False
        self.diverges = False
        self.failing = 0.0
        self.chance: Random | None = None

    def begin(self, now_ns: int, job: Job, start: Start) -> Attempt:
        """An attempt takes a slot. All that will become of it, unless it is stopped, is decided here."""
        attempt = Attempt(job, start.attempt, self, now_ns)
        others = len(self.running)
        self.running[job.task_id, start.attempt] = attempt
        if self.hangs:
            attempt.deaf = self.deaf
            return attempt
        speed = self.speed
        prompt_tokens = job.prompt_tokens
        if start.warm and self.info.keeps_kv:
            attempt.cached_tokens = min(self.kv.pop(job.info.session_id, 0), prompt_tokens - 1)
            prompt_tokens -= attempt.cached_tokens
        prefill_ns = speed.start_ns + speed.prefill_ns * prompt_tokens
        decode_ns = speed.decode_ns
        if others and speed.slowdown:
            decode_ns = int(speed.busy_decode_ns(1 + others))
        if self.slow != 1.0:
            prefill_ns, decode_ns = int(prefill_ns * self.slow), int(decode_ns * self.slow)
        attempt.decode_ns = decode_ns
        attempt.first_ns = now_ns + prefill_ns
        attempt.ends_ns = now_ns + prefill_ns + decode_ns * (job.output_tokens - 1)
        if start.resume_tokens or self.failing:
            self._doom(attempt, start)
        return attempt

    def _doom(self, attempt: Attempt, start: Start) -> None:
        """Whether and when the attempt fails, by chance or because it cannot repeat what was delivered."""
        if self.chance is not None and self.chance.random() < self.failing:
            attempt.fails = "the engine refused the prompt for lack of memory"
            attempt.ends_ns = attempt.started_ns + self.speed.start_ns
            attempt.first_ns = 0
        elif start.resume_tokens and start.resume_digest != self.digest(attempt.job, start.resume_tokens):
            attempt.differs = True
            attempt.fails = "the text differs from what the stopped attempt had delivered"
            attempt.ends_ns = attempt.first_ns + attempt.decode_ns * (start.resume_tokens - 1)

    def digest(self, job: Job, tokens: int) -> int:
        """The rolling digest of the task's first tokens, as made here."""
        if not tokens:
            return 0
        digest = ((job.info.seed + 1) * _DIGEST_FACTOR + tokens * 0x85EBCA6B) & _DIGEST_MASK
        return digest ^ _DIVERGENCE if self.diverges else digest

    def keep(self, job: Job) -> None:
        """A finished turn leaves its KV behind, in place of the least recently used ones."""
        kv, room = self.kv, self.info.kv_tokens
        tokens = job.prompt_tokens + job.output_tokens
        kv.pop(job.info.session_id, None)
        kv[job.info.session_id] = tokens
        while len(kv) > self.slots or (room and len(kv) > 1 and sum(kv.values()) > room):
            del kv[next(iter(kv))]

    def kv_used_permille(self) -> int:
        """How full the KV cache is with what runs and what sessions left."""
        room = self.info.kv_tokens
        used = sum(self.kv.values()) + sum(a.job.prompt_tokens + a.job.output_tokens for a in self.running.values())
        return min(1000, used * 1000 // room) if room else 0

    def returns(self, now_ns: int) -> ReplicaReady:
        """What it tells over a new link: what occupies its slots, and what ended without the scheduler's knowing."""
        running = [self._running(attempt, now_ns) for attempt in self.running.values()]
        return ReplicaReady(self.info, 0, tuple(running), tuple(self.unconfirmed.values()))

    def _running(self, attempt: Attempt, now_ns: int) -> RunningAttempt:
        tokens = attempt.made_tokens if attempt.over else attempt.tokens_at(now_ns)
        return RunningAttempt(
            attempt.job.task_id, attempt.number, tokens, self.digest(attempt.job, tokens), attempt.over
        )

    def void(self) -> list[Attempt]:
        """All that it was doing is gone, and what it planned will not happen. Returns what was still running."""
        self.generation += 1
        self.unconfirmed.clear()
        lost = [attempt for attempt in self.running.values() if not attempt.over]
        self.running.clear()
        self.kv.clear()
        return lost
