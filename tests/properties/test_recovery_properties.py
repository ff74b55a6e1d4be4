"""Whenever the scheduler dies, and whatever it had done by then: no task is lost, ended twice or admitted twice.

A small world tells the scheduler what replicas and clients do. At random points the scheduler dies, with its last step
carried out, only made durable, or not even that; replicas live on, and come back with what they run. Their links are
cut and they crash as well.
"""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.journal import KeptTask
from contracts.policies import BudgetPolicy, RatePolicy, SchedulerConfig, SessionPolicy, TenantPolicy
from contracts.scheduling import (
    Admit,
    AnyCommand,
    AnyEvent,
    AttemptEnded,
    Finish,
    Reject,
    ReplicaLost,
    ReplicaReady,
    RunningAttempt,
    ServiceRecovered,
    SetTimer,
    SlotReleased,
    Start,
    Stop,
    TaskSubmitted,
    TimerFired,
    TokensProgressed,
)
from contracts.tasks import Outcome
from orchestrator.core import invariants
from orchestrator.core.lifecycle import ON_REPLICA
from orchestrator.core.scheduler import Scheduler
from orchestrator.simulation.journal import Journal
from tests.unit.core.core_kit import MS, config, queue, replica, replica_set, task
from tests.unit.core.durable_kit import everything

BUDGET_TOKENS = 400
CONCURRENT_MAX = 2
CAPACITY = 12
Key = tuple[str, int]


class Replica:
    """What really runs on a replica: tokens by attempt; `over` attempts still hold their slots."""

    def __init__(self, replica_id: str, slots: int) -> None:
        self.info = replica(replica_id, slots=slots)
        self.linked = False
        self.running: dict[Key, int] = {}
        self.over: dict[Key, None] = {}
        self.stops: dict[Key, None] = {}
        self.unconfirmed: dict[Key, AttemptEnded] = {}

    def returns(self) -> ReplicaReady:
        running = [RunningAttempt(*key, tokens, tokens * 3) for key, tokens in self.running.items()]
        running += [RunningAttempt(*key, over=True) for key in self.over]
        return ReplicaReady(self.info, 0, tuple(running), tuple(self.unconfirmed.values()))


