"""How an embedding is made of the vectors of an input's tokens."""

from pathlib import Path
from typing import Final

from adapters.llamacpp.gguf import GgufError, read_facts

#: For models that name no pooling: without one the engine gives a vector for each token.
POOLING_DEFAULT: Final = "mean"


def default_pooling(model: Path) -> str:
    """What to ask the engine for; empty where the model's file names the pooling that it was trained for."""
    try:
        told = read_facts(model).get("pooling_type", 0)
    except (OSError, GgufError):
        return ""
    return "" if told else POOLING_DEFAULT
