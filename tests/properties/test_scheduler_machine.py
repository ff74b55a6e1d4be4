"""A model of the scheduler's promises, driven by random histories of clients, replicas and time.

The rules do what a shell and its replicas may do, late, twice and out of order included; the ledger
keeps its own books of queues and slots, and holds every command against them.
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from contracts.errors import PolicyLabel
from contracts.scheduling import (
    Admit,
    AnswerCancel,
    CancelRequested,
    Reject,
    TaskSubmitted,
    TimerFired,
)
from orchestrator.core.scheduler import Scheduler
from tests.properties.core_ledger import CLASSES, TASKS_MAX, Job, Ledger
from tests.properties.replica_rules import ReplicaMachine
from tests.unit.core.core_kit import config, queue, replica_set, task

TASK_IDS = st.sampled_from([f"t{n}" for n in range(14)])
TENANTS = st.sampled_from(["acme", "acme", "acme", "other"])


class SchedulerMachine(ReplicaMachine):
    """Rules are what may happen."""

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
        determinism=st.sampled_from(["strict", "strict", "best_effort"]),
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
        determinism: str = "strict",
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
            determinism=determinism,
        )
        number = self.ledger.number()
        self.ledger.books.submissions[number] = 0
        known = self.ledger.books.jobs.get(task_id)
        is_ghost = task_id in self.ledger.books.ghosts
        if known is None and not is_ghost:
            set_id = "set-b" if model == "big" else "set-a"
            self.ledger.books.jobs[task_id] = Job(info, set_id, number)
        commands = self.ledger.tell(TaskSubmitted(number, info))
        answers = [c for c in commands if isinstance(c, Admit | Reject) and c.submission == number]
        if is_ghost:
            (answer,) = answers
            assert isinstance(answer, Reject)
            assert answer.error.code == "TASK_ID_CONFLICT"
            return
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

    def teardown(self) -> None:
        """Let everything come to its end, on the scheduler's own timers; then nothing may be left open."""
        if not hasattr(self, "ledger"):
            return
        for _ in range(300):
            for attempt in self._live():
                if attempt.live:
                    self._end(attempt, "finished", True)
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
    max_examples=50,
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
