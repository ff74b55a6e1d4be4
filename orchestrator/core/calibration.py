"""How far predictions can be trusted: bias of predicted waits, calibration of predicted chances (ORCH-3081).

All of it is arithmetic on what was predicted and what happened then; nothing here calls a library
function whose last digit may differ between machines.
"""

from typing import Final

from orchestrator.core.averages import Middle, Ratio

#: Deadlines and waits are told apart by their power of two, of about a millisecond.
POWERS: Final = 32

BINS: Final = 20
#: Samples that a bin counts as right for before any was seen in it.
BIN_PRIOR: Final = 5.0
#: What an empty bin weighs where neighbours are pooled: next to nothing, so that it follows them.
BIN_WEIGHT_MIN: Final = 0.01
BIN_FADE: Final = 1.0 - 1.0 / 256.0
#: What is left of a bin at each fit, so that one that nothing falls into any more is forgotten.
FIT_FADE: Final = 0.98
REFIT_SAMPLES: Final = 32


class Bias:
    """How waits turned out against their raw predictions.

    `of` is the mean, per class and per power of two of the deadline: what chances are reckoned with, since
    under earliest deadline first the late deadlines are overtaken. `middle` is the median on top of that, per
    class and per power of two of the expected wait: what a client is told is as likely too long as too short.
    """

    __slots__ = ("_middles", "_ratios")

    def __init__(self, classes: int) -> None:
        self._ratios = [Ratio() for _ in range(classes * POWERS)]
        self._middles = [Middle() for _ in range(classes * POWERS)]

    def of(self, tier: int, deadline_ms: int) -> Ratio:
        """The ratio of class number `tier` and deadlines like this one."""
        return self._ratios[tier * POWERS + _power(deadline_ms)]

    def middle(self, tier: int, wait_ns: int) -> Middle:
        """The median of class number `tier` and expected waits like this one."""
        return self._middles[tier * POWERS + _power(wait_ns >> 20)]


def _power(value: int) -> int:
    power = value.bit_length() if value > 0 else 0
    return power if power < POWERS else POWERS - 1


class Calibration:
    """Corrects probabilities by how often they came true.

    Histogram binning made monotone by isotonic regression (Zadrozny and Elkan, "Obtaining calibrated probability
    estimates from decision trees and naive Bayesian classifiers", ICML 2001; "Transforming classifier scores into
    accurate multiclass probability estimates", KDD 2002). A bin's knot lies at the mean of what was predicted in it,
    drawn to its centre and to the identity while its samples are few; between knots the correction is linear.
    """

    __slots__ = ("_happened", "_predicted", "_samples", "_weights", "_x", "_y")

    def __init__(self) -> None:
        self._weights = [0.0] * BINS
        self._predicted = [0.0] * BINS
        self._happened = [0.0] * BINS
        self._samples = 0
        self._x = [(n + 0.5) / BINS for n in range(BINS)]
        self._y = list(self._x)

    def observe(self, predicted: float, happened: bool) -> None:
        """What was given the chance `predicted`, before any correction, happened or did not."""
        predicted = min(1.0, max(0.0, predicted))
        n = min(BINS - 1, int(predicted * BINS))
        self._weights[n] = self._weights[n] * BIN_FADE + 1.0
        self._predicted[n] = self._predicted[n] * BIN_FADE + predicted
        self._happened[n] = self._happened[n] * BIN_FADE + (1.0 if happened else 0.0)
        self._samples += 1
        if self._samples % REFIT_SAMPLES == 0:
            self._refit()

    def corrected(self, predicted: float) -> float:
        """The chance that something given the chance `predicted` has; never falls as `predicted` grows."""
        if predicted >= 1.0:
            predicted, n = 1.0, BINS - 1
        elif predicted <= 0.0:
            predicted, n = 0.0, 0
        else:
            n = int(predicted * BINS)
        x, y = self._x, self._y
        if predicted < x[n]:
            n -= 1
        if n < 0:
            return min(1.0, max(0.0, y[0] + predicted - x[0]))
        if n == BINS - 1:
            return min(1.0, max(0.0, y[n] + predicted - x[n]))
        width = x[n + 1] - x[n]
        return y[n] + (y[n + 1] - y[n]) * (predicted - x[n]) / width if width > 0.0 else y[n]

    def _refit(self) -> None:
        """Knots from the bins, then neighbours that fall are pooled until none does (pool adjacent violators)."""
        means: list[float] = []
        weights: list[float] = []
        widths: list[int] = []
        for n in range(BINS):
            self._weights[n] *= FIT_FADE
            self._predicted[n] *= FIT_FADE
            self._happened[n] *= FIT_FADE
            believed = self._weights[n] + BIN_PRIOR
            centre = BIN_PRIOR * (n + 0.5) / BINS
            self._x[n] = (self._predicted[n] + centre) / believed
            mean = (self._happened[n] + centre) / believed
            weight = self._weights[n] + BIN_WEIGHT_MIN
            width = 1
            while means and means[-1] > mean:
                pooled = weights.pop()
                mean = (means.pop() * pooled + mean * weight) / (pooled + weight)
                weight += pooled
                width += widths.pop()
            means.append(mean)
            weights.append(weight)
            widths.append(width)
        self._y = [mean for mean, width in zip(means, widths, strict=True) for _ in range(width)]
