"""Failed authentication is limited by address, and a valid key is not kept out by its neighbours."""

from typing import Any

import pytest
import structlog

from orchestrator.ingress.app import build_app
from orchestrator.ingress.failures import ADDRESSES_MAX, BURST, Addresses, FailureLimit
from orchestrator.ingress.settings import IngressSettings
from tests.unit.ingress.asgi import KEY, SETTINGS, Exchange
from tests.unit.ingress.fake_gateway import FakeGateway

SECOND_NS = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ns = 5 * SECOND_NS

    def __call__(self) -> int:
        return self.now_ns


@pytest.mark.req("ORCH-3035")
def test_a_burst_passes_and_then_one_a_second() -> None:
    clock = Clock()
    limit = FailureLimit(clock)
    assert [limit.failed("a") for _ in range(BURST)] == [0] * BURST
    assert limit.failed("a") == 1000
    clock.now_ns += SECOND_NS // 4
    assert limit.failed("a") == 750
    clock.now_ns += 3 * SECOND_NS // 4
    assert [limit.failed("a"), limit.failed("a")] == [0, 1000]
    assert limit.failed("b") == 0
    clock.now_ns += 100 * SECOND_NS
    assert [limit.failed("a") for _ in range(BURST)] == [0] * BURST


def test_the_table_is_bounded_and_forgets_who_failed_least_lately() -> None:
    limit = FailureLimit(Clock())
    for _ in range(BURST):
        limit.failed("old")
        limit.failed("kept")
    for n in range(ADDRESSES_MAX - 1):
        limit.failed(f"other-{n}")
        if n == 5:
            limit._arrivals.move_to_end("kept")
    assert len(limit) == ADDRESSES_MAX
    assert limit.failed("kept") > 0
    assert limit.failed("old") == 0


def scope(peer: str | None, *forwarded: str) -> Any:
    headers = [(b"x-forwarded-for", line.encode()) for line in forwarded]
    return {"client": (peer, 4711) if peer is not None else None, "headers": headers}


@pytest.mark.parametrize(
    ("trusted", "request_scope", "expected"),
    [
        ((), scope("192.0.2.1"), "192.0.2.1"),
        ((), scope("192.0.2.1", "198.51.100.9"), "192.0.2.1"),
        (("192.0.2.0/24",), scope("192.0.2.1", "198.51.100.9"), "198.51.100.9"),
        (("192.0.2.0/24",), scope("192.0.2.1", "203.0.113.5, 198.51.100.9"), "198.51.100.9"),
        (("192.0.2.0/24",), scope("192.0.2.1", "203.0.113.5", "198.51.100.9, 192.0.2.7"), "198.51.100.9"),
        (("192.0.2.0/24",), scope("192.0.2.1", "192.0.2.9"), "192.0.2.9"),
        (("192.0.2.0/24",), scope("192.0.2.1", "nonsense, 192.0.2.9"), "192.0.2.9"),
        (("192.0.2.0/24",), scope("192.0.2.1"), "192.0.2.1"),
        (("192.0.2.0/24",), scope("192.0.2.1", "\xff"), "192.0.2.1"),
        (("10.0.0.0/8",), scope("::ffff:10.1.1.1", "2001:db8:1:2:3::4"), "2001:db8:1:2::/64"),
        ((), scope("2001:db8::1"), "2001:db8::/64"),
        ((), scope(None), ""),
        ((), scope(""), ""),
    ],
)
def test_where_a_request_comes_from(trusted: tuple[str, ...], request_scope: Any, expected: str) -> None:
    assert Addresses(trusted).of(request_scope) == expected


def test_a_long_list_of_hops_is_read_in_part() -> None:
    hops = ", ".join(["192.0.2.9"] * 1000)
    assert Addresses(["192.0.2.0/24"]).of(scope("192.0.2.1", f"198.51.100.9, {hops}")) == "192.0.2.9"


async def ask(app: Any, key: str, peer: str = "192.0.2.1", forwarded: str = "") -> Exchange:
    exchange = Exchange(app, "GET", "/v1/capabilities", authorization=key and f"Bearer {key}")
    exchange.scope["client"] = (peer, 1)
    if forwarded:
        exchange.scope["headers"].append((b"x-forwarded-for", forwarded.encode()))
    return await exchange.done()


@pytest.mark.req("ORCH-3035", "OC-CTRL-2040", "ORCH-2007", "OC-CTRL-2011")
@pytest.mark.parametrize(("wrong", "status"), [("guess", 403), ("", 401)])
async def test_who_fails_too_often_is_told_to_wait_and_a_valid_key_still_passes(wrong: str, status: int) -> None:
    app = build_app(FakeGateway(), SETTINGS)
    with structlog.testing.capture_logs() as logs:
        answers = [await ask(app, wrong) for _ in range(BURST + 3)]
    assert [answer.status for answer in answers] == [status] * BURST + [429] * 3
    last = answers[-1]
    assert (last.json["code"], last.json["policy_label"]) == ("ADMISSION_REJECT", "reject")
    assert int(last.headers["retry-after"]) == 1
    assert 0 < last.json["retry_after_ms"] <= 1000
    assert (await ask(app, KEY)).status == 200
    assert (await ask(app, wrong)).status == 429
    assert (await ask(app, wrong, "192.0.2.2")).status == status
    assert [line["address"] for line in logs] == ["192.0.2.1"]
    assert "guess" not in repr(logs)


@pytest.mark.req("ORCH-3035")
async def test_behind_a_trusted_proxy_clients_are_told_apart_and_elsewhere_they_cannot_pretend() -> None:
    app = build_app(FakeGateway(), IngressSettings(keys=SETTINGS.keys, trusted_proxies=("192.0.2.0/24",)))
    for _ in range(BURST):
        await ask(app, "guess", "192.0.2.1", "198.51.100.1")
        await ask(app, "guess", "203.0.113.9", f"198.51.100.{_}")
    assert (await ask(app, "guess", "192.0.2.1", "198.51.100.1")).status == 429
    assert (await ask(app, "guess", "192.0.2.1", "198.51.100.77")).status == 403
    assert (await ask(app, "guess", "203.0.113.9", "198.51.100.99")).status == 429
