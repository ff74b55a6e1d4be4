"""Ray under the pool manager: nodes, placement groups and replica actors, found again by their names.

One placement group with one bundle for each replica, named after the replica and its incarnation, so that
groups come and go with replicas. All are detached: they outlive the manager that made them (ORCH-3001).
Ray's calls block, so they run in threads.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import ray
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from contracts.engine import AdapterFactory, EngineSpec
from contracts.pools import NodeInfo, ReplicaOrder
from orchestrator.cluster.actors import GROUP_PREFIX, ReplicaActor, groups, groups_named
from orchestrator.cluster.fleet import name_of
from orchestrator.cluster.locating import NAMESPACE

#: The development carve-out shares small machines: it reserves little and pins nothing.
CPU_DEV_BUNDLE: Final = {"CPU": 0.1}
ZONE_LABELS: Final = ("ray.io/availability-zone", "zone")
NODE_LABEL: Final = "ray.io/node-id"
STOP_TIMEOUT_S: Final = 8.0
GONE_POLL_S: Final = 0.1
GONE_TIMEOUT_S: Final = 10.0

MakeSpec = Callable[[ReplicaOrder, str], EngineSpec]


class RayFleet:
    """Ray as the pool manager sees it; see `fleet.Fleet` for the methods.

    `make_spec` says what an order runs on a node.
    """

    def __init__(self, make_spec: MakeSpec, make_adapter: AdapterFactory, secret: bytes) -> None:
        self._make_spec = make_spec
        self._make_adapter = make_adapter
        self._secret = secret

    async def nodes(self) -> tuple[NodeInfo, ...]:
        return await asyncio.to_thread(_live_nodes)

    async def existing(self) -> set[str]:
        return await asyncio.to_thread(_group_names)

    async def reserve(self, order: ReplicaOrder, nodes: tuple[NodeInfo, ...]) -> Any:
        return await _finished(self._reserve, order, nodes)

    def _reserve(self, order: ReplicaOrder, nodes: tuple[NodeInfo, ...]) -> Any:
        name = GROUP_PREFIX + name_of(order)
        for group in groups_named(name):
            return group
        bundle = bundle_for(self._make_spec(order, order.node_id))
        if order.node_id:
            place = order.node_id
        else:
            # No known node has room: only one that joins will do, big enough that the mask's GPUs are on it.
            place = f"!in({','.join(node.node_id for node in nodes)})"
            if order.devices:
                bundle["GPU"] = float(max(order.devices) + 1)
        return placement_group(
            [bundle],
            strategy="STRICT_PACK",
            name=name,
            lifetime="detached",
            bundle_label_selector=[{NODE_LABEL: place}],
        )

    async def placed_on(self, group: Any) -> tuple[str, str]:
        table: dict[str, Any] = await asyncio.to_thread(placement_group_table, group)
        if table["state"] == "CREATED":
            return table["bundles_to_node_id"][0], ""
        return "", f"{table['state'].lower()}: {table['stats']['scheduling_state'].lower()}"

    async def start(self, order: ReplicaOrder, group: Any, node_id: str) -> Any:
        return await _finished(self._start, order, group, node_id)

    def _start(self, order: ReplicaOrder, group: Any, node_id: str) -> Any:
        name = f"replica-{name_of(order)}"
        with contextlib.suppress(ValueError):
            return ray.get_actor(name, namespace=NAMESPACE)
        spec = self._make_spec(order, node_id)
        bundle = bundle_for(spec)
        return (
            ray.remote(ReplicaActor)
            .options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=1000,
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
            )
            .remote(spec, self._make_adapter, self._secret)
        )

    def is_unavailable(self, error: Exception) -> bool:
        return isinstance(error, ray.exceptions.ActorUnavailableError)

    async def end(self, name: str) -> None:
        actor_name = f"replica-{name}"
        with contextlib.suppress(ValueError):
            actor = await asyncio.to_thread(ray.get_actor, actor_name, namespace=NAMESPACE)
            with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await actor.stop.remote()
            await asyncio.to_thread(ray.kill, actor)
        for group in await asyncio.to_thread(groups_named, GROUP_PREFIX + name):
            await asyncio.to_thread(remove_placement_group, group)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_TIMEOUT_S):
                while name in await self.existing():
                    await asyncio.sleep(GONE_POLL_S)


async def _finished(call: Callable[..., Any], *arguments: Any) -> Any:
    """A call that makes something is waited for even if its caller is cancelled: else nobody would know of it."""
    work = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        work.exception()
        raise asyncio.CancelledError
    return work.result()


def bundle_for(spec: EngineSpec) -> dict[str, float]:
    """The resources of one replica."""
    if spec.accelerator == "cpu-dev":
        return dict(CPU_DEV_BUNDLE)
    return {"CPU": 1.0, "GPU": float(len(spec.devices))}


def _live_nodes() -> tuple[NodeInfo, ...]:
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            labels: dict[str, str] = node.get("Labels") or {}
            zone = next((labels[name] for name in ZONE_LABELS if name in labels), "")
            kind = labels.get("ray.io/accelerator-type", "")
            found.append(NodeInfo(node["NodeID"], int(node["Resources"].get("GPU", 0)), zone, kind))
    return tuple(sorted(found, key=lambda node: node.node_id))


def _group_names() -> set[str]:
    return {name.removeprefix(GROUP_PREFIX) for name, _ in groups()}
