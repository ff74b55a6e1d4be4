"""Circuit breakers: when they open, how they are tried again, and that nothing wedges them."""

import pytest

from contracts.policies import BreakerPolicy
from orchestrator.core.breakers import Breaker
from orchestrator.core.records import NS_PER_MS

POLICY = BreakerPolicy(violations_percent=50, window_ms=1000, samples_min=4, open_ms=200, probes=2)
HALF_NS = 500 * NS_PER_MS
OPEN_NS = 200 * NS_PER_MS

pytestmark = pytest.mark.req("ORCH-3040")


def observe(breaker: Breaker, now_ns: int, results: str) -> None:
    """One sample a letter: `x` violated, `.` good."""
    for result in results:
        breaker.observe(now_ns, result == "x")


def tripped(now_ns: int = 0) -> Breaker:
    breaker = Breaker(POLICY)
    observe(breaker, now_ns, "xxxx")
    return breaker


@pytest.mark.parametrize(
    ("results", "state"), [("", "closed"), ("xxx", "closed"), ("..x.x", "closed"), ("..xx", "open"), ("xx..", "open")]
)
def test_it_opens_on_enough_samples_with_enough_violations(results: str, state: str) -> None:
    breaker = Breaker(POLICY)
    observe(breaker, 0, results)
    assert breaker.state(0) == state
    assert breaker.allows(0) == (state == "closed")


def test_samples_count_over_the_window_and_no_longer() -> None:
    breaker = Breaker(POLICY)
    observe(breaker, 0, "xxx")
    observe(breaker, 2 * HALF_NS, "x")
    assert breaker.state(2 * HALF_NS) == "closed"
    observe(breaker, 3 * HALF_NS - 1, "..")
    observe(breaker, 3 * HALF_NS, "x")
    assert breaker.state(3 * HALF_NS) == "open"


def test_it_is_open_for_its_time_and_then_half_open_for_so_many_probes() -> None:
    breaker = tripped()
    assert (breaker.wait_ns(0), breaker.wait_ns(OPEN_NS - 1)) == (OPEN_NS, 1)
    assert breaker.state(OPEN_NS - 1) == "open"
    assert breaker.state(OPEN_NS) == "half-open"
    for _ in range(POLICY.probes):
        assert breaker.allows(OPEN_NS)
        breaker.admitted(OPEN_NS)
    assert not breaker.allows(OPEN_NS)
    assert breaker.wait_ns(OPEN_NS) == OPEN_NS


def test_good_probes_close_it_and_the_past_is_forgotten() -> None:
    breaker = tripped()
    for _ in range(POLICY.probes):
        breaker.admitted(OPEN_NS)
    observe(breaker, OPEN_NS, ".")
    assert breaker.state(OPEN_NS) == "half-open"
    observe(breaker, OPEN_NS, ".")
    assert breaker.state(OPEN_NS) == "closed"
    observe(breaker, OPEN_NS, "xxx")
    assert breaker.state(OPEN_NS) == "closed"


def test_a_closed_breaker_starts_from_nothing_also_within_the_window() -> None:
    breaker = Breaker(POLICY)
    observe(breaker, 0, "xxx")
    observe(breaker, HALF_NS, "x")
    closed_ns = HALF_NS + OPEN_NS
    breaker.admitted(closed_ns)
    breaker.admitted(closed_ns)
    observe(breaker, closed_ns, "..")
    observe(breaker, closed_ns, "xxx")
    assert breaker.state(closed_ns) == "closed"


def test_a_bad_probe_opens_it_again_for_the_whole_time() -> None:
    breaker = tripped()
    breaker.admitted(OPEN_NS)
    breaker.admitted(OPEN_NS)
    observe(breaker, OPEN_NS, ".")
    observe(breaker, OPEN_NS + 5, "x")
    assert breaker.state(OPEN_NS + 5) == "open"
    assert breaker.wait_ns(OPEN_NS + 5) == OPEN_NS
    breaker.admitted(2 * OPEN_NS + 5)
    observe(breaker, 2 * OPEN_NS + 5, ".")
    assert breaker.state(2 * OPEN_NS + 5) == "half-open"


def test_reports_of_tasks_from_before_neither_open_nor_close_it() -> None:
    breaker = tripped()
    observe(breaker, 5, "xxxx")
    assert breaker.wait_ns(5) == OPEN_NS - 5
    observe(breaker, OPEN_NS, "x...")
    assert breaker.state(OPEN_NS) == "half-open"
    assert breaker.allows(OPEN_NS)


def test_probes_that_never_report_are_replaced() -> None:
    breaker = tripped()
    breaker.admitted(OPEN_NS)
    breaker.admitted(OPEN_NS + 10)
    observe(breaker, OPEN_NS + 20, ".")
    assert breaker.wait_ns(OPEN_NS + 20) == OPEN_NS - 10
    renewed_ns = 2 * OPEN_NS + 10
    assert not breaker.allows(renewed_ns - 1)
    assert breaker.allows(renewed_ns)
    breaker.admitted(renewed_ns)
    assert not breaker.allows(renewed_ns)
    observe(breaker, renewed_ns, ".")
    assert breaker.state(renewed_ns) == "closed"


def test_looking_changes_nothing_and_only_what_is_allowed_counts_as_a_probe() -> None:
    breaker = tripped()
    breaker.admitted(OPEN_NS - 1)
    for _ in range(10):
        assert breaker.allows(OPEN_NS)
    for _ in range(10):
        breaker.admitted(OPEN_NS)
    observe(breaker, OPEN_NS, "..")
    assert breaker.state(OPEN_NS) == "closed"
    breaker.admitted(OPEN_NS)
    assert breaker.state(OPEN_NS) == "closed"


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (BreakerPolicy(violations_percent=0), "violations_percent must be 1 to 100, got 0"),
        (BreakerPolicy(violations_percent=101), "violations_percent must be 1 to 100, got 101"),
        (BreakerPolicy(window_ms=0), "window_ms must be at least 1, got 0"),
        (BreakerPolicy(samples_min=0), "samples_min must be at least 1, got 0"),
        (BreakerPolicy(open_ms=0), "open_ms must be at least 1, got 0"),
        (BreakerPolicy(probes=0), "probes must be at least 1, got 0"),
    ],
)
def test_bad_numbers_are_refused(policy: BreakerPolicy, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Breaker(policy)
