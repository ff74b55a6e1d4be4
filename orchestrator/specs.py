"""From an order for a replica to what its engine runs (ORCH-3001), and which models a pool may serve (ORCH-3031)."""

from typing import Final

from contracts.config import Config, PoolConfig
from contracts.engine import EngineSpec
from contracts.pools import ReplicaOrder

#: Models for development that come with the installation, by engine: their adapter finds or converts the file.
BUNDLED_MODELS: Final[dict[str, tuple[str, ...]]] = {
    "llamacpp": ("smollm2-135m-instruct",),
    "vllm": ("smollm2-135m-instruct",),
    "triton": ("llorch_text", "llorch_embed"),
}


class SpecError(ValueError):
    """An order names a pool or a model that the configuration does not have."""


def known_models(config: Config) -> dict[str, tuple[str, ...]]:
    """Names of the models that pools may be reloaded to, by engine, each once.

    First those under `models`, then what the engine's pools serve, then the bundled ones.
    """
    found: dict[str, dict[str, None]] = {}
    for pool in config.pools:
        found.setdefault(pool.engine, {})
    for entry in config.models:
        found.setdefault(entry.engine, {})[entry.ref] = None
    for pool in config.pools:
        found[pool.engine][pool.model] = None
    for engine, refs in found.items():
        refs.update(dict.fromkeys(BUNDLED_MODELS.get(engine, ())))
    return {engine: tuple(refs) for engine, refs in found.items()}


def spec_for(config: Config, order: ReplicaOrder, _node_id: str = "") -> EngineSpec:
    """What the ordered replica runs, on whichever node: files are at the same place on all of them.

    `functools.partial(spec_for, config)` travels to the pool manager. Raises SpecError for a pool or a model
    that the configuration does not have.
    """
    pool = next((pool for pool in config.pools if pool.id == order.pool_id), None)
    if pool is None:
        known = ", ".join(pool.id for pool in config.pools)
        raise SpecError(f"the configuration has no pool `{order.pool_id}`; it has: {known}")
    path, digest = _model_file(config, pool, order.model_ref)
    # The mask is hard (ORCH-3011): an order that is not placed yet needs as many GPUs as a placed one.
    devices = () if pool.accelerator == "cpu-dev" else order.devices or tuple(pool.devices)
    return EngineSpec(
        engine=pool.engine,
        pool_id=pool.id,
        replica_id=order.replica_id,
        incarnation=order.incarnation,
        model=order.model_ref,
        model_ref=order.model_ref,
        model_path=path,
        model_digest=digest,
        ctx=pool.ctx,
        slots=pool.slots,
        accelerator=pool.accelerator,
        sampler_profile_version=pool.sampler_profile_version,
        binary=str(pool.engine_options.binary or ""),
        args=tuple(pool.engine_options.args),
        devices=tuple(str(device) for device in devices),
        tensor_split=tuple(pool.tensor_split or ()),
        ready_timeout_ms=pool.engine_options.ready_timeout_ms,
        zone=pool.zone or "",
        numa=pool.numa,
        workload=pool.workload,
        determinism=pool.determinism,
        batch_invariant=pool.batch_invariant,
        endpoint=pool.engine_options.endpoint or "",
        api_key_env=pool.engine_options.api_key_env or "",
        env=tuple(sorted(pool.engine_options.env.items())),
    )


def _model_file(config: Config, pool: PoolConfig, ref: str) -> tuple[str, str]:
    """Path and digest of a model by name; an empty path is the bundled model's, an empty digest any.

    The pool's own model comes first. Other pools may share its name for another quant of it: the one with the
    same quant counts.
    """
    if ref == pool.model:
        return str(pool.model_path or ""), pool.model_digest or ""
    for entry in config.models:
        if (entry.engine, entry.ref) == (pool.engine, ref):
            return str(entry.path), entry.digest or ""
    namesakes = [other for other in config.pools if (other.engine, other.model) == (pool.engine, ref)]
    if namesakes:
        other = next((other for other in namesakes if other.quant == pool.quant), namesakes[0])
        return str(other.model_path or ""), other.model_digest or ""
    if ref in BUNDLED_MODELS.get(pool.engine, ()):
        return "", ""
    known = ", ".join(known_models(config)[pool.engine])
    raise SpecError(f"pool `{pool.id}` has no model `{ref}`; known for {pool.engine}: {known}")
