"""What the tests of the preload check do on top of fake GPUs: scenes as in gpus/gpu_scenes.py."""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
from msgspec.structs import replace
from structlog.testing import capture_logs

from adapters.testing.fake_nvml import XID, FakeGpus
from contracts.engine import EngineError, EngineSpec
from contracts.gpus import MemoryNeed
from orchestrator.cluster import preload
from orchestrator.cluster.gpus import topology
from orchestrator.cluster.gpus.nvml import Nvml
from orchestrator.cluster.gpus.watch import GpuFault
from orchestrator.cluster.preload import Preload
from tests.unit.cluster.gpus.gpu_scenes import BOUND_S, play
from tests.unit.cluster.scripted import SPEC, ScriptedAdapter

MIB = 2**20
#: 600 MiB of weights and 100 MiB of KV for a slot, 10 MiB of scratch on each GPU; nothing on the host.
NEED = MemoryNeed(600 * MIB, 100 * MIB, 10 * MIB, 0)
GPU_SPEC = replace(SPEC, accelerator="gpu", devices=("0", "1"), numa=False)


class NeedyAdapter(ScriptedAdapter):
    """An engine that will take `need`."""

    def __init__(self, spec: EngineSpec, need: MemoryNeed) -> None:
        super().__init__(spec)
        self._need = need

    async def memory_need(self) -> MemoryNeed:
        return self._need


def prepare(spec: EngineSpec, slots: int, need: MemoryNeed = NEED) -> Any:
    """What a replica of `spec` would launch, or why it would not."""

    async def run() -> Any:
        try:
            prepared = await Preload(spec, lambda _fault: None).prepare(slots, NeedyAdapter(spec, need))
        except EngineError as unfit:
            return {"kind": unfit.kind, "info": msgspec.to_builtins(unfit.info)}
        return {"spec": msgspec.to_builtins(prepared.spec), "distance": prepared.distance}

    with capture_logs() as lines:
        return asyncio.run(run()) | {"logged": lines}


def prepares_with_gpus(gpus: FakeGpus) -> Any:
    """Two alike GPUs behind one PCIe switch, with 900 MiB free each; 50 MiB stay free as a margin."""
    gpus.set({"count": 2, "uuid_prefix": "n", "link.0.1": 10})
    gpus.set({f"gpu{gpu}.{fact}": size for gpu in (0, 1) for fact, size in (("total_mib", 1000), ("used_mib", 100))})
    one = replace(GPU_SPEC, devices=("1",))
    found = {"one": prepare(one, 2), "both": prepare(GPU_SPEC, 10), "too many slots": prepare(GPU_SPEC, 11)}
    gpus.set({"gpu1.used_mib": 900})
    return {**found, "no room": prepare(one, 1)}


def refuses_masks(gpus: FakeGpus) -> Any:
    gpus.set({"count": 1, "uuid_prefix": "n"})
    found = {"absent": prepare(GPU_SPEC, 1)}
    gpus.set({"count": 2, "gpu1.pids": "77"})
    found["foreign"] = prepare(GPU_SPEC, 1)
    gpus.set({"gpu1.pids": "", "gpu1.error": 15})
    found["lost"] = prepare(GPU_SPEC, 1)
    gpus.set({"gpu1.error": 0, "gpu1.name": "Other"})
    found["unlike"] = prepare(GPU_SPEC, 1)
    gpus.set({"init": 9})
    found["no driver"] = prepare(GPU_SPEC, 1)
    return found


def caps_slots_of_unlike_splits(gpus: FakeGpus) -> Any:
    """GPU 1 has half the memory: with an even split it has room for 3 slots, with a third of the model for 8."""
    gpus.set({"count": 2, "gpu0.total_mib": 1000, "gpu1.total_mib": 500, "gpu0.used_mib": 0, "gpu1.used_mib": 0})
    even, third = (0.5, 0.5), (0.67, 0.33)
    splits: dict[str, tuple[Sequence[float], int]] = {"even": (even, 4), "third": (third, 9), "as asked": (third, 3)}
    found = {name: prepare(replace(GPU_SPEC, tensor_split=split), slots) for name, (split, slots) in splits.items()}
    gpus.set({"gpu1.used_mib": 150})
    return {**found, "not one": prepare(replace(GPU_SPEC, tensor_split=even), 4)}


def binds_to_numa_nodes(gpus: FakeGpus) -> Any:
    """GPUs 0 and 1 hang on node 1, GPU 2 on node 0; numactl is one that works, and then one that may not."""
    gpus.set({"count": 3})
    folder = Path(gpus.environment["LLORCH_FAKE_NVML"]).parent
    for gpu, node in enumerate((1, 1, 0)):
        device = folder / "sys/bus/pci/devices" / f"0000:1{gpu}:00.0"
        device.mkdir(parents=True)
        (device / "numa_node").write_text(f"{node}\n")

    def common(nvml: Nvml, devices: Sequence[int]) -> int | None:
        return topology.common_numa_node(nvml, devices, folder / "sys")

    def prefix_of(spec: EngineSpec) -> Any:
        return prepare(replace(spec, numa=True), 1)["spec"]["command_prefix"]

    numactl = folder / "bin" / "numactl"
    numactl.parent.mkdir()
    numactl.write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    numactl.chmod(0o755)
    across = replace(GPU_SPEC, devices=("1", "2"))
    path = {"PATH": f"{numactl.parent}:{os.environ['PATH']}"}
    with mock.patch.dict(os.environ, path), mock.patch.object(preload, "common_numa_node", common):
        found = {"numactl": str(numactl), "together": prefix_of(GPU_SPEC), "across": prefix_of(across)}
        found["switched off"] = prepare(GPU_SPEC, 1)["spec"]["command_prefix"]
        numactl.write_text("#!/bin/sh\nexit 1\n")
        return {**found, "forbidden": prefix_of(GPU_SPEC)}


def reads_gauges_and_tells_of_faults(gpus: FakeGpus) -> Any:
    gpus.set({"count": 2, "uuid_prefix": "n", "gpu1.util": 37})

    async def until(true: Callable[[], Any]) -> None:
        async with asyncio.timeout(BOUND_S):
            while not true():
                await asyncio.sleep(0.01)

    async def run() -> Any:
        told: list[GpuFault] = []
        watched = Preload(GPU_SPEC, told.append)
        before = watched.gauges(None)
        watched.start()
        try:
            await until(lambda: watched.gauges(None).gpus)
            gpus.event(1, XID, 79)
            await until(lambda: told)
        finally:
            watched.stop()
        gauges = watched.gauges(0.5)
        return {
            "before": len(before.gpus),
            "gauges": msgspec.to_builtins(gauges),
            "told": [(fault.kind, fault.gpu) for fault in told],
        }

    return asyncio.run(run())


if __name__ == "__main__":
    play(globals())
