"""Pools and capabilities as plain text: one line a thing, so that it can be read and cut alike."""

from collections.abc import Sequence

from contracts.control import Capabilities, PoolError, PoolHealth, RateLimit, ReplicaHealth

_POOLS = ("POOL", "MODEL", "STATE", "READY", "SLOTS", "QUEUE", "WAIT", "RESTARTS", "LAST ERROR")
_REPLICAS = ("REPLICA", "PHASE", "MODEL", "SLOTS", "RESTARTS", "NODE", "GPUS", "LAST ERROR")


def pools_text(healths: list[PoolHealth]) -> str:
    """One line for each pool."""
    return columns([_POOLS, *(_pool_row(health) for health in healths)])


def health_text(health: PoolHealth) -> str:
    """Everything about one pool: its line, its reload, its replicas, and the last error in full."""
    parts = [columns([_POOLS, _pool_row(health)]), f"engine {health.engine} on {health.accelerator}"]
    if health.reload is not None:
        parts.append(f"last reload: {reload_text(health)}")
    if health.breaker == "open":
        parts.append("breaker open: launches keep failing, one replica is tried at a time")
    if health.replicas:
        parts += ["", columns([_REPLICAS, *(_replica_row(replica) for replica in health.replicas)])]
    if health.last_error is not None:
        parts += ["", *_error_lines(health.last_error)]
    return "\n".join(parts)


def state_of(health: PoolHealth) -> str:
    """What a pool is doing, in one word; `idle` is scaled to zero, and takes tasks."""
    if health.drained:
        return "drained"
    if health.draining:
        return "draining"
    if health.reload is not None and health.reload.state in ("loading", "canary"):
        return "reloading" if health.reload.state == "loading" else "canary"
    if health.ready:
        return "ready"
    return "unready" if health.metrics.replicas_desired else "idle"


def reload_text(health: PoolHealth) -> str:
    """The last reload in one line."""
    if health.reload is None:
        return "none"
    share = "" if health.reload.canary_percent is None else f" with {health.reload.canary_percent}% of the sessions"
    why = "" if health.reload.why is None else f": {health.reload.why}"
    return f"{health.reload.model_ref}{share}, {health.reload.state.replace('_', ' ')}{why}"


def capabilities_text(capabilities: Capabilities) -> str:
    """One block for each engine."""
    parts = [f"API version {capabilities.api_version}"]
    for engine in capabilities.engines:
        told = (
            ("version", engine.engine_versions),
            ("models", engine.models),
            ("workloads", engine.supported_workloads),
            ("priorities", engine.priorities),
            ("accelerators", engine.accelerators),
            ("sampler profiles", engine.sampler_profile_versions),
            ("features", engine.features),
            ("rate limits", [_rate(limit) for limit in engine.rate_limits]),
        )
        rows = [("  context", f"{engine.ctx_max} tokens"), *((f"  {name}", ", ".join(some)) for name, some in told)]
        parts += ["", engine.engine, columns([row for row in rows if row[1]])]
    return "\n".join(parts)


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows with their columns aligned by blanks; nothing is cut off."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _pool_row(health: PoolHealth) -> tuple[str, ...]:
    metrics = health.metrics
    return (
        health.pool_id,
        health.model_ref,
        state_of(health),
        f"{metrics.replicas_ready}/{metrics.replicas_desired}",
        f"{metrics.slots_total - metrics.slots_free}/{metrics.slots_total}",
        str(metrics.queue_depth),
        duration(metrics.predicted_wait_ms),
        str(health.restarts),
        _error_word(health.last_error),
    )


def _replica_row(replica: ReplicaHealth) -> tuple[str, ...]:
    phase = replica.phase if replica.retry_in_ms is None else f"{replica.phase} {duration(replica.retry_in_ms)}"
    return (
        replica.replica_id,
        phase,
        replica.model_ref,
        f"{replica.slots_total - replica.slots_free}/{replica.slots_total}",
        str(replica.restarts),
        replica.node_id or "-",
        ",".join(map(str, replica.devices)) or "-",
        _error_word(replica.last_error),
    )


def _error_word(error: PoolError | None) -> str:
    return "-" if error is None else f"{error.kind}, {duration(error.ms_ago)} ago"


def _error_lines(error: PoolError) -> list[str]:
    head = f"last error: {error.kind} on {error.replica_id}, {duration(error.ms_ago)} ago"
    return [head, f"  {error.message}", *(f"  | {line}" for line in error.stderr)]


def _rate(limit: RateLimit) -> str:
    return f"{limit.rps:g}/s, {limit.burst} at once, for {limit.priority or 'each key'}"


def duration(ms: int) -> str:
    """Milliseconds in the unit that people would use."""
    if ms < 1_000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1_000:.1f} s"
    return f"{ms / 60_000:.0f} min" if ms < 7_200_000 else f"{ms / 3_600_000:.0f} h"
