"""The digest of a model file, remembered between runs so that large files are read once."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from adapters.llamacpp.cache import cache_dir


def model_digest(path: Path) -> str:
    """`sha256:<hex>` of the file's content (ORCH-3032). Blocks while a file is read that is not remembered.

    Remembered by path, inode, size, mtime and ctime; the last cannot be set back by a user.
    Raises OSError where the file cannot be read.
    """
    stat = path.stat()
    identity = f"{path.resolve()}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
    memo = cache_dir() / "digests" / hashlib.sha256(identity.encode()).hexdigest()
    with contextlib.suppress(OSError):
        known = memo.read_text("ascii")
        if len(known) == 64:
            return f"sha256:{known}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        memo.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memo.parent, delete=False) as written:
            written.write(digest)
        os.replace(written.name, memo)
    return f"sha256:{digest}"
