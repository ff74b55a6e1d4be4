"""Carries the plan of faults out, and notes for each when it was done and when what it broke was back."""

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from tests.chaos.cluster import ChaosCluster
from tests.chaos.history import NOT_DONE, FaultRecord
from tests.chaos.plan import FaultPlan
from tests.chaos.sockets import Link, cut, links, lossy
from tests.chaos.watch import PERIOD_S, Watch

#: A victim that is not back by then is told as such.
BACK_MAX_S: Final = 120.0
#: How long a fault other than a kill waits for something that it can be done to.
PATIENCE_S: Final = 20.0
NOTE_MAX: Final = 500
_MISSING_NOTE: Final = f"{NOT_DONE}nothing of the kind was there"


class Faults:
    """Runs faults at their times, each in a thread of its own: some last, all are followed until made good."""

    def __init__(self, cluster: ChaosCluster, watch: Watch, now_s: Callable[[], float]) -> None:
        self._cluster = cluster
        self._watch = watch
        self._now_s = now_s
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        #: Kinds that were killed and are not back, so that two of a kind are not missing at once.
        self._broken: set[str] = set()
        self.records: list[FaultRecord] = []

    def run(self, plans: Sequence[FaultPlan]) -> None:
        """Do all of them in time; returns when the last was begun."""
        for plan in plans:
            if self._stop.wait(max(0.0, plan.at_s - self._now_s())):
                return
            thread = threading.Thread(target=self._do, args=(plan,), name=plan.kind, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._stop.set()

    def settle(self, timeout_s: float) -> None:
        """Wait until what was broken is back, and put right what only lasted."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        self._cluster.go_on()

    def _do(self, plan: FaultPlan) -> None:
        record = FaultRecord(plan.kind, plan.kind, self._now_s())
        try:
            verb, _, what = plan.kind.partition(" ")
            if verb == "kill":
                self._kill(plan, record)
            elif verb == "end":
                self._end(plan, what, record)
            elif verb == "stop":
                self._pause(plan, what, record)
            elif verb == "cut":
                self._cut(plan, what.split()[0], record)
            elif verb == "lose":
                self._lose(plan, what.split()[0], record)
            elif plan.kind == "disk full":
                self._fill_disk(plan, record)
            else:
                self._step_clock(plan, record)
        except (OSError, AssertionError, subprocess.SubprocessError) as failed:
            # A victim that had died since the watch looked is none. A node that was killed and not replaced was killed
            # all the same: it is told as not back.
            how = "" if record.victim else NOT_DONE
            record.note = f"{how}{type(failed).__name__}: {failed}"[:NOTE_MAX]
            self._note(record)

    def _note(self, record: FaultRecord) -> None:
        with self._lock:
            if record not in self.records:
                self.records.append(record)

    def _victim(self, kind: str, pick: float) -> int:
        """A live process of a kind; 0: there is none."""
        alive = sorted(self._watch.alive(kind))
        return alive[int(pick * len(alive))] if alive else 0

    def _awaited_victim(self, kind: str, plan: FaultPlan) -> int:
        """The same, once there is one."""
        until_s = self._now_s() + PATIENCE_S
        while not (pid := self._victim(kind, plan.pick)) and self._now_s() < until_s and not self._stop.is_set():
            time.sleep(PERIOD_S)
        return pid

    # --------------------------------------------------------------------------- kills

    def _kill(self, plan: FaultPlan, record: FaultRecord) -> None:
        kind = self._free_kind((plan.kind, *plan.otherwise))
        if not kind:
            record.note = f"{NOT_DONE}all kinds were missing one"
            return self._note(record)
        what = kind.removeprefix("kill ")
        try:
            pid = self._victim(what, plan.pick)
            record.kind, record.at_s = kind, self._now_s()
            node = self._watch.alive(what).get(pid, "")
            os.kill(pid, signal.SIGKILL)
            record.victim = f"{what} {pid}"
            self._note(record)
            if what == "node":
                record.victim = f"node {node}"
                record.note = f"{self._cluster.add_node()} joined"
            self._follow(record, what, pid)
        finally:
            with self._lock:
                self._broken.discard(kind)
        return None

    def _free_kind(self, kinds: Sequence[str]) -> str:
        """The first kind of which all live; it counts as broken from now on."""
        with self._lock:
            for kind in kinds:
                if kind not in self._broken and self._watch.is_whole(kind.removeprefix("kill ")):
                    self._broken.add(kind)
                    return kind
        return ""

    def _end(self, plan: FaultPlan, what: str, record: FaultRecord) -> None:
        """SIGTERM, as a rolling restart does it, one of a kind at a time: the process ends in order."""
        kinds, until_s = (f"kill {what}",), self._now_s() + PATIENCE_S
        while not (kind := self._free_kind(kinds)):
            if self._now_s() > until_s or self._stop.is_set():
                record.note = _MISSING_NOTE
                return self._note(record)
            time.sleep(PERIOD_S)
        try:
            pid = self._victim(what, plan.pick)
            record.at_s = self._now_s()
            os.kill(pid, signal.SIGTERM)
            record.victim = f"{what} {pid}"
            self._note(record)
            self._follow(record, what, pid)
            record.until_s = record.back_s
        finally:
            with self._lock:
                self._broken.discard(kind)
        return None

    def _follow(self, record: FaultRecord, what: str, pid: int) -> None:
        """Note when the kind is whole again; for a node, when all is that died with it; HAProxy, when it serves."""
        until_s = self._now_s() + BACK_MAX_S
        time.sleep(2 * PERIOD_S)  # the watch has looked since
        while self._now_s() < until_s:
            if self._is_back(what, pid):
                record.back_s = self._now_s()
                return
            time.sleep(PERIOD_S)

    def _is_back(self, what: str, pid: int) -> bool:
        if what == "node":
            return all(self._watch.is_whole(kind) for kind in ("node", "engine", "replica", "ingress"))
        if what == "haproxy":
            return self._watch.is_whole(what, without=pid) and self._cluster.haproxy_serves()
        return self._watch.is_whole(what, without=pid)

    # -------------------------------------------------------------------------- others

    def _pause(self, plan: FaultPlan, what: str, record: FaultRecord) -> None:
        """SIGSTOP, and SIGCONT after a while: alive, and silent."""
        pid = self._awaited_victim(what, plan)
        if not pid:
            record.note = _MISSING_NOTE
            return self._note(record)
        record.at_s = self._now_s()
        os.kill(pid, signal.SIGSTOP)
        record.victim, record.until_s = f"{what} {pid}", record.at_s + plan.lasts_ms / 1000
        self._note(record)
        try:
            time.sleep(plan.lasts_ms / 1000)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        record.back_s = self._now_s()
        return None

    def _cut(self, plan: FaultPlan, what: str, record: FaultRecord) -> None:
        """Shut one connection of a channel down, from outside."""
        found = self._link(plan, what)
        if found is None:
            record.note = _MISSING_NOTE
            return self._note(record)
        pid, link = found
        record.at_s = self._now_s()
        cut(pid, link.fd)
        record.victim, record.until_s = f"{what} {pid}, {link.name}", self._now_s()
        record.back_s = record.until_s
        self._note(record)
        return None

    def _lose(self, plan: FaultPlan, what: str, record: FaultRecord) -> None:
        """Nothing that is sent over one connection arrives, for a while."""
        found = self._link(plan, what, tcp=True)
        if found is None:
            record.note = _MISSING_NOTE
            return self._note(record)
        pid, link = found
        record.at_s = self._now_s()
        with lossy(pid, link.fd):
            record.victim, record.until_s = f"{what} {pid}, {link.name}", record.at_s + plan.lasts_ms / 1000
            self._note(record)
            time.sleep(plan.lasts_ms / 1000)
        record.back_s = self._now_s()
        return None

    def _link(self, plan: FaultPlan, what: str, *, tcp: bool = False) -> tuple[int, Link] | None:
        """A process of a kind and one of the connections to it, as soon as there is any; None: there was none."""
        until_s = self._now_s() + PATIENCE_S
        while self._now_s() < until_s and not self._stop.is_set():
            pid = self._victim(what, plan.pick)
            found = [link for link in links(pid) if link.is_tcp or not tcp] if pid else []
            if found:
                return pid, found[int(plan.pick * 7919 % 1 * len(found))]
            time.sleep(PERIOD_S)
        return None

    def _fill_disk(self, plan: FaultPlan, record: FaultRecord) -> None:
        """No file of the scheduler may grow: each write fails, as on a full disk."""
        pid = self._awaited_victim("scheduler", plan)
        if not pid:
            record.note = _MISSING_NOTE
            return self._note(record)
        record.at_s = self._now_s()
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
        record.victim, record.until_s = f"scheduler {pid}", record.at_s + plan.lasts_ms / 1000
        self._note(record)
        try:
            time.sleep(plan.lasts_ms / 1000)
        finally:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        record.back_s = self._now_s()
        return None

    def _step_clock(self, plan: FaultPlan, record: FaultRecord) -> None:
        """The time of day jumps, and stays there until the next jump."""
        record.at_s, record.victim = self._now_s(), f"{plan.lasts_ms / 1000:+.0f} s"
        self._cluster.clock.set(plan.lasts_ms)
        record.until_s = record.back_s = self._now_s()
        self._note(record)
