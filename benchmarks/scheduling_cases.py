"""The simulated worlds of `benchmarks/scheduling.py`: small files of what happens, seeded.

Speeds are those of a mid-size model on one GPU: 40 tokens/s a slot, prompts at 4000 tokens/s. A task is
200 prompt and 93 output tokens in the middle, with a tail, and takes 3.3 s on average.
"""

from typing import Any, Final

from orchestrator.simulation.scenario import Scenario

PROMPT: Final = {"kind": "lognormal", "median": 200, "sigma": 0.6}
OUTPUT: Final = {"kind": "lognormal", "median": 93, "sigma": 0.8}
#: Tasks per second and slot at full load.
TASKS_PER_SLOT_S: Final = 0.306

#: The policies that are compared: name to the scheduler section's fields.
POLICIES: Final[dict[str, dict[str, Any]]] = {
    "fifo": {"fairness": "fifo", "ordering": "fifo", "on_time_percent_min": 0, "eviction": "lru", "mode": "off"},
    "strict": {"fairness": "strict", "ordering": "fifo", "on_time_percent_min": 0, "eviction": "lru", "mode": "off"},
    "default": {"fairness": "wfq", "ordering": "edf", "on_time_percent_min": 85, "eviction": "eta", "mode": "soft"},
}


def fairness(*, replicas: int, slots: int, seconds: float, warmup_s: float) -> Scenario:
    """Four tenants with weights 8:4:2:1, all backlogged, whose outputs differ by ten times in length."""
    weights = {"eight": 8, "four": 4, "two": 2, "one": 1}
    lengths = {"eight": 300, "four": 30, "two": 100, "one": 90}
    tokens_per_s = 40 * replicas * slots
    return Scenario.model_validate(
        {
            "name": "fairness",
            "seconds": seconds,
            "warmup_s": warmup_s,
            "window_s": 10,
            "progress_ms": 0,
            "pools": {"pool": {"replicas": replicas, "slots": slots}},
            "scheduler": {
                "on_time_percent_min": 0,
                "classes": {"interactive": {"weight": 8, "capacity": 200_000}},
                "tenants": {name: {"weight": weight} for name, weight in weights.items()},
            },
            "workloads": [
                {
                    "name": name,
                    "tenants": name,
                    # A quarter more than the tenant's share, so that it always has work waiting.
                    "arrivals": {
                        "kind": "poisson",
                        "per_second": 1.25 * tokens_per_s * weight / 15 / (lengths[name] * 1.02),
                    },
                    "prompt_tokens": 20,
                    "output_tokens": {"kind": "lognormal", "median": lengths[name] * 0.9, "sigma": 0.5},
                    "max_tokens": 4096,
                    "deadline_ms": 10_000_000,
                }
                for name, weight in weights.items()
            ],
        }
    )


def overload(
    policy: str,
    *,
    interactive: float = 0.75,
    load: float = 1.5,
    replicas: int = 8,
    slots: int = 8,
    seconds: float = 400,
    warmup_s: float = 100,
    retrying: float = 0.0,
    capacity: int = 2000,
    deadlines_ms: tuple[tuple[int, int], tuple[int, int]] = ((4_000, 10_000), (8_000, 20_000)),
) -> Scenario:
    """More tasks than slots, of two classes and several tenants, each with its own deadline.

    `retrying` is the part of the interactive clients that come back exactly when a refusal told them to.
    """
    rate = load * replicas * slots * TASKS_PER_SLOT_S
    section = dict(POLICIES[policy])
    sizes = {"prompt_tokens": PROMPT, "output_tokens": OUTPUT}
    deadlines = [{"kind": "uniform", "min": low, "max": high} for low, high in deadlines_ms]
    chat = {"tenants": {"a": 3, "b": 2, "c": 1}, "deadline_ms": deadlines[0], **sizes}
    workloads: list[dict[str, Any]] = [
        {"name": "chat", "arrivals": _poisson(rate * interactive * (1 - retrying)), **chat},
        {
            "name": "jobs",
            "priority": "batch",
            "tenants": {"a": 1, "d": 3},
            "deadline_ms": deadlines[1],
            "arrivals": _poisson(rate * (1 - interactive)),
            **sizes,
        },
    ]
    if retrying:
        retry = {"kind": "retry", "tries_max": 2}
        workloads.append(
            {"name": "patient", "arrivals": _poisson(rate * interactive * retrying), "on_refusal": retry, **chat}
        )
    return Scenario.model_validate(
        {
            "name": f"overload-{policy}",
            "seconds": seconds,
            "warmup_s": warmup_s,
            "progress_ms": 0,
            "pools": {"pool": {"replicas": replicas, "slots": slots}},
            "scheduler": {
                "preemption": {"mode": section.pop("mode")},
                "classes": {
                    "interactive": {"weight": 8, "capacity": capacity, "full_policy": "reject"},
                    "batch": {"weight": 1, "capacity": capacity, "full_policy": "reject"},
                },
                **section,
            },
            "workloads": workloads,
        }
    )


def inversion(mode: str) -> Scenario:
    """Long batch answers hold every slot when interactive tasks with short deadlines come."""
    return Scenario.model_validate(
        {
            "name": f"inversion-{mode}",
            "seconds": 300,
            "warmup_s": 30,
            "progress_ms": 250,
            "pools": {"pool": {"replicas": 4, "slots": 4}},
            "scheduler": {
                "preemption": {"mode": mode, "max_per_min": 120, "per_task_max": 4},
                "classes": {"interactive": {"weight": 8, "capacity": 500}, "batch": {"weight": 1, "capacity": 500}},
            },
            "workloads": [
                {
                    "name": "reports",
                    "priority": "batch",
                    "arrivals": _poisson(0.6),
                    "output_tokens": {"kind": "lognormal", "median": 1200, "sigma": 0.2},
                    "max_tokens": 4096,
                    "deadline_ms": 600_000,
                },
                {
                    "name": "chat",
                    "arrivals": _poisson(1.5),
                    "output_tokens": {"kind": "lognormal", "median": 40, "sigma": 0.4},
                    "max_tokens": 256,
                    "deadline_ms": 4_000,
                },
            ],
        }
    )


def _poisson(per_second: float) -> dict[str, Any]:
    return {"kind": "poisson", "per_second": per_second}
