"""What the GPU tests do with the real NVML binding on top of fake GPUs: one scene a process.

The binding loads its library once by name, so that a scene runs in a process that started with the fake one in
its library path. A scene is a function of the fake GPUs that returns what it saw, as JSON.
"""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from adapters.testing.fake_nvml import DOUBLE_BIT_ECC, SINGLE_BIT_ECC, XID, FakeGpus
from orchestrator.cluster.gpus import topology
from orchestrator.cluster.gpus.mask import MaskError, check_split, resolve_mask
from orchestrator.cluster.gpus.nvml import GpuError, Nvml
from orchestrator.cluster.gpus.watch import GpuFault, GpuWatch

ROOT = Path(__file__).resolve().parents[4]
BOUND_S = 20
POLL_S = 0.02


def run_scene(scene: Callable[[FakeGpus], Any], library: Path, state: Path) -> Any:
    """Run a scene in a process of its own; what it returned. Its module must hand over to `play`."""
    gpus = FakeGpus(library, state)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", scene.__module__, scene.__name__, library, state],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **gpus.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def play(scenes: Mapping[str, Callable[[FakeGpus], Any]]) -> None:
    """In the process of a scene: run it and write what it saw, behind whatever was logged."""
    print(json.dumps(scenes[sys.argv[1]](FakeGpus(Path(sys.argv[2]), Path(sys.argv[3])))))


# ------------------------------------------------------------------------- reading


def reads_every_fact(gpus: FakeGpus) -> Any:
    gpus.set({"count": 2, "uuid_prefix": "node-a", "gpu0.total_mib": 1000, "gpu0.used_mib": 250, "gpu0.util": 37})
    gpus.set({"gpu0.ecc_uncorrected": 1, "gpu0.name": "Fake A 1 GB"})
    gpus.set({f"gpu1.{fact}": "none" for fact in ("util", "ecc_uncorrected", "pids")})
    gpus.set({"gpu0.pids": "31,30", "gpu0.bus": "0001:65:00.0", "link.0.1": 30, "nvlink.0.1": 1})
    with Nvml() as nvml:
        return {
            "count": nvml.count(),
            "readings": msgspec.to_builtins(nvml.survey((0, 1)).gpus),
            "free": nvml.reading(0).vram_free_bytes,
            "pids": [nvml.pids(0), nvml.pids(1)],
            "bus": [nvml.bus_id(0), nvml.bus_id(1)],
            "link": [nvml.common_ancestor(0, 1), nvml.nvlinked(1, 0)],
        }


def goes_on_with_a_lost_gpu(gpus: FakeGpus) -> Any:
    gpus.set({"count": 3, "gpu1.error": 15, "gpu2.total_mib": "none"})
    with Nvml() as nvml:
        survey = nvml.survey(range(nvml.count()))
    broken = [(error.gpu, error.kind, error.fatal, str(error)) for error in survey.broken]
    return {"gpus": [gpu.index for gpu in survey.gpus], "broken": broken}


def opens_without_a_driver(gpus: FakeGpus) -> Any:
    found = {}
    for code in (9, 18, 999):
        gpus.set({"init": code})
        nvml = Nvml()
        try:
            nvml.open()
        except GpuError as error:
            found[code] = (error.kind, error.fatal, error.driver_gone, str(error))
        nvml.close()
    return found


def opens_without_a_library(_gpus: FakeGpus) -> Any:
    try:
        Nvml().open()
    except GpuError as error:
        return [error.kind, error.driver_gone, str(error)]
    return None


def closes_when_the_driver_is_gone(gpus: FakeGpus) -> Any:
    nvml = Nvml()
    nvml.open()
    nvml.open()
    gpus.set({"error": 1})
    try:
        nvml.reading(0)
    except GpuError as error:
        seen = [error.kind, error.driver_gone]
    nvml.close()
    nvml.close()
    gpus.set({"error": 0})
    with nvml:
        return [*seen, nvml.reading(0).index]


