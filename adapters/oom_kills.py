"""How often the kernel has killed a process for want of memory: a count before and after tells of one between."""

from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")


def oom_kills(root: Path = _ROOT) -> int:
    """The count of this process's own cgroup (version 2), else of the whole host; 0 where neither tells."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        groups = []
    own = [line.removeprefix("0::").lstrip("/") for line in groups if line.startswith("0::")]
    places = [root / "sys/fs/cgroup" / path / "memory.events" for path in own]
    for place in (*places, root / "proc/vmstat"):
        try:
            counts = dict(line.split() for line in place.read_text().splitlines())
            return int(counts["oom_kill"])
        except (OSError, ValueError, KeyError):
            continue
    return 0
