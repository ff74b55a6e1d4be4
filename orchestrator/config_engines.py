"""Rules about engines: those that are attached to, and how many tasks a strict pool's engine runs at once."""

from collections.abc import Iterator
from typing import Final

from contracts.api import Engine
from contracts.config import PoolConfig
from orchestrator.config_sharing import PlacedPool
from orchestrator.config_yaml import Document, Problem

#: Engines whose batches change tokens, so that a strict pool of them runs one task at a time. What a Triton model
#: does is known when it runs; llama.cpp does not on the CPU with the adapter's own settings.
_SERIAL: Final[tuple[Engine, ...]] = ("vllm", "tgi")
#: With this in its environment vLLM chooses kernels that do not.
_BATCH_INVARIANT: Final = "VLLM_BATCH_INVARIANT"


def engine_problems(document: Document, pools: list[PlacedPool]) -> Iterator[Problem]:
    """An engine that runs already is one replica of one pool, and is not started with anything."""
    first: dict[str, PoolConfig] = {}
    for loc, pool in pools:
        options, place = pool.engine_options, (*loc, "engine_options")
        if options.endpoint is None:
            if options.api_key_env is not None:
                yield document.problem(
                    (*place, "api_key_env"),
                    "`api_key_env` is for an engine that runs already, and there is no `endpoint`",
                    "add `endpoint`, or remove it: launched engines get a key of their own",
                )
            continue
        most = max(pool.replicas, pool.scaling.max or 0 if pool.scaling is not None else 0)
        if most > 1:
            yield document.problem(
                (*place, "endpoint"),
                f"pool `{pool.id}` has up to {most} replicas and one endpoint",
                "make a pool for each engine; pools of the same engine, model and ctx are one replica set",
            )
        if options.binary is not None or options.env:
            name = "binary" if options.binary is not None else "env"
            yield document.problem(
                (*place, name), f"`{name}` is for launching an engine, and `endpoint` names one that runs", "remove one"
            )
        other = first.setdefault(options.endpoint, pool)
        if other is not pool:
            yield document.problem(
                (*place, "endpoint"),
                f"pools `{other.id}` and `{pool.id}` use one engine, {options.endpoint}",
                "each pool counts its engine's slots as its own: remove one pool",
            )


def engine_warnings(document: Document, pools: list[PlacedPool]) -> Iterator[Problem]:
    """Slots that a strict pool will not use (ORCH-3045)."""
    for loc, pool in pools:
        if pool.determinism == "strict" and pool.slots > 1 and pool.batch_invariant is None and _is_serial(pool):
            yield document.problem(
                (*loc, "slots"),
                f"pool `{pool.id}` is strict and runs one task at a time: batches of {_what(pool)} may change tokens",
                "say `determinism: best_effort`, or prove your hardware (docs/determinism.md) and say"
                " `batch_invariant: true`",
            )


def _is_serial(pool: PoolConfig) -> bool:
    if pool.engine == "vllm" and pool.accelerator == "gpu":
        return pool.engine_options.env.get(_BATCH_INVARIANT, "0") in ("", "0")
    if pool.engine == "llamacpp":
        return pool.accelerator == "gpu" or bool(pool.engine_options.args)
    return pool.engine in _SERIAL


def _what(pool: PoolConfig) -> str:
    if pool.engine != "llamacpp":
        return pool.engine
    return "llama.cpp on GPUs" if pool.accelerator == "gpu" else "llama.cpp with arguments of yours"
