"""How often an address may fail to authenticate before it is told to wait (ORCH-3035).

A valid key always passes, whoever shares its address: only failures are counted. What is bounded is the work and the
noise of guessing; that a guess is hopeless is due to the length of the keys.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

import structlog

from orchestrator.ingress.http import Scope

#: Failures that pass one after the other, and the time that gives one of them back.
BURST: Final = 10
INTERVAL_NS: Final = 1_000_000_000
#: Addresses that are remembered; the one that failed least lately makes room.
ADDRESSES_MAX: Final = 4096
#: A household or a host is given a whole network of this size, so it counts as one.
V6_PREFIX: Final = 64
#: Entries of X-Forwarded-For that are read, from the right.
HOPS_MAX: Final = 32

_log = structlog.get_logger(__name__)


class FailureLimit:
    """A GCRA bucket for each address: the theoretical arrival time of its next failure, in ns of `clock_ns`.

    "Generic cell rate algorithm": ITU-T I.371, virtual scheduling.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock_ns = clock_ns
        self._arrivals: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._arrivals)

    def failed(self, address: str) -> int:
        """Count a failure; returns 0, or how many ms too early it came. Those that come too early do not count."""
        now = self._clock_ns()
        arrival = max(self._arrivals.get(address, now), now)
        early = arrival - now - (BURST - 1) * INTERVAL_NS
        if early > 0:
            return -(-early // 1_000_000)
        self._arrivals[address] = arrival + INTERVAL_NS
        self._arrivals.move_to_end(address)
        if len(self._arrivals) > ADDRESSES_MAX:
            self._arrivals.popitem(last=False)
        if early + INTERVAL_NS > 0:
            _log.warning("authentication_failures_limited", address=address)
        return 0


class Addresses:
    """Where requests come from, through proxies that are trusted to say so."""

    def __init__(self, trusted: Iterable[str]) -> None:
        self._trusted: tuple[IPv4Network | IPv6Network, ...] = tuple(ip_network(each) for each in trusted)

    def of(self, scope: Scope) -> str:
        """The client's address, an IPv6 one as its network; "" where there is none (a Unix socket)."""
        client = scope.get("client")
        nearest = _address(client[0]) if client else None
        if nearest is None:
            return ""
        if self._is_trusted(nearest):
            for text in reversed(_forwarded(scope)[-HOPS_MAX:]):
                found = _address(text)
                if found is None:
                    break
                nearest = found
                if not self._is_trusted(found):
                    break
        return _counted_as(nearest)

    def _is_trusted(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._trusted)


def _forwarded(scope: Scope) -> list[str]:
    """Hops as the proxies named them, nearest last; several headers are one list."""
    lines = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    return b",".join(lines).decode("latin-1").split(",")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(text.strip())
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found


def _counted_as(address: IPv4Address | IPv6Address) -> str:
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address), V6_PREFIX), strict=False))
    return str(address)
