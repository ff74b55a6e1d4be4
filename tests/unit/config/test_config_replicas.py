"""Rules about replicas: their GPUs, their number, their restarts and leases."""

import pytest

from tests.unit.config.config_kit import POOL, good, only, place, pool, problems, warned

GPU = POOL.replace("cpu-dev", "gpu")


def gpu_pools(*lines: str) -> str:
    """Pools `a`, `b`, … on GPUs and in sets of their own, with a line more each."""
    named = [pool(name, line, f"quant: q{name}") for name, line in zip("abcd", lines, strict=False)]
    return "pools:\n" + "".join(named).replace("cpu-dev", "gpu")


@pytest.mark.req("OC-CONFIG-6001", "ORCH-3053")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("replicas: -1", "`replicas` should be greater than or equal to 0"),
        ("replicas: 0", "pool `a` has no replicas, and nothing that brings one"),
        ("replicas: 0\n    scaling: {min: 0}", "pool `a` has no replicas, and nothing that brings one"),
        ("replicas: 0\n    scaling: {min: 1, max: 2}", "min 1 is over the pool's replicas 0"),
        ("scaling: {min: -1}", "`min` should be greater than or equal to 0"),
        ("scaling: {max: 0}", "`max` should be greater than or equal to 1"),
        ("scaling: {target_wait_ms: 0}", "`target_wait_ms` should be greater"),
        ("scaling: {up_after_ms: 0}", "`up_after_ms` should be greater"),
        ("scaling: {down_after_ms: 0}", "`down_after_ms` should be greater"),
        ("scaling: {minimum: 0}", "unknown field `minimum`"),
        ("scaling: {min: 2}", "min 2 is over the pool's replicas 1"),
        ("replicas: 3\n    scaling: {max: 2}", "max 2 is under the pool's replicas 3"),
        ("restart: {backoff_min_ms: 0}", "`backoff_min_ms` should be greater"),
        ("restart: {jitter_percent: 101}", "`jitter_percent` should be less than or equal to 100"),
        ("restart: {breaker_failures: 0}", "`breaker_failures` should be greater"),
        ("restart: {backoff_min_ms: 9, backoff_max_ms: 8}", "backoff_max_ms 8 is under backoff_min_ms 9"),
        ("restart: {backoff_max_ms: 499}", "backoff_max_ms 499 is under backoff_min_ms 500"),
        ("drain_ms: -1", "`drain_ms` should be greater than or equal to 0"),
        ("drain_ms: 86400001", "`drain_ms` should be less than or equal to 86400000"),
        ("reload_timeout_ms: 0", "`reload_timeout_ms` should be greater"),
        ("numa: 1", "`numa` should be a valid boolean"),
        ("model_digest: sha256:ab", "`model_digest` should match pattern"),
    ],
)
def test_numbers_that_cannot_be_kept_are_refused_in_their_place(line: str, message: str) -> None:
    problem = only(f"{POOL}    {line}\n")
    assert message in problem.message
    assert problem.line >= 6


@pytest.mark.parametrize(
    ("lease", "message"),
    [
        ("{ttl_ms: 999}", "`ttl_ms` should be greater than or equal to 1000"),
        ("{ttl_ms: 15000}", "lost_ms 15000 is not over ttl_ms 15000"),
        ("{lost_ms: 2400}", "lost_ms 2400 is not over ttl_ms 2500"),
    ],
)
def test_a_lease_outlasts_a_lost_renewal_and_ends_before_the_replica_is_given_up(lease: str, message: str) -> None:
    problem = only(f"{POOL}lease: {lease}\n")
    assert message in problem.message
    assert place(problem)[0] == 6


def test_rules_about_leases_hold_whatever_else_is_wrong() -> None:
    found = problems(f"{POOL}    slots: 0\nlease: {{lost_ms: 5}}\nnonsense: 1\n")
    assert len(found) == 3


@pytest.mark.req("ORCH-3012", "OC-POOL-3021")
def test_a_split_is_for_gpus() -> None:
    problem = only(f"{POOL}    devices: [0, 1]\n    tensor_split: [0.5, 0.5]\n")
    assert "tensor_split divides a model over GPUs, and `cpu-dev` has none" in problem.message
    assert place(problem) == (7, 19)


@pytest.mark.req("ORCH-3012")
def test_a_split_that_says_two_wrong_things_is_told_both() -> None:
    found = problems(f"{GPU}    devices: [0, 1]\n    tensor_split: [0.5, 0.25, 0.1]\n")
    assert [problem.message for problem in found] == [
        "tensor_split has 3 ratios for 2 devices",
        "tensor_split sums to 0.850",
    ]


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("devices: [0]", "devices: [0]", "both need GPU 0: each needs a node of its own"),
        ("devices: [0, 1, 2]", "devices: [2, 1]", "both need GPUs 2, 1: each needs a node of its own"),
        ("devices: [0]\n    zone: x", "devices: [0]\n    zone: x", "both need GPU 0"),
        ("devices: [0]\n    zone: x", "devices: [0]", "both need GPU 0"),
        ("devices: [0]\n    zone: x", "devices: [0]\n    zone: y", None),
        ("devices: [0]", "devices: [1]", None),
    ],
)
def test_masks_that_overlap_are_told_of_and_taken(first: str, second: str, told: str | None) -> None:
    found = [message for message in warned(gpu_pools(first, second)) if "both need" in message]
    assert found == ([] if told is None else [message for message in found if told in message])
    assert len(found) == (told is not None)
    assert all(message.startswith("pools `a` and `b` ") for message in found)


def test_each_pair_of_pools_is_looked_at() -> None:
    found = [message for message in warned(gpu_pools(*["devices: [0]"] * 3)) if "both need" in message]
    assert [message[:17] for message in found] == ["pools `a` and `b`", "pools `a` and `c`", "pools `b` and `c`"]


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
@pytest.mark.parametrize(
    ("line", "most"), [("replicas: 2", 2), ("scaling: {max: 4}", 4), ("replicas: 2\n    scaling: {min: 1}", 2)]
)
def test_replicas_of_one_mask_need_nodes_of_their_own(line: str, most: int) -> None:
    told = f"pool `a` has up to {most} replicas, and each needs GPUs 0, 1 of a node of its own"
    assert told in warned(f"{GPU}    devices: [0, 1]\n    {line}\n")
    assert not any("of a node of its own" in message for message in warned(f"{POOL}    {line}\n"))


def test_what_does_less_than_it_seems_to_is_told_of() -> None:
    both = "scaling of pool `a` leaves it at 2 replicas: both bounds are that"
    assert both in warned(f"{POOL}    replicas: 2\n    scaling: {{up_after_ms: 5}}\n")
    assert both in warned(f"{POOL}    replicas: 2\n    scaling: {{min: 2, max: 2}}\n")
    assert both not in warned(f"{POOL}    replicas: 2\n    scaling: {{min: 2, max: 3}}\n")
    late = "a reload is given up after 60000 ms, and an engine may take 120000 ms to come up"
    assert late in warned(f"{POOL}    reload_timeout_ms: 60000\n")
    assert late not in warned(f"{POOL}    reload_timeout_ms: 60000\n    engine_options: {{ready_timeout_ms: 60000}}\n")


@pytest.mark.req("ORCH-3007")
def test_pools_of_one_set_need_not_agree_in_how_they_are_run() -> None:
    own = "scaling: {max: 3}\n    restart: {breaker_failures: 1}\n    drain_ms: 5\n    reload_timeout_ms: 900000"
    good("pools:\n" + pool("a", own) + pool("b", "numa: false"))
