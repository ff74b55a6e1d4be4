"""The overload case on the real system: same arrivals for all, nothing counted as met that is not, texts compared."""

import msgspec

from adapters.testing.fake_completion import Completion
from benchmarks.exchange import Response
from benchmarks.limits import load_limits
from benchmarks.overload_load import Arrival, Ending, Mix, check_text, plan, read_response
from benchmarks.overload_report import Tally, figures, table, tallies
from contracts.api import End, Metrics, Started
from contracts.errors import ErrorInfo
from contracts.gateway import Tokens
from orchestrator.ingress.sse import format_event

MIXES = (Mix("interactive", 0.7, 1000, 3000, 40, 0.8, 256), Mix("batch", 0.3, 2500, 7500, 40, 0.8, 256))
STARTED = format_event(Started(0, 0, "llamacpp", "fake", "", "p", "p-0", "cpu-dev", 1, 1, "v1", 3, False))


def arrival(number: int = 0, priority: str = "interactive", deadline_ms: int = 1000) -> Arrival:
    return Arrival(number, 10_000.0 + number, priority, deadline_ms, tokens=4, tokens_max=8)


def completed(of: Arrival, *, resumed: bool = False) -> bytes:
    """The stream that the fake engine and the ingress would write for it."""
    completion = Completion({"prompt": of.prompt, "seed": of.seed, "n_predict": of.tokens_max}, 5, 2048)
    frames = [msgspec.json.decode(frame[6:]) for frame in completion.frames(of.tokens_max).split(b"\n\n") if frame]
    texts = [frame["content"] for frame in frames if not frame["stop"]]
    assert len(texts) == of.tokens
    end = format_event(End(tokens_out=of.tokens, decode_ms=1, finish_reason="stop", tokens_in=5))
    again = format_event(Metrics(resumed=True)) if resumed else b""
    return STARTED + format_event(Tokens(0, texts[:2])) + again + format_event(Tokens(2, texts[2:])) + end


def ending(of: Arrival, ended_ms: float, status: int, body: bytes) -> Ending:
    seen = Ending(of, waited_ms=ended_ms / 2, ended_ms=ended_ms, started=status == 200)
    read_response(seen, Response(status, body, 1))
    check_text(seen)
    return seen


def refused(of: Arrival, code: str, status: int) -> Ending:
    return ending(of, 5, status, msgspec.json.encode({"code": code, "message": ""}))


def test_the_fakes_completion_ends_by_itself_at_the_length_in_its_prompt() -> None:
    for prompt, wanted, made, stop_type in (
        ("a fake-length=3", 10, 3, "eos"),
        ("fake-length=3 a", 3, 3, "eos"),
        ("a fake-length=30", 10, 10, "limit"),
        ("a length=3", 10, 10, "limit"),
    ):
        for stop in ([], ["no such word"]):
            completion = Completion({"prompt": prompt, "n_predict": wanted, "stop": stop}, 2, 100)
            completion.frames(64)
            assert (completion.made, completion.stop_type) == (made, stop_type)


def test_arrivals_are_the_same_each_time_and_keep_to_their_mix() -> None:
    arrivals = plan(MIXES, 30.0, 100.0, 1)
    assert arrivals == plan(MIXES, 30.0, 100.0, 1)
    assert arrivals != plan(MIXES, 30.0, 100.0, 2)
    assert 2800 < len(arrivals) < 3200
    assert [each.at_ms for each in arrivals] == sorted(each.at_ms for each in arrivals)
    interactive = [each for each in arrivals if each.priority == "interactive"]
    assert 0.65 < len(interactive) / len(arrivals) < 0.75
    assert all(1000 <= each.deadline_ms <= 3000 for each in interactive)
    assert all(1 <= each.tokens <= 256 for each in arrivals)
    assert 35 < sum(each.tokens for each in arrivals) / len(arrivals) < 43


def test_only_what_finished_in_time_has_met_its_deadline() -> None:
    of = arrival()
    assert ending(of, 1000, 200, completed(of)).met
    assert not ending(of, 1001, 200, completed(of)).met
    assert not refused(of, "DEADLINE_UNMET", 400).met
    assert not ending(of, 10, 200, STARTED + format_event(ErrorInfo("WORKER_RESET", "gone"))).met
    assert not Ending(of, code="open", ended_ms=10).met


def test_a_stream_with_another_text_is_wrong_also_after_an_interruption() -> None:
    of = arrival()
    assert ending(of, 10, 200, completed(of, resumed=True)).wrong == ""
    assert "other ones" in ending(of, 10, 200, completed(arrival(1))).wrong
    assert "tokens instead of 4" in ending(of, 10, 200, completed(of).replace(b"id: 1\n", b"")).wrong


def test_tallies_leave_the_warm_up_out_and_count_each_way_to_fail() -> None:
    early = msgspec.structs.replace(arrival(), at_ms=100.0)
    one, two, batch = arrival(1), arrival(2), arrival(3, "batch")
    rows = tallies(
        "default",
        [
            ending(early, 10, 200, completed(early)),
            ending(one, 400, 200, completed(one, resumed=True)),
            ending(two, 2000, 200, completed(two)),
            refused(arrival(4), "DEADLINE_UNMET", 400),
            refused(arrival(5), "ADMISSION_REJECT", 429),
            ending(batch, 100, 200, STARTED + format_event(ErrorInfo("QUEUE_FULL_DROP_LRU", "gave way"))),
        ],
        warm_up_s=5,
        counted_s=20,
    )
    interactive, lower = rows
    assert (interactive.offered, interactive.accepted, interactive.met, interactive.late) == (4, 2, 1, 1)
    assert interactive.errors == {"ADMISSION_REJECT 429": 1, "DEADLINE_UNMET 400": 1}
    assert (interactive.wait_p99_ms, interactive.resumed) == (1000, 1)
    assert interactive.tokens_per_s == 8 / 20
    assert (lower.offered, lower.met, lower.errors) == (1, 0, {"QUEUE_FULL_DROP_LRU": 1})


def row(policy: str, priority: str, met: int, wait_p99_ms: float = 100.0) -> Tally:
    return Tally(policy, priority, 100, met, float(met), 0, 100, 1.0, wait_p99_ms, 9.0, 0, 1.0, {})


def test_figures_compare_policies_and_every_limit_is_one_of_them() -> None:
    met = {"fifo": 0, "fifo_short": 10, "strict": 20, "strict_short": 30, "default": 60}
    rows = [row(policy, priority, count) for policy, count in met.items() for priority in ("interactive", "batch")]
    rows += [row("preemption_off", "interactive", 10, 4000.0), row("preemption_off", "batch", 100)]
    rows += [row("preemption_hard", "interactive", 90, 100.0), row("preemption_hard", "batch", 100)]
    reached = figures(rows)
    assert (reached["default_over_fifo"], reached["default_over_strict"]) == (120.0, 3.0)
    assert reached["preemption/wait_p99_ratio"] == 40.0
    assert reached["default/accepted_met_percent"] == 60.0
    assert set(load_limits("overload_real")) <= set(reached)
    assert all(policy in table(rows) for policy in met)
