"""A model of the scheduler's promises, driven by random histories of clients, replicas and time.

The rules do what a shell and its replicas may do, late, twice and out of order included; the ledger
keeps its own books of queues and slots, and holds every command against them.
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from contracts.errors import ErrorInfo, PolicyLabel
from contracts.scheduling import (
    Admit,
    AnswerCancel,
    AnyEvent,
    AttemptEnded,
    CancelRequested,
    Finish,
    PromptMeasured,
    Reject,
    ReplicaLoading,
    ReplicaLost,
    ReplicaReady,
    ReplicaUnready,
    SlotReleased,
    Start,
    TaskSubmitted,
    TimerFired,
    TokensProgressed,
)
from orchestrator.core.scheduler import Scheduler
from tests.properties.core_ledger import CLASSES, POOL_OF, SLOTS, TASKS_MAX, Attempt, Job, Ledger
from tests.unit.core.core_kit import MS, config, queue, replica, replica_set, task

TASK_IDS = st.sampled_from([f"t{n}" for n in range(14)])
TENANTS = st.sampled_from(["acme", "acme", "acme", "other"])


class SchedulerMachine(RuleBasedStateMachine):
    """Rules are what may happen."""

    ledger: Ledger

    @initialize(
        interactive=st.sampled_from(["reject", "shed-low-priority", "drop-lru"]),
        batch=st.sampled_from(["reject", "drop-lru"]),
        capacity=st.integers(1, 5),
    )
    def start(self, interactive: PolicyLabel, batch: PolicyLabel, capacity: int) -> None:
        queues = (queue("interactive", 3, interactive), queue("batch", 3, batch))
        self.ledger = Ledger(
            config(
                replica_set(capacity=capacity, queues=queues, pool_ids=("pool-a", "pool-b"), wall_timeout_ms=1_500),
                replica_set(set_id="set-b", model_refs=("big",), pool_ids=("pool-q",), capacity=3, queues=queues),
                ttl_ms=20_000,
                tasks_max=TASKS_MAX,
                bytes_max=100,
            )
        )
        for replica_id in ("r0", "r1", "q0"):
            self.come_up(replica_id, False)

    # ------------------------------------------------------------------ clients

    @rule(
        task_id=TASK_IDS,
        tenant=TENANTS,
        digest=st.sampled_from([b"one", b"one", b"one", b"two"]),
        priority=st.sampled_from(CLASSES),
        model=st.sampled_from(["small", "small", "small", "big", "none"]),
        max_tokens=st.sampled_from([1, 10, 10, 60, 100]),
        templated=st.sampled_from([False, False, True]),
        deadline_ms=st.sampled_from([5, 3_000, 30_000]),
        expected=st.sampled_from([None, 4]),
    )
    def submit(
        self,
        task_id: str,
        tenant: str,
        digest: bytes,
        priority: str,
        model: str,
        max_tokens: int,
        templated: bool,
        deadline_ms: int,
        expected: int | None,
    ) -> None:
        info = task(
            task_id,
            tenant=tenant,
            body_digest=digest,
            priority=priority,
            model_ref=model,
            max_tokens=max_tokens,
            prompt_bytes=50 if max_tokens == 60 else 5,
            templated=templated,
            deadline_ms=deadline_ms,
            expected_tokens=expected,
        )
        number = self.ledger.number()
        self.ledger.books.submissions[number] = 0
        known = self.ledger.books.jobs.get(task_id)
        if known is None:
            set_id = "set-b" if model == "big" else "set-a"
            self.ledger.books.jobs[task_id] = Job(info, set_id, number)
        commands = self.ledger.tell(TaskSubmitted(number, info))
        answers = [c for c in commands if isinstance(c, Admit | Reject) and c.submission == number]
        if known is None:
            if not answers:
                self.ledger.books.jobs[task_id].measuring = True
            return
        if (known.info.tenant, known.info.body_digest) != (tenant, digest):
            (answer,) = answers
            assert isinstance(answer, Reject)
            assert answer.error.code == "TASK_ID_CONFLICT"
        elif known.admit is not None:
            (answer,) = answers
            assert isinstance(answer, Admit)
            assert answer.replayed

    @rule(count=st.integers(2, 6), priority=st.sampled_from(CLASSES), expected=st.sampled_from([None, 4]))
    def burst(self, count: int, priority: str, expected: int | None) -> None:
        """Many small tasks at once, so that queues are long and full more often than not."""
        for _ in range(count):
            task_id = f"b{self.ledger.numbers}"
            self.submit(task_id, "acme", b"one", priority, "small", 10, False, 30_000, expected)

    @precondition(lambda self: self.ledger.books.jobs)
    @rule(data=st.data())
    def cancel_known(self, data: st.DataObject) -> None:
        self.cancel(data.draw(st.sampled_from(sorted(self.ledger.books.jobs))), "acme")

    @rule(task_id=TASK_IDS, tenant=TENANTS)
    def cancel(self, task_id: str, tenant: str) -> None:
        job = self.ledger.books.jobs.get(task_id)
        found = job is not None and job.info.tenant == tenant
        number = self.ledger.number()
        self.ledger.books.cancels[number] = 0
        self.ledger.books.cancel_of[number] = task_id
        for command in self.ledger.tell(CancelRequested(number, task_id, tenant)):
            if isinstance(command, AnswerCancel) and command.request == number:
                assert command.found == found
        assert found or self.ledger.books.cancels[number] == 1

    # ------------------------------------------------------------------ replicas

    @rule(replica_id=st.sampled_from(sorted(SLOTS)), unlike=st.booleans())
    def come_up(self, replica_id: str, unlike: bool) -> None:
        if self.ledger.books.ready.get(replica_id):
            return
        info = replica(
            replica_id,
            pool_id=POOL_OF[replica_id],
            slots=SLOTS[replica_id],
            engine_version="b2" if unlike else "b1",
        )
        self.ledger.books.ready[replica_id] = True
        self.ledger.tell(ReplicaReady(info))

    @rule(replica_id=st.sampled_from(sorted(SLOTS)), how=st.sampled_from(["lost", "unready", "loading"]))
    def go_down(self, replica_id: str, how: str) -> None:
        self.ledger.books.ready[replica_id] = False
        for attempt in self.ledger.books.attempts:
            if attempt.replica_id == replica_id:
                attempt.live = attempt.held = False
                attempt.lost = True
        events: dict[str, AnyEvent] = {
            "lost": ReplicaLost(replica_id, "gone"),
            "unready": ReplicaUnready(replica_id, "engine exited"),
            "loading": ReplicaLoading(replica_id, POOL_OF[replica_id]),
        }
        self.ledger.tell(events[how])

    @precondition(lambda self: self.ledger.books.measures)
    @rule(data=st.data(), tokens=st.sampled_from([1, 1, 95]), fails=st.sampled_from([False, False, True]))
    def measure(self, data: st.DataObject, tokens: int, fails: bool) -> None:
        task_id, measurement = self.ledger.books.measures.pop(
            data.draw(st.integers(0, len(self.ledger.books.measures) - 1))
        )
        error = ErrorInfo(code="INTERNAL", message="tokenizer failed", retriable=True) if fails else None
        self.ledger.tell(PromptMeasured(task_id, measurement, tokens, error))

    @precondition(lambda self: any(a.live for a in self.ledger.books.attempts))
    @rule(
        data=st.data(),
        result=st.sampled_from(["finished", "finished", "failed", "stopped"]),
        slot_free=st.booleans(),
        tokens_out=st.sampled_from([0, 0, 3]),
        retriable=st.sampled_from([True, True, False, None]),
    )
    def end(self, data: st.DataObject, result: str, slot_free: bool, tokens_out: int, retriable: bool | None) -> None:
        attempt = data.draw(st.sampled_from([a for a in self.ledger.books.attempts if a.live]))
        error = None
        if result == "failed" and retriable is not None:
            error = ErrorInfo(code="INTERNAL", message="engine said no", retriable=retriable)
        self._end(attempt, result, slot_free, tokens_out, error)

    @precondition(lambda self: any(a.live for a in self.ledger.books.attempts))
    @rule(data=st.data(), tokens_out=st.integers(0, 12))
    def progress(self, data: st.DataObject, tokens_out: int) -> None:
        attempt = data.draw(st.sampled_from([a for a in self.ledger.books.attempts if a.live]))
        self.ledger.tell(TokensProgressed(attempt.task_id, attempt.attempt, tokens_out, 7))

    @precondition(lambda self: any(a.held and not a.live for a in self.ledger.books.attempts))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from([a for a in self.ledger.books.attempts if a.held and not a.live]))
        attempt.held = False
        self.ledger.tell(SlotReleased(attempt.task_id, attempt.attempt, attempt.replica_id))

    @precondition(lambda self: any(not a.live and not a.held for a in self.ledger.books.attempts))
    @rule(data=st.data(), kind=st.sampled_from(["end", "progress", "release"]))
    def stale(self, data: st.DataObject, kind: str) -> None:
        """What an attempt that is long over still says changes nothing."""
        over = data.draw(st.sampled_from([a for a in self.ledger.books.attempts if not a.live and not a.held]))
        key = (over.task_id, over.attempt)
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

    def _end(
        self, attempt: Attempt, result: str, slot_free: bool, tokens_out: int, error: ErrorInfo | None = None
    ) -> None:
        job = self.ledger.books.jobs.get(attempt.task_id)
        current = job is not None and job.finish is None and job.attempt == attempt.attempt
        attempt.live = False
        attempt.held = not slot_free
        event = AttemptEnded(
            attempt.task_id,
            attempt.attempt,
            attempt.replica_id,
            result,  # type: ignore[arg-type]
            slot_free=slot_free,
            tokens_out=tokens_out,
            transcript_bytes=40,
            error=error,
        )
        if current and job is not None:
            # Unless it ends now, it is going to wait again, where it came in.
            self.ledger.books.join(job)
        commands = self.ledger.tell(event)
        ends = [c.outcome.state for c in commands if isinstance(c, Finish) and c.task_id == attempt.task_id]
        if current and result == "finished":
            assert ends == ["finished"]
        if current and tokens_out:
            assert ends, "what delivered tokens is not run again"
        if not current:
            assert "finished" not in ends

    def teardown(self) -> None:
        """Let everything come to its end, on the scheduler's own timers; then nothing may be left open."""
        if not hasattr(self, "ledger"):
            return
        for _ in range(300):
            for attempt in [a for a in self.ledger.books.attempts if a.live]:
                if attempt.live:
                    self._end(attempt, "finished", True, 3)
            if all(job.finish for job in self.ledger.books.jobs.values()) or self.ledger.alarm_ns is None:
                break
            self.ledger.now_ns, self.ledger.alarm_ns = max(self.ledger.now_ns, self.ledger.alarm_ns), None
            self.ledger.tell(TimerFired())
        assert [job.info.task_id for job in self.ledger.books.jobs.values() if job.finish is None] == []
        assert {n: count for n, count in self.ledger.books.submissions.items() if count != 1} == {}
        assert {n: count for n, count in self.ledger.books.cancels.items() if count != 1} == {}
        again = Scheduler(self.ledger.config)
        assert [again.step(now_ns, event) for now_ns, event in self.ledger.history] == self.ledger.heard


SchedulerMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.mark.req(
    "ORCH-3004",
    "ORCH-3010",
    "ORCH-3017",
    "ORCH-3024",
    "ORCH-3026",
    "ORCH-3029",
    "OC-CORE-1001",
    "OC-CORE-1003",
    "OC-CORE-1004",
    "OC-CORE-1005",
    "OC-CORE-1010",
    "OC-CORE-1012",
)
class TestScheduler(SchedulerMachine.TestCase):  # type: ignore[misc,name-defined]
    """Every random history keeps every promise."""
