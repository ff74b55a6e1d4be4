"""What replicas, engines, links and time may do around a scheduler, late, twice and out of order included.

What the scheduler makes of it is known beforehand, from the books of the ledger.
"""

from typing import Literal

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from contracts.errors import ErrorInfo
from contracts.pools import FaultKind
from contracts.scheduling import (
    AnyCommand,
    AnyEvent,
    AttemptEnded,
    Finish,
    JournalFailed,
    JournalRestored,
    PromptMeasured,
    ReplicaLoading,
    ReplicaLost,
    ReplicaReady,
    ReplicaUnready,
    SlotReleased,
    Start,
    Stop,
    TimerFired,
    TokensDiverged,
    TokensProgressed,
)
from contracts.tasks import ReplicaInfo
from orchestrator.core.failover import ATTEMPTS_MAX, LOSSES_MAX
from tests.properties.core_ledger import POOL_OF, SET_OF, SLOTS, Attempt, Ledger
from tests.unit.core.core_kit import MS, replica


class ReplicaMachine(RuleBasedStateMachine):
    """The rules of replicas and of time; clients are added by who inherits from it."""

    ledger: Ledger

    # ------------------------------------------------------------------ replicas

    @rule(replica_id=st.sampled_from(sorted(SLOTS)), unlike=st.booleans())
    def come_up(self, replica_id: str, unlike: bool) -> None:
        """An engine comes up; one that was only cut off comes back with what it has."""
        books = self.ledger.books
        if books.ready.get(replica_id):
            return
        if books.on(replica_id) or books.ends.get(replica_id):
            self.come_back(replica_id)
            return
        books.ready[replica_id] = True
        books.versions[replica_id] = "b2" if unlike else "b1"
        self.ledger.tell(ReplicaReady(self._info(replica_id)))

    def come_back(self, replica_id: str) -> None:
        """What goes on, what is stopped and what is refused is known beforehand."""
        ledger, books = self.ledger, self.ledger.books
        there = books.on(replica_id)
        ends = tuple(books.ends.pop(replica_id, ()))
        is_refused = self._is_unlike(replica_id)
        taken = [] if is_refused else ledger.takes_up(replica_id, ends)
        goes_on = [a for a in taken if a.live]
        stale = sorted(a.key for a in there if a.live and a not in goes_on)
        for attempt in goes_on:
            books.line(attempt.job).remove(attempt.job)
            attempt.job.present = attempt
            attempt.job.told = max(attempt.job.told, attempt.tokens)
        self._tells(taken, ends)
        for attempt in there:
            record = ledger.scheduler.state.tasks.get(attempt.task_id)
            is_ghost = record is None or record.state == "measuring"
            attempt.kv_tokens = 0 if record is None or is_ghost else record.kv_tokens
            if is_ghost and not is_refused:
                books.ghosts[attempt.task_id] = None
            elif not is_refused and attempt.task_id in books.jobs:
                # A task of that id was forgotten and came again.
                job = books.jobs[attempt.task_id]
                job.taken = max(job.taken, attempt.attempt)
        books.ready[replica_id] = True
        running = tuple(a.running() for a in there)
        commands = ledger.tell(ReplicaReady(self._info(replica_id), 0, running, ends))
        assert books.ready[replica_id] != is_refused
        stops = [c for c in commands if isinstance(c, Stop) and c.reason == "stale"]
        assert sorted((c.task_id, c.attempt) for c in stops) == ([] if is_refused else stale)
        self._ended_well(commands, taken, ends)

    @rule(replica_id=st.sampled_from(sorted(SLOTS)))
    def come_back_without_engine(self, replica_id: str) -> None:
        """An engine died while its replica was cut off: what had come to its end before has ended."""
        ledger, books = self.ledger, self.ledger.books
        if books.ready.get(replica_id):
            return
        ends = tuple(books.ends.pop(replica_id, ()))
        ledger.dead(replica_id)
        taken = ledger.takes_up(replica_id, ends)
        self._tells(taken, ends)
        self._ended_well(ledger.tell(ReplicaLoading(replica_id, POOL_OF[replica_id], 0, ends)), taken, ends)

    def _tells(self, taken: list[Attempt], ends: tuple[AttemptEnded, ...]) -> None:
        """Ends are about to be told late; those of `taken` count."""
        results = {(end.task_id, end.attempt): end.result for end in ends}
        for attempt in taken:
            if not attempt.live:
                attempt.job.told = max(attempt.job.told, attempt.tokens)
                # What was stopped, and not by this scheduler, counts as lost.
                attempt.job.engine_ends += results[attempt.key] != "stopped"
        for attempt in self.ledger.books.attempts:
            attempt.told = attempt.told or attempt.key in results

    def _ended_well(self, commands: list[AnyCommand], taken: list[Attempt], ends: tuple[AttemptEnded, ...]) -> None:
        ended = {c.task_id: c.outcome.state for c in commands if isinstance(c, Finish)}
        for end in ends:
            # One that is live is another of the same number: of an earlier task of that id.
            if end.result == "finished" and any(a.key == (end.task_id, end.attempt) and not a.live for a in taken):
                assert ended[end.task_id] == "finished"

    def _is_unlike(self, replica_id: str) -> bool:
        books = self.ledger.books
        up = [r for r, is_up in books.ready.items() if is_up and SET_OF[r] == SET_OF[replica_id]]
        return any(books.versions[r] != books.versions[replica_id] for r in up)

    def _info(self, replica_id: str) -> ReplicaInfo:
        version = self.ledger.books.versions[replica_id]
        return replica(replica_id, pool_id=POOL_OF[replica_id], slots=SLOTS[replica_id], engine_version=version)

    @rule(
        replica_id=st.sampled_from(sorted(SLOTS)),
        how=st.sampled_from(["cut", "cut", "exit", "killed", "loading"]),
    )
    def go_down(self, replica_id: str, how: FaultKind | Literal["cut", "loading"]) -> None:
        """A link is cut, or an engine ends."""
        books = self.ledger.books
        if books.ready.get(replica_id):
            self.ledger.lose(replica_id, crashed=how == "exit")
        books.ready[replica_id] = False
        if how == "cut":
            self.ledger.tell(ReplicaLost(replica_id, "gone"))
            return
        self.ledger.dead(replica_id)
        if how == "loading":
            self.ledger.tell(ReplicaLoading(replica_id, POOL_OF[replica_id]))
        else:
            self.ledger.tell(ReplicaUnready(replica_id, "engine exited", how))

    @precondition(lambda self: self._live(linked=False))
    @rule(data=st.data(), result=st.sampled_from(["", "finished", "failed", "stopped"]), slot_free=st.booleans())
    def go_on_unheard(self, data: st.DataObject, result: str, slot_free: bool) -> None:
        """A replica that is cut off makes tokens, or comes to an end with an attempt."""
        self._unheard(data.draw(st.sampled_from(self._live(linked=False))), result, slot_free)

    @precondition(lambda self: self._live())
    @rule(
        data=st.data(),
        fates=st.lists(st.sampled_from(["", "tokens", "finished", "failed", "stopped"]), min_size=3, max_size=3),
        slot_free=st.booleans(),
        away_ms=st.sampled_from([0, 0, 0, 40, 2_100, 21_000]),
        takes_over=st.sampled_from(["", "", *sorted(SLOTS)]),
    )
    def flap(self, data: st.DataObject, fates: list[str], slot_free: bool, away_ms: int, takes_over: str) -> None:
        """A link is cut and made anew; what was cut off went on meanwhile, and others may have taken over."""
        replica_id = data.draw(st.sampled_from(sorted({a.replica_id for a in self._live()})))
        self.go_down(replica_id, "cut")
        for attempt, fate in zip(self.ledger.books.on(replica_id), fates, strict=False):
            if fate and attempt.live:
                self._unheard(attempt, "" if fate == "tokens" else fate, slot_free)
        self.wait(away_ms)
        if takes_over:
            self.come_up(takes_over, False)
        self.come_up(replica_id, False)

    @rule(replica_id=st.sampled_from(sorted(SLOTS)), times=st.integers(1, 3))
    def crash(self, replica_id: str, times: int) -> None:
        """What comes up crashes again, as it does under a task that is poison."""
        for _ in range(times):
            self.come_up(replica_id, False)
            self.go_down(replica_id, "exit")
        self.come_up(replica_id, False)

    @rule(replica_id=st.sampled_from(sorted(SLOTS)), count=st.integers(1, 3))
    def fill_the_disk(self, replica_id: str, count: int) -> None:
        """Nothing can be kept for a while: what runs goes on, and nothing starts, wherever there is room for it."""
        self._journal(True)
        for attempt in self._live()[:count]:
            self._end(attempt, "finished", True)
        self.come_up(replica_id, False)
        self._journal(False)

    def _journal(self, is_down: bool) -> None:
        self.ledger.books.journal_down = is_down
        self.ledger.tell(JournalFailed("disk full") if is_down else JournalRestored())

    @precondition(lambda self: self.ledger.books.measures)
    @rule(data=st.data(), tokens=st.sampled_from([1, 1, 95]), fails=st.sampled_from([False, False, True]))
    def measure(self, data: st.DataObject, tokens: int, fails: bool) -> None:
        task_id, measurement = self.ledger.books.measures.pop(
            data.draw(st.integers(0, len(self.ledger.books.measures) - 1))
        )
        error = ErrorInfo(code="INTERNAL", message="tokenizer failed", retriable=True) if fails else None
        self.ledger.tell(PromptMeasured(task_id, measurement, tokens, error))

    @precondition(lambda self: self._live())
    @rule(
        data=st.data(),
        result=st.sampled_from(["finished", "finished", "failed", "stopped"]),
        slot_free=st.booleans(),
        tokens_out=st.sampled_from([0, 0, 3]),
        retriable=st.sampled_from([True, True, False, None]),
    )
    def end(self, data: st.DataObject, result: str, slot_free: bool, tokens_out: int, retriable: bool | None) -> None:
        attempt = data.draw(st.sampled_from(self._live()))
        error = None
        if result == "failed" and retriable is not None:
            error = ErrorInfo(code="INTERNAL", message="engine said no", retriable=retriable)
        attempt.tokens = max(attempt.tokens, tokens_out)
        self._end(attempt, result, slot_free, error)

    @precondition(lambda self: self._live())
    @rule(data=st.data(), tokens_out=st.integers(0, 12))
    def progress(self, data: st.DataObject, tokens_out: int) -> None:
        attempt = data.draw(st.sampled_from(self._live()))
        attempt.tokens = max(attempt.tokens, tokens_out)
        if attempt.job.present is attempt:
            attempt.job.told = max(attempt.job.told, tokens_out)
        self.ledger.tell(TokensProgressed(attempt.task_id, attempt.attempt, tokens_out, 7))

    @precondition(lambda self: self._live())
    @rule(data=st.data())
    def diverge(self, data: st.DataObject) -> None:
        """An ingress finds that an attempt makes other tokens than were delivered."""
        attempt = data.draw(st.sampled_from(self._live()))
        commands = self.ledger.tell(TokensDiverged(attempt.task_id, attempt.attempt))
        if any(isinstance(c, Stop) and c.reason == "diverged" for c in commands):
            attempt.job.diverged = True

    @precondition(lambda self: self._released())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(self._released()))
        attempt.held = False
        if self.ledger.books.ready.get(attempt.replica_id):
            self.ledger.tell(SlotReleased(attempt.task_id, attempt.attempt, attempt.replica_id))

    @precondition(lambda self: any(not a.live and not a.held for a in self.ledger.books.attempts))
    @rule(data=st.data(), kind=st.sampled_from(["end", "progress", "release"]))
    def stale(self, data: st.DataObject, kind: str) -> None:
        """What an attempt that is long over still says changes nothing."""
        over = data.draw(st.sampled_from([a for a in self.ledger.books.attempts if not a.live and not a.held]))
        key = over.key
        if not over.told and over.job.attempt == over.attempt:
            return
        events: dict[str, AnyEvent] = {
            "end": AttemptEnded(*key, over.replica_id, "finished", slot_free=True, tokens_out=9),
            "progress": TokensProgressed(*key, 50, 7),
            "release": SlotReleased(*key, over.replica_id),
        }
        commands = self.ledger.tell(events[kind])
        assert not any(isinstance(c, Start) for c in commands)
        assert not any(isinstance(c, Finish) and c.outcome.state == "finished" for c in commands)

    # ------------------------------------------------------------------ time

    @rule(duration_ms=st.sampled_from([0, 1, 40, 900, 1_100, 2_100, 11_000]))
    def wait(self, duration_ms: int) -> None:
        until_ns = self.ledger.now_ns + duration_ms * MS
        while self.ledger.alarm_ns is not None and self.ledger.alarm_ns <= until_ns:
            self.ledger.now_ns, self.ledger.alarm_ns = max(self.ledger.now_ns, self.ledger.alarm_ns), None
            self.ledger.tell(TimerFired())
        self.ledger.now_ns = until_ns

    @rule()
    def ring_early(self) -> None:
        self.ledger.alarm_ns = None
        self.ledger.tell(TimerFired())

    # ------------------------------------------------------------------ checking

    def _live(self, linked: bool = True) -> list[Attempt]:
        books = self.ledger.books
        return [a for a in books.attempts if a.live and bool(books.ready.get(a.replica_id)) == linked]

    def _released(self) -> list[Attempt]:
        return [a for a in self.ledger.books.attempts if a.held and not a.live]

    def _unheard(self, attempt: Attempt, result: str, slot_free: bool) -> None:
        attempt.tokens += 2
        if result:
            attempt.live, attempt.held = False, not slot_free
            self.ledger.books.ends.setdefault(attempt.replica_id, []).append(self._ended(attempt, result, slot_free))

    def _ended(self, attempt: Attempt, result: str, slot_free: bool, error: ErrorInfo | None = None) -> AttemptEnded:
        return AttemptEnded(
            attempt.task_id,
            attempt.attempt,
            attempt.replica_id,
            result,  # type: ignore[arg-type]
            slot_free=slot_free,
            tokens_out=attempt.tokens,
            digest=7,
            transcript_bytes=40,
            error=error,
        )

    def _end(self, attempt: Attempt, result: str, slot_free: bool, error: ErrorInfo | None = None) -> None:
        job, ledger = attempt.job, self.ledger
        current = job.present is attempt
        record = ledger.scheduler.state.tasks.get(attempt.task_id)
        attempt.live, attempt.held, attempt.told = False, not slot_free, True
        goes_on = False
        if current and record is not None:
            job.told = max(job.told, attempt.tokens)
            job.present = None
            is_lost = record.state == "running" and result == "stopped"
            job.engine_ends += not is_lost
            may_repeat = job.info.determinism == "strict" or not job.told
            goes_on = (
                record.state == "running"
                and result != "finished"
                and (error is None or bool(error.retriable))
                and (record.losses + 1 < LOSSES_MAX if is_lost else job.engine_ends < ATTEMPTS_MAX)
                and may_repeat
                and record.deadline_ns > ledger.now_ns
            )
            # Unless it ends now, it is going to wait again, where it came in.
            ledger.books.join(job)
        event = self._ended(attempt, result, slot_free, error)
        # Whether it was confirmed is not known when the link is cut: it may be told again.
        ledger.books.ends.setdefault(attempt.replica_id, []).append(event)
        del ledger.books.ends[attempt.replica_id][:-3]
        commands = ledger.tell(event)
        ends = [c.outcome.state for c in commands if isinstance(c, Finish) and c.task_id == attempt.task_id]
        if current:
            assert bool(ends) != goes_on
        if current and result == "finished" and not job.diverged:
            assert ends == ["finished"]
        if not current:
            assert "finished" not in ends
