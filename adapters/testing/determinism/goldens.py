"""Pinned answers: what an engine's build gave here before it must give again (ORCH-3047).

Bits follow the engine's build, the model, the sampler profile, the engine's arguments and the hardware. All of these
are the key, so that a changed build has goldens of its own and is never compared with another one's. They are kept in
the cache directory and never with the sources: another machine has other bits.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, field

from adapters.cache import cache_dir
from adapters.testing.determinism.transcript import Transcript
from contracts.engine import EngineProperties, EngineSpec

#: Answers in one file, and reasons that are remembered.
_ENTRIES_MAX: Final = 20_000
_REASONS_MAX: Final = 16


class GoldenKey(Struct, frozen=True):
    """What bits may depend on. Slots and context are not among it: they must not matter."""

    engine: str
    engine_version: str
    model_digest: str
    sampler_profile_version: str
    hardware: str
    arguments: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where the goldens of this key are kept."""
        digest = hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:24]
        return cache_dir() / "goldens" / f"{self.engine}-{digest}.json"


class Replaced(Struct, frozen=True):
    """Why goldens were pinned anew, and when (UTC)."""

    reason: str
    at: str


class Goldens(Struct, frozen=True):
    """The file: its key in full, for people, and the answers by task name."""

    key: GoldenKey
    answers: dict[str, Transcript] = {}
    replaced: list[Replaced] = field(default_factory=list)


class GoldenError(Exception):
    """A file of goldens cannot be read or written; the text says what to do."""


def golden_key(spec: EngineSpec, properties: EngineProperties, hardware: str) -> GoldenKey:
    """The key of a replica that runs."""
    return GoldenKey(
        engine=spec.engine,
        engine_version=properties.engine_version,
        model_digest=properties.model_digest,
        sampler_profile_version=spec.sampler_profile_version,
        hardware=hardware,
        arguments=(*spec.args, *(f"{name}={value}" for name, value in spec.env)),
    )


def load(key: GoldenKey) -> Goldens:
    """The goldens of `key`, empty where there are none yet. Raises GoldenError for a damaged file."""
    try:
        found = msgspec.json.decode(key.path.read_bytes(), type=Goldens)
    except FileNotFoundError:
        return Goldens(key)
    except (OSError, msgspec.DecodeError) as error:
        raise GoldenError(f"{key.path} cannot be read ({error}); repair it, or remove it to pin anew") from None
    if found.key != key:
        raise GoldenError(f"{key.path} holds goldens of another key; remove it to pin anew")
    return found


def pin(goldens: Goldens, answers: Mapping[str, Transcript], reason: str = "") -> None:
    """Write `answers` beside those that are there, or with a reason in place of all of them. Raises GoldenError."""
    replaced, kept = goldens.replaced, goldens.answers
    if reason:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        replaced, kept = [*replaced, Replaced(reason, at)][-_REASONS_MAX:], {}
    merged = {**kept, **answers}
    if len(merged) > _ENTRIES_MAX:
        merged = dict(answers)
    path = goldens.key.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(msgspec.json.format(msgspec.json.encode(Goldens(goldens.key, merged, replaced))))
        os.replace(file.name, path)
    except OSError as error:
        raise GoldenError(f"goldens cannot be written to {path} ({error}); set LLORCH_CACHE_DIR") from None
