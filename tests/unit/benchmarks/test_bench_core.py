"""The core's benchmark: its load keeps the queue as it is, and its figures say what was measured."""

import msgspec
import pytest

from benchmarks.core import BASE, FULL, QUICK, Case, Taken, figures, make_rows, run_all, table
from benchmarks.core_loop import CLASSES, MIX, MIX_STRIDE, Loop, Policies, Scenario, scheduler_config
from benchmarks.core_worker import Job, Measured, measure
from benchmarks.limits import load_limits
from orchestrator.core import invariants

SMALL = Scenario(200, replicas=2, slots=3)


def waiting(loop: Loop) -> int:
    return sum(loop.scheduler.queue_depth("set", name) for name, _ in CLASSES)


@pytest.mark.parametrize("policies", ["all", "breakers", "plain"])
def test_the_queue_stays_as_long_as_the_scenario_says(policies: Policies) -> None:
    loop = Loop(Scenario(200, replicas=2, slots=3, policies=policies))
    loop.fill(200)
    assert waiting(loop) == 200
    depths = [loop.scheduler.queue_depth("set", name) for name, _ in CLASSES]
    submit_ns, end_ns = loop.run(300)
    assert submit_ns > 0
    assert end_ns > 0
    assert waiting(loop) == 200
    assert loop.finished == 300
    # Every task that ends is followed by one of its own kind, so the lines keep their lengths.
    assert [loop.scheduler.queue_depth("set", name) for name, _ in CLASSES] == pytest.approx(depths, abs=12)
    assert loop.cancel(50) > 0
    assert waiting(loop) == 200
    assert loop.progress(20) > 0
    assert loop.status(20) > 0
    invariants.check(loop.scheduler)


def test_all_policies_are_on_and_refuse_nothing() -> None:
    config = scheduler_config(Scenario(100, policies="breakers"))
    policy = config.sets[0]
    assert (policy.fairness, policy.ordering, policy.eviction) == ("wfq", "edf", "eta")
    assert policy.on_time_percent_min == 50
    assert policy.preemption.mode == "soft"
    assert policy.breaker is not None
    assert len(config.tenants) == 16
    assert all(tenant.rate and tenant.tokens_per_min and tenant.max_concurrent for tenant in config.tenants)
    assert config.sessions.budget.tokens
    assert scheduler_config(Scenario(100)).sets[0].breaker is None


def test_a_refused_submission_stops_the_benchmark() -> None:
    loop = Loop(SMALL)
    with pytest.raises(RuntimeError, match="meant to be admitted"):
        loop.fill(10_000)


def test_the_mix_meets_every_tenant_and_class_by_weight() -> None:
    walked = [MIX[n * MIX_STRIDE % len(MIX)] for n in range(len(MIX))]
    assert sorted(walked) == sorted(MIX)
    assert len(set(MIX)) == 32
    # The first tenth of the walk has both classes, and nearly all tenants.
    assert len({tenant for tenant, _ in walked[: len(MIX) // 5]}) > 12


def test_a_worker_does_its_jobs() -> None:
    loops: dict[Scenario, Loop] = {}
    filled = measure(loops, Job(SMALL, "fill"))
    assert filled.count == 180
    assert not filled.compiled
    assert measure(loops, Job(SMALL, "run", 100)).cycle_us > 0
    assert measure(loops, Job(SMALL, "status", 10)).other_us > 0
    with pytest.raises(KeyError):
        measure(loops, Job(BASE, "run", 1))


def test_the_core_leaves_nothing_to_the_garbage_collector() -> None:
    loop = Loop(SMALL)
    loop.fill(SMALL.queue)
    loop.run(200)
    assert loop.garbage(200) == 0


def taken(*cycles_us: int) -> Taken:
    slices = [Measured(10, submit_ns=us * 6000, end_ns=us * 4000) for us in cycles_us]
    others = [Measured(10, other_ns=20_000)]
    return Taken(Measured(100, grown_bytes=150_000), slices, {"cancel": others, "progress": others, "status": others})


def test_rows_tell_medians_of_neighbours() -> None:
    cases = (Case("a", SMALL), Case("b", BASE, "a"))
    slices = {
        ("a", "source"): taken(10, 20, 40),
        ("a", "compiled"): taken(5, 5, 5),
        ("b", "source"): taken(20, 30, 80),
        ("b", "compiled"): taken(10, 10, 10),
    }
    rows = {(row.name, row.side): row for row in make_rows(cases, ["source", "compiled"], slices)}
    row = rows["a", "source"]
    assert (row.cycle_us, row.submit_us, row.end_us) == pytest.approx((20, 12, 8))
    assert row.cycles_per_s == pytest.approx(50_000)
    assert row.task_bytes == 1500
    assert row.others_us["cancel"] == pytest.approx(2)
    assert row.ratio is None
    assert row.speedup is None
    assert rows["b", "source"].ratio == pytest.approx(2)
    assert rows["a", "compiled"].speedup == pytest.approx(4)
    reached = figures(list(rows.values()), garbage=0)
    assert reached["b/compiled/ratio"] == pytest.approx(2)
    assert reached["a/compiled/speedup"] == pytest.approx(4)
    assert reached["garbage_objects"] == 0
    assert "a/compiled" in table(list(rows.values()))
    assert msgspec.json.encode(list(rows.values()))


def test_limits_name_figures_that_a_full_run_makes() -> None:
    names = {"garbage_objects"}
    for case in FULL:
        for side in ("source", "compiled"):
            names |= {f"{case.name}/{side}/{what}" for what in ("cycles_per_s", "task_bytes", "ratio", "speedup")}
    assert set(load_limits("core")) <= names
    assert {case.base for case in FULL if case.base} <= {case.name for case in QUICK}


def test_sides_are_measured_in_processes_of_their_own() -> None:
    rows, garbage = run_all(["source"], (Case("small", SMALL),), 2)
    assert [row.name for row in rows] == ["small"]
    assert rows[0].cycles_per_s > 0
    assert garbage == 0
