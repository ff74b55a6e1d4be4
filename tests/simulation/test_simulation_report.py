"""The report's figures against figures worked out by hand."""

from typing import Any

import pytest

from orchestrator.simulation.flows import FlowMeter, Flows
from orchestrator.simulation.honesty import honesty
from orchestrator.simulation.job import Job
from orchestrator.simulation.ledger import Ledger
from orchestrator.simulation.report import spread
from orchestrator.simulation.shares import class_shares, jain, tenant_shares
from orchestrator.simulation.table import render
from orchestrator.simulation.workloads import Workload
from tests.simulation.sim_kit import ran, report, scenario

S = 1_000_000_000
MS = 1_000_000


def meter(index: int, priority: str, tenant: str, weight: int, class_weight: int = 1) -> FlowMeter:
    return FlowMeter(index, priority, tenant, weight, class_weight, 10 * S)


def test_percentiles_are_by_nearest_rank() -> None:
    assert spread([]) is None
    found = spread([value * MS for value in range(100, 0, -1)])
    assert found is not None
    assert (found.tasks, found.mean_ms, found.p50_ms, found.p90_ms, found.p99_ms) == (100, 50.5, 50, 90, 99)
    one = spread([7 * MS])
    assert one is not None
    assert (one.p50_ms, one.p99_ms) == (7, 7)


