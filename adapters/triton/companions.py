"""Which models of a repository belong together, as far as their configurations tell before a server has read them.

A model that calls others, such as TensorRT-LLM's `tensorrt_llm_bls`, is useless without them, and Triton loads only
those by itself that an ensemble lists.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

#: Counts the tokens of prompts, in the repositories that TensorRT-LLM comes with.
PREPROCESSING: Final = "preprocessing"

_FILE: Final = "config.pbtxt"
_COMMENT: Final = re.compile(r"^\s*#.*$", re.MULTILINE)
_PARAMETER: Final = re.compile(
    r"""key\s*:\s*["'](\w+)["']\s*[,;]?\s*value\s*:?\s*\{\s*string_value\s*:\s*["']([^"'\n]*)["']"""
)
_STEP: Final = re.compile(r"""\bmodel_name\s*:\s*["']([\w.-]+)["']""")
#: What the models of TensorRT-LLM call one another by default, without a word about it in their configurations.
_FAMILY: Final = "tensorrt_llm"
_FAMILY_MEMBERS: Final = (PREPROCESSING, _FAMILY, "postprocessing")


def holds(root: Path, name: str) -> bool:
    """Whether the repository has a model of that name."""
    folder = root / name
    is_name = "/" not in name and name not in ("", ".", "..")
    return is_name and ((folder / _FILE).is_file() or any(folder.glob("[0-9]*")))


def parameters(root: Path, model: str) -> dict[str, str]:
    """The parameters of a model's configuration; none where the server is to make the configuration up."""
    return dict(_PARAMETER.findall(_text(root, model)))


def with_companions(root: Path, models: Sequence[str]) -> list[str]:
    """`models`, and after them what their configurations name, and so on; each once.

    A configuration names a model by a parameter whose value is its name, or as the step of an ensemble.
    """
    found = list(dict.fromkeys(models))
    for model in found:  # grows meanwhile, by models of the repository that are not in it yet
        found += [name for name in dict.fromkeys(_named(root, model)) if name not in found and holds(root, name)]
    return found


def _named(root: Path, model: str) -> list[str]:
    text = _text(root, model)
    named = [value for _, value in _PARAMETER.findall(text)] + _STEP.findall(text)
    return [*named, *(_FAMILY_MEMBERS if _FAMILY in (model, *named) or model.startswith(_FAMILY) else (PREPROCESSING,))]


def _text(root: Path, model: str) -> str:
    try:
        return _COMMENT.sub("", (root / model / _FILE).read_text(errors="replace"))
    except OSError:
        return ""
