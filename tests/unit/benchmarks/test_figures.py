"""Percentiles, paired figures, limits, and reading /proc."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.limits import LIMITS_FILE, Limit, load_limits, shortfalls
from benchmarks.load import Result
from benchmarks.processes import CpuMeter, Reading, descendants, group_of, parse_stat
from benchmarks.report import Row, Sample, figures, make_row, percentile, table


def sample(seconds: float, tokens: int, first_token_ms: list[float], **cpu_s: float) -> Sample:
    result = Result(seconds, len(first_token_ms), tokens, first_token_ms, 0.0, 0, [])
    return Sample(result, {"machine": 0.0, **cpu_s}, seconds)


def row(side: str = "one_call") -> Row:
    own = [sample(2.0, 100, [4.0, 5.0, 9.0], engine=0.5, machine=2.5), sample(1.0, 100, [6.0, 6.0, 6.0], engine=0.5)]
    direct = [sample(1.0, 100, [1.0, 1.0, 1.0]), sample(1.0, 100, [3.0, 3.0, 3.0])]
    return make_row("burst", 2, side, own, direct)


def test_percentile_is_the_nearest_rank() -> None:
    hundred = [float(n) for n in range(100, 0, -1)]
    assert [percentile(hundred, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([7.0], 0.99) == 7
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2


def test_a_row_pairs_neighbours() -> None:
    made = row()
    assert made.tokens_per_s == 75
    assert made.tokens_ratio == 0.75  # median of 0.5 and 1.0
    assert made.ttft_added_ms == 3.5  # median of 5 - 1 and 6 - 3
    assert made.ttft_p99_ms == 9
    assert made.cpu_us == {"engine": 5000.0}
    assert made.foreign_cpu == pytest.approx(0.5)  # 2.5 busy, 1.0 of it ours, in 3 seconds


def test_figures_and_table_name_the_rows() -> None:
    admission = make_row("admission", 16, "queued", [Sample(Result(2.0, 10, 0, [], 0.0, 0, []), {"machine": 0.0}, 2.0)])
    found = figures([row(), admission])
    assert found["burst/2/one_call/tokens_ratio"] == 0.75
    assert found["admission/16/queued/requests_per_s"] == 5
    assert "admission/16/queued/tokens_ratio" not in found
    lines = table([row(), admission]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("burst/2/one_call")


@pytest.mark.parametrize(
    ("limit", "good", "bad"),
    [
        (Limit(why="w", at_least=10), 10.0, 9.99),
        (Limit(why="w", at_most=3), 3.0, 3.01),
        (Limit(why="w", at_least=10, margin=0.1), 9.0, 8.9),
        (Limit(why="w", at_most=10, margin=0.1), 11.0, 11.1),
        (Limit(why="w", at_most=3), 0.0, float("nan")),
    ],
)
def test_limits_hold_up_to_their_margin(limit: Limit, good: float, bad: float) -> None:
    assert shortfalls({"x": good}, {"x": limit}) == []
    assert len(shortfalls({"x": bad}, {"x": limit})) == 1


def test_a_figure_that_was_not_measured_misses_its_limit() -> None:
    assert "was not measured" in shortfalls({}, {"x": Limit(why="w", at_least=1)})[0]


@pytest.mark.parametrize(
    "text", ["b: {x: {why: w}}", "b: {x: {why: w, at_least: 1, at_most: 2}}", "b: {x: {at_least: 1}}"]
)
def test_a_limit_is_one_bound_with_a_reason(tmp_path: Path, text: str) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(text)
    with pytest.raises(msgspec.ValidationError):
        load_limits("b", file)


def test_every_limit_in_the_file_names_a_figure_that_is_measured() -> None:
    from benchmarks.overhead import FULL, QUICK

    assert LIMITS_FILE.is_file()
    for cases in (FULL, QUICK):
        measured = {f"{case.pace}/{case.streams}" for case in cases} | {"admission/16"}
        for name in load_limits("overhead"):
            assert "/".join(name.split("/")[:2]) in measured


def test_stat_lines_are_read_whatever_the_name_is() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    parent, seconds = parse_stat(f"12 (a ) (b) S 7 1 1 0 -1 4194560 1 2 3 4 {ticks} {2 * ticks} 9 9 20 0 1 0 5")
    assert (parent, seconds) == (7, 3.0)


def test_groups_go_by_command_line() -> None:
    assert group_of("ray::ServeReplica:llorch:Ingress") == "ingress"
    assert group_of("python -m adapters.testing.fake_llama_server -m x") == "engine"
    assert group_of("/x/haproxy -W -f y.cfg") == "haproxy"
    assert group_of("gcs_server --log_dir=/tmp") == "ray"


def test_the_meter_sees_children_and_the_machine() -> None:
    busy = "import time\nprint(flush=True)\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        assert child.pid in descendants(os.getpid())
        meter = CpuMeter({child.pid: "mine"})
        before = meter.read()
        child.stdout.readline()
        used = meter.read().since(before)
        child.stdin.write(b"\n")
    assert used["mine"] > 0
    assert used["machine"] > 0


def test_a_process_that_came_in_between_counts_whole_and_one_that_left_not() -> None:
    before = Reading({1: ("a", 5.0), 2: ("a", 1.0)}, 10.0)
    assert Reading({1: ("a", 6.0), 3: ("b", 0.5)}, 12.0).since(before) == {"a": 1.0, "b": 0.5, "machine": 2.0}