# ------------------------------------------------------------------------ the mask


def resolves_masks(gpus: FakeGpus) -> Any:
    gpus.set({"count": 5, "uuid_prefix": "n", "gpu2.error": 15, "gpu3.error": 16, "gpu4.error": 999})
    with Nvml() as nvml:
        found: dict[str, Any] = {"whole": [gpu.uuid for gpu in resolve_mask(nvml, (1, 0))]}
        found["none"] = resolve_mask(nvml, ())
        gpus.set({"gpu1.pids": "77"})
        asked = {"foreign": (0, 1), "lost": (0, 2), "reset": (3,), "unknown": (4,), "absent": (0, 5)}
        for name, mask in asked.items():
            found[name] = _refused(lambda mask=mask: resolve_mask(nvml, mask))
        gpus.set({"count": 1})
        found["only one"] = _refused(lambda: resolve_mask(nvml, (1,)))
        gpus.set({"count": 0})
        found["nothing"] = _refused(lambda: resolve_mask(nvml, (0,)))
        gpus.set({"error": 9, "count": 1})
        found["driver"] = _refused(lambda: resolve_mask(nvml, (0,)))
    return found


def checks_splits(gpus: FakeGpus) -> Any:
    gpus.set({"count": 4, "gpu0.total_mib": 1000, "gpu1.total_mib": 960, "gpu2.total_mib": 940, "gpu3.name": "Other"})
    gpus.set({"gpu3.total_mib": 1000})
    asked: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
        "one": ((0,), ()),
        "equal": ((0, 1), ()),
        "equal with ratios": ((0, 1), (0.67, 0.33)),
        "unlike sizes": ((0, 2), ()),
        "unlike names": ((0, 3), ()),
        "unlike with ratios": ((0, 3), (0.67, 0.335)),
        "too few": ((0, 3), (1.0,)),
        "sum": ((0, 3), (0.6, 0.3)),
        "zero": ((0, 3), (1.0, 0.0)),
        "not a number": ((0, 3), (1.0, float("nan"))),
    }
    with Nvml() as nvml:
        return {
            name: _refused(lambda mask=mask, split=split: check_split(resolve_mask(nvml, mask), split))
            for name, (mask, split) in asked.items()
        }


def _refused(call: Callable[[], Any]) -> list[str] | None:
    try:
        call()
    except (MaskError, GpuError) as error:
        return [error.kind, str(error)]
    return None


# ------------------------------------------------------------------------ topology


def measures_distances(gpus: FakeGpus) -> Any:
    gpus.set({"count": 6, **{f"link.0.{gpu}": 10 * gpu for gpu in (1, 2, 3, 4, 5)}, "link.1.2": 0, "nvlink.3.4": 1})
    with Nvml() as nvml:
        found = {
            "none": topology.distance(nvml, ()),
            "alone": topology.distance(nvml, (3,)),
            "levels": [topology.distance(nvml, (0, gpu)) for gpu in (1, 2, 3, 4, 5)],
            "internal": topology.distance(nvml, (1, 2)),
            "nvlink": topology.distance(nvml, (4, 3)),
            "worst": topology.distance(nvml, (0, 1, 2, 3)),
        }
        gpus.set({"gpu0.error": 15})
        return {**found, "lost": topology.distance(nvml, (0, 1))}


def finds_numa_nodes(gpus: FakeGpus) -> Any:
    """GPUs 0 and 1 on node 1, 2 on node 0, 3 where the kernel does not know, 4 not in sysfs, 5 lost."""
    gpus.set({"count": 6, "gpu5.error": 15})
    sysfs = Path(gpus.environment["LLORCH_FAKE_NVML"]).parent / "sys"
    for gpu, node in enumerate((1, 1, 0, -1)):
        folder = sysfs / "bus/pci/devices" / f"0000:1{gpu}:00.0"
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(f"{node}\n")
    with Nvml() as nvml:
        return {
            "nodes": [topology.numa_node(nvml, gpu, sysfs) for gpu in range(6)],
            "together": topology.common_numa_node(nvml, (0, 1), sysfs),
            "apart": topology.common_numa_node(nvml, (0, 2), sysfs),
            "unknown": topology.common_numa_node(nvml, (3, 4), sysfs),
            "distances": [topology.distance(nvml, pair, sysfs) for pair in ((0, 1), (0, 2), (3, 4))],
        }


