"""All policies together, driven by random histories of clients, replicas and time.

The rules do what a shell and its replicas may do: stops that are confirmed late or never, replicas lost in every
state, deadlines of all sizes. The ledger keeps its own books and holds every command against them.
"""

from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from contracts.errors import ErrorInfo
from contracts.policies import (
    BreakerPolicy,
    BudgetPolicy,
    PoolPolicy,
    PreemptionPolicy,
    RatePolicy,
    SessionPolicy,
    TenantPolicy,
)
from contracts.scheduling import (
    AnyCommand,
    AnyEvent,
    AttemptEnded,
    CancelRequested,
    Finish,
    PromptMeasured,
    Reject,
    ReplicaLoading,
    ReplicaLost,
    ReplicaReady,
    ReplicaReported,
    ReplicaUnready,
    SessionCloseRequested,
    SlotReleased,
    Start,
    TimerFired,
    TokensProgressed,
)
from contracts.tasks import ReplicaInfo
from orchestrator.core.digest import digest
from tests.properties.policies_ledger import CANARY_PERCENT, CANARY_POOL, CLASSES, Attempt, PoliciesLedger
from tests.unit.core.core_kit import MS, config, queue, replica, replica_set, task

KV_TOKEN_BYTES = 16 * 1024
REPLICAS: dict[str, ReplicaInfo] = {
    info.replica_id: info
    for info in (
        replica("r0", interruptible_decode=True, kv_token_bytes=KV_TOKEN_BYTES, node_id="n0"),
        replica(
            "r1",
            slots=2,
            interruptible_decode=True,
            kv_tokens=130,
            kv_token_bytes=KV_TOKEN_BYTES,
            keeps_kv=True,
            node_id="n1",
        ),
        replica("r2", pool_id="pool-b", kv_token_bytes=KV_TOKEN_BYTES, node_id="n0", distance=3),
        replica("c0", pool_id=CANARY_POOL, interruptible_decode=True, kv_token_bytes=KV_TOKEN_BYTES, node_id="n2"),
    )
}
TENANTS = (
    TenantPolicy("acme", weight=3),
    TenantPolicy("narrow", max_concurrent=1),
    TenantPolicy("rated", weight=2, rate=RatePolicy(5.0, 3), tokens_per_min=400),
    TenantPolicy("small", kv_mb=1),
)
NAMES = st.sampled_from(["acme", "acme", "acme", "narrow", "rated", "small", "ghost"])
SESSIONS = st.sampled_from([f"s{n}" for n in range(8)])
TASK_IDS = st.sampled_from([f"t{n}" for n in range(12)])
DEADLINES_MS = st.sampled_from([1, 60, 150, 400, 1_200, 5_000, 30_000])


