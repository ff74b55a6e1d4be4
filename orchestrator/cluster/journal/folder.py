"""The journal's folder: one scheduler at a time, and what it must know even if the journal itself is damaged."""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from orchestrator.cluster.journal.clocks import Anchor
from orchestrator.cluster.journal.errors import JournalBusyError, JournalFolderError

JOURNAL: Final = "journal.db"
LOCK: Final = "journal.lock"
#: Damaged journals that are kept to be looked at; older ones go.
DAMAGED_MAX: Final = 3
LOCK_WAIT_S: Final = 10.0
_POLL_S: Final = 0.05
_DAMAGED: Final = "journal-damaged-"
#: Files that sqlite keeps beside a journal; what is not in the journal yet is in the first.
_BESIDE: Final = ("-wal", "-shm")


class Holder(msgspec.Struct, frozen=True):
    """Who has the folder, and what was so at its start."""

    pid: int = 0
    epoch: int = 0
    anchor: Anchor | None = None


class Folder:
    """A folder that no other scheduler uses until it is closed or its process ends. Raises JournalError."""

    def __init__(self, path: Path, wait_s: float | None = None) -> None:
        self.path = path
        self.journal = path / JOURNAL
        self.draft, self._replacement = path / "journal-draft.db", path / "journal-new.db"
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as failed:
            raise JournalFolderError(
                f"the journal's folder {path} cannot be used ({failed.strerror}); make it writable,"
                " or name another as storage.data_dir"
            ) from failed
        self.before = _holder(self._lock)
        try:
            self._take(LOCK_WAIT_S if wait_s is None else wait_s)
        except BaseException:
            os.close(self._lock)
            raise
        self.before = _holder(self._lock)

    def _take(self, wait_s: float) -> None:
        """A scheduler that was just killed may still be on its way out, so a taken lock is tried again."""
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise JournalBusyError(
                        f"another scheduler (process {self.before.pid}) uses the journal in {self.path}; end it,"
                        " or give this one a folder of its own as storage.data_dir"
                    ) from None
            time.sleep(_POLL_S)

    def note(self, epoch: int, anchor: Anchor) -> None:
        """Keep what must be known even without the journal. Raises OSError."""
        text = msgspec.json.encode(Holder(os.getpid(), epoch, anchor))
        os.pwrite(self._lock, text, 0)
        os.ftruncate(self._lock, len(text))
        os.fsync(self._lock)

    # ------------------------------------------------------ another journal in a damaged one's place

    def settle(self) -> None:
        """Finish or undo what an earlier start that was cut short began. Raises OSError."""
        self.drop_draft()
        if self._replacement.exists():
            self._put_in_place()

    def drop_draft(self) -> None:
        """Remove a replacement that is not whole. Raises OSError."""
        for suffix in ("", *_BESIDE):
            Path(f"{self.draft}{suffix}").unlink(missing_ok=True)

    def replace(self) -> Path:
        """The draft is whole and durable: it takes the damaged journal's place; where that is now. Raises OSError.

        From the first rename on the replacement is what counts, whenever the process ends.
        """
        os.rename(self.draft, self._replacement)
        self.sync()
        return self._put_in_place()

    def _put_in_place(self) -> Path:
        """Rename the damaged journal, its log first: that must never lie beside another journal."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        stems = [self.path / f"{_DAMAGED}{stamp}{suffix}" for suffix in ("", *(f"-{n}" for n in range(1, 100)))]
        aside = next(each for each in (Path(f"{stem}.db") for stem in stems) if not each.exists())
        for suffix in (*_BESIDE, ""):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self.journal}{suffix}", f"{aside}{suffix}")
        self.sync()
        os.rename(self._replacement, self.journal)
        self.sync()
        self._prune()
        return aside

    def _prune(self) -> None:
        """Let go of all but the last damaged journals, with what lies beside them."""
        found: dict[str, list[Path]] = {}
        for each in self.path.glob(f"{_DAMAGED}*"):
            found.setdefault(each.name.partition(".db")[0], []).append(each)
        latest = sorted(found.values(), key=lambda files: max(each.stat().st_mtime_ns for each in files))
        for files in latest[:-DAMAGED_MAX]:
            for each in files:
                each.unlink(missing_ok=True)

    def sync(self) -> None:
        """Make names durable."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def close(self) -> None:
        os.close(self._lock)


def _holder(lock: int) -> Holder:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(os.pread(lock, 4096, 0), type=Holder)
    return Holder()
