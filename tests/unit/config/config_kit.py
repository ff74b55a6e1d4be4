"""A small file to add to, and what comes of loading it."""

from pathlib import Path

import pytest

from contracts.policies import SchedulerConfig
from orchestrator.configfile import ConfigError, LoadedConfig, Problem, loads
from orchestrator.sets import scheduler_config

POOL = """\
pools:
  - id: a
    engine: llamacpp
    model: smollm2-135m-instruct
    accelerator: cpu-dev
"""


def pool(pool_id: str, *lines: str) -> str:
    """One entry of `pools`: like that of POOL, with more fields; a line each."""
    entry = POOL.removeprefix("pools:\n").replace("id: a", f"id: {pool_id}")
    return entry + "".join(f"    {line}\n" for line in lines)


def pair(first: str, second: str) -> str:
    """Two pools, `a` and `b`, of one replica set, with a line more each."""
    return "pools:\n" + pool("a", first) + pool("b", second)


def problems(text: str, *, files: bool = False) -> list[Problem]:
    """Every problem of a text that must have some."""
    with pytest.raises(ConfigError) as caught:
        loads(text, "f.yaml", base=Path(), files=files)
    return list(caught.value.problems)


def only(text: str) -> Problem:
    """The problem of a text that must have exactly one."""
    found = problems(text)
    assert len(found) == 1, found
    return found[0]


def good(text: str) -> LoadedConfig:
    return loads(text, "f.yaml", base=Path(), files=False)


def warned(text: str) -> list[str]:
    """What a valid text is warned of."""
    return [warning.message for warning in good(text).warnings]


def scheduled(text: str) -> SchedulerConfig:
    return scheduler_config(good(text).config)


def place(problem: Problem) -> tuple[int, int]:
    return problem.line, problem.column
