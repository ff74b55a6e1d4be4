"""Rules about models and the files they are in: of pools, and of those that pools may be reloaded to."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from contracts.api import Engine, Workload
from contracts.config import PoolConfig
from contracts.config_pools import ModelConfig
from orchestrator.config_sharing import PlacedPool
from orchestrator.config_yaml import Document, Loc, Problem
from orchestrator.sets import set_key
from orchestrator.specs import BUNDLED_MODELS

#: What an engine can be started for.
WORKLOADS: Final[dict[Engine, tuple[Workload, ...]]] = {
    "llamacpp": ("completion", "embedding", "rerank"),
    "vllm": ("completion", "embedding", "rerank"),
    "tgi": ("completion",),
    "triton": ("completion", "embedding"),
}
#: What a model is on disk, where it is not a file.
FOLDERS: Final[dict[Engine, str]] = {"vllm": "a model folder", "tgi": "a model folder", "triton": "a model repository"}

#: With this a name asks for a file by its digest, so no model is called so.
DIGEST_PREFIX: Final = "sha256:"

#: An entry of `models` with its place in the file.
PlacedModel = tuple[Loc, ModelConfig]


def model_problems(
    document: Document, pools: list[PlacedPool], models: list[PlacedModel], *, files: bool
) -> Iterator[Problem]:
    """`files` also looks for the files that pools and models name."""
    for loc, pool in pools:
        yield from _workload_rules(document, loc, pool)
        yield from _name_rules(document, (*loc, "model"), pool.model)
        yield from _bundled_rules(document, loc, pool)
        if files and pool.model_path is not None:
            yield from _file_rules(document, (*loc, "model_path"), pool.engine, pool.model_path)
        if files and pool.engine_options.binary is not None:
            yield from _binary_rules(document, (*loc, "engine_options", "binary"), pool.engine_options.binary)
    yield from _digest_rules(document, pools)
    seen: set[tuple[Engine, str]] = set()
    for loc, model in models:
        if (model.engine, model.ref) in seen:
            yield document.problem(
                (*loc, "ref"), f"model `{model.ref}` of {model.engine} is given twice", "give each model its own ref"
            )
        seen.add((model.engine, model.ref))
        yield from _name_rules(document, (*loc, "ref"), model.ref)
        yield from _same_as_pools(document, loc, model, [pool for _, pool in pools])
        if files:
            yield from _file_rules(document, (*loc, "path"), model.engine, model.path)


def model_warnings(document: Document, pools: list[PlacedPool], models: list[PlacedModel]) -> Iterator[Problem]:
    """Models that nothing can be reloaded to."""
    engines = {pool.engine for _, pool in pools}
    for loc, model in models:
        if model.engine not in engines:
            yield document.problem(
                (*loc, "engine"),
                f"no pool has engine {model.engine}: nothing can be reloaded to `{model.ref}`",
                "remove the entry, or add a pool of that engine",
            )


def _workload_rules(document: Document, loc: Loc, pool: PoolConfig) -> Iterator[Problem]:
    if pool.workload not in WORKLOADS[pool.engine]:
        able = ", ".join(engine for engine, workloads in WORKLOADS.items() if pool.workload in workloads)
        yield document.problem(
            (*loc, "workload"),
            f"engine `{pool.engine}` does not serve workload `{pool.workload}`",
            f"engines that do: {able}",
        )


def _name_rules(document: Document, place: Loc, name: str) -> Iterator[Problem]:
    if name.startswith(DIGEST_PREFIX):
        yield document.problem(
            place,
            f"`{name}` cannot name a model: tasks ask for files by their digests so",
            "choose a name, and put the digest under `model_digest` (of a pool) or `digest` (under `models`)",
        )


def _bundled_rules(document: Document, loc: Loc, pool: PoolConfig) -> Iterator[Problem]:
    bundled = BUNDLED_MODELS.get(pool.engine, ())
    # Of an attached engine only llama.cpp's file is needed here: for the digest, which the others tell or lack.
    attached = pool.engine_options.endpoint is not None and pool.engine in FOLDERS
    if pool.model_path is None and pool.model not in bundled and not attached:
        yield document.problem(
            (*loc, "model"),
            f"pool `{pool.id}` names no model_path, and `{pool.model}` is not a bundled model",
            f"add `model_path: PATH`, or use a bundled one: {', '.join(bundled) or 'there is none'}",
        )


def _digest_rules(document: Document, pools: list[PlacedPool]) -> Iterator[Problem]:
    """Replicas of one set serve the same file (ORCH-3046)."""
    first: dict[str, PoolConfig] = {}
    for loc, pool in pools:
        if pool.model_digest is None:
            continue
        other = first.setdefault(set_key(pool), pool)
        if other.model_digest != pool.model_digest:
            yield document.problem(
                (*loc, "model_digest"),
                f"pools `{other.id}` and `{pool.id}` form one replica set but differ in model_digest",
                "give both the same file and digest, or make them different sets (model, quant, ctx, sampler profile)",
            )


def _same_as_pools(document: Document, loc: Loc, model: ModelConfig, pools: list[PoolConfig]) -> Iterator[Problem]:
    """A name means one file, whether a pool starts with it or is reloaded to it."""
    for pool in pools:
        if (pool.engine, pool.model) != (model.engine, model.ref):
            continue
        if pool.model_path != model.path:
            theirs = pool.model_path or "the bundled file"
            yield document.problem(
                (*loc, "path"),
                f"model `{model.ref}` is {model.path} here and {theirs} in pool `{pool.id}`",
                "give both the same file, or remove the entry: a pool's own model needs none",
            )
        elif model.digest is not None and pool.model_digest not in (None, model.digest):
            yield document.problem(
                (*loc, "digest"),
                f"model `{model.ref}` has another digest in pool `{pool.id}`",
                "give both the digest that `sha256sum` prints of the file",
            )


def _file_rules(document: Document, place: Loc, engine: Engine, path: Path) -> Iterator[Problem]:
    if engine in FOLDERS and not path.is_dir():
        yield document.problem(
            place, f"model folder {path} does not exist", f"give the path of {FOLDERS[engine]} on this machine"
        )
    elif engine not in FOLDERS and not path.is_file():
        yield document.problem(
            place, f"model file {path} does not exist", "give the path of a GGUF file on this machine"
        )
    elif not os.access(path, os.R_OK):
        yield document.problem(place, f"model file {path} cannot be read", "let this user read it (chmod +r)")


def _binary_rules(document: Document, place: Loc, binary: Path) -> Iterator[Problem]:
    if not binary.is_file():
        yield document.problem(
            place, f"engine binary {binary} does not exist", "leave it out to have one found or built"
        )
    elif shutil.which(str(binary)) is None:
        yield document.problem(place, f"engine binary {binary} is not executable", f"chmod +x {binary}")
