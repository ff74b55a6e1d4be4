"""Loading and checking the configuration file: all problems at once, each with its place and a hint.

Satisfies ORCH-3030 and OC-CONFIG-6001: unknown fields are refused (`unknown_fields: strict`) or
become warnings (`compat`).
"""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from contracts.config import AuthConfig, Config, PoolConfig
from contracts.config_base import Section
from contracts.config_pools import LeaseConfig, ModelConfig
from orchestrator import config_rules as rules
from orchestrator.config_models import PlacedModel, model_problems, model_warnings
from orchestrator.config_replicas import lease_problems
from orchestrator.config_yaml import Document, Loc, Problem, parse

__all__ = ["ConfigError", "LoadedConfig", "Problem", "development_config", "load", "loads"]

S = TypeVar("S", bound=Section)

#: What `llorch run` starts when no file is given; the same as examples/dev.yaml.
DEVELOPMENT: Final = """\
# llorch config
pools:
  - id: dev
    engine: llamacpp
    model: smollm2-135m-instruct   # bundled, so no model_path
    accelerator: cpu-dev           # the explicit development carve-out; production lists GPUs
    ctx: 2048
    slots: 4
    replicas: 1
"""


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration, what is worth knowing about it, and its file (None: the built-in one)."""

    config: Config
    warnings: tuple[Problem, ...] = ()
    path: Path | None = None


class ConfigError(Exception):
    """The file cannot be used; `problems` holds all that is wrong with it, in the file's order."""

    def __init__(self, problems: list[Problem], warnings: list[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        self.warnings = tuple(sorted(set(warnings)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def load(path: Path, *, files: bool = True) -> LoadedConfig:
    """Read, check and complete a configuration file.

    Relative paths in it count from the file's folder. `files=False` does not look for the model and engine files
    it names: they may be on other machines. Raises ConfigError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), 1, 1, "the file is not UTF-8 text")], []) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError([Problem(str(path), 1, 1, f"cannot read: {reason}", "check the path")], []) from error
    loaded = loads(text, str(path), base=path.resolve().parent, files=files)
    return LoadedConfig(loaded.config, loaded.warnings, path)


def development_config() -> LoadedConfig:
    """The built-in configuration of `llorch run`: one pool, the bundled model, on the CPU (ORCH-1101)."""
    return loads(DEVELOPMENT, "built-in configuration", base=Path.cwd())


def loads(text: str, name: str, *, base: Path, files: bool = True) -> LoadedConfig:
    """Like `load`, from text. `files=False` does not look for the model and engine files it names."""
    document = parse(text, name)
    problems, warnings = list(document.problems), list[Problem]()
    if not isinstance(document.data, dict):
        if not problems:
            what = "the file is empty" if document.data is None else "the file must be a mapping"
            problems.append(document.problem((), what, "start with `pools:`; examples/dev.yaml is a small file"))
        raise ConfigError(problems, warnings)
    compat = document.data.get("unknown_fields") == "compat"
    config, errors = _validate(Config, document.data, drop_unknown=compat)
    for error in errors:
        unknown = error["type"] == "extra_forbidden"
        (warnings if unknown and compat else problems).append(_explain(document, error, ignored=unknown and compat))
    pools = [(loc, _with_base(pool, base)) for loc, pool in _valid_entries(PoolConfig, document.data, "pools")]
    models: list[PlacedModel] = [
        (loc, model.model_copy(update={"path": base / model.path.expanduser()}))
        for loc, model in _valid_entries(ModelConfig, document.data, "models")
    ]
    problems += rules.pool_problems(document, pools)
    problems += model_problems(document, pools, models, files=files)
    warnings += rules.pool_warnings(document, pools)
    warnings += model_warnings(document, pools, models)
    lease, _ = _validate(LeaseConfig, document.data.get("lease", {}), drop_unknown=True)
    problems += lease_problems(document, lease) if lease is not None else []
    auth, _ = _validate(AuthConfig, document.data.get("auth", {}), drop_unknown=True)
    if auth is not None:
        problems += rules.auth_problems(document, auth)
        warnings += rules.auth_warnings(document, auth)
    if config is None or problems:
        raise ConfigError(problems, warnings)
    warnings += rules.tenant_warnings(document, config)
    warnings += rules.budget_warnings(document, config)
    warnings += rules.later_warnings(document, config)
    placed = {"pools": [pool for _, pool in pools], "models": [model for _, model in models]}
    placed |= {
        "storage": _with_paths(config.storage, base),
        "auth": _with_paths(config.auth, base),
        "server": config.server.model_copy(update={"tls": _with_paths(config.server.tls, base)}),
    }
    config = config.model_copy(update=placed)
    return LoadedConfig(config, tuple(sorted(set(warnings))))


def _validate(model: type[S], data: Any, *, drop_unknown: bool) -> tuple[S | None, list[Any]]:
    """Validate strictly (`"8"` is no number). With `drop_unknown`, unknown fields are told but do not fail."""
    try:
        return model.model_validate_json(json.dumps(data), strict=True), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
    if drop_unknown and unknown:
        valid, rest = _validate(model, _without(data, unknown), drop_unknown=False)
        return valid, [error for error in errors if error["type"] == "extra_forbidden"] + rest
    return None, errors


def _valid_entries(kind: type[S], data: Mapping[str, Any], name: str) -> list[tuple[Loc, S]]:
    """The entries of a list that are valid but for unknown fields: their rules are checked whatever else is wrong."""
    entries = data.get(name)
    found: list[tuple[Loc, S]] = []
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        valid, _ = _validate(kind, entry, drop_unknown=True)
        if valid is not None:
            found.append(((name, index), valid))
    return found


def _without(data: Any, locs: list[Loc]) -> Any:
    """A copy of `data` without the values at `locs`."""
    copy = json.loads(json.dumps(data))
    for *parents, last in locs:
        place = copy
        for step in parents:
            place = place[step]
        del place[last]
    return copy


def _with_base(pool: PoolConfig, base: Path) -> PoolConfig:
    """The pool with its file paths made absolute."""
    update: dict[str, Any] = {}
    if pool.model_path is not None:
        update["model_path"] = base / pool.model_path.expanduser()
    if pool.engine_options.binary is not None:
        binary = base / pool.engine_options.binary.expanduser()
        update["engine_options"] = pool.engine_options.model_copy(update={"binary": binary})
    return pool.model_copy(update=update)


def _with_paths(section: Section | None, base: Path) -> Section | None:
    """The section with its own paths made absolute."""
    if section is None:
        return None
    paths = {name: value for name, value in section if isinstance(value, Path)}
    return section.model_copy(update={name: base / path.expanduser() for name, path in paths.items()})


def _explain(document: Document, error: Any, *, ignored: bool = False) -> Problem:
    """A schema error in the reader's words."""
    loc: Loc = error["loc"]
    name = _named(loc)
    match error["type"]:
        case "extra_forbidden":
            known = _fields_at(loc[:-1])
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known)}"
            message = f"unknown field `{name}`" + (" (ignored: unknown_fields is compat)" if ignored else "")
            return document.problem(loc, message, hint, at_key=True)
        case "missing":
            return document.problem(loc, f"`{name}` is missing", f"add `{name}:` here")
        case "literal_error":
            expected = str(error["ctx"]["expected"])
            close = difflib.get_close_matches(str(error["input"]), re.findall(r"'([^']+)'", expected), n=1)
            hint = f"did you mean `{close[0]}`?" if close else ""
            return document.problem(loc, f"`{name}` must be {expected}, not `{error['input']}`", hint)
        case "string_type" if isinstance(error["input"], int | float):
            return document.problem(
                loc, f"`{name}` must be text, not a number", f'put it in quotes: "{error["input"]}"'
            )
        case _:
            said = error["msg"].removeprefix("Input should ").removeprefix("String should ")
            return document.problem(loc, f"`{name}` should {said}" if said != error["msg"] else f"`{name}`: {said}")


def _named(loc: Loc) -> str:
    """The last step of a place; an entry of a list goes by the list's name."""
    if not loc:
        return "file"
    return f"{loc[-2]}[{loc[-1]}]" if isinstance(loc[-1], int) and len(loc) > 1 else str(loc[-1])


def _fields_at(loc: Loc) -> list[str]:
    """Names of the fields that the schema knows at a place."""
    kind: Any = Config
    for step in loc:
        if isinstance(step, str) and isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = _inner(kind.model_fields[step].annotation)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _inner(annotation: Any) -> Any:
    """The section inside `list[Section]` or `Section | None`."""
    for argument in get_args(annotation):
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            return argument
    return annotation
