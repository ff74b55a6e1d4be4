"""YAML that remembers where everything stands, so that every problem can be shown in its place.

The schema is YAML 1.2's core: only `true` and `false` are booleans (`mode: off` is a word), there
are no dates and no base-60 numbers.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

#: A path into the document: keys of mappings and indexes of lists.
Loc = tuple[str | int, ...]

#: Bounds that no honest file meets; aliases could otherwise grow a small file without end.
TEXT_BYTES_MAX: Final = 1024 * 1024
NODES_MAX: Final = 50_000
DEPTH_MAX: Final = 32


@dataclass(frozen=True, order=True)
class Problem:
    """Something wrong at a place of the file. `line` and `column` count from 1; `hint` says what to do."""

    path: str
    line: int
    column: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.message}"


@dataclass
class Document:
    """Plain data of a YAML text, the place of each value and key, and what was wrong with the text itself."""

    path: str
    data: Any = None
    values: dict[Loc, tuple[int, int]] = field(default_factory=dict)
    keys: dict[Loc, tuple[int, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, loc: Loc, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A problem at `loc`, or at the nearest enclosing place that the file has."""
        for end in range(len(loc), -1, -1):
            prefix = loc[:end]
            if at_key and end == len(loc) and prefix in self.keys:
                return Problem(self.path, *self.keys[prefix], message, hint)
            if prefix in self.values:
                return Problem(self.path, *self.values[prefix], message, hint)
        return Problem(self.path, 1, 1, message, hint)


class _Loader(yaml.SafeLoader):
    """The safe loader with the core schema's scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def parse(text: str, path: str) -> Document:
    """Read `text`; syntax errors, duplicate keys and keys that are not text become problems of the document."""
    document = Document(path)
    if len(text.encode()) > TEXT_BYTES_MAX:
        document.problems.append(Problem(path, 1, 1, f"the file is larger than {TEXT_BYTES_MAX} bytes"))
        return document
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is not None:
            document.data = _Walker(document, loader).read(root, ())
    except yaml.MarkedYAMLError as error:
        document.problems.append(_syntax_problem(path, error))
    except yaml.YAMLError as error:
        document.problems.append(Problem(path, 1, 1, f"not YAML: {error}"))
    finally:
        loader.dispose()
    return document


def _syntax_problem(path: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    what = " ".join(part for part in (error.context, error.problem) if part)
    hint = "indent with spaces" if "\\t" in what else "check the indentation, colons and quotes here"
    return Problem(path, line, column, f"not YAML: {what}", hint)


class _Walker:
    """Turns nodes into plain data and notes positions on the way."""

    def __init__(self, document: Document, loader: _Loader) -> None:
        self.document = document
        self.loader = loader
        self.nodes = 0

    def read(self, node: Node, loc: Loc) -> Any:
        self.nodes += 1
        if self.nodes > NODES_MAX or len(loc) > DEPTH_MAX:
            raise yaml.constructor.ConstructorError(None, None, "too many or too deeply nested values", node.start_mark)
        self.document.values[loc] = _place(node)
        if isinstance(node, MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, SequenceNode):
            return [self.read(item, (*loc, index)) for index, item in enumerate(node.value)]
        return self.loader.construct_object(node)

    def _mapping(self, node: MappingNode, loc: Loc) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                self._note(key_node, "a key must be text", "put the key in quotes")
                continue
            key = key_node.value
            if key in result:
                first = self.document.keys[(*loc, key)][0]
                self._note(key_node, f"`{key}` is given twice (first in line {first})", "remove one of the two")
                continue
            self.document.keys[(*loc, key)] = _place(key_node)
            result[key] = self.read(value_node, (*loc, key))
        return result

    def _note(self, node: Node, message: str, hint: str) -> None:
        self.document.problems.append(Problem(self.document.path, *_place(node), message, hint))


def _place(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
