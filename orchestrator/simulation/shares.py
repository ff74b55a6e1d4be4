"""Who got how much of what was there to get: shares against weights, and Jain's index.

Fairness only promises something to who has work waiting, so only windows are looked at throughout
which a flow was backlogged. Service is prompt + output tokens of the tasks that started in the window.
"""

from msgspec import Struct

from orchestrator.simulation.flows import FlowMeter


class FlowShare(Struct, frozen=True):
    """One contender: its share of the service of the windows in which it was backlogged, and the one it was due."""

    name: str
    windows: int
    share: float
    due: float


class ShareReport(Struct, frozen=True):
    """Errors are differences of shares, 0 to 1, over windows and contenders.

    `jain` is the fairness index (sum x)^2 / (n * sum x^2) of what each contender got by what it was due (Jain,
    Chiu, Hawe, "A quantitative measure of fairness and discrimination", 1984): 1 if all got the same
    multiple, 1/n if one got all. None where nobody contended.
    """

    windows: int
    mean_error: float | None
    max_error: float | None
    jain: float | None
    flows: list[FlowShare]


class _Contender:
    """Anything that is due a share: its weight, and service and backlog by window."""

    __slots__ = ("backlogged", "name", "service", "weight")

    def __init__(self, name: str, weight: int) -> None:
        self.name = name
        self.weight = weight
        self.service: dict[int, int] = {}
        self.backlogged: dict[int, bool] = {}

    def add(self, meter: FlowMeter) -> None:
        for window, tokens in meter.service.items():
            self.service[window] = self.service.get(window, 0) + tokens
        for first, end in meter.backlogged:
            for window in range(first, end):
                self.backlogged[window] = True


def tenant_shares(meters: list[FlowMeter], first: int, end: int) -> dict[str, ShareReport]:
    """By class: its tenants against their weights, over windows [first, end)."""
    classes: dict[str, list[_Contender]] = {}
    for meter in meters:
        contender = _Contender(meter.tenant, meter.weight)
        contender.add(meter)
        classes.setdefault(meter.priority, []).append(contender)
    return {priority: _compare(contenders, first, end) for priority, contenders in classes.items()}


def class_shares(meters: list[FlowMeter], first: int, end: int) -> ShareReport:
    """The classes against their weights."""
    classes: dict[str, _Contender] = {}
    for meter in meters:
        contender = classes.get(meter.priority)
        if contender is None:
            contender = classes[meter.priority] = _Contender(meter.priority, meter.class_weight)
        contender.add(meter)
    return _compare(list(classes.values()), first, end)


def jain(values: list[float]) -> float | None:
    """Jain's fairness index; None for no values or nothing but zeros."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None


def _compare(contenders: list[_Contender], first: int, end: int) -> ShareReport:
    """Window by window, those that are backlogged share what they got together by their weights."""
    got = [0.0] * len(contenders)
    due = [0.0] * len(contenders)
    total = [0.0] * len(contenders)
    windows_of = [0] * len(contenders)
    windows = 0
    errors: list[float] = []
    for window in range(first, end):
        present = [index for index, contender in enumerate(contenders) if window in contender.backlogged]
        served = sum(contenders[index].service.get(window, 0) for index in present)
        if len(present) < 2 or not served:
            continue
        windows += 1
        weights = sum(contenders[index].weight for index in present)
        for index in present:
            mine, share = contenders[index].service.get(window, 0), contenders[index].weight / weights
            errors.append(abs(mine / served - share))
            got[index] += mine
            due[index] += share * served
            total[index] += served
            windows_of[index] += 1
    contended = [index for index in range(len(contenders)) if windows_of[index]]
    return ShareReport(
        windows=windows,
        mean_error=sum(errors) / len(errors) if errors else None,
        max_error=max(errors, default=None),
        jain=jain([got[index] / due[index] for index in contended]),
        flows=[
            FlowShare(contenders[index].name, windows_of[index], got[index] / total[index], due[index] / total[index])
            for index in contended
        ],
    )
