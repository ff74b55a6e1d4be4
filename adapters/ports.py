"""Ports to listen on later, by a process that is still to be started."""

import random
import socket
from contextlib import ExitStack
from typing import Final

#: Above those that Ray gives its workers (10002 to 19999) and below those of Serve's replicas (30000 and up) and those
#: that the kernel gives to whoever asks for any (32768 and up, unless it was told otherwise): what was only looked at
#: could be anybody's a second later.
FIRST: Final = 20_000
LAST: Final = 29_999


def free_ports(count: int) -> list[int]:
    """Different TCP ports that were free a moment ago, on all addresses. Raises OSError if there are not so many."""
    found: list[int] = []
    with ExitStack() as held:
        for port in random.sample(range(FIRST, LAST + 1), LAST + 1 - FIRST):
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"no {count} free ports between {FIRST} and {LAST}")
