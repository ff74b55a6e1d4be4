"""The files of a model: one, or the numbered shards that gguf-split makes of it."""

import re
from pathlib import Path
from typing import Final

from adapters.digest import files_digest

_SHARD: Final = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_SHARDS_MAX: Final = 1000


def model_files(path: Path) -> list[Path]:
    """All files that an engine loads when it is given `path`, which names the first shard where there are several.

    Raises ValueError for another shard's path.
    """
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if int(match["number"]) != 1 or not 1 <= count <= _SHARDS_MAX:
        raise ValueError(f"it is not the first of {count} shards; `{match['stem']}-00001-of-{count:05}.gguf` would be")
    return [path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def model_digest(path: Path) -> str:
    """`sha256:<hex>` of a model's files. Blocks; raises OSError, and ValueError as `model_files`."""
    return files_digest(model_files(path))
