"""How long outputs are: histograms of output lengths in which recent samples weigh more (ORCH-3081).

Lengths 1 to 8 have a bucket each, longer ones share four buckets an octave up to 2^20, as in an HDR
histogram; the last bucket takes the rest. Within a bucket lengths count as uniform, except that its mean is
known. Counts grow by a constant factor per sample instead of shrinking the old ones, so that a sample costs
one addition; half a histogram's weight is in its last 500 samples.

An output that ended at its limit is censored: all that is known is that it would have gone on. It counts in
the first bucket that lies wholly above the limit. That is exact whenever lengths are asked for under the same or
a smaller `max_tokens`, and too short for larger ones (Kaplan and Meier, "Nonparametric Estimation from
Incomplete Observations", JASA 1958, would be exact there too).
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from itertools import accumulate
from typing import Final

EXACT: Final = 8
OCTAVES: Final = 17
BUCKETS: Final = EXACT + 4 * OCTAVES + 1
#: 2 ** (1 / 500): after 500 samples a new one weighs twice as much.
GROWTH: Final = 1.0013872557113346
FADE: Final = 1.0 / GROWTH
#: A sample's weight at which all counts are scaled back.
UNIT_MAX: Final = 1e12
#: The first so many samples count at once, later ones together with so many others.
REFRESH_SAMPLES: Final = 32
#: (tenant, workload) pairs kept per replica set.
FAMILIES_MAX: Final = 1024
#: Below this weight, that of 8 samples, a (tenant, workload) is taken to be like its replica set.
FAMILY_WEIGHT_MIN: Final = 7.9
#: Shares of the slices that a distribution is cut into; finer where a task gets late.
# Typed as of any length: mypyc takes a constant tuple of floats for one that was never set.
SHARES: Final[tuple[float, ...]] = (0.1, 0.15, 0.2, 0.2, 0.15, 0.1, 0.07, 0.03)
SLICES: Final = len(SHARES)


def bucket_of(length: int) -> int:
    """The bucket of a length of at least 1."""
    below = length - 1
    if below < EXACT:
        return below
    octave = below.bit_length()
    bucket = EXACT + 4 * (octave - 4) + ((below >> (octave - 3)) & 3)
    return bucket if bucket < BUCKETS else BUCKETS - 1


def _low_edges() -> list[int]:
    """The longest length below each bucket, and the longest of the last."""
    edges = list(range(EXACT))
    for octave in range(OCTAVES + 1):
        edges += [(4 + quarter) << (octave + 1) for quarter in range(4)]
    return edges[: BUCKETS + 1]


LOW: Final = _low_edges()


class Lengths:
    """The lengths of one kind of output. Reading changes no later answer."""

    __slots__ = ("_added", "_below", "_counts", "_edges", "_stale", "_sums", "_sums_below", "_unit", "weight")

    def __init__(self) -> None:
        #: Effective number of samples: the newest counts 1, older ones less.
        self.weight = 0.0
        self._unit = 1.0
        self._counts = [0.0] * BUCKETS
        self._sums = [0.0] * BUCKETS
        self._added = 0
        self._stale = False
        # What is answered from: per bucket the samples below it in weight and in tokens; slice edges, made when asked.
        self._below = [0.0] * (BUCKETS + 1)
        self._sums_below = [0.0] * (BUCKETS + 1)
        self._edges: list[float] = []

    def add(self, length: int, hit_limit: bool = False) -> None:
        """An output was `length` tokens long; `hit_limit`: it would have gone on."""
        if length < 1:
            length = 1
        bucket = bucket_of(length)
        if hit_limit and bucket < BUCKETS - 1:
            bucket += 1
            length = LOW[bucket] + 1
        unit = self._unit * GROWTH
        self._unit = unit
        self._counts[bucket] += unit
        self._sums[bucket] += unit * length
        self.weight = self.weight * FADE + 1.0
        self._added += 1
        # Refreshed at fixed sample counts, or while samples are few whenever read: never dependent on who reads.
        if self._added < REFRESH_SAMPLES:
            self._stale = True
        elif self._added % REFRESH_SAMPLES == 0:
            self._refresh()

    def mean(self, max_tokens: int) -> float:
        """Mean of min(length, `max_tokens`); `max_tokens` while nothing is known."""
        if self._stale:
            self._refresh()
        below = self._below
        total = below[BUCKETS]
        if total <= 0.0:
            return float(max_tokens)
        bucket = bucket_of(max_tokens)
        upto = below[bucket + 1]
        sums = self._sums_below
        here = sums[bucket + 1] - sums[bucket]
        most = (upto - below[bucket]) * max_tokens
        if here > most:
            here = most
        return (sums[bucket] + here + (total - upto) * max_tokens) / total

    def p_at_most(self, limit: int, max_tokens: int, above: int = 0) -> float:
        """P(min(length, `max_tokens`) <= `limit` | length > `above`).

        One more sample, uniform over 1 to `max_tokens`, stands for what has not been seen yet.
        """
        if limit >= max_tokens:
            return 1.0
        if limit <= above:
            return 0.0
        if self._stale:
            self._refresh()
        unseen = self._unit_seen() / max_tokens
        start = self._mass(above) if above > 0 else 0.0
        hit = self._mass(limit) - start + unseen * (limit - above)
        return min(1.0, hit / (self._below[BUCKETS] - start + unseen * (max_tokens - above)))

    def quantile(self, q: float, max_tokens: int) -> int:
        """The smallest length that min(length, `max_tokens`) stays within with probability `q`."""
        if self._stale:
            self._refresh()
        total = self._below[BUCKETS]
        edge = self._length_at(q * total) if total > 0.0 else q * max_tokens
        length = int(edge)
        return max(1, min(max_tokens, length + 1 if length < edge else length))

    def edges(self) -> list[float]:
        """Lengths between which the slices of `SHARES` lie, shortest first; only while `weight` is above 0."""
        if self._stale:
            self._refresh()
        if not self._edges:
            total = self._below[BUCKETS]
            # A whole number stands for what is nearest to it.
            edges = [LOW[max(0, bisect_right(self._below, 0.0) - 1)] + 0.5]
            share = 0.0
            for part in SHARES:
                share += part
                edges.append(self._length_at(min(1.0, share) * total) + 0.5)
            self._edges = edges
        return self._edges

    def _unit_seen(self) -> float:
        """What one sample weighs among those that are answered from."""
        return self._below[BUCKETS] / self.weight if self.weight > 0.0 else 1.0

    def _mass(self, length: int) -> float:
        """Weight of the lengths up to `length`."""
        bucket = bucket_of(length)
        start = self._below[bucket]
        here = self._below[bucket + 1] - start
        low = LOW[bucket]
        width = LOW[bucket + 1] - low
        return start + here * (length - low) / width if length < low + width else start + here

    def _length_at(self, mass: float) -> float:
        """The length up to which the lengths weigh `mass`."""
        bucket = max(0, min(BUCKETS, bisect_left(self._below, mass)) - 1)
        start = self._below[bucket]
        here = self._below[bucket + 1] - start
        share = min(1.0, (mass - start) / here) if here > 0.0 else 1.0
        return LOW[bucket] + share * (LOW[bucket + 1] - LOW[bucket])

    def _refresh(self) -> None:
        if self._unit > UNIT_MAX:
            scale = 1.0 / self._unit
            self._counts = [count * scale for count in self._counts]
            self._sums = [tokens * scale for tokens in self._sums]
            self._unit = 1.0
        self._below = list(accumulate(self._counts, initial=0.0))
        self._sums_below = list(accumulate(self._sums, initial=0.0))
        self._edges = []
        self._stale = False


class LengthTable:
    """Lengths of a whole replica set and of each (tenant, workload) in it; the least recently learnt of go."""

    __slots__ = ("_families", "whole")

    def __init__(self) -> None:
        self.whole = Lengths()
        self._families: OrderedDict[tuple[str, str], Lengths] = OrderedDict()

    def __len__(self) -> int:
        return len(self._families)

    def add(self, tenant: str, workload: str, length: int, hit_limit: bool) -> None:
        """An output of `tenant` was `length` tokens long; `hit_limit`: it would have gone on."""
        self.whole.add(length, hit_limit)
        key = (tenant, workload)
        lengths = self._families.get(key)
        if lengths is None:
            if len(self._families) >= FAMILIES_MAX:
                self._families.popitem(last=False)
            lengths = self._families[key] = Lengths()
        else:
            self._families.move_to_end(key)
        lengths.add(length, hit_limit)

    def of(self, tenant: str, workload: str) -> Lengths:
        """The lengths to reckon with: the (tenant, workload)'s own if known well enough, else the whole set's."""
        lengths = self._families.get((tenant, workload))
        return lengths if lengths is not None and lengths.weight >= FAMILY_WEIGHT_MIN else self.whole
