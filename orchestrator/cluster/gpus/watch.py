"""Watching a replica's GPUs: a thread that waits for the driver's events and reads the GPUs now and then.

Events tell of errors at once, but only while the driver lives; reading finds GPUs that are lost, drivers that
were reset, and uncorrected memory errors of GPUs without events (ORCH-3038, ORCH-3053, OC-POOL-3010).
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from contracts.gpus import GpuCounts, GpuReading
from contracts.pools import FaultKind
from orchestrator.cluster.gpus import faults
from orchestrator.cluster.gpus.nvml import DOUBLE_BIT_EVENT, XID_EVENT, Events, GpuError, GpuEvent, Nvml

#: How long one wait for events lasts; `stop` takes as long at most, the driver's own calls aside.
WAIT_MS: Final = 250
POLL_S: Final = 2.0
#: Between attempts to open a driver that is gone.
REOPEN_S: Final = 1.0
#: An event's fault that did not come again for so long is over, and is told when it comes once more.
QUIET_NS: Final = 60 * 10**9
_JOIN_S: Final = 1.0


class GpuFault(Struct, frozen=True):
    """An error of a GPU or its driver. `fatal`: an engine on it can be of no use any more; else it may finish first."""

    kind: FaultKind
    fatal: bool
    message: str
    gpu: int | None = None


class _Told(Struct):
    """A fault that was told: how bad, when it was last seen, and whether it lasts until a reading succeeds."""

    fatal: bool
    seen_ns: int
    lasts: bool


class FaultLog:
    """Which faults were told already: each once until it is over, and again when it gets worse.

    A fault is over when its GPU answers again, or for one that the driver only told of, after `QUIET_NS`.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[int | None, FaultKind], _Told] = {}

    def is_news(self, fault: GpuFault, now_ns: int, *, lasts: bool) -> bool:
        """Whether to tell of a fault; it counts as told from here on."""
        key = (fault.gpu, fault.kind)
        told = self._told.get(key)
        if told is None or (now_ns - told.seen_ns > QUIET_NS and not told.lasts):
            self._told[key] = _Told(fault.fatal, now_ns, lasts)
            return True
        worse = fault.fatal and not told.fatal
        self._told[key] = _Told(fault.fatal or told.fatal, now_ns, lasts or told.lasts)
        return worse

    def answers(self, gpu: int | None) -> None:
        """A GPU (None: the driver) answers: faults that were found by its silence are over."""
        self._told = {key: told for key, told in self._told.items() if key[0] != gpu or not told.lasts}


