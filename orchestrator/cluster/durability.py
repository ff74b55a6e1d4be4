"""Between the scheduler's shell and its journal: what a step changed is put, what it tells waits until that is durable.

A commit that does not return is no better than one that fails: after `STALL_S` the core is told that nothing can be
made durable, so that what is held stays bounded by what arrives in that time.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec
import structlog

from contracts import scheduling as ev
from contracts.errors import ErrorInfo
from contracts.journal import Record
from orchestrator.cluster.held import HeldMessages, Receiver
from orchestrator.cluster.journal.store import NoJournal, Store
from orchestrator.cluster.live import LiveTask
from orchestrator.core.refusals import not_durable

log = structlog.get_logger(__name__)

STALL_S: Final = 5.0


class Durability:
    """Holds the messages of each step until its records are durable. `tell` tells the core."""

    def __init__(self, live: Mapping[str, LiveTask], tell: Callable[[ev.AnyEvent], None]) -> None:
        self._live = live
        self._tell = tell
        self._store: Store = NoJournal()
        #: Whether anything is kept: if not, nobody need find out what changed.
        self.is_on = False
        self._held = HeldMessages()
        self._transcripts: dict[str, bytes | None] = {}
        #: What the messages of the present step wait for; 0: nothing.
        self._step = 0
        self._put = self._durable = 0
        self._stall: asyncio.TimerHandle | None = None
        self._is_stalled = False
        self._is_down = False
        self._reason = ""

    def start(self, store: Store) -> None:
        """Use a store from now on; must be called on the event loop."""
        self._store = store
        self.is_on = not isinstance(store, NoJournal)
        store.start(self)

    async def close(self) -> None:
        """Commit what waits; what was held for it leaves."""
        await self._store.close()
        await asyncio.sleep(0)  # what the store told last is on its way
        if self._stall is not None:
            self._stall.cancel()

    # ------------------------------------------------------------------------ steps

    def transcript(self, task_id: str, tokens: bytes) -> None:
        """A task has a transcript; it is put with the next step, which is that of its attempt's end."""
        if self.is_on:
            self._transcripts[task_id] = tokens

    def begin(self, records: list[Record], commands: Iterable[ev.AnyCommand]) -> None:
        """Put what a step changed, before its commands are carried out."""
        self._step = 0
        if not records and not self._transcripts:
            return
        payloads: dict[str, bytes] = {}
        for command in commands:
            if isinstance(command, ev.Admit):
                if not command.replayed:
                    payloads[command.task_id] = self._live[command.task_id].payload
            elif isinstance(command, ev.DropTranscript):
                self._transcripts[command.task_id] = None
        transcripts, self._transcripts = self._transcripts, {}
        self._step = self._store.put(records, payloads, transcripts)
        self._put = max(self._put, self._step)
        if self._stall is None and self._step > self._durable:
            self._watch()

    def end(self) -> None:
        """The step's commands are carried out: what is posted from now on belongs to none."""
        self._step = 0

    def post(self, receiver: Receiver, message: msgspec.Struct, subject: str = "") -> None:
        """Send a message of the present step, or of none, in its turn."""
        self._held.post(receiver, message, subject, self._step)

    def heard(self, replica: Receiver, event: ev.AnyEvent) -> None:
        """A replica tells something. If its engine is down, attempts whose start is held were lost with it."""
        if isinstance(event, ev.ReplicaUnready | ev.ReplicaLoading):
            self._held.drop_starts(replica)

    def refusal(self, subject: str) -> ErrorInfo | None:
        """Why a question about a subject cannot be answered at present; None if it can."""
        return not_durable(self._reason) if self._held.is_stuck(subject) else None

    # ---------------------------------------------------------------------- the store

    def durable(self, sequence: int) -> None:
        self._durable = sequence
        self._held.durable(sequence)
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._put > sequence:
            self._watch()
        if self._is_stalled and not self._is_down:
            self._is_stalled = False
            self._go_on()

    def failed(self, reason: str, undone: tuple[str, ...]) -> None:
        self._is_down = True
        self._hold(reason, undone)

    def restored(self) -> None:
        self._is_down = self._is_stalled = False
        self._go_on()

    def _hold(self, reason: str, undone: tuple[str, ...]) -> None:
        self._reason = reason
        self._held.failed(frozenset(undone), not_durable(reason))
        self._tell(ev.JournalFailed(reason, undone))

    def _go_on(self) -> None:
        self._held.restored()
        self._tell(ev.JournalRestored())

    def _watch(self) -> None:
        self._stall = asyncio.get_running_loop().call_later(STALL_S, self._stalled, self._durable)

    def _stalled(self, durable: int) -> None:
        """A commit took too long. Its admissions are not undone: it may still succeed."""
        self._stall = None
        if self._durable == durable and not self._is_down and not self._is_stalled:
            self._is_stalled = True
            log.error("journal.stalled", after_s=STALL_S, held=len(self._held))
            self._hold(f"a commit takes longer than {STALL_S:g} s", ())
