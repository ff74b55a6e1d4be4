"""What pools must agree in: pools of one replica set share a queue, and all pools share the tenants.

The file gives these numbers pool by pool. Where two pools contradict each other neither is taken for
right: the problem names both, and what each of them says.
"""

from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel

from contracts.api import PRIORITIES, Priority
from contracts.config import KeyConfig, PoolConfig
from contracts.config_scheduling import QuotaConfig, TenantConfig
from orchestrator.config_yaml import Document, Loc, Problem
from orchestrator.sets import queue_policy, set_key

#: A pool with its place in the file.
PlacedPool = tuple[Loc, PoolConfig]

#: Fields in which the pools of one set agree (ORCH-3007, ORCH-3046); those of the classes come on top.
SHARED: Final = (
    "queue.full_policy",
    "timeouts.wall_ms",
    "timeouts.idle_ms",
    "timeouts.first_token_ms",
    "timeouts.queue_ms",
    "accelerator",
    "workload",
    "determinism",
    "admission.fairness.kind",
    "admission.ordering",
    "admission.on_time_percent_min",
    "admission.eviction",
    "admission.breaker",
    "preemption.mode",
    "preemption.per_task_max",
    "preemption.hard_requirements.max_preemptions_per_min",
    "preemption.hard_requirements.protect_priorities",
    "price.prompt_per_1k",
    "price.output_per_1k",
)
SHARED_OF_CLASSES: Final = ("weight", "slo_first_token_ms")


def set_problems(document: Document, pools: list[PlacedPool]) -> Iterator[Problem]:
    """Where pools of one replica set contradict each other."""
    members: dict[str, list[PlacedPool]] = {}
    for loc, pool in pools:
        members.setdefault(set_key(pool), []).append((loc, pool))
    for placed in members.values():
        for loc, pool in placed[1:]:
            yield from _differences(document, loc, pool, placed[0][1])
        yield from _canary_rules(document, placed)


def _differences(document: Document, loc: Loc, pool: PoolConfig, other: PoolConfig) -> Iterator[Problem]:
    both = f"pools `{other.id}` and `{pool.id}` form one replica set"
    ours = _shared_values(pool)
    for name, (_, theirs) in _shared_values(other).items():
        tail, mine = ours[name]
        if mine != theirs:
            yield document.problem(
                (*loc, *tail),
                f"{both} but differ in {name} ({_shown(theirs)} and {_shown(mine)})",
                f"give both the same {name}, or make them different sets (model, quant, ctx, sampler profile)",
            )
    for priority in PRIORITIES:
        limited = {p.id: queue_policy(p, priority).rate is not None for p in (other, pool)}
        if limited[pool.id] != limited[other.id]:
            which = pool.id if limited[pool.id] else other.id
            yield document.problem(
                (*loc, *_class_place(pool, priority), "rate_limit_rps"),
                f"{both} but only `{which}` bounds rate_limit_rps of {priority}",
                "the rates of a set's pools add up: bound it in both, or in none",
            )


def _shared_values(pool: PoolConfig) -> dict[str, tuple[Loc, Any]]:
    """Name of a field to its place within the pool and the value that counts, given or default."""
    values: dict[str, tuple[Loc, Any]] = {}
    for name in SHARED:
        value: Any = pool
        for step in name.split("."):
            value = getattr(value, step)
        values[name] = (tuple(name.split(".")), value)
    for priority in PRIORITIES:
        policy = queue_policy(pool, priority)
        for field in SHARED_OF_CLASSES:
            values[f"{field} of {priority}"] = ((*_class_place(pool, priority), field), getattr(policy, field))
    return values


def _class_place(pool: PoolConfig, priority: Priority) -> Loc:
    entries = [entry.name for entry in pool.admission.priorities]
    place: Loc = ("admission", "priorities")
    return (*place, entries.index(priority)) if priority in entries else place


