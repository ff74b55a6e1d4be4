"""Loading a scenario for the simulation: all problems at once, each with its place and a hint."""

import difflib
import json
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from orchestrator.config_yaml import Document, Loc, Problem, parse
from orchestrator.simulation.scenario import Scenario


class ScenarioError(Exception):
    """The scenario cannot be used; `problems` holds all that is wrong with it, in the file's order."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def load(path: Path, changes: list[str] | None = None) -> Scenario:
    """Read and check a scenario file, with `changes` such as `pools.gpu.replicas=6` over it. Raises ScenarioError."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ScenarioError([Problem(str(path), 1, 1, "the file is not UTF-8 text")]) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ScenarioError([Problem(str(path), 1, 1, f"cannot read: {reason}", "check the path")]) from None
    return loads(text, str(path), changes)


def loads(text: str, name: str, changes: list[str] | None = None) -> Scenario:
    """Like `load`, from text."""
    document = parse(text, name)
    if document.problems:
        raise ScenarioError(document.problems)
    if not isinstance(document.data, dict):
        hint = "start with `workloads:`; examples/simulation has small ones"
        raise ScenarioError([document.problem((), "a scenario must be a mapping", hint)])
    for change in changes or []:
        _change(document, change)
    try:
        return Scenario.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
    raise ScenarioError([_explain(document, entry) for entry in found])


def _change(document: Document, change: str) -> None:
    """Put one value over the file's. A list is entered by the `name` of its entries."""
    place, equals, value = change.partition("=")
    steps = place.split(".")
    parsed = parse(value, place)
    if not equals or parsed.problems or "" in steps:
        raise ScenarioError([Problem(f"--set {change}", 1, 1, "must be PLACE=VALUE, as in pools.gpu.replicas=6")])
    here: Any = document.data
    for step in steps[:-1]:
        if isinstance(here, dict):
            here = here.setdefault(step, {})
        elif isinstance(here, list):
            named = [entry for entry in here if isinstance(entry, dict) and entry.get("name") == step]
            if not named:
                raise ScenarioError([Problem(f"--set {change}", 1, 1, f"no entry is named `{step}`")])
            here = named[0]
    if not isinstance(here, dict):
        raise ScenarioError([Problem(f"--set {change}", 1, 1, f"`{'.'.join(steps[:-1])}` has no fields")])
    here[steps[-1]] = parsed.data


def _explain(document: Document, error: Any) -> Problem:
    """A schema error in the reader's words."""
    loc = _in_file(document.data, error["loc"])
    name = str(error["loc"][-1]) if error["loc"] else "file"
    match error["type"]:
        case "extra_forbidden":
            known = _fields_at(error["loc"][:-1])
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known)}"
            return document.problem(loc, f"unknown field `{name}`", hint, at_key=True)
        case "missing":
            return document.problem(loc, f"`{name}` is missing", f"add `{name}:` here")
        case "union_tag_invalid":
            expected = error["ctx"]["expected_tags"]
            return document.problem(loc, f"`kind` must be one of {expected}, not `{error['ctx']['tag']}`")
        case "union_tag_not_found":
            return document.problem(loc, f"`{name}` needs a `kind`", "docs/simulation.md has them all")
        case "value_error":
            return document.problem(loc, str(error["ctx"]["error"]))
        case _:
            name = str(loc[-1]) if loc else "file"
            said = error["msg"].removeprefix("Input should ")
            return document.problem(loc, f"`{name}` should {said}" if said != error["msg"] else f"`{name}`: {said}")


def _in_file(data: Any, loc: Loc) -> Loc:
    """The part of a schema's path that the file has too: names of alternatives are not in it."""
    kept: list[str | int] = []
    here = data
    for step in loc:
        entries = dict(enumerate(here)) if isinstance(here, list) else here if isinstance(here, dict) else {}
        if step in entries:
            kept.append(step)
            here = entries[step]
    return tuple(kept)


def _fields_at(loc: Loc) -> list[str]:
    """Names of the fields that the schema knows at a place."""
    kinds: list[Any] = [Scenario]
    for step in loc:
        entered = [model.model_fields[str(step)].annotation for model in _models(kinds) if step in model.model_fields]
        tagged = [model for model in _models(kinds) if step in _tags(model)]
        kinds = entered or tagged or kinds
    return sorted({name for model in _models(kinds) for name in model.model_fields})


def _models(kinds: list[Any]) -> list[type[BaseModel]]:
    """All sections inside some annotations."""
    found: list[type[BaseModel]] = []
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.append(kind)
        else:
            found += _models([argument for argument in get_args(kind) if not isinstance(argument, str)])
    return found


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind is not None else ()
