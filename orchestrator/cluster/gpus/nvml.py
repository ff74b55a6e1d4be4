"""NVML as this project uses it: readings, processes, links and events of GPUs, with typed errors.

NVML does not touch CUDA, so it sees every GPU of the node whatever CUDA_VISIBLE_DEVICES says. It may be
used by several threads. GPUs are numbered as NVML does, which is by PCI bus id. Process ids are the host's: in
a container with its own process namespace the driver tells of none or of others.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, NamedTuple

import pynvml

from contracts.gpus import GpuReading
from contracts.pools import FaultKind
from orchestrator.cluster.gpus import faults

#: Event types that a watch asks for: both ECC errors and critical XIDs.
EVENT_TYPES: Final[int] = (
    pynvml.nvmlEventTypeSingleBitEccError | pynvml.nvmlEventTypeDoubleBitEccError | pynvml.nvmlEventTypeXidCriticalError
)
XID_EVENT: Final[int] = pynvml.nvmlEventTypeXidCriticalError
DOUBLE_BIT_EVENT: Final[int] = pynvml.nvmlEventTypeDoubleBitEccError


class GpuError(Exception):
    """An NVML call failed. `gpu` is the index of the GPU that it was about; None where the driver as a whole failed."""

    def __init__(self, code: int, verdict: faults.Verdict, gpu: int | None = None) -> None:
        super().__init__(verdict.text if gpu is None else f"GPU {gpu}: {verdict.text}")
        self.code = code
        self.gpu = gpu
        self.text = verdict.text
        self.kind: FaultKind = verdict.kind
        self.fatal = verdict.fatal

    @property
    def driver_gone(self) -> bool:
        """Whether NVML must be opened anew before any call can succeed."""
        return self.code in faults.DRIVER_GONE


class Survey(NamedTuple):
    """Readings of the GPUs that answer, and the errors of those that do not."""

    gpus: tuple[GpuReading, ...]
    broken: tuple[GpuError, ...]


class GpuEvent(NamedTuple):
    """Something that the driver told of a GPU: `type` is an NVML event type, `data` the code of an XID."""

    gpu: int
    type: int
    data: int


class Nvml:
    """NVML, open between `open` and `close`; also a context manager. Calls raise GpuError."""

    def __init__(self) -> None:
        self._open = False

    def open(self) -> None:
        """Raises GpuError, fatal whatever the cause, where there is no driver or none that works."""
        if self._open:
            return
        try:
            _call(pynvml.nvmlInit)
        except GpuError as error:
            raise GpuError(error.code, faults.Verdict(error.kind, True, error.text)) from None
        self._open = True

    def close(self) -> None:
        """Safe to call twice, and when the driver is gone."""
        if self._open:
            self._open = False
            with contextlib.suppress(GpuError):
                _call(pynvml.nvmlShutdown)

    def __enter__(self) -> "Nvml":
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def count(self) -> int:
        """How many GPUs the node has, broken ones that the driver still lists included."""
        return int(_call(pynvml.nvmlDeviceGetCount))

    def handle(self, gpu: int) -> Any:
        """NVML's own name of a GPU. Not kept: a GPU that was reset has another."""
        return _call(pynvml.nvmlDeviceGetHandleByIndex, gpu, gpu=gpu)

    def reading(self, gpu: int) -> GpuReading:
        """One GPU now."""
        handle = self.handle(gpu)
        memory = _call(pynvml.nvmlDeviceGetMemoryInfo, handle, gpu=gpu)
        utilization = _optional(pynvml.nvmlDeviceGetUtilizationRates, handle, gpu=gpu)
        return GpuReading(
            index=gpu,
            uuid=_call(pynvml.nvmlDeviceGetUUID, handle, gpu=gpu),
            name=_call(pynvml.nvmlDeviceGetName, handle, gpu=gpu),
            vram_total_bytes=memory.total,
            vram_used_bytes=memory.used,
            utilization_percent=None if utilization is None else utilization.gpu,
            ecc_uncorrected=_ecc_uncorrected(handle, gpu),
        )

    def survey(self, gpus: Iterable[int]) -> Survey:
        """Read these GPUs. One that does not answer is reported beside the others."""
        found: list[GpuReading] = []
        broken: list[GpuError] = []
        for gpu in gpus:
            try:
                found.append(self.reading(gpu))
            except GpuError as error:
                broken.append(error)
        return Survey(tuple(found), tuple(broken))

    def pids(self, gpu: int) -> tuple[int, ...]:
        """Processes that compute on a GPU, sorted; none where the driver does not tell."""
        running = _optional(pynvml.nvmlDeviceGetComputeRunningProcesses, self.handle(gpu), gpu=gpu)
        return tuple(sorted(process.pid for process in running or ()))

    def bus_id(self, gpu: int) -> str | None:
        """Where a GPU stands on the PCI bus, as sysfs writes it: `0000:65:00.0`."""
        pci = _optional(pynvml.nvmlDeviceGetPciInfo, self.handle(gpu), gpu=gpu)
        return None if pci is None else f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"

    def common_ancestor(self, gpu: int, other: int) -> int | None:
        """The topology level (nvmlGpuTopologyLevel_t) at which the paths of two GPUs meet."""
        level = _optional(pynvml.nvmlDeviceGetTopologyCommonAncestor, self.handle(gpu), self.handle(other), gpu=gpu)
        return None if level is None else int(level)

    def nvlinked(self, gpu: int, other: int) -> bool:
        """Whether NVLink joins two GPUs, directly or by a switch."""
        status = _optional(
            pynvml.nvmlDeviceGetP2PStatus,
            self.handle(gpu),
            self.handle(other),
            pynvml.NVML_P2P_CAPS_INDEX_NVLINK,
            gpu=gpu,
        )
        return status is not None and int(status) == pynvml.NVML_P2P_STATUS_OK


