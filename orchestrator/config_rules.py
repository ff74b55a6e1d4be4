"""What a configuration must satisfy beyond its schema: rules that look at several fields.

Those about devices and numbers of replicas are in `config_replicas`, those about models and files in
`config_models`, and what pools must agree in is in `config_sharing`.
"""

from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel

from contracts.api import PRIORITIES
from contracts.config import AuthConfig, Config, PoolConfig
from contracts.config_scheduling import PreemptionConfig
from orchestrator.config_engines import engine_problems, engine_warnings
from orchestrator.config_replicas import replica_problems, replica_warnings
from orchestrator.config_sharing import PlacedPool, burst_problems, set_problems, tenant_problems
from orchestrator.config_yaml import Document, Loc, Problem

#: Whose tasks they are when authentication is off, or when `llorch run` made the only key.
KEYLESS_TENANT: Final = "default"

#: Words with which the schema marks fields that are accepted but do nothing yet.
LATER: Final = "from a later release"


def pool_problems(document: Document, pools: list[PlacedPool]) -> Iterator[Problem]:
    """Everything wrong with the pools but for their models, each by itself and together."""
    for loc, pool in pools:
        yield from replica_problems(document, loc, pool)
        yield from _queue_rules(document, loc, pool)
    yield from _unique_ids(document, pools)
    yield from engine_problems(document, pools)
    yield from set_problems(document, pools)
    yield from tenant_problems(document, pools)


def _queue_rules(document: Document, loc: Loc, pool: PoolConfig) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, priority in enumerate(pool.admission.priorities):
        place = (*loc, "admission", "priorities", index)
        if priority.name in seen:
            yield document.problem(
                (*place, "name"), f"priority `{priority.name}` is given twice", "merge the two entries"
            )
        seen.add(priority.name)
        if priority.queue_capacity is not None and priority.queue_capacity > pool.queue.capacity:
            yield document.problem(
                (*place, "queue_capacity"),
                f"queue_capacity {priority.queue_capacity} is over the pool's capacity {pool.queue.capacity}",
                "lower it, or raise `queue.capacity`",
            )


def _unique_ids(document: Document, pools: list[PlacedPool]) -> Iterator[Problem]:
    seen: set[str] = set()
    for loc, pool in pools:
        if pool.id in seen:
            yield document.problem((*loc, "id"), f"pool id `{pool.id}` is given twice", "give each pool its own id")
        seen.add(pool.id)


def auth_problems(document: Document, auth: AuthConfig) -> Iterator[Problem]:
    """Keys are told apart by name and by hash (ORCH-3035)."""
    for name in ("name", "sha256"):
        seen: set[str] = set()
        for index, key in enumerate(auth.keys):
            value = getattr(key, name)
            if value in seen:
                yield document.problem(
                    ("auth", "keys", index, name), f"two keys have the same {name}", "remove or change one"
                )
            seen.add(value)
    for index, key in enumerate(auth.keys):
        yield from burst_problems(document, ("auth", "keys", index), key)


def auth_warnings(document: Document, auth: AuthConfig) -> Iterator[Problem]:
    if not auth.enabled:
        yield document.problem(
            ("auth", "enabled"),
            "authentication is off: whoever reaches the port can use the cluster",
            "remove `enabled: false` unless something in front checks callers",
        )
    elif not auth.keys and auth.keys_file is None:
        yield document.problem(
            ("auth",),
            "no API keys are configured: `llorch run` makes a development key at each start",
            "add one: `llorch hash-key` prints a key and the hash to put under `auth.keys`",
        )
    elif auth.keys_file is None and not any("operate" in key.roles for key in auth.keys):
        yield document.problem(
            ("auth", "keys"),
            "no key has the role `operate`: nobody can drain or reload a pool over HTTP",
            "give one `roles: [operate, observe]`",
        )


def pool_warnings(document: Document, pools: list[PlacedPool]) -> Iterator[Problem]:
    """Settings that are valid and do not do what their author may expect."""
    yield from replica_warnings(document, pools)
    yield from engine_warnings(document, pools)
    for loc, pool in pools:
        if not pool.preload:
            yield document.problem((*loc, "preload"), "`preload: false` does nothing yet: pools always preload")
        yield from _preemption_warnings(document, (*loc, "preemption"), pool.preemption)


def _preemption_warnings(document: Document, loc: Loc, preemption: PreemptionConfig) -> Iterator[Problem]:
    """Bounds of hard preemption where there is none (ORCH-3086), and protection that leaves nothing of either kind."""
    hard = preemption.hard_requirements
    if preemption.mode != "hard":
        set_here: list[tuple[Loc, bool]] = [
            (("per_task_max",), "per_task_max" in preemption.model_fields_set),
            (("hard_requirements", "engine_capability"), "engine_capability" in hard.model_fields_set),
            (("hard_requirements", "max_preemptions_per_min"), "max_preemptions_per_min" in hard.model_fields_set),
        ]
        for tail, given in set_here:
            if given:
                yield document.problem(
                    (*loc, *tail),
                    f"`{tail[-1]}` means nothing with `mode: {preemption.mode}`",
                    "it bounds `mode: hard`",
                )
    if preemption.mode != "off" and set(PRIORITIES[1:]) <= set(hard.protect_priorities):
        yield document.problem(
            (*loc, "hard_requirements", "protect_priorities"),
            f"every class below `{PRIORITIES[0]}` is protected: preemption has nothing to take",
            "protect fewer classes, or say `mode: off`",
        )


def tenant_warnings(document: Document, config: Config) -> Iterator[Problem]:
    """Callers whose tenant is refused as unknown."""
    fairness = [pool.admission.fairness for pool in config.pools]
    if not any(section.unknown_tenants == "refuse" for section in fairness):
        return
    named = {tenant.id for section in fairness for tenant in section.tenants}
    callers: list[tuple[Loc, str]] = [
        (("auth", "keys", index, "tenant"), key.tenant) for index, key in enumerate(config.auth.keys)
    ]
    if not config.auth.enabled or not (callers or config.auth.keys_file):
        callers = [(("auth",), KEYLESS_TENANT)]
    for loc, tenant in callers:
        if tenant not in named:
            yield document.problem(
                loc,
                f"tenant `{tenant}` is named in no pool, and unknown tenants are refused: all its tasks are",
                "add it to `admission.fairness.tenants` of a pool",
            )


def budget_warnings(document: Document, config: Config) -> Iterator[Problem]:
    """A budget of cost counts with prices (ORCH-3099)."""
    prices = [price for pool in config.pools for price in (pool.price.prompt_per_1k, pool.price.output_per_1k)]
    if config.sessions.budget.cost is not None and not any(prices):
        yield document.problem(
            ("sessions", "budget", "cost"),
            "no pool has a price, so a budget of cost is never used up",
            "give the pools a `price`, or bound `tokens` or `time_ms`",
        )


def later_warnings(document: Document, model: BaseModel, loc: Loc = ()) -> Iterator[Problem]:
    """One warning for each field that the file sets and this release does not enforce."""
    for name in type(model).model_fields:
        if name not in model.model_fields_set:
            continue
        place = (*loc, name)
        if (type(model).model_fields[name].description or "").startswith(LATER):
            yield document.problem(
                place, f"`{name}` is accepted but not enforced in this release", "keep it for later", at_key=True
            )
            continue
        value = getattr(model, name)
        items: list[tuple[Loc, Any]] = [(place, value)]
        if isinstance(value, list):
            items = [((*place, index), item) for index, item in enumerate(value)]
        for item_loc, item in items:
            if isinstance(item, BaseModel):
                yield from later_warnings(document, item, item_loc)
