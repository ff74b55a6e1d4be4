"""The private folder of one engine's socket, and the clean-up after owners that were killed."""

import shutil
import socket
import tempfile
from pathlib import Path
from typing import Final

SOCKET_NAME: Final = "engine.sock"
_PREFIX: Final = "llorch-engine-"
_SWEEP_MAX: Final = 256


def private_folder() -> Path:
    """A new folder of mode 0700 (OC-ADAPT-5002). Folders whose engine is gone are removed on the way."""
    parent = Path(tempfile.gettempdir())
    for folder, _ in zip(parent.glob(f"{_PREFIX}*"), range(_SWEEP_MAX), strict=False):
        if _abandoned(folder / SOCKET_NAME):
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_PREFIX))


def _abandoned(path: Path) -> bool:
    """Whether the socket exists and nobody listens on it; one that cannot be asked is left alone."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
