"""What a configuration must satisfy beyond its schema: rules that look at several fields or at the machine."""

import os
import shutil
from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel

from contracts.api import PRIORITIES
from contracts.config import AuthConfig, Config, PoolConfig
from contracts.config_scheduling import PreemptionConfig
from orchestrator.config_sharing import PlacedPool, burst_problems, set_problems, tenant_problems
from orchestrator.config_yaml import Document, Loc, Problem

#: Engines with an adapter in this release.
ENGINES_AVAILABLE: Final = ("llamacpp",)

#: Models that come with the installation, for which `model_path` may be left out.
BUNDLED_MODELS: Final = ("smollm2-135m-instruct",)

#: Whose tasks they are when authentication is off, or when `llorch run` made the only key.
KEYLESS_TENANT: Final = "default"

#: Words with which the schema marks fields that are accepted but do nothing yet.
LATER: Final = "from a later release"


def pool_problems(document: Document, pools: list[PlacedPool], *, files: bool) -> Iterator[Problem]:
    """Everything wrong with the pools, each by itself and together. `files` also looks for the files they name."""
    for loc, pool in pools:
        yield from _device_rules(document, loc, pool)
        yield from _queue_rules(document, loc, pool)
        yield from _engine_rules(document, loc, pool)
        if files:
            yield from _file_rules(document, loc, pool)
    yield from _unique_ids(document, pools)
    yield from set_problems(document, pools)
    yield from tenant_problems(document, pools)


def _engine_rules(document: Document, loc: Loc, pool: PoolConfig) -> Iterator[Problem]:
    if pool.engine not in ENGINES_AVAILABLE:
        yield document.problem(
            (*loc, "engine"),
            f"engine `{pool.engine}` is not available in this release",
            f"use one of: {', '.join(ENGINES_AVAILABLE)}",
        )
    elif pool.model_path is None and pool.model not in BUNDLED_MODELS:
        yield document.problem(
            (*loc, "model"),
            f"pool `{pool.id}` names no model_path, and `{pool.model}` is not a bundled model",
            f"add `model_path: FILE.gguf`, or use the bundled `{BUNDLED_MODELS[0]}`",
        )


def _device_rules(document: Document, loc: Loc, pool: PoolConfig) -> Iterator[Problem]:
    """No silent CPU fallback (ORCH-1101, ORCH-3018); splits are explicit (ORCH-3012)."""
    if pool.accelerator == "gpu" and not pool.devices:
        yield document.problem(
            loc,
            f"pool `{pool.id}` runs on GPUs but lists no devices",
            "list the GPUs, as in `devices: [0]`; for development without one, say `accelerator: cpu-dev`",
        )
    if len(set(pool.devices)) != len(pool.devices):
        yield document.problem((*loc, "devices"), "a device is listed twice", "list each GPU once")
    split = pool.tensor_split
    if split is None:
        return
    if len(split) != len(pool.devices):
        yield document.problem(
            (*loc, "tensor_split"),
            f"tensor_split has {len(split)} ratios for {len(pool.devices)} devices",
            "give one ratio for each entry of `devices`",
        )
    # A hair over one percent, so that ratios rounded to two digits pass whatever binary fractions make of them.
    if abs(sum(split) - 1) > 0.01 + 1e-9:
        yield document.problem(
            (*loc, "tensor_split"), f"tensor_split sums to {sum(split):.3f}", "make the ratios sum to 1"
        )


def _queue_rules(document: Document, loc: Loc, pool: PoolConfig) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, priority in enumerate(pool.admission.priorities):
        place = (*loc, "admission", "priorities", index)
        if priority.name in seen:
            yield document.problem(
                (*place, "name"), f"priority `{priority.name}` is given twice", "merge the two entries"
            )
        seen.add(priority.name)
        if priority.queue_capacity is not None and priority.queue_capacity > pool.queue.capacity:
            yield document.problem(
                (*place, "queue_capacity"),
                f"queue_capacity {priority.queue_capacity} is over the pool's capacity {pool.queue.capacity}",
                "lower it, or raise `queue.capacity`",
            )


def _file_rules(document: Document, loc: Loc, pool: PoolConfig) -> Iterator[Problem]:
    path = pool.model_path
    if path is not None and not path.is_file():
        yield document.problem(
            (*loc, "model_path"), f"model file {path} does not exist", "give the path of a GGUF file on this machine"
        )
    elif path is not None and not os.access(path, os.R_OK):
        yield document.problem(
            (*loc, "model_path"), f"model file {path} cannot be read", "let this user read it (chmod +r)"
        )
    binary = pool.engine_options.binary
    place = (*loc, "engine_options", "binary")
    if binary is not None and not binary.is_file():
        yield document.problem(
            place, f"engine binary {binary} does not exist", "leave it out to have one found or built"
        )
    elif binary is not None and shutil.which(str(binary)) is None:
        yield document.problem(place, f"engine binary {binary} is not executable", f"chmod +x {binary}")


def _unique_ids(document: Document, pools: list[PlacedPool]) -> Iterator[Problem]:
    seen: set[str] = set()
    for loc, pool in pools:
        if pool.id in seen:
            yield document.problem((*loc, "id"), f"pool id `{pool.id}` is given twice", "give each pool its own id")
        seen.add(pool.id)


