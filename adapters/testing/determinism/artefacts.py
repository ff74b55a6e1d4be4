"""What a red run leaves behind: a file for machines and one for people, for each difference."""

from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from adapters.testing.determinism.goldens import GoldenKey
from adapters.testing.determinism.ledger import Difference

_PREFIX: Final = "difference-"


class Artefact(Struct, frozen=True):
    """One difference, and what it was found on."""

    key: GoldenKey
    replicas: dict[str, str]
    difference: Difference


def write_artefacts(folder: Path, key: GoldenKey, replicas: dict[str, str], found: list[Difference]) -> list[Path]:
    """Write `found` to `folder` in place of what an earlier run left there; the JSON files' paths. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{_PREFIX}*"):
        stale.unlink()
    paths = []
    for number, difference in enumerate(found):
        path = folder / f"{_PREFIX}{number:02}-{difference.scenario.replace(' ', '-')}-{difference.prompt_id}.json"
        artefact = Artefact(key, replicas, difference)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(artefact)) + b"\n")
        path.with_suffix(".txt").write_text(readable(artefact))
        paths.append(path)
    return paths


def readable(artefact: Artefact) -> str:
    """The difference for somebody who wants to see it. Texts are quoted: what differs may be white space."""
    difference, key = artefact.difference, artefact.key
    where = difference.where
    lines = {
        "engine": key.engine_version,
        "model": key.model_digest,
        "profile": key.sampler_profile_version,
        "hardware": key.hardware,
        "arguments": " ".join(key.arguments) or "none of the pool's own",
        "scenario": difference.scenario,
        "replica": f"{difference.replica} ({artefact.replicas.get(difference.replica, 'not told')})",
        "prompt": difference.prompt_id,
        "seed": str(difference.seed),
        "tokens": f"at most {difference.max_tokens}, "
        f"expected {difference.expected.tokens}, found {difference.found.tokens}",
        "end": f"expected {_end(difference, found=False)}, found {_end(difference, found=True)}",
        "parts at": f"token {where.token_index}, byte {where.byte_index}",
        "after": repr(where.common),
        "expected": repr(where.expected),
        "found": repr(where.found),
    }
    return "".join(f"{name:<10} {text}\n" for name, text in lines.items())


def _end(difference: Difference, *, found: bool) -> str:
    transcript = difference.found if found else difference.expected
    return f"{transcript.finish_reason or 'cut off'} after a prompt of {transcript.tokens_in}"