class PoliciesMachine(RuleBasedStateMachine):
    """Rules are what may happen."""

    ledger: PoliciesLedger

    @initialize(
        fairness=st.sampled_from(["wfq", "wfq", "strict", "fifo"]),
        ordering=st.sampled_from(["edf", "edf", "fifo"]),
        eviction=st.sampled_from(["eta", "lru"]),
        percent=st.sampled_from([50, 50, 0]),
        preemption=st.sampled_from(["hard", "hard", "soft", "off"]),
        per_min=st.integers(1, 4),
        protect=st.sampled_from([(), (), ("idle",), ("batch",)]),
        full=st.sampled_from(["reject", "shed-low-priority", "drop-lru"]),
        capacity=st.integers(2, 8),
        canary=st.booleans(),
        breaker=st.booleans(),
        budget=st.sampled_from([BudgetPolicy(), BudgetPolicy(tokens=150), BudgetPolicy(200, 2_000, 90)]),
    )
    def start(self, **drawn: Any) -> None:
        breaker = BreakerPolicy(window_ms=2_000, samples_min=4, open_ms=1_000, probes=1) if drawn["breaker"] else None
        percent = CANARY_PERCENT if drawn["canary"] else None
        home = replica_set(
            capacity=drawn["capacity"],
            queues=tuple(
                queue(name, 3, drawn["full"], weight=weight, slo_first_token_ms=500)
                for name, weight in zip(CLASSES, (5, 2, 1), strict=True)
            ),
            pools=(PoolPolicy("pool-a"), PoolPolicy("pool-b"), PoolPolicy(CANARY_POOL, canary_percent=percent)),
            wall_timeout_ms=3_000,
            fairness=drawn["fairness"],
            ordering=drawn["ordering"],
            eviction=drawn["eviction"],
            on_time_percent_min=drawn["percent"],
            preemption=PreemptionPolicy(drawn["preemption"], drawn["per_min"], drawn["protect"]),
            breaker=breaker,
            price_in_micros=1_000,
            price_out_micros=2_000,
        )
        self.ledger = PoliciesLedger(
            config(
                home,
                ttl_ms=20_000,
                tasks_max=6,
                tenants=TENANTS,
                default_tenant=None,
                default_client=RatePolicy(50.0, 60),
                sessions=SessionPolicy(ttl_ms=15_000, turns_max=3, sessions_max=6, budget=drawn["budget"]),
            )
        )
        for replica_id in ("r0", "r1"):
            self.come_up(replica_id)

    # ------------------------------------------------------------------ clients

    @rule(
        task_id=TASK_IDS,
        tenant=NAMES,
        session_id=SESSIONS,
        priority=st.sampled_from(CLASSES),
        max_tokens=st.sampled_from([1, 10, 10, 40]),
        templated=st.sampled_from([False, False, False, True]),
        deadline_ms=DEADLINES_MS,
        expected_tokens=st.sampled_from([None, 4]),
        determinism=st.sampled_from(["strict", "strict", "best_effort"]),
        kv_hint=st.sampled_from([None, "cold"]),
    )
    def submit(self, task_id: str, **over: Any) -> None:
        self._submit(task_id, **over)

    @rule(
        count=st.integers(2, 6),
        tenant=NAMES,
        priority=st.sampled_from(CLASSES),
        deadline_ms=DEADLINES_MS,
        expected_tokens=st.sampled_from([None, 4]),
    )
    def burst(self, count: int, **over: Any) -> None:
        """Many small tasks at once, so that queues are long and full more often than not."""
        for n in range(count):
            self._submit(f"b{self.ledger.numbers}", session_id=f"s{n}", **over)

    @rule(tenant=st.sampled_from(["acme", "small"]), deadline_ms=st.sampled_from([120, 150, 200, 300]))
    def urgent(self, tenant: str, deadline_ms: int) -> None:
        """Something that can be on time only if it starts soon."""
        self._submit(f"u{self.ledger.numbers}", tenant=tenant, deadline_ms=deadline_ms, session_id="s1")

    @rule(
        low=st.sampled_from(["idle", "batch"]),
        count=st.integers(2, 5),
        made=st.integers(0, 6),
        urgent=st.integers(1, 4),
        tenant=st.sampled_from(["acme", "rated", "small"]),
        determinism=st.sampled_from(["strict", "strict", "strict", "best_effort"]),
    )
    def rush(self, low: str, count: int, made: int, urgent: int, tenant: str, determinism: str) -> None:
        """Long tasks take the slots, get somewhere, and urgent ones of the highest class come."""
        for n in range(count):
            over = {"priority": low, "max_tokens": 60, "session_id": f"s{n}", "determinism": determinism}
            self._submit(f"l{self.ledger.numbers}", deadline_ms=20_000, **over)
        for attempt in [a for a in self.ledger.books.attempts if a.live]:
            self._progress(attempt, made)
        for n in range(urgent):
            self._submit(f"u{self.ledger.numbers}", tenant=tenant, deadline_ms=200, session_id=f"s{n}")

    @precondition(lambda self: self.ledger.books.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(list(self.ledger.books.jobs)))
        tenant = self.ledger.books.jobs[task_id].info.tenant
        self.ledger.tell(CancelRequested(self.ledger.number(task_id), task_id, tenant))

    @rule(session_id=SESSIONS, tenant=NAMES)
    def close_session(self, session_id: str, tenant: str) -> None:
        self.ledger.tell(SessionCloseRequested(self.ledger.number(), session_id, tenant))

    # ------------------------------------------------------------------ replicas

    @rule(replica_id=st.sampled_from(list(REPLICAS)))
    def come_up(self, replica_id: str) -> None:
        if replica_id not in self.ledger.books.ready:
            self.ledger.books.ready[replica_id] = REPLICAS[replica_id]
            self.ledger.tell(ReplicaReady(REPLICAS[replica_id]))

    @rule(replica_id=st.sampled_from(list(REPLICAS)), how=st.sampled_from(["", "", "lost", "unready", "loading"]))
    def go_down(self, replica_id: str, how: str) -> None:
        if not how:
            self.come_up(replica_id)
            return
        self.ledger.books.ready.pop(replica_id, None)
        for attempt in self.ledger.books.attempts:
            if attempt.replica_id == replica_id:
                job = self.ledger.books.current(attempt)
                if job is not None:
                    job.losses += 1
                attempt.live = attempt.held = False
        events: dict[str, AnyEvent] = {
            "lost": ReplicaLost(replica_id, "gone"),
            "unready": ReplicaUnready(replica_id, "engine exited", "killed"),
            "loading": ReplicaLoading(replica_id, REPLICAS[replica_id].pool_id),
        }
        self.ledger.tell(events[how])

    @rule(replica_id=st.sampled_from(list(REPLICAS)), permille=st.sampled_from([0, 130, 990, 1_500]))
    def report(self, replica_id: str, permille: int) -> None:
        self.ledger.tell(ReplicaReported(replica_id, permille))

    @precondition(lambda self: self.ledger.books.measures)
    @rule(data=st.data(), tokens=st.sampled_from([1, 30, 95]), fails=st.sampled_from([False, False, False, True]))
    def measure(self, data: st.DataObject, tokens: int, fails: bool) -> None:
        measures = self.ledger.books.measures
        task_id, measurement = measures.pop(data.draw(st.integers(0, len(measures) - 1)))
        error = ErrorInfo(code="INTERNAL", message="tokenizer failed", retriable=True) if fails else None
        self.ledger.tell(PromptMeasured(task_id, measurement, tokens, error))

    @precondition(lambda self: any(a.live for a in self.ledger.books.attempts))
    @rule(
        data=st.data(),
        result=st.sampled_from(["finished", "finished", "finished", "failed", "stopped"]),
        slot_free=st.sampled_from([True, True, False]),
        tokens=st.sampled_from([0, 3, 10]),
        retriable=st.sampled_from([True, True, False]),
    )
    def end(self, data: st.DataObject, result: Any, slot_free: bool, tokens: int, retriable: bool) -> None:
        self.wait(tokens * 10)
        live = [a for a in self.ledger.books.attempts if a.live]
        if not live:
            return
        attempt = data.draw(st.sampled_from(live))
        error = ErrorInfo(code="INTERNAL", message="engine said no", retriable=retriable)
        self._end(attempt, result, slot_free, tokens, error if result == "failed" else None)

    @precondition(lambda self: any(a.live and a.stop for a in self.ledger.books.attempts))
    @rule(data=st.data(), slot_free=st.booleans(), tokens=st.sampled_from([0, 2, 5]))
    def confirm_stop(self, data: st.DataObject, slot_free: bool, tokens: int) -> None:
        """In time, or long after the scheduler gave up waiting for it."""
        attempt = data.draw(st.sampled_from([a for a in self.ledger.books.attempts if a.live and a.stop]))
        self._end(attempt, "stopped", slot_free, tokens)

    @precondition(lambda self: any(a.live for a in self.ledger.books.attempts))
    @rule(data=st.data(), tokens=st.integers(0, 9))
    def progress(self, data: st.DataObject, tokens: int) -> None:
        self._progress(data.draw(st.sampled_from([a for a in self.ledger.books.attempts if a.live])), tokens)

    @precondition(lambda self: any(a.live for a in self.ledger.books.attempts))
    @rule(tokens=st.sampled_from([5, 10]), took_ms=st.sampled_from([100, 50, 150]))
    def serve_all(self, tokens: int, took_ms: int) -> None:
        """All that runs comes to its end after a while."""
        self.wait(took_ms)
        for attempt in [a for a in self.ledger.books.attempts if a.live]:
            if attempt.live:
                self._end(attempt, "stopped" if attempt.stop else "finished", True, tokens)

    @precondition(lambda self: any(a.held and not a.live for a in self.ledger.books.attempts))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from([a for a in self.ledger.books.attempts if a.held and not a.live]))
        attempt.held = False
        self.ledger.tell(SlotReleased(attempt.task_id, attempt.attempt, attempt.replica_id))

    @precondition(lambda self: any(not a.live and not a.held for a in self.ledger.books.attempts))
    @rule(data=st.data(), kind=st.sampled_from(["end", "progress", "release"]))
    def stale(self, data: st.DataObject, kind: str) -> None:
        """What an attempt that is long over still says changes nothing at all."""
        over = data.draw(st.sampled_from([a for a in self.ledger.books.attempts if not a.live and not a.held]))
        key = (over.task_id, over.attempt)
        events: dict[str, AnyEvent] = {
            "end": AttemptEnded(*key, over.replica_id, "finished", slot_free=True, tokens_out=9),
            "progress": TokensProgressed(*key, 50, 7),
            "release": SlotReleased(*key, over.replica_id),
        }
        self.ledger.tell(TimerFired())
        before = digest(self.ledger.scheduler)
        self.ledger.tell(events[kind])
        assert digest(self.ledger.scheduler) == before

    # ------------------------------------------------------------------ time

    @rule(duration_ms=st.sampled_from([0, 1, 40, 150, 900, 2_100, 6_000]))
    def wait(self, duration_ms: int) -> None:
        until_ns = self.ledger.now_ns + duration_ms * MS
        while self.ledger.alarm_ns is not None and self.ledger.alarm_ns <= until_ns:
            self._ring()
        self.ledger.now_ns = until_ns

    def _ring(self) -> None:
        assert self.ledger.alarm_ns is not None
        self.ledger.now_ns, self.ledger.alarm_ns = max(self.ledger.now_ns, self.ledger.alarm_ns), None
        self.ledger.tell(TimerFired())

    # ------------------------------------------------------------------ parts

    def _progress(self, attempt: Attempt, tokens: int) -> None:
        if self.ledger.books.current(attempt) is not None:
            attempt.tokens = max(attempt.tokens, tokens)
        self.ledger.tell(TokensProgressed(attempt.task_id, attempt.attempt, tokens, 7))

    def _submit(self, task_id: str, **over: Any) -> None:
        known = task_id in self.ledger.books.jobs
        info = task(task_id, **over)
        refused = self._refusal(self.ledger.submit(info), task_id)
        if known or refused is None or refused.earliest_deadline_ms is None:
            return
        # What was called the earliest deadline is accepted at the same instant.
        later = task(task_id, **{**over, "deadline_ms": refused.earliest_deadline_ms})
        again = self._refusal(self.ledger.submit(later), task_id)
        assert again is None or again.code != "DEADLINE_UNMET", again

    def _refusal(self, commands: list[AnyCommand], task_id: str) -> ErrorInfo | None:
        return next((c.error for c in commands if isinstance(c, Reject) and c.task_id == task_id), None)

    def _end(
        self,
        attempt: Attempt,
        result: Literal["finished", "stopped", "failed"],
        slot_free: bool,
        tokens: int,
        error: ErrorInfo | None = None,
    ) -> None:
        job = self.ledger.books.current(attempt)
        attempt.live = False
        attempt.held = not slot_free
        if job is not None:
            attempt.tokens = max(attempt.tokens, tokens)
        delivered = job is not None and max(attempt.tokens, job.resume_tokens) > 0
        if job is not None and result == "failed" and attempt.stop is None and not delivered:
            # Unless it ends now, it waits again.
            job.waiting = True
        if job is not None and result == "stopped" and attempt.stop is None:
            # Nobody knows what for: it is lost.
            job.losses += 1
        event = AttemptEnded(
            attempt.task_id,
            attempt.attempt,
            attempt.replica_id,
            result,
            slot_free=slot_free,
            tokens_in=5,
            tokens_out=tokens,
            first_token_ns=20 * MS,
            decode_ns=tokens * 10 * MS,
            transcript_bytes=40,
            finish_reason="length" if result == "finished" else None,
            error=error,
        )
        commands = self.ledger.tell(event)
        ends = [c.outcome.state for c in commands if isinstance(c, Finish) and c.task_id == attempt.task_id]
        if job is None:
            assert "finished" not in ends
        elif result == "finished":
            assert ends == ["finished"]
        elif attempt.stop is None and delivered and job.info.determinism != "strict":
            assert ends, "what delivered tokens and cannot be repeated is not run again"
        if job is None and not slot_free:
            assert not any(isinstance(c, Start) for c in commands)

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
            self._ring()
        self.ledger.check_over()


PoliciesMachine.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.mark.req("ORCH-3004", "ORCH-3006", "ORCH-3017", "ORCH-3024", "ORCH-3036", "ORCH-3040", "ORCH-3075")
@pytest.mark.req("ORCH-3077", "ORCH-3079", "ORCH-3085", "ORCH-3086", "ORCH-3091", "ORCH-3099")
@pytest.mark.req("OC-CORE-1003", "OC-CORE-1011", "OC-CORE-1013", "OC-CORE-1023")
class TestPolicies(PoliciesMachine.TestCase):  # type: ignore[misc,name-defined]
    """Every random history keeps every promise."""
