"""Rules about engines: those that are attached to, and how many tasks a strict pool's engine runs at once."""

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

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
        address = _address(options.endpoint)
        if address is None:
            yield document.problem(
                (*place, "endpoint"),
                "`endpoint` is not `http://host:port`",
                "give a port up to 65535, and a key by `api_key_env` instead of in the address",
            )
            continue
        other = first.setdefault(address, pool)
        if other is not pool:
            yield document.problem(
                (*place, "endpoint"),
                f"pools `{other.id}` and `{pool.id}` use one engine, {address}",
                "each pool counts its engine's slots as its own: remove one pool",
            )


def _address(endpoint: str) -> str | None:
    """One spelling for one place; None for one that cannot be."""
    if endpoint.startswith("unix:"):
        return endpoint
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or not port or "@" in parts.netloc:
        return None
    return f"http://{'127.0.0.1' if host == 'localhost' else host}:{port}"


def engine_warnings(document: Document, pools: list[PlacedPool]) -> Iterator[Problem]:
    """Slots that a strict pool will not use (ORCH-3045)."""
    for loc, pool in pools:
        # A llama.cpp that ranks mixes up what it computes together, so nothing is gained by a weaker promise.
        ranks = pool.engine == "llamacpp" and pool.workload == "rerank"
        promised = pool.determinism == "strict" or ranks
        if promised and pool.slots > 1 and pool.batch_invariant is None and _is_serial(pool):
            yield document.problem(
                (*loc, "slots"),
                f"pool `{pool.id}` runs one task at a time: batches of {_what(pool)} may change results",
                "set `slots: 1`"
                + ("" if ranks else ", say `determinism: best_effort`")
                + ", or prove your hardware (docs/determinism.md) and say `batch_invariant: true`",
            )


def _is_serial(pool: PoolConfig) -> bool:
    if pool.engine == "vllm" and pool.accelerator == "gpu":
        return pool.engine_options.env.get(_BATCH_INVARIANT, "0") in ("", "0")
    if pool.engine == "llamacpp":
        options = pool.engine_options
        own = pool.accelerator == "cpu-dev" and not options.args and not options.env and options.endpoint is None
        return pool.workload != "completion" or not own
    return pool.engine in _SERIAL


def _what(pool: PoolConfig) -> str:
    if pool.engine != "llamacpp":
        return pool.engine
    if pool.workload != "completion":
        return "llama.cpp that embeds or ranks"
    return "llama.cpp on GPUs" if pool.accelerator == "gpu" else "llama.cpp with settings of yours"
