"""Chance that an output of random length is done in time (ORCH-3081).

Only additions, multiplications, divisions, comparisons and square roots: every machine finds the same.
"""

from math import sqrt
from typing import Final

from orchestrator.core.lengths import SHARES, SLICES, Lengths

#: From this weight of lengths on, what has not been seen yet no longer counts.
SEEN_WEIGHT: Final = 64.0
#: Beyond so many standard deviations a normal distribution ends.
NORMAL_END: Final = 4.0


def normal_at_most(z: float) -> float:
    """P(Z <= z) of a standard normal Z, within 2.5e-4.

    Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.2.18: monotone, and made of
    additions, multiplications and divisions, so that every machine finds the same.
    """
    x = z if z >= 0.0 else -z
    if x >= NORMAL_END:
        return 1.0 if z > 0.0 else 0.0
    root = 1.0 + x * (0.196854 + x * (0.115194 + x * (0.000344 + x * 0.019527)))
    square = root * root
    tail = 0.5 / (square * square)
    return 1.0 - tail if z >= 0.0 else tail


def p_within(lengths: Lengths, left_ns: float, decode_ns: float, max_tokens: int, variance: float) -> float:
    """P(delay + `decode_ns` * min(length, `max_tokens`) <= `left_ns`), the delay normal around 0.

    The distribution of lengths is cut into slices of fixed shares; each becomes a normal distribution
    of the slice's mean and variance. One more sample, uniform over 1 to `max_tokens`, stands for what has
    not been seen yet.
    """
    weight = lengths.weight
    chance = _slices_within(lengths, left_ns, decode_ns, max_tokens, variance) if weight > 0.0 else 0.0
    if weight < SEEN_WEIGHT:
        span = decode_ns * max_tokens
        unseen = normal_at_most((left_ns - 0.5 * span) / sqrt(variance + span * span / 12.0))
        chance = (chance * weight + unseen) / (weight + 1.0)
    return min(1.0, chance)


def _slices_within(lengths: Lengths, left_ns: float, decode_ns: float, max_tokens: float, variance: float) -> float:
    edges = lengths.edges()
    scale = decode_ns * decode_ns / 12.0
    low = edges[0]
    chance = 0.0
    reached = 0.0
    for n in range(SLICES):
        if low >= max_tokens:
            break
        share = SHARES[n]
        high = edges[n + 1]
        if high > max_tokens:
            share *= (max_tokens - low) / (high - low)
            high = max_tokens
        width = high - low
        z = (left_ns - 0.5 * (low + high) * decode_ns) / sqrt(variance + scale * width * width)
        if z >= NORMAL_END:
            chance += share
        elif z > -NORMAL_END:
            chance += share * normal_at_most(z)
        reached += share
        if high == max_tokens:
            break
        low = high
    if reached >= 1.0:
        return chance
    # All that would be longer ends at `max_tokens`.
    return chance + (1.0 - reached) * normal_at_most((left_ns - max_tokens * decode_ns) / sqrt(variance))
