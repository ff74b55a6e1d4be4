"""A world repeats itself exactly, and notices when the scheduler breaks a promise."""

from collections.abc import Callable

import msgspec
import pytest

from contracts.policies import SchedulerConfig
from contracts.scheduling import Admit, AnyCommand, AnyEvent, Finish, Forget, Pause, Reject, SetTimer, Start
from contracts.tasks import Outcome
from orchestrator.core.scheduler import Scheduler
from orchestrator.simulation import experiment, world
from orchestrator.simulation.errors import BrokenPromiseError
from orchestrator.simulation.eventlog import EventLog
from tests.simulation.sim_kit import ran, report, scenario

Twist = Callable[[AnyCommand], list[AnyCommand]]

MIXED = (
    {"tenants": {"a": 1, "b": 2}, "cancel_percent": 5, "resend_percent": 5, "hint_error_percent": 30},
    {"name": "batch", "priority": "batch", "arrivals": {"kind": "bursts", "on_per_second": 4}},
    {"name": "agents", "arrivals": {"kind": "agents", "count": 2}},
)
FAULTS = [
    {"kind": "crash", "at_s": 10},
    {"kind": "reports", "at_s": 20, "for_s": 20, "lost_percent": 10, "duplicate_percent": 10, "late_ms": 50},
]


def test_the_same_scenario_and_seed_give_the_same_report_and_events() -> None:
    what = scenario(*MIXED, faults=FAULTS, progress_ms=250)
    logs = [EventLog() for _ in range(3)]
    reports = [experiment.run(what, seed, log=log) for seed, log in zip((1, 1, 2), logs, strict=True)]
    assert reports[0] == reports[1]
    assert reports[0] != reports[2]
    assert logs[0].events_digest() == logs[1].events_digest() != logs[2].events_digest()
    assert logs[0].commands.hex() == logs[1].commands.hex() != logs[2].commands.hex()


def test_other_policies_get_the_same_tasks() -> None:
    """What arrives does not depend on what becomes of it, so that policies can be compared."""

    def tasks(fairness: str) -> list[tuple[str, int, int, int]]:
        scheduler = {"fairness": fairness, "on_time_percent_min": 0 if fairness == "fifo" else 90}
        rows = ran(
            scenario({"arrivals": {"kind": "poisson", "per_second": 4}}, scheduler=scheduler)
        ).clients.ledger.rows()
        return sorted((row.task_id, row.arrived_ns, row.prompt_tokens, row.output_tokens) for row in rows)

    assert tasks("wfq") == tasks("fifo")


def test_stopping_half_way_changes_nothing() -> None:
    what = scenario(*MIXED)
    halves = experiment.build(what, 1)
    for at_s in (5, 5, 17, 60):
        halves.run_until(at_s * 1_000_000_000)
        assert halves.now_ns <= at_s * 1_000_000_000
    halves.run()
    assert experiment.report(halves, what, 1) == report(what)


@pytest.mark.parametrize("jump_ms", [-30_000, -5, 5, 45_000])
def test_the_clock_may_jump(jump_ms: int) -> None:
    """Every task still ends once; only a forward jump can cost deadlines."""
    jumping = scenario(*MIXED, faults=[{"kind": "clock", "at_s": at_s, "jump_ms": jump_ms} for at_s in (15, 30)])
    outcomes = report(jumping).outcomes
    assert sum(outcomes.values()) > 100
    assert all("WORKER_RESET" not in outcome for outcome in outcomes)


# -------------------------------------------------------------------- broken promises


class Twisted(Scheduler):
    """The scheduler, but with what it says changed on the way."""

    twist: Twist

    def step(self, now_ns: int, event: AnyEvent) -> list[AnyCommand]:
        return [twisted for command in super().step(now_ns, event) for twisted in self.twist(command)]


def twisted(monkeypatch: pytest.MonkeyPatch, twist: Twist) -> world.World:
    def make(config: SchedulerConfig) -> Twisted:
        scheduler = Twisted(config)
        scheduler.twist = twist
        return scheduler

    monkeypatch.setattr(world, "Scheduler", make)
    return experiment.build(scenario({"resend_percent": 20, "cancel_percent": 20}, seconds=20), 1)


def twice(kind: type[AnyCommand]) -> Twist:
    return lambda command: [command, command] if isinstance(command, kind) else [command]


def never(kind: type[AnyCommand]) -> Twist:
    return lambda command: [] if isinstance(command, kind) else [command]


def other(kind: type[AnyCommand], change: Callable[..., AnyCommand]) -> Twist:
    return lambda command: [change(command)] if isinstance(command, kind) else [command]


def _cut(command: Finish) -> Finish:
    if command.outcome.state != "finished":
        return command
    short = msgspec.structs.replace(command.outcome, tokens_out=command.outcome.tokens_out - 1)
    return msgspec.structs.replace(command, outcome=short)


def _elsewhere(command: Start) -> Start:
    return msgspec.structs.replace(command, replica_id="gpu-0")


@pytest.mark.req("ORCH-3024", "ORCH-3029")
@pytest.mark.parametrize(
    ("twist", "message"),
    [
        (twice(Admit), "answered, but not asked or twice"),
        (never(Admit), "starts, but it is not admitted"),
        (twice(Finish), "ended before"),
        (never(Finish), "its cancel was answered, but it has not ended|never ended|forgotten"),
        (twice(Start), "attempt 1 follows attempt 1"),
        (other(Start, _elsewhere), "slots are all taken"),
        (other(Finish, _cut), r"finished with \d+ of \d+ tokens"),
        (other(SetTimer, lambda _: SetTimer("", 5)), "is over"),
        (
            other(Admit, lambda a: msgspec.structs.replace(a, predicted_start_ms=9) if a.replayed else a),
            "other numbers than the first time",
        ),
        (lambda c: [c, Pause("", c.task_id, 1, 0), Pause("", c.task_id, 1, 0)] if isinstance(c, Start) else [c], "run"),
        (lambda c: [c, Forget("", c.task_id)] if isinstance(c, Admit) else [c], "forgotten, but it has not ended"),
        (lambda c: [Finish("", "chat.0", Outcome("finished"))] if isinstance(c, Reject | Start) else [c], "chat.0"),
    ],
)
def test_a_broken_promise_is_noticed(monkeypatch: pytest.MonkeyPatch, twist: Twist, message: str) -> None:
    with pytest.raises(BrokenPromiseError, match=message):
        twisted(monkeypatch, twist).run()


def test_the_scheduler_as_it_is_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    twisted(monkeypatch, lambda command: [command]).run()


def test_invariants_are_checked_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Scheduler] = []
    monkeypatch.setattr(world.invariants, "check", checked.append)
    every_third = ran(scenario(seconds=20, check_every_steps=3))
    assert len(checked) == every_third.steps // 3 > 10
    checked.clear()
    ran(scenario(seconds=20))
    assert not checked
