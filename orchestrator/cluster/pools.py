"""A first pool starter: one placement group and one pinned actor per replica (ORCH-3001).

Placement groups and actors are detached and named, so that they outlive whoever started them and
can be found again. A replica whose devices no node has stays pending; its pool is then
unavailable, it never spills over to a CPU (ORCH-3018, ORCH-1101).
"""

from typing import Any, Final

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from contracts.engine import AdapterFactory, EngineSpec
from orchestrator.cluster.actors import NAMESPACE, ReplicaActor

#: The development carve-out shares small machines: it reserves little and pins nothing.
CPU_DEV_BUNDLE: Final = {"CPU": 0.1}


def bundle_for(spec: EngineSpec) -> dict[str, float]:
    """The resources of one replica."""
    if spec.accelerator == "cpu-dev":
        return dict(CPU_DEV_BUNDLE)
    return {"CPU": 1.0, "GPU": float(len(spec.devices))}


def start_replica(spec: EngineSpec, make_adapter: AdapterFactory, secret: bytes) -> Any:
    """Ask for a replica's placement group and actor; returns the actor handle at once."""
    bundle = bundle_for(spec)
    group = placement_group([bundle], strategy="STRICT_PACK", name=f"llorch-{spec.replica_id}", lifetime="detached")
    actor = (
        ray.remote(ReplicaActor)
        .options(
            name=f"replica-{spec.replica_id}",
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=1000,
            num_cpus=bundle["CPU"],
            num_gpus=bundle.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
        )
        .remote(spec, make_adapter, secret)
    )
    actor.start.remote()
    return actor