class World:
    """`told` has the answers of submissions, `outcomes` what was durably decided."""

    def __init__(self, settings_: SchedulerConfig, seed: int) -> None:
        self.config = settings_
        self.chance = random.Random(seed)
        self.scheduler = Scheduler(settings_)
        self.journal = Journal()
        self.now_ms = 1_000
        self.alarm_ns: int | None = None
        self.replicas = {f"r{n}": Replica(f"r{n}", 1 + n % 2) for n in range(3)}
        self.asked: dict[int, str] = {}
        self.tasks: dict[str, Any] = {}
        self.told: dict[str, Admit] = {}
        self.refused: set[str] = set()
        self.outcomes: dict[str, Outcome] = {}
        self.heard: set[str] = set()
        self.numbers = 0
        for each in self.replicas.values():
            self.relink(each)

    # ------------------------------------------------------------------ scheduler

    def tell(self, event: AnyEvent, *, durable: bool = True, carried_out: bool = True) -> None:
        commands = self.scheduler.step(self.now_ms * MS, event)
        invariants.check(self.scheduler)
        records = self.scheduler.records(commands)
        if durable:
            self.journal.put(records)
            for record in records:
                if isinstance(record, KeptTask) and record.outcome is not None:
                    before = self.outcomes.setdefault(record.task.task_id, record.outcome)
                    assert before == record.outcome, f"{record.task.task_id} ended twice"
            self._check_accounts()
        if durable and carried_out:
            if isinstance(event, AttemptEnded | ReplicaReady):
                ended = [event] if isinstance(event, AttemptEnded) else list(event.ended)
                for each in ended:
                    self.replicas[each.replica_id].unconfirmed.pop((each.task_id, each.attempt), None)
            for command in commands:
                self.hear(command)

    def hear(self, command: AnyCommand) -> None:
        match command:
            case Admit():
                task_id = self.asked.pop(command.submission)
                assert task_id == command.task_id
                first = self.told.setdefault(task_id, command)
                assert command.replayed or first is command, f"{task_id} was admitted twice"
                assert command.queue_position == first.queue_position
            case Reject():
                task_id = self.asked.pop(command.submission)
                assert task_id not in self.told, f"{task_id} was accepted, then refused"
                self.refused.add(task_id)
            case Start():
                assert not self.scheduler.state.is_held
                there = self.replicas[command.replica_id]
                assert there.linked
                assert (command.task_id, command.attempt) not in [*there.running, *there.over]
                assert len(there.running) + len(there.over) < there.info.slots
                there.running[command.task_id, command.attempt] = 0
            case Stop():
                there = self.replicas[command.replica_id]
                if (command.task_id, command.attempt) in there.running:
                    there.stops[command.task_id, command.attempt] = None
            case Finish():
                assert command.task_id not in self.heard, f"{command.task_id} ended twice"
                self.heard.add(command.task_id)
            case SetTimer():
                self.alarm_ns = command.at_ns

    def _check_accounts(self) -> None:
        """What the next scheduler would know, and what this one does."""
        state = self.scheduler.state
        running = [record.task.tenant for record in state.tasks.values() if record.state in ON_REPLICA]
        assert all(running.count(tenant) <= CONCURRENT_MAX for tenant in running)
        for session in state.sessions._sessions.values():
            assert session.used_tokens + session.reserved_tokens <= BUDGET_TOKENS
        for kept in self.journal.kept().sessions:
            assert kept.used_tokens <= BUDGET_TOKENS

    def die(self, after_ms: int) -> None:
        """The scheduler dies and another one goes on; no replica is linked."""
        for each in self.replicas.values():
            each.linked = False
        self.now_ms += after_ms
        self.alarm_ns = None
        kept = self.journal.kept()
        self.scheduler = Scheduler(self.config)
        self.tell(ServiceRecovered(kept))
        tasks, sessions, _ = everything(self.scheduler)
        assert {each.task.task_id: each for each in tasks} == self.journal.tasks
        assert len(sessions) >= len({(t.task.tenant, t.task.session_id) for t in tasks if t.outcome is None})
        # Who was not answered asks again.
        asked, self.asked = self.asked, {}
        for task_id in asked.values():
            self.submit_again(task_id)

    # ------------------------------------------------------------------ clients

    def submit(self, **over: Any) -> None:
        task_id = f"t{len(self.tasks)}"
        self.tasks[task_id] = task(task_id, **over)
        self.submit_again(task_id)

    def submit_again(self, task_id: str, **how: bool) -> None:
        self.numbers += 1
        self.asked[self.numbers] = task_id
        self.tell(TaskSubmitted(self.numbers, self.tasks[task_id]), **how)

    # ------------------------------------------------------------------ replicas

    def relink(self, each: Replica) -> None:
        each.linked = True
        self.tell(each.returns())

    def unlink(self, each: Replica, *, crash: bool = False) -> None:
        if crash:
            each.running.clear()
            each.over.clear()
            each.unconfirmed.clear()
            each.stops.clear()
        if each.linked:
            each.linked = False
            self.tell(ReplicaLost(each.info.replica_id, "its link ended"))

    def end(self, each: Replica, key: Key, **how: bool) -> None:
        stopped = each.stops.pop(key, key) is None
        tokens = each.running.pop(key)
        slot_free = self.chance.random() < 0.7
        event = AttemptEnded(
            *key,
            each.info.replica_id,
            "stopped" if stopped else "finished",
            slot_free=slot_free,
            tokens_in=2,
            tokens_out=tokens + 1,
            finish_reason=None if stopped else "stop",
        )
        each.unconfirmed[key] = event
        if not slot_free:
            each.over[key] = None
        if each.linked:
            self.tell(event, **how)

    def release(self, each: Replica) -> None:
        for key in list(each.over):
            del each.over[key]
            if each.linked:
                self.tell(SlotReleased(*key, each.info.replica_id))

    # ------------------------------------------------------------------ histories

    def go(self, steps: int) -> None:
        chance = self.chance
        for _ in range(steps):
            pick = chance.random()
            each = chance.choice(list(self.replicas.values()))
            key = chance.choice(list(each.running)) if each.running else None
            if pick < 0.35:
                self.submit(
                    tenant=chance.choice(("acme", "globex")),
                    session_id=f"s{chance.randrange(8)}",
                    determinism=chance.choice(("strict", "strict", "best_effort")),
                    priority=chance.choice(("interactive", "batch")),
                    max_tokens=chance.choice((5, 20)),
                    deadline_ms=chance.choice((5_000, 60_000)),
                )
            elif pick < 0.55 and key is not None:
                self.end(each, key)
            elif pick < 0.65 and key is not None:
                each.running[key] = tokens = min(4, each.running[key] + chance.randrange(3))
                if each.linked:
                    self.tell(TokensProgressed(*key, tokens, tokens * 3))
            elif pick < 0.70:
                self.release(each)
            elif pick < 0.75:
                self.unlink(each, crash=chance.random() < 0.3)
            elif pick < 0.87:
                if not each.linked:
                    self.relink(each)
            elif pick < 0.90:
                self.last_step(each, key)
            else:
                self.pass_ms(chance.choice((1, 50, 900)))

    def last_step(self, each: Replica, key: Key | None) -> None:
        """One more step, carried out, only made durable, or neither; then the scheduler dies."""
        how = self.chance.choice(({}, {"carried_out": False}, {"durable": False}))
        if key is not None and self.chance.random() < 0.6:
            self.end(each, key, **how)
        else:
            self.tasks[f"t{len(self.tasks)}"] = task(f"t{len(self.tasks)}")
            self.submit_again(f"t{len(self.tasks) - 1}", **how)
        self.die(self.chance.choice((0, 300, 4_000)))

    def pass_ms(self, duration_ms: int) -> None:
        until_ms = self.now_ms + duration_ms
        while self.alarm_ns is not None and self.alarm_ns <= until_ms * MS:
            self.now_ms = max(self.now_ms, -(-self.alarm_ns // MS))
            self.alarm_ns = None
            self.tell(TimerFired())
        self.now_ms = until_ms

    def settle(self) -> None:
        """Everything is served out."""
        for _ in range(400):
            for each in self.replicas.values():
                if not each.linked:
                    self.relink(each)
                for key in list(each.running):
                    self.end(each, key)
                self.release(each)
            if all(task_id in self.outcomes for task_id in self.told):
                return
            self.pass_ms(500)


def policies() -> SchedulerConfig:
    queues = tuple(queue(name, CAPACITY, "reject") for name in ("interactive", "batch"))
    rate = RatePolicy(100.0, 20)
    return config(
        replica_set(capacity=CAPACITY, queues=queues, fairness="wfq", ordering="edf", on_time_percent_min=0),
        ttl_ms=3_600_000,
        tasks_max=1_000,
        default_tenant=TenantPolicy("", max_concurrent=CONCURRENT_MAX, rate=rate, tokens_per_min=100_000),
        sessions=SessionPolicy(budget=BudgetPolicy(tokens=BUDGET_TOKENS)),
    )


@pytest.mark.req("ORCH-3051", "ORCH-3017", "ORCH-3024", "ORCH-3036", "ORCH-3099")
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 120))
def test_no_task_is_lost_ended_twice_or_admitted_twice(seed: int, steps: int) -> None:
    world = World(policies(), seed)
    world.go(steps)
    world.settle()
    assert not world.asked
    assert set(world.told) | world.refused == set(world.tasks)
    assert set(world.told) == set(world.outcomes)
    assert world.heard <= set(world.outcomes)


@pytest.mark.req("ORCH-3051")
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 100))
def test_a_scheduler_that_recovers_knows_what_the_other_knew(seed: int, steps: int) -> None:
    """Records, recovered and recorded again, are the same."""
    world = World(policies(), seed)
    world.go(steps)
    other = Scheduler(world.config)
    other.step(world.now_ms * MS, ServiceRecovered(world.journal.kept()))
    invariants.check(other)
    tasks, _, _ = everything(other)
    assert {each.task.task_id: each for each in tasks} == world.journal.tasks