class GpuWatch:
    """Watches some GPUs of this node and calls `tell` in `loop` for each new fault.

    `readings` and `counts` may be read from any thread; they are those of the last look.
    """

    def __init__(
        self,
        devices: Sequence[int],
        tell: Callable[[GpuFault], None],
        loop: asyncio.AbstractEventLoop,
        poll_s: float = POLL_S,
    ) -> None:
        self._devices = tuple(devices)
        self._tell = tell
        self._loop = loop
        self._poll_s = poll_s
        self._log = FaultLog()
        self._names: dict[int, str] = {}
        self._uncorrected: dict[int, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-watch", daemon=True)
        self.readings: tuple[GpuReading, ...] = ()
        self.counts = GpuCounts()

    def start(self) -> None:
        """Begin; without devices there is nothing to do."""
        if self._devices:
            self._thread.start()

    def stop(self) -> None:
        """End within a second; a thread that a dead driver holds is left behind. Nothing is told after this."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)

    def renew(self) -> None:
        """A new engine is about to use the GPUs: tell of faults again that were told of while the last one ran."""
        self._log = FaultLog()

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with Nvml() as nvml, contextlib.closing(Events(nvml, self._devices)) as events:
                    self._watch(nvml, events)
            except GpuError as error:
                self.readings = ()
                self._failed(error)
            self._stopping.wait(REOPEN_S)

    def _watch(self, nvml: Nvml, events: Events) -> None:
        """Watch until stopped, or until GPUs are back that have to be registered for events anew."""
        intact = events.complete
        look_s = time.monotonic()
        while not self._stopping.is_set():
            if time.monotonic() >= look_s:
                look_s = time.monotonic() + self._poll_s
                all_answer = self._look(nvml)
                if all_answer and not intact:
                    return
                intact = all_answer
            try:
                if not events.told:
                    self._stopping.wait(WAIT_MS / 1000)
                elif (event := events.wait(WAIT_MS)) is not None:
                    self._happened(event)
            except GpuError as error:
                if error.driver_gone:
                    raise
                # The error does not say which GPU; if none shows it when read, it is told as it is.
                intact = False
                if self._look(nvml):
                    self._found(GpuFault(error.kind, error.fatal, str(error)))
                self._stopping.wait(WAIT_MS / 1000)

    def _look(self, nvml: Nvml) -> bool:
        """Read the GPUs; whether all answer. Raises GpuError when NVML must be opened anew."""
        survey = nvml.survey(self._devices)
        for error in survey.broken:
            if error.driver_gone:
                raise error
            self._failed(error)
        self._log.answers(None)
        for reading in survey.gpus:
            self._log.answers(reading.index)
            self._names[reading.index] = f"GPU {reading.index} ({reading.uuid})"
            self._check_ecc(reading)
        self.readings = survey.gpus
        return not survey.broken

    def _check_ecc(self, reading: GpuReading) -> None:
        now = reading.ecc_uncorrected
        if now is None:
            return
        before = self._uncorrected.get(reading.index, now)
        self._uncorrected[reading.index] = now
        # Fewer than before: the driver was loaded anew and counts from zero.
        if now > before:
            self._count(ecc_uncorrected=now - before)
            text = (
                f"{self._name(reading.index)}: {now - before} uncorrected ECC errors, {now} since the driver was loaded"
            )
            self._found(GpuFault("ecc", False, text, reading.index))

    def _happened(self, event: GpuEvent) -> None:
        name = self._name(event.gpu)
        if event.type == XID_EVENT:
            self._count(xids=1)
            if event.data != faults.XID_OF_ENDED_PROCESS:
                kind, fatal, text = faults.xid_verdict(event.data)
                self._found(GpuFault(kind, fatal, f"{name}: XID {event.data}: {text}", event.gpu))
        elif event.type == DOUBLE_BIT_EVENT:
            if event.gpu not in self._uncorrected:
                self._count(ecc_uncorrected=1)
            self._found(GpuFault("ecc", True, f"{name}: double-bit ECC error", event.gpu))
        else:
            self._count(ecc_corrected=1)

    def _failed(self, error: GpuError) -> None:
        """A call failed; a driver that is gone is one fault, whichever GPU it was asked about."""
        gpu = None if error.driver_gone else error.gpu
        message = error.text if gpu is None else f"{self._name(gpu)}: {error.text}"
        self._found(GpuFault(error.kind, error.fatal, message, gpu), lasts=True)

    def _name(self, gpu: int) -> str:
        return self._names.get(gpu, f"GPU {gpu}")

    def _found(self, fault: GpuFault, *, lasts: bool = False) -> None:
        if self._stopping.is_set() or not self._log.is_news(fault, time.monotonic_ns(), lasts=lasts):
            return
        # The loop may have ended before the watch was stopped.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, fault)

    def _deliver(self, fault: GpuFault) -> None:
        if not self._stopping.is_set():
            self._tell(fault)

    def _count(self, *, ecc_corrected: int = 0, ecc_uncorrected: int = 0, xids: int = 0) -> None:
        """The counts are replaced whole, so that a reader in another thread never sees half of a change."""
        now = self.counts
        self.counts = GpuCounts(
            ecc_corrected=now.ecc_corrected + ecc_corrected,
            ecc_uncorrected=now.ecc_uncorrected + ecc_uncorrected,
            xids=now.xids + xids,
        )