def auth_problems(document: Document, auth: AuthConfig) -> Iterator[Problem]:
    """Keys are told apart by name and by hash (ORCH-3035)."""
    for name in ("name", "sha256"):
        seen: set[str] = set()
        for index, key in enumerate(auth.keys):
            value = getattr(key, name)
            if value in seen:
                yield document.problem(
                    ("auth", "keys", index, name), f"two keys have the same {name}", "remove or change one"
                )
            seen.add(value)
    for index, key in enumerate(auth.keys):
        yield from burst_problems(document, ("auth", "keys", index), key)


def auth_warnings(document: Document, auth: AuthConfig) -> Iterator[Problem]:
    if not auth.enabled:
        yield document.problem(
            ("auth", "enabled"),
            "authentication is off: whoever reaches the port can use the cluster",
            "remove `enabled: false` unless something in front checks callers",
        )
    elif not auth.keys:
        yield document.problem(
            ("auth",),
            "no API keys are configured: `llorch run` makes a development key at each start",
            "add one: `llorch hash-key` prints a key and the hash to put under `auth.keys`",
        )


def pool_warnings(document: Document, pools: list[PlacedPool]) -> Iterator[Problem]:
    """Settings that are valid and do not do what their author may expect."""
    for loc, pool in pools:
        if pool.accelerator == "cpu-dev":
            yield document.problem(
                (*loc, "accelerator"),
                f"pool `{pool.id}` runs on the CPU: a development carve-out, not for production",
                "production pools use `accelerator: gpu` and list `devices`",
            )
            if pool.devices:
                yield document.problem((*loc, "devices"), "devices mean nothing with `accelerator: cpu-dev`")
        if not pool.preload:
            yield document.problem((*loc, "preload"), "`preload: false` does nothing yet: pools always preload")
        yield from _preemption_warnings(document, (*loc, "preemption"), pool.preemption)


def _preemption_warnings(document: Document, loc: Loc, preemption: PreemptionConfig) -> Iterator[Problem]:
    """Bounds of hard preemption where there is none (ORCH-3086), and protection that leaves nothing of either kind."""
    hard = preemption.hard_requirements
    if preemption.mode != "hard":
        set_here: list[tuple[Loc, bool]] = [
            (("per_task_max",), "per_task_max" in preemption.model_fields_set),
            (("hard_requirements", "engine_capability"), "engine_capability" in hard.model_fields_set),
            (("hard_requirements", "max_preemptions_per_min"), "max_preemptions_per_min" in hard.model_fields_set),
        ]
        for tail, given in set_here:
            if given:
                yield document.problem(
                    (*loc, *tail),
                    f"`{tail[-1]}` means nothing with `mode: {preemption.mode}`",
                    "it bounds `mode: hard`",
                )
    if preemption.mode != "off" and set(PRIORITIES[1:]) <= set(hard.protect_priorities):
        yield document.problem(
            (*loc, "hard_requirements", "protect_priorities"),
            f"every class below `{PRIORITIES[0]}` is protected: preemption has nothing to take",
            "protect fewer classes, or say `mode: off`",
        )


def tenant_warnings(document: Document, config: Config) -> Iterator[Problem]:
    """Callers whose tenant is refused as unknown."""
    fairness = [pool.admission.fairness for pool in config.pools]
    if not any(section.unknown_tenants == "refuse" for section in fairness):
        return
    named = {tenant.id for section in fairness for tenant in section.tenants}
    callers: list[tuple[Loc, str]] = [
        (("auth", "keys", index, "tenant"), key.tenant) for index, key in enumerate(config.auth.keys)
    ]
    if not config.auth.enabled or not callers:
        callers = [(("auth",), KEYLESS_TENANT)]
    for loc, tenant in callers:
        if tenant not in named:
            yield document.problem(
                loc,
                f"tenant `{tenant}` is named in no pool, and unknown tenants are refused: all its tasks are",
                "add it to `admission.fairness.tenants` of a pool",
            )


def budget_warnings(document: Document, config: Config) -> Iterator[Problem]:
    """A budget of cost counts with prices (ORCH-3099)."""
    prices = [price for pool in config.pools for price in (pool.price.prompt_per_1k, pool.price.output_per_1k)]
    if config.sessions.budget.cost is not None and not any(prices):
        yield document.problem(
            ("sessions", "budget", "cost"),
            "no pool has a price, so a budget of cost is never used up",
            "give the pools a `price`, or bound `tokens` or `time_ms`",
        )


def later_warnings(document: Document, model: BaseModel, loc: Loc = ()) -> Iterator[Problem]:
    """One warning for each field that the file sets and this release does not enforce."""
    for name in type(model).model_fields:
        if name not in model.model_fields_set:
            continue
        place = (*loc, name)
        if (type(model).model_fields[name].description or "").startswith(LATER):
            yield document.problem(
                place, f"`{name}` is accepted but not enforced in this release", "keep it for later", at_key=True
            )
            continue
        value = getattr(model, name)
        items: list[tuple[Loc, Any]] = [(place, value)]
        if isinstance(value, list):
            items = [((*place, index), item) for index, item in enumerate(value)]
        for item_loc, item in items:
            if isinstance(item, BaseModel):
                yield from later_warnings(document, item, item_loc)
