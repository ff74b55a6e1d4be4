"""Rules about a pool's replicas: on which GPUs they stand, how many there are, how they start over."""

from collections.abc import Iterator
from itertools import combinations
from typing import Final

from contracts.config import PoolConfig
from contracts.config_pools import LeaseConfig
from orchestrator.config_sharing import PlacedPool
from orchestrator.config_yaml import Document, Loc, Problem

#: How far the ratios of a split may be from 1: a hair over one percent, so that ratios rounded to two digits
#: pass whatever binary fractions make of them.
SPLIT_TOLERANCE: Final = 0.01 + 1e-9


def replica_problems(document: Document, loc: Loc, pool: PoolConfig) -> Iterator[Problem]:
    """What cannot be carried out, whatever the machines are like."""
    yield from _device_rules(document, loc, pool)
    yield from _scaling_rules(document, loc, pool)
    if pool.restart.backoff_min_ms > pool.restart.backoff_max_ms:
        yield document.problem(
            (*loc, "restart", "backoff_max_ms"),
            f"backoff_max_ms {pool.restart.backoff_max_ms} is under backoff_min_ms {pool.restart.backoff_min_ms}",
            "raise it, or lower `backoff_min_ms`",
        )


def _device_rules(document: Document, loc: Loc, pool: PoolConfig) -> Iterator[Problem]:
    """No silent CPU fallback (ORCH-1101, ORCH-3018); splits are explicit (ORCH-3012)."""
    if pool.accelerator == "gpu" and not pool.devices:
        yield document.problem(
            loc,
            f"pool `{pool.id}` runs on GPUs but lists no devices",
            "list the GPUs, as in `devices: [0]`; for development without one, say `accelerator: cpu-dev`",
        )
    if len(set(pool.devices)) != len(pool.devices):
        yield document.problem((*loc, "devices"), "a device is listed twice", "list each GPU once")
    split = pool.tensor_split
    if split is None:
        return
    place = (*loc, "tensor_split")
    if pool.accelerator == "cpu-dev":
        yield document.problem(place, "tensor_split divides a model over GPUs, and `cpu-dev` has none", "remove it")
        return
    if len(split) != len(pool.devices):
        yield document.problem(
            place,
            f"tensor_split has {len(split)} ratios for {len(pool.devices)} devices",
            "give one ratio for each entry of `devices`",
        )
    if abs(sum(split) - 1) > SPLIT_TOLERANCE:
        yield document.problem(place, f"tensor_split sums to {sum(split):.3f}", "make the ratios sum to 1")


def _scaling_rules(document: Document, loc: Loc, pool: PoolConfig) -> Iterator[Problem]:
    if pool.replicas == 0 and (pool.scaling is None or pool.scaling.max is None):
        yield document.problem(
            (*loc, "replicas"),
            f"pool `{pool.id}` has no replicas, and nothing that brings one",
            "say how many there may be, as in `scaling: {min: 0, max: 2}`, or raise `replicas`",
        )
    if pool.scaling is None:
        return
    low, high = pool.scaling.min, pool.scaling.max
    if low is not None and low > pool.replicas:
        yield document.problem(
            (*loc, "scaling", "min"),
            f"min {low} is over the pool's replicas {pool.replicas}",
            "a pool starts with `replicas`: raise it, or lower `min`",
        )
    if high is not None and high < pool.replicas:
        yield document.problem(
            (*loc, "scaling", "max"),
            f"max {high} is under the pool's replicas {pool.replicas}",
            "a pool starts with `replicas`: lower it, or raise `max`",
        )


def replica_warnings(document: Document, pools: list[PlacedPool]) -> Iterator[Problem]:
    """What is valid, and asks more of the machines than its author may expect."""
    for loc, pool in pools:
        if pool.accelerator == "cpu-dev":
            yield from _cpu_warnings(document, loc, pool)
        else:
            yield from _node_warnings(document, loc, pool)
        yield from _timing_warnings(document, loc, pool)
    for (_, first), (loc, second) in combinations(pools, 2):
        yield from _overlap_warnings(document, loc, first, second)


def _cpu_warnings(document: Document, loc: Loc, pool: PoolConfig) -> Iterator[Problem]:
    yield document.problem(
        (*loc, "accelerator"),
        f"pool `{pool.id}` runs on the CPU: a development carve-out, not for production",
        "production pools use `accelerator: gpu` and list `devices`",
    )
    if pool.devices:
        yield document.problem((*loc, "devices"), "devices mean nothing with `accelerator: cpu-dev`")


def _node_warnings(document: Document, loc: Loc, pool: PoolConfig) -> Iterator[Problem]:
    """All replicas of a pool have the same mask, and a GPU has one holder (ORCH-3011)."""
    scaled = pool.scaling is not None and pool.scaling.max is not None
    most = pool.scaling.max if pool.scaling is not None and pool.scaling.max is not None else pool.replicas
    if most > 1 and pool.devices:
        yield document.problem(
            (*loc, "scaling", "max") if scaled else (*loc, "replicas"),
            f"pool `{pool.id}` has up to {most} replicas, and each needs {_gpus(pool.devices)} of a node of its own",
            "for more replicas on one node, make a pool for each of its GPUs",
        )


def _timing_warnings(document: Document, loc: Loc, pool: PoolConfig) -> Iterator[Problem]:
    if pool.reload_timeout_ms < pool.engine_options.ready_timeout_ms:
        yield document.problem(
            (*loc, "reload_timeout_ms"),
            f"a reload is given up after {pool.reload_timeout_ms} ms, and an engine may take "
            f"{pool.engine_options.ready_timeout_ms} ms to come up",
            "raise `reload_timeout_ms`, or lower `engine_options.ready_timeout_ms`",
        )
    scaling = pool.scaling
    if scaling is not None and scaling.min in (None, pool.replicas) and scaling.max in (None, pool.replicas):
        yield document.problem(
            (*loc, "scaling"),
            f"scaling of pool `{pool.id}` leaves it at {pool.replicas} replicas: both bounds are that",
            "lower `min` or raise `max`, or remove the section",
        )


def _overlap_warnings(document: Document, loc: Loc, first: PoolConfig, second: PoolConfig) -> Iterator[Problem]:
    """Pools may live on different nodes, so the same index is no problem; in different zones they surely do."""
    if "cpu-dev" in (first.accelerator, second.accelerator):
        return
    apart = first.zone is not None and second.zone is not None and first.zone != second.zone
    both = [device for device in second.devices if device in first.devices]
    if both and not apart:
        yield document.problem(
            (*loc, "devices"),
            f"pools `{first.id}` and `{second.id}` both need {_gpus(both)}: each needs a node of its own",
            "list other GPUs where the two are to share a node",
        )


def lease_problems(document: Document, lease: LeaseConfig) -> Iterator[Problem]:
    """A replica is set aside before it is given up."""
    if lease.lost_ms <= lease.ttl_ms:
        yield document.problem(
            ("lease", "lost_ms"),
            f"lost_ms {lease.lost_ms} is not over ttl_ms {lease.ttl_ms}",
            "a replica is sent nothing new after `ttl_ms`, and counts as gone after `lost_ms`: raise that",
        )


def _gpus(devices: list[int]) -> str:
    return f"GPU{'' if len(devices) == 1 else 's'} {', '.join(str(device) for device in devices)}"
