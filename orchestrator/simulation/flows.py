"""What each (class, tenant) waits for and is served, by windows of time."""

from typing import Final

#: Service is counted per window under its number; there is one entry for each window that had any.
Windows = dict[int, int]
_LONG_AGO: Final = -1


class FlowMeter:
    """One (class, tenant). Service is prompt + output tokens, counted when a task starts.

    `backlogged` holds ranges [first, end) of windows throughout which at least one task waited.
    """

    __slots__ = (
        "_since_ns",
        "_window_ns",
        "backlogged",
        "class_weight",
        "index",
        "priority",
        "service",
        "tenant",
        "waiting",
        "weight",
    )

    def __init__(self, index: int, priority: str, tenant: str, weight: int, class_weight: int, window_ns: int) -> None:
        self.index = index
        self.priority = priority
        self.tenant = tenant
        self.weight = weight
        self.class_weight = class_weight
        self.waiting = 0
        self.service: Windows = {}
        self.backlogged: list[tuple[int, int]] = []
        self._window_ns = window_ns
        self._since_ns = _LONG_AGO

    def join(self, now_ns: int) -> None:
        """A task begins to wait."""
        if not self.waiting:
            self._since_ns = now_ns
        self.waiting += 1

    def leave(self, now_ns: int) -> None:
        """A task waits no longer."""
        self.waiting -= 1
        if not self.waiting:
            self._close(now_ns)

    def serve(self, now_ns: int, tokens: int) -> None:
        """A task of that many tokens starts."""
        window = now_ns // self._window_ns
        self.service[window] = self.service.get(window, 0) + tokens

    def settle(self, now_ns: int) -> None:
        """Count what still waits as having waited until now."""
        if self.waiting:
            self._close(now_ns)
            self._since_ns = now_ns

    def _close(self, now_ns: int) -> None:
        first = -(-self._since_ns // self._window_ns)
        end = now_ns // self._window_ns
        if end > first:
            self.backlogged.append((first, end))


class Flows:
    """All meters, made as classes and tenants turn up."""

    def __init__(self, class_weights: dict[str, int], weights: dict[str, int], weight: int, window_ns: int) -> None:
        """`weights` are those of tenants that have their own, `weight` that of all others."""
        self.meters: list[FlowMeter] = []
        self._class_weights = class_weights
        self._weights = weights
        self._weight = weight
        self.window_ns = window_ns
        self._by_name: dict[tuple[str, str], FlowMeter] = {}

    def meter(self, priority: str, tenant: str) -> FlowMeter:
        """The meter of a class and tenant."""
        found = self._by_name.get((priority, tenant))
        if found is None:
            found = FlowMeter(
                len(self.meters),
                priority,
                tenant,
                self._weights.get(tenant, self._weight),
                self._class_weights.get(priority, 1),
                self.window_ns,
            )
            self._by_name[priority, tenant] = found
            self.meters.append(found)
        return found

    def waiting(self, priority: str) -> int:
        """Tasks of a class that wait now."""
        return sum(meter.waiting for meter in self.meters if meter.priority == priority)
