"""Ports for processes that are still to be started must not be taken by one that asks for any."""

import random
import socket
from collections.abc import Sequence

import pytest

from adapters import ports
from adapters.ports import free_ports


def test_ports_are_different_free_and_none_that_the_kernel_gives_out() -> None:
    found = free_ports(5)
    assert len(set(found)) == 5
    with socket.socket() as probe:
        probe.bind(("", 0))
        given_out = probe.getsockname()[1]
    assert all(ports.FIRST <= port <= ports.LAST < given_out for port in found)
    for port in found:
        with socket.create_server(("", port)):
            pass


def test_ports_that_are_taken_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_order(population: Sequence[int], _count: int) -> list[int]:
        return list(population)

    monkeypatch.setattr(random, "sample", in_order)
    first, second = free_ports(2)
    monkeypatch.setattr(ports, "FIRST", first)
    with socket.create_server(("127.0.0.1", first)):
        monkeypatch.setattr(ports, "LAST", second)
        assert free_ports(1) == [second]
        with pytest.raises(OSError, match="no 2 free ports"):
            free_ports(2)
