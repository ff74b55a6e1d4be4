"""The same history gives the same commands and the same state; to preempt and to go on leaves no trace."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.policies import (
    BudgetPolicy,
    FairnessKind,
    OrderingKind,
    PoolPolicy,
    PreemptionPolicy,
    RatePolicy,
    SchedulerConfig,
    SessionPolicy,
    TenantPolicy,
)
from contracts.scheduling import (
    AnyCommand,
    AnyEvent,
    AttemptEnded,
    ReplicaReady,
    Start,
    Stop,
    TaskSubmitted,
    TimerFired,
    TokensProgressed,
)
from orchestrator.core import dispatch, invariants
from orchestrator.core.digest import digest, snapshot
from orchestrator.core.scheduler import Scheduler
from tests.unit.core.core_kit import MS, config, queue, replica, replica_set, task
from tests.unit.core.hash_seeds import printed

CLASSES = ("interactive", "batch", "idle")
TENANTS = ("acme", "globex", "initech")
#: What an attempt that was stopped and made again must change: it is another attempt, begun later.
RESTARTED = {"attempt", "preemptions", "losses", "resume", "started_ns", "progressed_ns"}


def policies(fairness: FairnessKind, ordering: OrderingKind, canary: bool = True) -> SchedulerConfig:
    home = replica_set(
        capacity=12,
        queues=tuple(queue(name, 6, "drop-lru", weight=4 - 2 * n or 1) for n, name in enumerate(CLASSES)),
        pools=(PoolPolicy("pool-a"), PoolPolicy("pool-c", canary_percent=30 if canary else None)),
        wall_timeout_ms=20_000,
        idle_timeout_ms=20_000,
        fairness=fairness,
        ordering=ordering,
        eviction="eta",
        on_time_percent_min=50,
        preemption=PreemptionPolicy("hard", max_per_min=30),
    )
    return config(
        home,
        tasks_max=8,
        tenants=(TenantPolicy("acme", weight=3), TenantPolicy("globex", max_concurrent=2)),
        default_tenant=TenantPolicy("", weight=2, rate=RatePolicy(40.0, 10), tokens_per_min=4_000),
        sessions=SessionPolicy(ttl_ms=30_000, turns_max=4, budget=BudgetPolicy(tokens=5_000)),
    )


class History:
    """A scheduler driven by a seeded random script; keeps what it told and what it heard."""

    def __init__(self, settings_: SchedulerConfig, seed: int) -> None:
        self.config = settings_
        self.scheduler = Scheduler(settings_)
        self.random = random.Random(seed)
        self.now_ms = 1_000
        self.count = 0
        self.running: list[tuple[str, int, str]] = []
        self.told: list[tuple[int, AnyEvent]] = []
        self.heard: list[list[AnyCommand]] = []
        for replica_id, pool_id, slots in (("r0", "pool-a", 2), ("r1", "pool-a", 1), ("c0", "pool-c", 1)):
            self.tell(
                ReplicaReady(
                    replica(replica_id, pool_id=pool_id, slots=slots, interruptible_decode=True, keeps_kv=True)
                )
            )

    def tell(self, event: AnyEvent) -> list[AnyCommand]:
        commands = self.scheduler.step(self.now_ms * MS, event)
        self.told.append((self.now_ms * MS, event))
        self.heard.append(commands)
        self.running += [(c.task_id, c.attempt, c.replica_id) for c in commands if isinstance(c, Start)]
        return commands

    def twin(self) -> Scheduler:
        """Another scheduler in the same state: one that was told the same."""
        other = Scheduler(self.config)
        for now_ns, event in self.told:
            other.step(now_ns, event)
        return other

    def submit(self, **over: Any) -> list[AnyCommand]:
        self.count += 1
        return self.tell(TaskSubmitted(self.count, task(f"t{self.count}", **over)))

    def end(self, index: int, result: Any, tokens: int) -> None:
        key = self.running.pop(index)
        self.tell(AttemptEnded(*key, result, slot_free=True, tokens_in=4, tokens_out=tokens, digest=tokens * 31))

    def go(self, steps: int) -> None:
        """Mostly submissions and ends, with progress, failures and time between."""
        chance = self.random
        for _ in range(steps):
            pick = chance.random()
            if pick < 0.5:
                self.submit(
                    tenant=chance.choice(TENANTS),
                    priority=chance.choice(CLASSES),
                    session_id=f"s{chance.randrange(20)}",
                    max_tokens=chance.choice((5, 20, 60)),
                    deadline_ms=chance.choice((150, 800, 4_000, 60_000)),
                )
            elif pick < 0.75 and self.running:
                result = "stopped" if chance.random() < 0.3 else "finished"
                self.end(chance.randrange(len(self.running)), result, chance.randrange(1, 9))
            elif pick < 0.85 and self.running:
                key = chance.choice(self.running)
                self.tell(TokensProgressed(key[0], key[1], chance.randrange(9), 7))
            else:
                self.now_ms += chance.choice((1, 20, 90))
                self.tell(TimerFired())


def scripted(steps: int = 150) -> str:
    """The digest of state and commands after fixed histories under each pair of policies."""
    lines = []
    for fairness in ("wfq", "strict", "fifo"):
        for ordering in ("edf", "fifo"):
            history = History(policies(fairness, ordering), 11)  # type: ignore[arg-type]
            history.go(steps)
            lines.append(digest(history.scheduler))
            lines.append(msgspec.msgpack.encode(history.heard).hex()[-64:])
    return " ".join(lines)


@pytest.mark.req("ORCH-3024", "ORCH-3075")
def test_the_same_history_gives_the_same_state_under_any_hash_seed() -> None:
    code = "from tests.properties.test_core_replay import scripted; print(scripted())"
    assert printed(code) == {scripted()}


FAIRNESS = st.sampled_from(["wfq", "strict", "fifo"])
ORDERING = st.sampled_from(["edf", "fifo"])


@pytest.mark.req("ORCH-3024")
@settings(max_examples=20, deadline=None)
@given(fairness=FAIRNESS, ordering=ORDERING, seed=st.integers(0, 2**32), steps=st.integers(1, 150))
def test_replay_gives_the_same_commands_and_the_same_digest(
    fairness: FairnessKind, ordering: OrderingKind, seed: int, steps: int
) -> None:
    settings_ = policies(fairness, ordering)
    history = History(settings_, seed)
    history.go(steps)
    again = Scheduler(settings_)
    assert [again.step(now_ns, event) for now_ns, event in history.told] == history.heard
    assert digest(again) == digest(history.scheduler)


@pytest.mark.req("ORCH-3024")
def test_the_digest_tells_states_apart_and_reading_changes_nothing() -> None:
    history = History(policies("wfq", "edf"), 3)
    seen = {digest(history.scheduler)}
    for n in range(20):
        history.submit(priority=CLASSES[n % 3], session_id=f"s{n}", deadline_ms=60_000)
        now = digest(history.scheduler)
        assert now == digest(history.scheduler)
        seen.add(now)
    assert len(seen) >= 20


def _comparable(scheduler: Scheduler, victim: str) -> dict[str, Any]:
    """The state, less what another attempt of `victim` must change in it."""
    tree = snapshot(scheduler)
    attempt = tree["tasks"][victim]["attempt"]
    for name in RESTARTED:
        del tree["tasks"][victim][name]
    for each in tree["replicas"].values():
        each["busy"] = sorted([task_id, n - attempt if task_id == victim else n] for task_id, n in each["busy"])
    # A restarted task counts as started last, and its watchdog runs from then.
    for each in tree["sets"].values():
        each["running"] = {priority: sorted(tasks) for priority, tasks in each["running"].items()}
    del tree["timers"][victim], tree["alarm_ns"], tree["accounts"]["preemption"]
    return tree


@pytest.mark.req("ORCH-3086", "ORCH-3075")
@settings(max_examples=40, deadline=None)
@given(
    fairness=FAIRNESS,
    ordering=ORDERING,
    seed=st.integers(0, 2**32),
    steps=st.integers(0, 60),
    made=st.integers(0, 8),
    wait_ms=st.integers(0, 200),
)
def test_to_preempt_and_go_on_is_as_if_nothing_had_happened(
    fairness: FairnessKind, ordering: OrderingKind, seed: int, steps: int, made: int, wait_ms: int
) -> None:
    history = History(policies(fairness, ordering, canary=False), seed)
    history.go(steps)
    # Whatever waits starts and ends; then one more starts, the latest, whose slot is taken.
    while history.running:
        history.end(0, "finished", 4)
    started = [c for c in history.submit(priority="idle", deadline_ms=600_000) if isinstance(c, Start)]
    if not started:
        return
    victim = started[0].task_id
    history.now_ms += wait_ms
    history.tell(TokensProgressed(victim, 1, made, made * 31))
    plain, touched = history.twin(), history.scheduler
    state = touched.state
    state.begin_step(history.now_ms * MS)
    state.tasks[victim].preemptions += 1
    dispatch.stop(state, state.tasks[victim], "preempt", for_task="nobody")
    (stop,) = [c for c in state.out if isinstance(c, Stop)]
    ended = AttemptEnded(victim, 1, stop.replica_id, "stopped", slot_free=True, tokens_out=made, digest=made * 31)
    (again,) = [c for c in touched.step(history.now_ms * MS, ended) if isinstance(c, Start)]
    assert (again.task_id, again.attempt, again.replica_id) == (victim, 2, stop.replica_id)
    assert (again.resume_tokens, again.resume_digest) == (made, made * 31)
    # It has made again what it had made.
    touched.step(history.now_ms * MS, TokensProgressed(victim, 2, made, made * 31))
    invariants.check(touched)
    assert _comparable(touched, victim) == _comparable(plain, victim)
