"""Tasks arrive as the scenario says: at its rates, in its bursts, in its traces, in its closed loops."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import mean, pvariance
from typing import Any

import pytest

from orchestrator.simulation import experiment
from orchestrator.simulation.arrivals import process
from orchestrator.simulation.errors import TraceError
from orchestrator.simulation.scenario import BurstArrivals, ConstantArrivals, PoissonArrivals
from orchestrator.simulation.traces import read
from tests.simulation.sim_kit import ran, scenario

S = 1_000_000_000


def per_second(arrivals: Any, seconds: int = 2000) -> list[int]:
    """How many arrive in each second."""
    next_ns, now_ns = process(arrivals, Random(3)), 0
    counts: Counter[int] = Counter()
    while (now_ns := next_ns(now_ns)) < seconds * S:
        counts[now_ns // S] += 1
    return [counts[second] for second in range(seconds)]


def test_constant_arrivals_are_evenly_spaced() -> None:
    assert set(per_second(ConstantArrivals(kind="constant", per_second=4), 50)[1:]) == {4}


def test_poisson_counts_have_their_mean_as_their_variance() -> None:
    counts = per_second(PoissonArrivals(kind="poisson", per_second=5))
    assert mean(counts) == pytest.approx(5, rel=0.05)
    assert pvariance(counts) / mean(counts) == pytest.approx(1, abs=0.15)


def test_bursts_have_the_mean_of_their_states_and_more_variance() -> None:
    """On a quarter of the time at 8/s, off at 0: 2/s on average, in lumps."""
    counts = per_second(BurstArrivals(kind="bursts", on_per_second=8, on_s=10, off_s=30), 20_000)
    assert mean(counts) == pytest.approx(2, rel=0.1)
    assert pvariance(counts) / mean(counts) > 4


def test_arrivals_keep_to_their_time() -> None:
    world = ran(scenario({"from_s": 20, "until_s": 30}))
    arrived = [row.arrived_ns for row in world.clients.ledger.rows()]
    assert arrived
    assert min(arrived) >= 20 * S
    assert max(arrived) < 30 * S


def test_tasks_max_ends_the_arrivals() -> None:
    world = ran(scenario(tasks_max=17))
    assert len(world.clients.ledger) == 17
    assert world.horizon_ns == max(row.arrived_ns for row in world.clients.ledger.rows())


def test_shares_of_tenants_and_classes() -> None:
    mixed = {"tenants": {"a": 3, "b": 1}, "priority": {"interactive": 1, "batch": 4}}
    world = ran(scenario(mixed, seconds=600))
    rows = list(world.clients.ledger.rows())
    assert sum(row.tenant == "a" for row in rows) / len(rows) == pytest.approx(0.75, abs=0.05)
    assert sum(row.priority == "batch" for row in rows) / len(rows) == pytest.approx(0.8, abs=0.05)


def test_agents_wait_for_their_answer_before_they_ask_again() -> None:
    agents = {"arrivals": {"kind": "agents", "count": 3, "turns": 4, "think_ms": 500}, "prompt_tokens": 100}
    world = ran(scenario(agents))
    by_agent: dict[int, list[Any]] = {}
    for row in world.clients.ledger.rows():
        by_agent.setdefault(int(row.task_id.rpartition(".")[2]) // 1_000_000, []).append(row)
    assert len(by_agent) == 3
    for turns in by_agent.values():
        assert len(turns) > 5
        for before, after in pairwise(turns):
            assert after.arrived_ns == before.ended_ns + 500_000_000
        # A session's prompts grow by what was said before, and begin anew after four turns.
        grown = [turn.prompt_tokens == 100 for turn in turns]
        assert grown[:6] == [True, False, False, False, True, False]
        assert turns[1].prompt_tokens == 100 + turns[0].output_tokens + 100


def trace(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_a_trace_is_played_at_its_times_with_its_sizes(tmp_path: Path) -> None:
    trace(
        tmp_path,
        {"at_ms": 1000, "tenant": "acme", "priority": "batch", "prompt_tokens": 7, "output_tokens": 9},
        "",
        {"at_ms": 3000, "deadline_ms": 5000, "max_tokens": 20, "output_tokens": 30},
    )
    what = scenario({"arrivals": {"kind": "trace", "file": "tasks.jsonl", "speed": 2}, "prompt_tokens": 55})
    world = experiment.build(what, 1, folder=tmp_path)
    world.run()
    first, second = sorted(world.clients.ledger.rows(), key=lambda row: row.arrived_ns)
    assert (first.arrived_ns, second.arrived_ns) == (S // 2, 3 * S // 2)
    assert (first.tenant, first.priority, first.prompt_tokens, first.output_tokens) == ("acme", "batch", 7, 9)
    assert (second.tenant, second.prompt_tokens, second.output_tokens) == ("default", 55, 20)
    assert second.deadline_ns == second.arrived_ns + 5 * S


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (({"at_ms": 0}, {"at_ms": 5, "colour": 1}), r"tasks.jsonl:2: .*colour"),
        (({"at_ms": 9}, {"at_ms": 5}), r"tasks.jsonl:2: at_ms 5 is before 9; sort the trace"),
        (("nonsense",), r"tasks.jsonl:1: "),
        (({"tenant": "acme"},), r"tasks.jsonl:1: .*at_ms"),
    ],
)
def test_what_is_wrong_with_a_trace_is_told_with_its_line(tmp_path: Path, lines: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        list(read(trace(tmp_path, *lines)))


def test_a_missing_trace_is_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot read"):
        list(read(tmp_path / "none.jsonl"))
