"""From pools as configured to replica sets as scheduled (ORCH-3007)."""

from typing import Final

from contracts.api import PRIORITIES, Priority
from contracts.config import Config, PoolConfig
from contracts.errors import PolicyLabel
from contracts.policies import PoolPolicy, QueuePolicy, ResultPolicy, SchedulerConfig, SetPolicy

#: What a full queue does where the file does not say (ORCH-3005).
FULL_POLICY_DEFAULT: Final[dict[Priority, PolicyLabel]] = {"interactive": "reject", "batch": "drop-lru"}


def set_key(pool: PoolConfig) -> str:
    """Id of the replica set a pool belongs to: `engine/model/quant/ctx/sampler profile`.

    The engine's version joins at run time: replicas that report another one are refused (ORCH-3046).
    """
    return f"{pool.engine}/{pool.model}/{pool.quant or '-'}/{pool.ctx}/{pool.sampler_profile_version}"


def scheduler_config(config: Config) -> SchedulerConfig:
    """The scheduler's view of the file: replica sets in the order of their first pools, and result retention."""
    members: dict[str, list[PoolConfig]] = {}
    for pool in config.pools:
        members.setdefault(set_key(pool), []).append(pool)
    return SchedulerConfig(
        sets=tuple(_set_policy(set_id, pools) for set_id, pools in members.items()),
        results=ResultPolicy(
            ttl_ms=config.results.ttl_ms,
            tasks_max=config.results.tasks_max,
            bytes_max=config.results.bytes_max,
        ),
    )


def _set_policy(set_id: str, pools: list[PoolConfig]) -> SetPolicy:
    """One queue for the pools together: their capacities add up, all else they share."""
    first = pools[0]
    return SetPolicy(
        set_id=set_id,
        engine=first.engine,
        model_refs=(first.model,),
        ctx=first.ctx,
        sampler_profile_version=first.sampler_profile_version,
        pools=tuple(PoolPolicy(pool.id) for pool in pools),
        capacity=sum(pool.queue.capacity for pool in pools),
        queues=tuple(
            QueuePolicy(
                priority=priority,
                capacity=sum(_class_capacity(pool, priority) for pool in pools),
                full_policy=first.queue.full_policy or FULL_POLICY_DEFAULT[priority],
            )
            for priority in PRIORITIES
        ),
        wall_timeout_ms=first.timeouts.wall_ms,
        idle_timeout_ms=first.timeouts.idle_ms,
    )


def _class_capacity(pool: PoolConfig, priority: Priority) -> int:
    for entry in pool.admission.priorities:
        if entry.name == priority and entry.queue_capacity is not None:
            return entry.queue_capacity
    return pool.queue.capacity
