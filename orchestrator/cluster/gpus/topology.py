"""Where GPUs stand: their NUMA node, how an engine is bound to it, and how far a mask's GPUs are apart (ORCH-3013).

All of it is a hint: where the driver or the kernel does not tell, an engine runs unbound and ranks as far.
"""

import shutil
import subprocess
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Final

import pynvml

from orchestrator.cluster.gpus.nvml import GpuError, Nvml

SYSFS: Final = Path("/sys")
_TRIAL_TIMEOUT_S: Final = 5

#: Ranks of a link, the nearer the lower.
ALONE: Final = 0
NVLINK: Final = 1
SAME_NODE: Final = 4
FAR: Final = 5
#: By NVML's level at which two paths meet (nvmlGpuTopologyLevel_t).
_RANKS: Final[dict[int, int]] = {
    pynvml.NVML_TOPOLOGY_INTERNAL: NVLINK,
    pynvml.NVML_TOPOLOGY_SINGLE: 2,
    pynvml.NVML_TOPOLOGY_MULTIPLE: 2,
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: 3,
    pynvml.NVML_TOPOLOGY_NODE: SAME_NODE,
    pynvml.NVML_TOPOLOGY_SYSTEM: FAR,
}


def numa_node(nvml: Nvml, gpu: int, sysfs: Path = SYSFS) -> int | None:
    """The NUMA node that a GPU hangs on; None where nobody knows (the kernel says -1 then)."""
    try:
        bus_id = nvml.bus_id(gpu)
        text = (sysfs / "bus/pci/devices" / bus_id / "numa_node").read_text() if bus_id else ""
    except (GpuError, OSError):
        return None
    return int(text) if text.strip().isdecimal() else None


def common_numa_node(nvml: Nvml, devices: Sequence[int], sysfs: Path = SYSFS) -> int | None:
    """The NUMA node that all GPUs of a mask share; None where they do not or where it is unknown."""
    nodes = {numa_node(nvml, gpu, sysfs) for gpu in devices}
    return nodes.pop() if len(nodes) == 1 else None


def numactl_prefix(node: int | None) -> tuple[str, ...]:
    """What goes before an engine's command to run it on the cores of a node, with memory from there if there is any.

    Empty where numactl is absent or not allowed: containers often forbid memory policies. Tries it, so it
    takes milliseconds and must not run in an event loop.
    """
    numactl = shutil.which("numactl")
    if node is None or numactl is None:
        return ()
    prefix = (str(Path(numactl).absolute()), f"--cpunodebind={node}", f"--preferred={node}")
    try:
        tried = subprocess.run([*prefix, "true"], capture_output=True, timeout=_TRIAL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return prefix if tried.returncode == 0 else ()


def distance(nvml: Nvml, devices: Sequence[int], sysfs: Path = SYSFS) -> int:
    """The rank of the worst link between GPUs of a mask; 0 for one GPU or none (ORCH-3052).

    1: NVLink or one board, 2: PCIe switches only, 3: one host bridge, 4: one NUMA node, 5: further or unknown.
    """
    return max((_rank(nvml, gpu, other, sysfs) for gpu, other in combinations(devices, 2)), default=ALONE)


def _rank(nvml: Nvml, gpu: int, other: int, sysfs: Path) -> int:
    try:
        if nvml.nvlinked(gpu, other):
            return NVLINK
        level = nvml.common_ancestor(gpu, other)
    except GpuError:
        level = None
    if level is not None:
        return _RANKS.get(level, FAR)
    return FAR if common_numa_node(nvml, (gpu, other), sysfs) is None else SAME_NODE
