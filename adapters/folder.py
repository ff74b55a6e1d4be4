"""The private folder of one engine's sockets, and the clean-up after owners that were killed.

Its owner holds a lock on a file in it for as long as it lives; the kernel drops the lock with its holder. So whether a
folder is abandoned never depends on how far its engine has come.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

SOCKET_NAME: Final = "engine.sock"
_PREFIX: Final = "llorch-engine-"
_LOCK: Final = "owner.lock"
_SWEEP_MAX: Final = 256
#: Descriptors of the locks that this process holds, by folder.
_held: Final[dict[Path, int]] = {}


def private_folder() -> Path:
    """A new folder of mode 0700 (OC-ADAPT-5002), until `remove_folder`. Those of dead owners are removed on the way."""
    parent = Path(tempfile.gettempdir())
    for folder, _ in zip(parent.glob(f"{_PREFIX}*"), range(_SWEEP_MAX), strict=False):
        if _abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    # The lock is taken before the file has its name: nobody ever finds it free while its owner lives.
    nameless = folder / f".{_LOCK}"
    descriptor = os.open(nameless, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    nameless.rename(folder / _LOCK)
    _held[folder] = descriptor
    return folder


def remove_folder(folder: Path) -> None:
    """The engine has ended. Safe to repeat."""
    shutil.rmtree(folder, ignore_errors=True)
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)


def _abandoned(folder: Path) -> bool:
    """Whether nobody holds its lock; one that has none (yet), or that is somebody else's, is left alone."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    return True
