"""The keys file: API keys that come and go without a restart (ORCH-3035, OC-CTRL-2041).

It is looked at once a second, off the event loop, and read when it changed. A file that cannot be used changes
nothing: the keys that were valid stay so, and the log says what is wrong, without a key or a hash.
"""

import asyncio
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import structlog
import yaml
from pydantic import TypeAdapter, ValidationError

from contracts.config import KeyConfig
from orchestrator.ingress.keyring import Keyring
from orchestrator.ingress.settings import Key

POLL_S: Final = 1.0
FILE_BYTES_MAX: Final = 8 * 1024 * 1024

#: What tells one state of the file from the next: a file put in its place has another inode.
Signature = tuple[int, int, int, int]

_log = structlog.get_logger(__name__)
_entries: Final = TypeAdapter(list[KeyConfig])
#: What the YAML parser quotes from the file, single characters apart.
_quoted: Final = re.compile(r"'[^']{2,}'")


class KeysFileError(Exception):
    """The file cannot be used; the text says why, and names entries by their number, never by what is in them."""


def read_keys(path: Path, taken: Collection[Key] = ()) -> tuple[Key, ...]:
    """The keys of the file. Raises KeysFileError; `taken` are keys whose names and hashes it may not repeat."""
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise KeysFileError(f"it cannot be read: {error.strerror}") from None
    if mode & stat.S_IWOTH:
        raise KeysFileError("everyone on this host may write to it, and so let themselves in: chmod o-w")
    if len(text) > FILE_BYTES_MAX:
        raise KeysFileError(f"it is over {FILE_BYTES_MAX} bytes")
    try:
        entries = _entries.validate_python(_parsed(text), strict=True)
    except ValidationError as error:
        raise KeysFileError(_first_problem(error)) from None
    keys = tuple(Key(entry.name, entry.tenant, entry.sha256, tuple(entry.roles)) for entry in entries)
    _check_distinct(keys, taken)
    for number, entry in enumerate(entries):
        if entry.rps is not None or entry.burst is not None:
            raise KeysFileError(
                f"entry {number}: `rps` and `burst` stand in the configuration only; keys of this file have `auth.rate`"
            )
    return keys


def _parsed(text: bytes) -> Any:
    """The YAML; an empty file is an empty list. Problems are told by their line: the parser's text shows the file's."""
    try:
        return yaml.safe_load(text) or []
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = _quoted.sub("…", error.problem or "")
        raise KeysFileError(f"{line}not YAML: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise KeysFileError(f"not YAML in UTF-8: {type(error).__name__}") from None


def _first_problem(error: ValidationError) -> str:
    """The place in numbers and field names of ours: a key could stand where a name should."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    known = [str(part) for part in problem["loc"] if isinstance(part, int) or part in KeyConfig.model_fields]
    where = f"entry {'.'.join(known)}: " if known else ""
    return f"{where}{'unknown field' if problem['type'] == 'extra_forbidden' else problem['msg']}"


def _check_distinct(keys: tuple[Key, ...], taken: Collection[Key]) -> None:
    names, hashes = {key.name for key in taken}, {key.sha256 for key in taken}
    for number, key in enumerate(keys):
        if key.name in names or key.sha256 in hashes:
            same = "name" if key.name in names else "hash"
            raise KeysFileError(f"entry {number}: its {same} is given twice, here or in the configuration")
        names.add(key.name)
        hashes.add(key.sha256)


class KeysFile:
    """Keeps a keyring to what the file says."""

    def __init__(self, path: Path, keyring: Keyring) -> None:
        self._path = path
        self._keyring = keyring
        self._seen: Signature | None = None
        self._said = ""

    def load(self) -> None:
        """Take over the file as it is now. Never raises: without a usable file there are no keys of it."""
        self._take(*self._look())

    async def watch(self) -> None:
        """Follow the file until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            self._take(*await asyncio.to_thread(self._look))

    def _look(self) -> tuple[Signature | None, tuple[Key, ...] | KeysFileError | None]:
        """State of the file, and what is in it; None: nothing changed. Runs on any thread: it changes nothing."""
        signature = _signature(self._path)
        if signature is not None and signature == self._seen:
            return signature, None
        try:
            return signature, read_keys(self._path, self._keyring.configured)
        except KeysFileError as error:
            return signature, error

    def _take(self, signature: Signature | None, found: tuple[Key, ...] | KeysFileError | None) -> None:
        self._seen = signature
        if isinstance(found, KeysFileError):
            if str(found) != self._said:
                _log.error("keys_file_unusable", path=str(self._path), why=str(found), keys_kept=len(self._keyring))
            self._said = str(found)
        elif found is not None:
            self._said = ""
            self._keyring.replace(found)
            _log.info("keys_loaded", path=str(self._path), from_file=len(found), keys=len(self._keyring))


def _signature(path: Path) -> Signature | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