class Events:
    """The driver's events about some GPUs, from when it was made. `complete`: none of them was out of reach."""

    def __init__(self, nvml: Nvml, gpus: Iterable[int]) -> None:
        self._gpus: dict[int | None, int] = {}
        self._set = _optional(pynvml.nvmlEventSetCreate)
        self.complete = True
        for gpu in gpus if self._set is not None else ():
            try:
                self._register(nvml, gpu)
            except GpuError:
                self.complete = False

    def _register(self, nvml: Nvml, gpu: int) -> None:
        handle = nvml.handle(gpu)
        types = (_optional(pynvml.nvmlDeviceGetSupportedEventTypes, handle, gpu=gpu) or 0) & EVENT_TYPES
        if types:
            _call(pynvml.nvmlDeviceRegisterEvents, handle, types, self._set, gpu=gpu)
            self._gpus[_address(handle)] = gpu

    @property
    def told(self) -> bool:
        """Whether any of the GPUs tells of events at all; `wait` is of no use otherwise."""
        return bool(self._gpus)

    def wait(self, timeout_ms: int) -> GpuEvent | None:
        """The next event, or None after `timeout_ms`. Raises GpuError when a GPU or the driver goes away."""
        try:
            data = _call(pynvml.nvmlEventSetWait, self._set, timeout_ms)
        except GpuError as error:
            if error.code == faults.TIMEOUT:
                return None
            raise
        gpu = self._gpus.get(_address(data.device))
        return None if gpu is None else GpuEvent(gpu, data.eventType, data.eventData)

    def close(self) -> None:
        """Stop listening. Safe to call twice."""
        if self._set is not None:
            with contextlib.suppress(GpuError):
                _call(pynvml.nvmlEventSetFree, self._set)
            self._set = None


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _ecc_uncorrected(handle: Any, gpu: int) -> int | None:
    what = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    count = _optional(pynvml.nvmlDeviceGetTotalEccErrors, handle, what, pynvml.NVML_VOLATILE_ECC, gpu=gpu)
    return None if count is None else int(count)


def _call(call: Callable[..., Any], *arguments: Any, gpu: int | None = None) -> Any:
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        code = int(error.value)
        raise GpuError(code, faults.nvml_verdict(code, str(error)), gpu) from None


def _optional(call: Callable[..., Any], *arguments: Any, gpu: int | None = None) -> Any:
    """As `_call`, but None for what the driver does not tell of this GPU or does not know to tell."""
    try:
        return _call(call, *arguments, gpu=gpu)
    except GpuError as error:
        if error.code in faults.UNTOLD:
            return None
        raise
