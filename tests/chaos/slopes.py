"""What a process's memory and file descriptors do over time: least-squares slopes, and whether they stay flat. Pure."""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

RSS_SLOPE_MAX_MB: Final = 1.0
#: How many more file descriptors than at first there may be at last, by the fitted line and by the ends themselves:
#: connections of clients come and go with the load.
FDS_MORE_MAX: Final = 10
_MB: Final = 1024 * 1024


class Sample(Struct, frozen=True):
    """One look at a process, at seconds since the beginning."""

    at_s: float
    rss_bytes: int
    pss_bytes: int
    fds: int


class Growth(Struct, frozen=True):
    """How a process grew after the warm-up; slopes are by the minute."""

    samples: int
    rss_mb: float
    rss_slope_mb: float
    pss_slope_mb: float
    fds_first: float
    fds_last: float
    fds_slope: float
    faults: tuple[str, ...]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope of y over x; 0 where there are fewer than two distinct x."""
    if not points:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def growth(samples: Sequence[Sample], warm_up_s: float) -> Growth:
    """The verdict on one process: what of it is not flat."""
    used = [sample for sample in samples if sample.at_s >= warm_up_s]
    minutes = [sample.at_s / 60 for sample in used]
    rss = slope([(x, sample.rss_bytes / _MB) for x, sample in zip(minutes, used, strict=True)])
    pss = slope([(x, sample.pss_bytes / _MB) for x, sample in zip(minutes, used, strict=True)])
    fds = slope([(x, float(sample.fds)) for x, sample in zip(minutes, used, strict=True)])
    ends = max(1, len(used) // 10)
    first = sum(sample.fds for sample in used[:ends]) / ends if used else 0.0
    last = sum(sample.fds for sample in used[-ends:]) / ends if used else 0.0
    faults = []
    if len(used) < 3:
        faults.append(f"only {len(used)} samples after the warm-up")
    if rss >= RSS_SLOPE_MAX_MB:
        faults.append(f"RSS grows by {rss:.2f} MB a minute")
    if minutes and fds * (minutes[-1] - minutes[0]) > FDS_MORE_MAX:
        faults.append(f"file descriptors grow by {fds:.2f} a minute")
    if last > first + FDS_MORE_MAX:
        faults.append(f"{last:.0f} file descriptors at last, {first:.0f} at first")
    rss_mb = used[-1].rss_bytes / _MB if used else 0.0
    return Growth(len(used), rss_mb, rss, pss, first, last, fds, tuple(faults))
