"""Moving means and what is made of them: a quotient, a line, a ratio of outcomes to predictions (ORCH-3029).

Only additions, multiplications, divisions and comparisons: every machine finds the same.
"""

from typing import Final

#: Moving means remember about this many samples.
MEMORY: Final = 64
#: Part of the squared mean by which a line's variance is raised.
RIDGE: Final = 1.0 / 16.0
#: A single sample moves a ratio as if it were within [1 / this, this].
RATIO_MAX: Final = 8.0
#: Samples that a ratio of 1 counts for before any was seen.
RATIO_PRIOR: Final = 4.0
#: Old samples of a ratio fade by this per sample: it remembers about 64.
RATIO_FADE: Final = 1.0 - 1.0 / 64.0
#: Relative standard deviation before any sample was seen.
SPREAD_GUESS: Final = 0.5
#: Standard deviation per mean absolute error of a normal distribution: sqrt(pi / 2).
SPREAD_PER_ERROR: Final = 1.2533141373155001

#: The median of ratios moves by one part in so many at least.
MIDDLE_MEMORY: Final = 31


class Quotient:
    """Quotient of two moving means: large samples weigh as much as they are large."""

    __slots__ = ("over", "samples", "under")

    def __init__(self) -> None:
        self.samples = 0
        self.over = 0.0
        self.under = 0.0

    def learn(self, over: float, under: float) -> None:
        """One more sample of both."""
        samples = self.samples
        if samples < MEMORY:
            self.samples = samples = samples + 1
        self.over += (over - self.over) / samples
        self.under += (under - self.under) / samples

    def value(self, guess: float) -> float:
        """The quotient; `guess` before the first sample."""
        return self.over / self.under if self.under > 0.0 else guess


class Line:
    """Moving least squares of y = start + slope x, neither negative.

    While the samples' x hardly differ the line goes through the origin: the variance is raised by a
    part of the squared mean (ridge regression towards the quotient of the means).
    """

    __slots__ = ("_cov", "_var", "_x", "_y", "samples", "slope", "start")

    def __init__(self) -> None:
        self.samples = 0
        self.slope = 0.0
        self.start = 0.0
        self._x = 0.0
        self._y = 0.0
        self._var = 0.0
        self._cov = 0.0

    def learn(self, x: float, y: float) -> None:
        """One more sample; `x` is at least 1."""
        if self.samples < MEMORY:
            self.samples += 1
        rate = 1.0 / self.samples
        dx = x - self._x
        dy = y - self._y
        keep = 1.0 - rate
        self._x += dx * rate
        self._y += dy * rate
        self._var = keep * (self._var + rate * dx * dx)
        self._cov = keep * (self._cov + rate * dx * dy)
        ridge = self._x * RIDGE
        slope = (self._cov + ridge * self._y) / (self._var + ridge * self._x)
        start = self._y - slope * self._x
        if slope < 0.0:
            slope, start = 0.0, self._y
        elif start < 0.0:
            slope, start = self._y / self._x, 0.0
        self.slope = slope
        self.start = start


class Ratio:
    """Moving ratio of what happened to what was predicted: a quotient of sums, so that large ones weigh more."""

    __slots__ = ("_actual", "_error", "_predicted", "_weight")

    def __init__(self) -> None:
        self._weight = 0.0
        self._actual = 0.0
        self._predicted = 0.0
        self._error = 0.0

    def learn(self, predicted: float, actual: float) -> None:
        """`predicted` turned out as `actual`; predictions of nothing teach nothing."""
        if predicted <= 0.0:
            return
        actual = min(predicted * RATIO_MAX, max(predicted / RATIO_MAX, actual))
        expected = predicted * self.factor()
        error = actual / expected - 1.0
        self._error = self._error * RATIO_FADE + (error if error >= 0.0 else -error)
        self._weight = self._weight * RATIO_FADE + 1.0
        self._actual = self._actual * RATIO_FADE + actual
        self._predicted = self._predicted * RATIO_FADE + predicted

    def factor(self) -> float:
        """What to multiply a prediction by."""
        if self._weight <= 0.0:
            return 1.0
        return (self._actual / self._predicted * self._weight + RATIO_PRIOR) / (self._weight + RATIO_PRIOR)

    def spread(self) -> float:
        """Relative standard deviation of what happened around the corrected prediction."""
        errors = self._error * SPREAD_PER_ERROR + RATIO_PRIOR * SPREAD_GUESS
        return errors / (self._weight + RATIO_PRIOR)


class Middle:
    """Running median of ratios, by one number: a step up when it was too low, down when it was too high.

    Ma, Muthukrishnan, Sandler: "Frugal Streaming for Estimating Quantiles", 2013. Steps are factors, large
    at first.
    """

    __slots__ = ("_samples", "factor")

    def __init__(self) -> None:
        self.factor = 1.0
        self._samples = 0

    def learn(self, predicted: float, actual: float) -> None:
        """`predicted` turned out as `actual`."""
        if self._samples < MIDDLE_MEMORY:
            self._samples += 1
        step = 1.0 + 1.0 / (1 + self._samples)
        if actual > predicted * self.factor:
            self.factor = min(RATIO_MAX, self.factor * step)
        else:
            self.factor = max(1.0 / RATIO_MAX, self.factor / step)