# ----------------------------------------------------------------------- the watch


class Watched:
    """A running watch over fake GPUs, and what it told."""

    def __init__(self, devices: tuple[int, ...]) -> None:
        self.told: list[GpuFault] = []
        self.threads: set[str] = set()
        self.watch = GpuWatch(devices, self._tell, asyncio.get_running_loop(), poll_s=POLL_S)
        self.watch.start()

    def _tell(self, fault: GpuFault) -> None:
        self.threads.add(threading.current_thread().name)
        self.told.append(fault)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(BOUND_S):
            while not true():
                await asyncio.sleep(0.01)

    async def reading(self) -> None:
        """The watch has registered for events and read its GPUs since now."""
        seen = self.watch.readings
        await self.until(lambda: self.watch.readings is not seen and bool(self.watch.readings))

    async def xids(self, count: int) -> None:
        await self.until(lambda: self.watch.counts.xids >= count)

    @property
    def faults(self) -> list[Any]:
        return [(fault.kind, fault.fatal, fault.gpu, fault.message) for fault in self.told]


def _watched(scene: Callable[[Watched], Any], devices: tuple[int, ...]) -> Any:
    async def run() -> Any:
        watched = Watched(devices)
        try:
            return await scene(watched)
        finally:
            watched.watch.stop()

    return asyncio.run(run())


def tells_of_events(gpus: FakeGpus) -> Any:
    """An event of another mask's GPU, one of a killed process, then ones that matter, some of them twice."""
    gpus.set({"count": 3, "uuid_prefix": "n"})
    gpus.event(0, XID, 79)

    async def scene(watched: Watched) -> Any:
        await watched.reading()
        gpus.event(2, XID, 79)
        for xid in (45, 31, 31, 94, 94, 95, 12345):
            gpus.event(0, XID, xid)
        gpus.event(1, XID, 119)
        gpus.event(1, SINGLE_BIT_ECC)
        gpus.event(1, DOUBLE_BIT_ECC)
        await watched.until(lambda: any(fault.gpu == 1 and fault.kind == "ecc" for fault in watched.told))
        counts = msgspec.to_builtins(watched.watch.counts)
        watched.watch.renew()
        gpus.event(1, XID, 120)
        await watched.xids(9)
        await watched.until(lambda: len(watched.told) == 6)
        return {"faults": watched.faults, "counts": counts, "threads": sorted(watched.threads)}

    return _watched(scene, (0, 1))


def tells_of_a_lost_gpu(gpus: FakeGpus) -> Any:
    """Lost, back, lost again, back; then its events are heard again."""
    gpus.set({"count": 2, "uuid_prefix": "n"})

    async def scene(watched: Watched) -> Any:
        await watched.reading()
        for times in (1, 2):
            gpus.set({"gpu1.error": 15})
            await watched.until(lambda times=times: len(watched.told) == times)
            await watched.reading()
            left = [gpu.index for gpu in watched.watch.readings]
            gpus.set({"gpu1.error": 0})
            await watched.until(lambda: len(watched.watch.readings) == 2)
        async with asyncio.timeout(BOUND_S):
            while not watched.watch.counts.xids:
                gpus.event(1, XID, 31)
                await asyncio.sleep(0.1)
        return {"lost": [told for told in watched.faults if told[0] != "xid"], "left": left}

    return _watched(scene, (0, 1))


