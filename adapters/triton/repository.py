"""A model repository on disk: which models are served, their digest, what they will take (ORCH-3057)."""

import json
from pathlib import Path
from typing import Final

from adapters.digest import folder_digest
from adapters.errors import model_error
from adapters.triton import companions
from adapters.triton.options import read_options
from adapters.triton.protocol import ModelConfig
from contracts.engine import EngineError, EngineSpec
from contracts.gpus import MemoryNeed

#: The project's own repository: a real server runs toy models from it, in tests and for development.
TOY_REPOSITORY: Final = Path(__file__).resolve().parents[1] / "testing" / "triton_repository"
PREPROCESSING: Final = companions.PREPROCESSING

_MIB: Final = 1024 * 1024
_FILES_MAX: Final = 10_000
_FEWER: Final = f"keep it below {_FILES_MAX}"
#: The server and a process of its Python backend; 94 and 64 MiB were measured of toy models.
_HOST_BYTES: Final = 256 * _MIB
#: A CUDA context with the kernels of one engine, on each GPU.
_CUDA_CONTEXT_BYTES: Final = 500 * _MIB
#: Parameters under which models name the folder of a TensorRT-LLM engine.
_ENGINE_FOLDERS: Final = ("gpt_model_path", "gpt_model_folder", "engine_dir", "model_path")


def repository_of(spec: EngineSpec) -> Path:
    """The folder of the spec's repository. Raises EngineError (kind `model`) where it does not hold the model."""
    root = Path(spec.model_path) if spec.model_path else TOY_REPOSITORY
    model = root / spec.model
    if not (model / "config.pbtxt").is_file() and not any(model.glob("[0-9]*")):
        reason = f"model repository {str(root)!r} holds no model {spec.model!r}"
        raise model_error(spec, reason, "let `model_path` name a repository with a folder of that name")
    return root


def declares_invariance(root: Path, model: str) -> bool:
    """Whether the model's configuration says that what runs beside a request does not change its tokens."""
    return companions.parameters(root, model).get("batch_invariant", "").lower() == "true"


def models_of(spec: EngineSpec, root: Path) -> list[str]:
    """The model, those that it calls, the one that counts its tokens, and those that the spec names beside them.

    Raises EngineError (kind `model`) for one of the last that the repository does not hold.
    """
    named = read_options(spec).models
    missing = [name for name in named if not companions.holds(root, name)]
    if missing:
        reason = f"model repository {str(root)!r} holds no model {missing[0]!r}"
        raise model_error(spec, reason, "correct `--llorch-models`")
    return companions.with_companions(root, [spec.model, *named])


def model_files(spec: EngineSpec, root: Path) -> dict[str, Path]:
    """The files of all these models and of the engines that they name, by model and name within its folder.

    Raises EngineError (kind `model`) for what cannot be read and for too many.
    """
    found: dict[str, Path] = {}
    folders: list[Path] = []
    for label, folder in _folders(spec, root):
        # An engine mostly lies in its model's folder, and counts once.
        if any(folder.resolve().is_relative_to(known) for known in folders):
            continue
        folders.append(folder.resolve())
        try:
            paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
        except OSError as error:
            raise model_error(spec, f"{str(folder)!r}: {error.strerror}", "make it readable") from None
        found.update((f"{label}/{path.relative_to(folder)}", path) for path in paths)
        if len(found) > _FILES_MAX:
            raise model_error(spec, f"{str(folder)!r} and what is served beside it hold {len(found)} files", _FEWER)
    return found


def _folders(spec: EngineSpec, root: Path) -> list[tuple[str, Path]]:
    """Folders by label: those of the models, then those of engines that are there."""
    models = models_of(spec, root)
    engines = [
        (f"{model}:{name}", Path(folder))
        for model in models
        for name, folder in sorted(companions.parameters(root, model).items())
        if name in _ENGINE_FOLDERS and Path(folder).is_dir()
    ]
    return [*((model, root / model) for model in models), *engines]


def check_digest(spec: EngineSpec, root: Path) -> None:
    """Raises EngineError (kind `model`) where the files are not those that the spec asks for (ORCH-3037)."""
    if not spec.model_digest:
        return
    found = repository_digest(spec, root)
    if found != spec.model_digest.lower():
        reason = f"model {spec.model!r} in {str(root)!r} has {found} and must have {spec.model_digest}"
        raise model_error(spec, reason, "put the right files there, or correct `model_digest`")


def repository_digest(spec: EngineSpec, root: Path) -> str:
    """`sha256:<hex>` over the names and contents of the files of the model and of those beside it (ORCH-3032)."""
    try:
        return folder_digest(model_files(spec, root))
    except OSError as error:
        raise _unreadable(spec, root, error) from None


def memory_need(spec: EngineSpec, root: Path) -> MemoryNeed:
    """An estimate from the sizes of the model's files: what else a backend takes, Triton does not tell beforehand."""
    try:
        weights_bytes = sum(path.stat().st_size for path in model_files(spec, root).values())
    except OSError as error:
        raise _unreadable(spec, root, error) from None
    on_gpu = spec.accelerator == "gpu"
    return MemoryNeed(
        weights_bytes=weights_bytes,
        kv_slot_bytes=0,
        scratch_bytes=_CUDA_CONTEXT_BYTES if on_gpu else 0,
        host_bytes=_HOST_BYTES + (0 if on_gpu else weights_bytes),
    )


def trtllm_version(config: ModelConfig) -> str:
    """The version of TensorRT-LLM that the model's engine was built with, empty where nothing tells (OC-ADAPT-5070)."""
    told = config.parameter("trtllm_version") or config.parameter("tensorrt_llm_version")
    for name in _ENGINE_FOLDERS:
        if not told and config.parameter(name):
            told = _engine_version(Path(config.parameter(name)) / "config.json")
    return told


def _engine_version(path: Path) -> str:
    try:
        version = json.loads(path.read_bytes()[:_MIB])["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return version if isinstance(version, str) else ""


def _unreadable(spec: EngineSpec, root: Path, error: OSError) -> EngineError:
    reason = f"model folder {str(root / spec.model)!r}: {error.strerror or 'it cannot be read'}"
    return model_error(spec, reason, "make it readable")