def test_jain_is_1_for_equals_and_1_nth_for_one_who_has_all() -> None:
    assert jain([2.0, 2.0, 2.0]) == pytest.approx(1)
    assert jain([5.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([]) is None


def test_a_window_counts_as_backlogged_only_if_a_task_waited_all_through_it() -> None:
    flow = meter(0, "interactive", "a", 1)
    flow.join(5 * S)
    flow.join(12 * S)
    flow.leave(31 * S)
    flow.leave(39 * S)
    flow.join(40 * S)
    flow.settle(60 * S)
    assert flow.backlogged == [(1, 3), (4, 6)]


@pytest.mark.req("ORCH-3076")
def test_shares_are_compared_only_while_several_contend() -> None:
    """Weights 3 and 1: due 75 % and 25 % of what both got in windows 0 and 1; window 2 has one contender."""
    first, second = meter(0, "interactive", "a", 3), meter(1, "interactive", "b", 1)
    for flow, until in ((first, 30), (second, 20)):
        flow.join(0)
        flow.leave(until * S)
    for flow, tokens in ((first, (60, 80, 500)), (second, (40, 20, 0))):
        for window, served in enumerate(tokens):
            flow.serve(window * 10 * S, served)
    found = tenant_shares([first, second], 0, 6)["interactive"]
    assert found.windows == 2
    assert [(flow.name, flow.share, flow.due) for flow in found.flows] == [("a", 0.7, 0.75), ("b", 0.3, 0.25)]
    assert found.mean_error == pytest.approx((0.15 + 0.05) / 2)
    assert found.max_error == pytest.approx(0.15)
    ratios = [140 / 150, 60 / 50]
    assert found.jain == pytest.approx(sum(ratios) ** 2 / (2 * sum(ratio**2 for ratio in ratios)))


def test_classes_share_by_their_own_weights() -> None:
    high, low = meter(0, "interactive", "a", 1, class_weight=8), meter(1, "batch", "b", 5, class_weight=1)
    for flow, tokens in ((high, 80), (low, 20)):
        flow.join(0)
        flow.serve(0, tokens)
        flow.leave(10 * S)
    found = class_shares([high, low], 0, 1)
    assert [(flow.name, flow.share) for flow in found.flows] == [("interactive", 0.8), ("batch", 0.2)]
    assert found.flows[0].due == pytest.approx(8 / 9)


def test_nobody_contended() -> None:
    found = class_shares([meter(0, "interactive", "a", 1)], 0, 5)
    assert (found.windows, found.mean_error, found.jain, found.flows) == (0, None, None, [])


def ledger_of(*tasks: dict[str, Any], count_from_ns: int = 0) -> Ledger:
    """A ledger with tasks as given: instants in ms, `outcome`, and whatever else a job has."""
    flows = Flows({}, {}, 1, 10 * S)
    workload = Workload(scenario().workloads[0], 0, 8192, flows, 1)
    ledger = Ledger(flows, count_from_ns)
    ledger.workload_names.append("chat")
    for number, task in enumerate(tasks):
        job = Job(number, workload, flows.meter("interactive", "a"), workload.make(number, 0).info, 10, 20, 0)
        job.arrived_ns = task.get("arrived", 0) * MS
        job.deadline_ns = job.arrived_ns + task.get("deadline", 1000) * MS
        if "admitted" in task:
            job.admitted_ns = task["admitted"] * MS
        if "started" in task:
            job.started_ns = task["started"] * MS
        job.predicted_ms = task.get("predicted", 0)
        job.probability = task.get("probability", 1.0)
        ledger.close(job, task["ended"] * MS, task.get("outcome", "finished"))
    return ledger


@pytest.mark.req("ORCH-3029")
def test_predicted_starts_are_held_against_the_real_ones() -> None:
    ledger = ledger_of(
        {"admitted": 0, "started": 400, "predicted": 500, "ended": 900},
        {"admitted": 0, "started": 1000, "predicted": 800, "ended": 1900},
        {"admitted": 0, "started": 2000, "predicted": 2100, "ended": 2900},
        {"admitted": 0, "started": 0, "predicted": 0, "ended": 900},
        {"admitted": 0, "ended": 900, "predicted": 77, "outcome": "failed DEADLINE_UNMET"},
    )
    starts = honesty(ledger).starts
    assert (starts.tasks, starts.bias_ms, starts.absolute_ms) == (3, 100, 100)
    assert starts.relative == pytest.approx(0.2)


@pytest.mark.req("ORCH-3081")
def test_the_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    late = {"admitted": 0, "ended": 5000, "probability": 0.95}
    good = {"admitted": 0, "ended": 10, "probability": 0.95}
    low = {"admitted": 0, "ended": 5000, "outcome": "failed DEADLINE_UNMET", "probability": 0.25}
    ledger = ledger_of(
        *[good] * 6, *[late] * 4, *[low] * 10, {"admitted": 0, "ended": 1, "outcome": "canceled"}, {"ended": 0}
    )
    found = honesty(ledger)
    assert [(entry.tasks, entry.told, entry.on_time) for entry in found.bins] == [
        (10, pytest.approx(0.25), 0.0),
        (10, pytest.approx(0.95), 0.6),
    ]
    assert found.calibration_error == pytest.approx((0.25 + 0.35) / 2)


def test_the_warm_up_is_not_counted() -> None:
    ledger = ledger_of(
        {"arrived": 0, "admitted": 0, "started": 1, "ended": 9},
        {"arrived": 600, "admitted": 600, "started": 700, "ended": 900},
        count_from_ns=500 * MS,
    )
    assert (honesty(ledger).starts.tasks, len(ledger)) == (1, 2)
    row = ledger.find("chat.1")
    assert row is not None
    assert (row.arrived_ns, row.started_ns, row.on_time) == (600 * MS, 700 * MS, True)
    assert ledger.find("chat.7") is None
    assert ledger.find("nobody.1") is None


def test_the_parts_of_a_report_add_up() -> None:
    found = report(
        scenario(
            {"tenants": {"a": 2, "b": 1}, "cancel_percent": 10, "arrivals": {"kind": "poisson", "per_second": 5}},
            {"name": "batch", "priority": "batch"},
            seconds=120,
            warmup_s=20,
        )
    )
    total = found.total
    assert total.submitted == sum(group.submitted for group in found.classes.values())
    assert total.submitted == sum(group.submitted for group in found.tenants.values()) == sum(found.outcomes.values())
    assert total.admitted == total.submitted - sum(
        n for name, n in found.outcomes.items() if name.startswith("refused")
    )
    assert (total.finished, total.canceled) == (found.outcomes["finished"], found.outcomes["canceled"])
    assert total.on_time <= total.finished
    assert found.counted_s == 100
    assert found.goodput.tasks_per_s == total.on_time / 100
    assert found.goodput.tokens_per_s == total.tokens / 100


def test_load_is_what_the_tasks_would_keep_busy() -> None:
    """2 tasks a second of 1 s each keep 2 slots busy; at 80 % of 2 slots that takes 2 replicas."""
    found = report(
        scenario(
            {
                "arrivals": {"kind": "constant", "per_second": 2},
                "prompt_tokens": 100,
                "output_tokens": 91,
                "from_s": 0,
            },
            seconds=300,
            pools={
                "gpu": {
                    "replicas": 3,
                    "slots": 2,
                    "prefill_tokens_per_s": 1000,
                    "decode_tokens_per_s": 100,
                    "start_ms": 0,
                }
            },
        )
    )
    assert found.load.slots_needed == pytest.approx(2, rel=0.01)
    assert found.load.replicas_needed == 2
    assert found.load.utilisation == pytest.approx(2 / 6, rel=0.01)


@pytest.mark.req("ORCH-3025")
def test_clients_that_come_back_when_told_to_are_counted() -> None:
    """The only refusals are full queues: what matters is whether the promised time holds."""
    chat = {
        "arrivals": {"kind": "poisson", "per_second": 3},
        "on_refusal": {"kind": "retry", "tries_max": 20},
        "deadline_ms": 100_000,
    }
    classes = {"interactive": {"capacity": 4}}
    world = ran(scenario(chat, scheduler={"on_time_percent_min": 0, "classes": classes}, seconds=120))
    ledger = world.clients.ledger
    assert set(ledger.refusals) == {"ADMISSION_REJECT"}
    assert ledger.promises_kept + ledger.promises_broken > 50
    assert max(row.tries for row in ledger.rows()) > 1
    assert all(row.tries == 1 for row in ran(scenario()).clients.ledger.rows())


def test_the_table_says_what_a_planner_asks() -> None:
    text = render(
        report(
            scenario(
                {"tenants": {f"t{n}": 1 for n in range(14)}, "arrivals": {"kind": "poisson", "per_second": 6}},
                {"name": "batch", "priority": "batch"},
                seconds=120,
            )
        )
    )
    for part in ("2 replicas, 4 slots", "at 80 % busy: too few", "of admitted", "and 3 more tenants", "refusals"):
        assert part in text
    assert all(len(line) <= 130 for line in text.splitlines() if not line.startswith("outcomes"))
    empty = render(report(scenario({"from_s": 59.999})))
    assert "0 tasks in 60 s" in empty