def tells_of_a_driver_reset(gpus: FakeGpus) -> Any:
    """Every call fails, and opening too, until the driver is loaded anew and counts from zero."""
    gpus.set({"count": 2, "gpu0.ecc_uncorrected": 5})

    async def scene(watched: Watched) -> Any:
        await watched.reading()
        gpus.set({"error": 1, "init": 9})
        await watched.until(lambda: not watched.watch.readings)
        await watched.until(lambda: bool(watched.told))
        gpus.set({"error": 0, "init": 0, "gpu0.ecc_uncorrected": 0})
        await watched.reading()
        return watched.faults

    return _watched(scene, (0, 1))


def tells_of_growing_ecc_counts(gpus: FakeGpus) -> Any:
    """A GPU without events whose count stood at 2 before the watch began."""
    gpus.set({"count": 1, "uuid_prefix": "n", "gpu0.events": "none", "gpu0.ecc_uncorrected": 2})

    async def scene(watched: Watched) -> Any:
        await watched.reading()
        gpus.set({"gpu0.ecc_uncorrected": 4})
        await watched.until(lambda: bool(watched.told))
        gpus.set({"gpu0.ecc_uncorrected": 5})
        await watched.until(lambda: watched.watch.counts.ecc_uncorrected == 3)
        return watched.faults

    return _watched(scene, (0,))


def tells_once_when_waiting_fails(gpus: FakeGpus) -> Any:
    """The wait for events fails while every GPU answers when it is read."""
    gpus.set({"count": 1})

    async def scene(watched: Watched) -> Any:
        await watched.reading()
        gpus.set({"wait_error": 15})
        await watched.until(lambda: bool(watched.told))
        for _ in range(3):
            await watched.reading()
        return watched.faults

    return _watched(scene, (0,))


def watches_without_a_driver(gpus: FakeGpus) -> Any:
    gpus.set({"init": 9})

    async def scene(watched: Watched) -> Any:
        await watched.until(lambda: bool(watched.told))
        return watched.faults

    return _watched(scene, (0,))


def stops(gpus: FakeGpus) -> Any:
    """Nothing is told after `stop`, also of what the thread had found before; without devices no thread runs."""

    async def scene(watched: Watched) -> Any:
        await watched.reading()
        # The loop does not run here, so that the fault waits in it while the watch is stopped.
        loop, handed_over = asyncio.get_running_loop(), threading.Event()
        hand_over = loop.call_soon_threadsafe

        def noticed(*call: Any) -> None:
            hand_over(*call)
            handed_over.set()

        with mock.patch.object(loop, "call_soon_threadsafe", noticed):
            gpus.event(0, XID, 79)
            found = handed_over.wait(BOUND_S)
        watched.watch.stop()
        running = [thread.name for thread in threading.enumerate() if thread.name == "gpu-watch"]
        await asyncio.sleep(0.05)
        idle = GpuWatch((), watched.told.append, asyncio.get_running_loop())
        idle.start()
        idle.stop()
        return {"found": found, "told": watched.faults, "running": running, "idle": len(idle.readings)}

    return _watched(scene, (0,))


def outlives_its_loop(gpus: FakeGpus) -> Any:
    """The loop is closed while the watch runs on: a fault then finds nobody and harms nothing."""
    told: list[GpuFault] = []
    loop = asyncio.new_event_loop()
    watch = GpuWatch((0,), told.append, loop, poll_s=POLL_S)
    watch.start()
    end = time.monotonic() + BOUND_S
    while not watch.readings and time.monotonic() < end:
        time.sleep(0.01)
    loop.close()
    for _ in range(2):
        seen = watch.counts.xids
        gpus.event(0, XID, 79)
        while watch.counts.xids == seen and time.monotonic() < end:
            time.sleep(0.01)
    watch.stop()
    return {"xids": watch.counts.xids, "told": len(told)}


if __name__ == "__main__":
    play(globals())
