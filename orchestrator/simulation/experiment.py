"""From a scenario and a seed to a world, a run, and answers to what-if questions.

There is no copy of a world. A fork is the same world built and run again up to the same instant: the
seed makes it the same, and it costs what the way there cost.
"""

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Final

from contracts.tasks import ReplicaInfo
from orchestrator.simulation import faults
from orchestrator.simulation.agents import Agent
from orchestrator.simulation.arrivals import OpenLoop, Replay, process
from orchestrator.simulation.clients import Clients
from orchestrator.simulation.eventlog import EventLog
from orchestrator.simulation.fleet import Fleet
from orchestrator.simulation.flows import Flows
from orchestrator.simulation.ledger import Ledger, TaskRow
from orchestrator.simulation.policies import scheduler_config
from orchestrator.simulation.replica import Replica, Speed
from orchestrator.simulation.report import Report, build_report
from orchestrator.simulation.scenario import AgentArrivals, PoolSection, Scenario, TraceArrivals
from orchestrator.simulation.timeline import Timeline
from orchestrator.simulation.traces import read
from orchestrator.simulation.workloads import ENGINE, PROFILE, Workload
from orchestrator.simulation.world import World

NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000
KV_TOKEN_BYTES: Final = 128 * 1024
#: About what a group commit takes on a disk that keeps its word.
COMMIT_NS: Final = 2 * NS_PER_MS


def run(scenario: Scenario, seed: int, *, log: EventLog | None = None, folder: Path | None = None) -> Report:
    """Run a scenario to its end and report; the same scenario and seed give the same report."""
    world = build(scenario, seed, log=log, folder=folder)
    world.run()
    return report(world, scenario, seed)


def report(world: World, scenario: Scenario, seed: int) -> Report:
    """What a world that has run to its end amounts to."""
    return build_report(world, scenario, seed)


def what_if(
    scenario: Scenario, seed: int, task_id: str, deadline_override_ms: int, *, folder: Path | None = None
) -> TaskRow | None:
    """What would have become of a task if it had been submitted with another deadline; None if it never arrives.

    With a deadline long enough, a task that was refused for its deadline is admitted. Everything up to
    its arrival is as without the override. The row's `deadline_ns` and `on_time` are by the real deadline.
    Under EDF ordering a longer deadline also sorts the task further back, so take the shortest that is
    admitted; "late even so" then says little under EDF where the override is much longer than the real
    deadline, and "on time even so" always says that the refusal was wrong.
    """
    world = build(scenario, seed, folder=folder, deadline_override={task_id: deadline_override_ms})
    world.clients.watched = task_id
    world.run_until(world.horizon_ns)
    if world.clients.ledger.find(task_id) is None:
        world.clients.no_more_arrivals()
        world.run_until(world.horizon_ns + int(scenario.drain_s * NS_PER_S))
    return world.clients.ledger.find(task_id)


def build(
    scenario: Scenario,
    seed: int,
    *,
    log: EventLog | None = None,
    folder: Path | None = None,
    deadline_override: Mapping[str, int] | None = None,
) -> World:
    """A world at its first instant: replicas Ready, nothing submitted. Traces are looked for in `folder`."""
    config = scheduler_config(scenario)
    world = World(
        config,
        horizon_ns=int(scenario.seconds * NS_PER_S),
        drain_ns=int(scenario.drain_s * NS_PER_S),
        check_every_steps=scenario.check_every_steps,
        commit_ns=_commit_ns(scenario),
        log=log,
    )
    warmup_ns = int(scenario.warmup_s * NS_PER_S)
    flows = _flows(scenario)
    ledger = Ledger(flows, warmup_ns)
    replicas = [
        replica
        for name, pool in scenario.pools.items()
        for replica in pool_replicas(name, pool, scenario.scheduler.ctx)
    ]
    fleet = Fleet(world, replicas, progress_ns=scenario.progress_ms * NS_PER_MS, count_from_ns=warmup_ns)
    clients = Clients(world, ledger, tasks_max=scenario.tasks_max, deadline_override=deadline_override)
    world.people(fleet, clients)
    fleet.come_up()
    faults.schedule(world, scenario.faults, replicas, seed)
    for index, section in enumerate(scenario.workloads):
        workload = Workload(section, index, scenario.scheduler.ctx, flows, seed)
        ledger.workload_names.append(section.name)
        _begin(world, workload, seed, folder or Path())
    world.timeline = Timeline(world, list(scenario.scheduler.classes))
    return world


def pool_replicas(name: str, pool: PoolSection, ctx: int) -> list[Replica]:
    """The replicas of a pool, numbered from 0."""
    speed = Speed(
        start_ns=pool.start_ms * NS_PER_MS,
        prefill_ns=int(NS_PER_S / pool.prefill_tokens_per_s),
        decode_ns=int(NS_PER_S / pool.decode_tokens_per_s),
        slowdown=pool.slowdown_percent / 100,
        stop_ns=pool.stop_ms * NS_PER_MS,
        release_ns=pool.release_ms * NS_PER_MS,
        load_ns=pool.load_ms * NS_PER_MS,
    )
    return [
        Replica(
            ReplicaInfo(
                replica_id=f"{name}-{index}",
                pool_id=name,
                engine=ENGINE,
                engine_version="simulated",
                model_digest="simulated",
                ctx=ctx,
                slots=pool.slots,
                sampler_profile_version=PROFILE,
                accelerator="simulated",
                node_id=f"{name}-{index}",
                token_ns=speed.decode_ns,
                interruptible_decode=pool.interruptible_decode,
                kv_tokens=pool.kv_tokens,
                kv_token_bytes=KV_TOKEN_BYTES,
                keeps_kv=pool.keeps_kv,
            ),
            speed,
        )
        for index in range(pool.replicas)
    ]


def _commit_ns(scenario: Scenario) -> int | None:
    """How long a commit of the journal takes; None: there is no journal."""
    if scenario.commit_ms is not None:
        return int(scenario.commit_ms * NS_PER_MS)
    return COMMIT_NS if faults.needs_journal(scenario.faults) else None


def _flows(scenario: Scenario) -> Flows:
    section = scenario.scheduler
    return Flows(
        {name: entry.weight for name, entry in section.classes.items()},
        {name: tenant.weight for name, tenant in section.tenants.items()},
        section.default_tenant.weight if section.default_tenant else 1,
        int(scenario.window_s * NS_PER_S),
    )


def _begin(world: World, workload: Workload, seed: int, folder: Path) -> None:
    """Start the arrivals of one workload."""
    section = workload.section
    from_ns = int(section.from_s * NS_PER_S)
    until_ns = world.horizon_ns if section.until_s is None else min(world.horizon_ns, int(section.until_s * NS_PER_S))
    arrivals = section.arrivals
    if isinstance(arrivals, AgentArrivals):
        for index in range(arrivals.count):
            Agent(world, workload, arrivals, index, seed, until_ns).begin(from_ns)
    elif isinstance(arrivals, TraceArrivals):
        Replay(world, workload, read(folder / arrivals.file), arrivals.speed, until_ns).begin(from_ns)
    else:
        rng = Random(f"{seed}/{section.name}/arrivals")
        OpenLoop(world, workload, process(arrivals, rng), until_ns).begin(from_ns)
