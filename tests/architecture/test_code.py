"""How code in this project looks: small functions, documented names, no printing, no name clashes."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

import pytest

from tools.trace import ROOT, source_files

PACKAGES = ("contracts", "orchestrator", "adapters")
FUNCTION_LINES_MAX = 70
#: Tables and the like: long, and still one thing.
LONG_FUNCTIONS: dict[str, str] = {}
#: Writing to the terminal is what these are for.
TERMINAL = (
    "orchestrator/cli",
    "adapters/llamacpp/__main__.py",
    "adapters/triton/__main__.py",
    "adapters/vllm/__main__.py",
    "adapters/testing/conformance/__main__.py",
    "adapters/testing/determinism/__main__.py",
    "contracts/generate.py",
    "adapters/testing/fake_llama_server.py",
)

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@cache
def modules() -> dict[str, ast.Module]:
    return {name: ast.parse((ROOT / name).read_text(), name) for name in source_files() if name.endswith(".py")}


def shipped() -> dict[str, ast.Module]:
    return {name: tree for name, tree in modules().items() if name.split("/", 1)[0] in PACKAGES}


def long_functions(name: str, tree: ast.Module) -> list[str]:
    return [
        f"{name}: {node.name} has {(node.end_lineno or 0) - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
        and f"{name}:{node.name}" not in LONG_FUNCTIONS
    ]


def undocumented(name: str, tree: ast.Module) -> list[str]:
    """The module and its public classes; a struct whose name says all may lean on its base's text."""
    found = [] if ast.get_docstring(tree) else [f"{name}: no module docstring"]
    return found + [
        f"{name}: class {node.name} has no docstring"
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not is_message(node)
    ]


def is_message(node: ast.ClassDef) -> bool:
    """Channel messages and config sections: their fields are their meaning."""
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    return bool(bases & {"Frame", "Command", "Event", "Section", "Struct"})


def prints(name: str, tree: ast.Module) -> list[str]:
    return [
        f"{name}:{node.lineno}: print()"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def test_functions_fit_a_screen() -> None:
    assert [line for name, tree in modules().items() for line in long_functions(name, tree)] == []


def test_modules_and_public_classes_are_documented() -> None:
    assert [line for name, tree in shipped().items() for line in undocumented(name, tree)] == []


def test_libraries_do_not_print() -> None:
    quiet = {name: tree for name, tree in shipped().items() if not name.startswith(TERMINAL)}
    assert [line for name, tree in quiet.items() for line in prints(name, tree)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_resolve_inside_the_repository(package: str) -> None:
    """Distributions of the same top-level names exist; importing one of those instead must not go unseen."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    assert [Path(place).resolve() for place in spec.submodule_search_locations] == [ROOT / package]


def test_the_checks_find_what_they_forbid() -> None:
    body = "\n".join(f"    x = {n}" for n in range(FUNCTION_LINES_MAX))
    tree = ast.parse(f"def f():\n{body}\nclass Bare: pass\nprint(1)\n")
    assert long_functions("m", tree) == ["m: f has 71 lines"]
    assert undocumented("m", tree) == ["m: no module docstring", "m: class Bare has no docstring"]
    assert prints("m", tree) == ["m:73: print()"]
