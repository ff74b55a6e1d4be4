"""Where files are kept between runs."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$LLORCH_CACHE_DIR`, else `~/.cache/llorch`. Not created here."""
    configured = os.environ.get("LLORCH_CACHE_DIR")
    return Path(configured) if configured else Path.home() / ".cache" / "llorch"
