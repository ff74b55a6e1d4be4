"""Numbers of tokens and lengths of time as a scenario writes them, and how they are drawn.

Every size is a whole number: tokens, or milliseconds. A bare number is that number always.
"""

import math
from bisect import bisect
from collections.abc import Callable
from itertools import accumulate
from random import Random
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from contracts.config_base import Section

#: Nothing is drawn above this where the file gives no `max`; heavy tails have no end of their own.
SIZE_MAX: Final = 1_000_000

Draw = Callable[[], int]
Count = Annotated[int, Field(ge=0)]


class Bounded(Section):
    """What is drawn is cut off at `min` and `max`."""

    min: Count = 1
    max: Count = SIZE_MAX

    @model_validator(mode="after")
    def _in_order(self) -> "Bounded":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is over max {self.max}; swap them")
        return self


class Uniform(Bounded):
    """Every number from `min` to `max` equally often."""

    kind: Literal["uniform"]


class Lognormal(Bounded):
    """Half below `median`; `sigma` is the spread of the logarithm (1.0: one in a hundred is ten times the median)."""

    kind: Literal["lognormal"]
    median: Annotated[float, Field(gt=0)]
    sigma: Annotated[float, Field(ge=0, le=5)] = 1.0


class Pareto(Bounded):
    """From `min` upwards with a heavy tail: the chance of more than x falls as (min / x) ** `alpha`."""

    kind: Literal["pareto"]
    alpha: Annotated[float, Field(gt=0)]


class Exponential(Bounded):
    """Memoryless, with the given `mean` before it is cut off."""

    kind: Literal["exponential"]
    mean: Annotated[float, Field(gt=0)]


class Choice(Section):
    """One of a few numbers, each with its share."""

    kind: Literal["choice"]
    of: dict[Count, Annotated[float, Field(gt=0)]] = Field(min_length=1)


Drawn = Annotated[Uniform | Lognormal | Pareto | Exponential | Choice, Field(discriminator="kind")]
Size = Count | Drawn


def drawer(size: Size, rng: Random) -> Draw:
    """A function that draws one size after the other from `rng`."""
    match size:
        case int():
            return lambda: size
        case Uniform():
            return lambda: rng.randint(size.min, size.max)
        case Choice():
            values, cumulative = list(size.of), list(accumulate(size.of.values()))
            return lambda: values[bisect(cumulative, rng.random() * cumulative[-1], 0, len(values) - 1)]
        case Lognormal():
            mu, sigma, lognormal = math.log(size.median), size.sigma, rng.lognormvariate
            return _cut(lambda: lognormal(mu, sigma), size)
        case Pareto():
            low, alpha, pareto = max(1, size.min), size.alpha, rng.paretovariate
            return _cut(lambda: low * pareto(alpha), size)
        case Exponential():
            rate, exponential = 1 / size.mean, rng.expovariate
            return _cut(lambda: exponential(rate), size)


def _cut(draw: Callable[[], float], bounds: Bounded) -> Draw:
    low, high = bounds.min, bounds.max

    def bounded() -> int:
        value = draw()
        if value >= high:
            return high
        return low if value <= low else int(value + 0.5)

    return bounded
