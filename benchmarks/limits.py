"""`limits.yaml`: what a benchmark must reach, and the check against it."""

from pathlib import Path
from typing import Final

import msgspec
import yaml

LIMITS_FILE: Final = Path(__file__).with_name("limits.yaml")


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One figure's bound. `margin` is the part of the bound by which a run may miss it (0: none)."""

    why: str
    at_least: float | None = None
    at_most: float | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a limit has either at_least or at_most")

    def shortfall(self, figure: float) -> str:
        """How `figure` misses the bound; empty when it holds."""
        if self.at_least is not None and not figure >= self.at_least * (1 - self.margin):
            return f"{figure:.4g} is under {self.at_least:g}"
        if self.at_most is not None and not figure <= self.at_most * (1 + self.margin):
            return f"{figure:.4g} is over {self.at_most:g}"
        return ""


def load_limits(benchmark: str, path: Path = LIMITS_FILE) -> dict[str, Limit]:
    """The limits of one benchmark by figure. Raises KeyError for an unknown one, ValidationError for a bad file."""
    return msgspec.convert(yaml.safe_load(path.read_text())[benchmark], dict[str, Limit])


def shortfalls(figures: dict[str, float], limits: dict[str, Limit]) -> list[str]:
    """One line per limit that is missed; a figure that was not measured misses its limit."""
    lines = []
    for name, limit in limits.items():
        wrong = limit.shortfall(figures[name]) if name in figures else "was not measured"
        if wrong:
            lines.append(f"{name}: {wrong} ({limit.why})")
    return lines
