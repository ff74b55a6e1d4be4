"""The digest of a model's files, remembered between runs so that large files are read once."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from adapters.cache import cache_dir

_PIECE_BYTES: Final = 1024 * 1024


def folder_digest(files: Mapping[str, Path]) -> str:
    """`sha256:<hex>` over the names and digests of `files`, in the order of the names. Raises OSError."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{files_digest([files[name]])}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def files_digest(files: Sequence[Path]) -> str:
    """`sha256:<hex>` of the contents, one after another (ORCH-3032).

    Blocks while files are read that are not remembered. Remembered by path, inode, size, mtime and ctime; the
    last cannot be set back by a user. Raises OSError where a file cannot be read.
    """
    identity = "\0".join(_identity(file) for file in files)
    memo = cache_dir() / "digests" / hashlib.sha256(identity.encode()).hexdigest()
    with contextlib.suppress(OSError):
        known = memo.read_text("ascii")
        if len(known) == 64:
            return f"sha256:{known}"
    digest = _digest(files)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        memo.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memo.parent, delete=False) as written:
            written.write(digest)
        os.replace(written.name, memo)
    return f"sha256:{digest}"


def _identity(file: Path) -> str:
    stat = file.stat()
    return f"{file.resolve()}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
    return digest.hexdigest()