def _canary_rules(document: Document, placed: list[PlacedPool]) -> Iterator[Problem]:
    """A canary takes its share of a set's sessions, so something must be there to take the rest (ORCH-3033)."""
    canaries = [(loc, pool, pool.canary_percent) for loc, pool in placed if pool.canary_percent is not None]
    if not canaries:
        return
    place = (*canaries[-1][0], "canary_percent")
    if len(canaries) == len(placed):
        names = ", ".join(f"`{pool.id}`" for _, pool, _ in canaries)
        yield document.problem(
            place,
            f"all pools of one replica set are canaries ({names})",
            "leave canary_percent out of one; a canary shares engine, model, quant, ctx and sampler profile with it",
        )
    total = sum(percent for _, _, percent in canaries)
    if total > 100:
        shares = ", ".join(f"`{pool.id}` {percent}" for _, pool, percent in canaries)
        yield document.problem(
            place,
            f"the canaries of one replica set take {total} percent of its sessions ({shares})",
            "lower them to 100",
        )


def tenant_problems(document: Document, pools: list[PlacedPool]) -> Iterator[Problem]:
    """Tenants' numbers hold over all pools, so all pools that name a tenant say the same of it (ORCH-3077)."""
    first: dict[str, tuple[str, TenantConfig]] = {}
    for loc, pool in pools:
        named: set[str] = set()
        for index, tenant in enumerate(pool.admission.fairness.tenants):
            place = (*loc, "admission", "fairness", "tenants", index)
            yield from burst_problems(document, place, tenant)
            if tenant.id in named:
                yield document.problem(
                    (*place, "id"), f"tenant `{tenant.id}` is given twice in pool `{pool.id}`", "merge the two entries"
                )
                continue
            named.add(tenant.id)
            other_pool, other = first.setdefault(tenant.id, (pool.id, tenant))
            for field in QuotaConfig.model_fields:
                mine, theirs = getattr(tenant, field), getattr(other, field)
                if mine != theirs:
                    yield document.problem(
                        (*place, field),
                        f"tenant `{tenant.id}` has {field} {_shown(theirs)} in pool `{other_pool}` "
                        f"and {_shown(mine)} in pool `{pool.id}`",
                        "a tenant's numbers hold over all pools: give the same, or name it in one pool only",
                    )
    yield from _unknown_tenant_rules(document, pools, anyone_named=bool(first))


def _unknown_tenant_rules(document: Document, pools: list[PlacedPool], *, anyone_named: bool) -> Iterator[Problem]:
    """One answer to tenants that no pool names, wherever it is given."""
    sections = [((*loc, "admission", "fairness"), pool.id, pool.admission.fairness) for loc, pool in pools]
    for name in ("unknown_tenants", "default"):
        given = [(loc, pool, getattr(s, name)) for loc, pool, s in sections if getattr(s, name) is not None]
        for loc, pool, value in given[1:]:
            _, other, theirs = given[0]
            if value != theirs:
                yield document.problem(
                    (*loc, name),
                    f"pools `{other}` and `{pool}` differ in {name} ({_shown(theirs)} and {_shown(value)})",
                    "it holds for all pools: give the same, or give it in one pool only",
                )
    refused = [(*loc, "unknown_tenants") for loc, _, section in sections if section.unknown_tenants == "refuse"]
    for loc, _, section in sections:
        if section.default is None:
            continue
        yield from burst_problems(document, (*loc, "default"), section.default)
        if refused:
            yield document.problem(
                (*loc, "default"),
                "`default` is for unknown tenants, and these are refused",
                "remove it, or say `unknown_tenants: default`",
            )
    if refused and not anyone_named:
        yield document.problem(
            refused[0],
            "unknown tenants are refused and no pool names a tenant: every task would be refused",
            "name the tenants under `tenants`, or say `unknown_tenants: default`",
        )


def burst_problems(document: Document, loc: Loc, given: QuotaConfig | KeyConfig) -> Iterator[Problem]:
    """A burst is what a rate lets through at once; without a rate it bounds nothing (ORCH-3006)."""
    if given.burst is not None and given.rps is None:
        yield document.problem((*loc, "burst"), "`burst` without `rps` bounds nothing", "add `rps`, or remove `burst`")


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, BaseModel):
        return ", ".join(f"{name} {item}" for name, item in value if item is not None)
    if isinstance(value, list):
        return f"[{', '.join(str(item) for item in value)}]"
    return str(value)
