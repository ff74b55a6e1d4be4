"""What each engine serves here (ORCH-3095, ORCH-1101, OC-CTRL-2060)."""

from contracts.control import EngineCapability, RateLimit
from contracts.policies import RatePolicy
from orchestrator.core.pools.records import Pool
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.state import State


def capabilities(state: State) -> list[EngineCapability]:
    """Per engine, in the order of the configuration; sets that take no more tasks do not count."""
    of_engine: dict[str, list[ReplicaSet]] = {}
    for home in state.sets:
        sets = of_engine.setdefault(home.policy.engine, [])
        if not home.closing:
            sets.append(home)
    return [_engine(state, engine, sets) for engine, sets in of_engine.items()]


def _engine(state: State, engine: str, sets: list[ReplicaSet]) -> EngineCapability:
    policies = [home.policy for home in sets]
    pins = [home.pin for home in sets if home.pin is not None]
    accelerators = [pin.accelerator for pin in pins]
    accelerators += [pool.policy.accelerator for pool in _managed(state, sets)]
    return EngineCapability(
        engine=engine,
        ctx_max=max([policy.ctx for policy in policies], default=0),
        supported_workloads=_once([workload for policy in policies for workload in policy.workloads]),
        rate_limits=_rate_limits(state, sets),
        features=_features(state, sets),
        models=state.routes.names(engine),
        accelerators=_once(accelerators),
        sampler_profile_versions=_once([policy.sampler_profile_version for policy in policies]),
        priorities=_once([queue.priority for policy in policies for queue in policy.queues]),
        engine_versions=_once([pin.engine_version for pin in pins]),
    )


def _rate_limits(state: State, sets: list[ReplicaSet]) -> list[RateLimit]:
    """Of the classes, and of a client without a rate of its own."""
    queues = [queue for home in sets for queue in home.policy.queues]
    limits = [_limit(queue.rate, queue.priority) for queue in queues if queue.rate is not None]
    if state.config.default_client is not None:
        limits.append(_limit(state.config.default_client, None))
    return [limit for n, limit in enumerate(limits) if limit not in limits[:n]]


def _limit(rate: RatePolicy, priority: str | None) -> RateLimit:
    return RateLimit(rate.rps, rate.burst, priority)


def _features(state: State, sets: list[ReplicaSet]) -> list[str]:
    """What tasks of the engine can count on; what only some of its sets do is told as well."""
    pins = [home.pin for home in sets if home.pin is not None]
    modes = [home.policy.preemption.mode for home in sets]
    pools = _managed(state, sets)
    told = [
        ("strict_determinism", any(_is_strict(home) for home in sets)),
        ("one_call_stream", True),
        ("last_event_id", True),
        ("interruptible_decode", any(pin.interruptible_decode for pin in pins)),
        ("session_kv", any(pin.keeps_kv for pin in pins)),
        ("deadline_admission", any(home.policy.on_time_percent_min > 0 for home in sets)),
        ("soft_preemption", "soft" in modes),
        ("hard_preemption", "hard" in modes),
        ("hot_reload", bool(pools)),
        ("canary", bool(pools)),
        ("scale_to_zero", any(pool.scaling.replicas_min == 0 for pool in pools)),
    ]
    return [name for name, is_so in told if is_so]


def _is_strict(home: ReplicaSet) -> bool:
    """Whether equal tasks give equal bytes: it is promised, and no replica said that it cannot."""
    return home.policy.determinism == "strict" and (home.pin is None or home.pin.exact)


def _managed(state: State, sets: list[ReplicaSet]) -> list[Pool]:
    ids = [pool_id for home in sets for pool_id in home.policy.pool_ids]
    return [state.pools.by_id[pool_id] for pool_id in ids if pool_id in state.pools.by_id]


def _once(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(texts))
