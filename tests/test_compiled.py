"""The build that runs, and code that the compiler of the hot modules (mypyc) would give another meaning."""

import ast
import tomllib
from pathlib import Path

import pytest

from gateway.compiled import BUILD

ROOT = Path(__file__).parents[1]
HOOKS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]
MODULES = HOOKS["custom"]["modules"]


def test_the_source_is_interpreted() -> None:
    assert BUILD == "interpreted"


@pytest.mark.parametrize("module", MODULES)
def test_compiled_modules_avoid_what_mypyc_gives_another_meaning(module: str) -> None:
    assert mistakes((ROOT / module).read_text()) == []


def test_no_other_module_inherits_from_a_compiled_class() -> None:
    compiled = {name for module in MODULES for name in class_names(ROOT / module)}
    others = [path for path in sorted((ROOT / "gateway").rglob("*.py")) if str(path.relative_to(ROOT)) not in MODULES]
    heirs = [
        f"{path.relative_to(ROOT)}: {node.name} inherits from {ast.unparse(base)}"
        for path in others
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if ast.unparse(base).partition("[")[0].rpartition(".")[2] in compiled
    ]
    assert heirs == []


def test_no_module_makes_weak_references() -> None:
    """An object of a compiled class has no weak references: one to it raises TypeError, in the compiled build only."""
    makers = [
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for path in sorted((ROOT / "gateway").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom) and "weakref" in ast.unparse(node)
    ]
    assert makers == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f():\n try: g()\n except A as e: h(e)\n except B as e: h(e)", ["f: e has several types of error"]),
        ("def f():\n try: g()\n except A as e: h(e)\n except B as other: h(other)", []),
        ("class C:\n def f(self): pass\n g = f", ["C: g is a second name of f"]),
        ("class C(Enum):\n A = 1\n def __init__(self, value): self.x = 1", ["C: an enumeration has __init__"]),
        ("class C:\n x: ClassVar[int] = 1\n def __init__(self): self.x = 1", []),
        ("async def f():\n yield 1", ["f: an asynchronous generator can't be compiled"]),
    ],
)
def test_mistakes_are_found(source: str, found: list[str]) -> None:
    assert mistakes(source) == found


def class_names(path: Path) -> list[str]:
    return [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]


def mistakes(source: str) -> list[str]:
    """Return what mypyc would compile to something else, or not at all.

    The first ``except ... as name`` of a function gives the name its type: an error of another type, caught under the
    same name, raises TypeError. A second name of a method raises KeyError when an object is made. The ``__init__`` of
    an enumeration raises TypeError at the import.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found += function_mistakes(node)
        if isinstance(node, ast.ClassDef):
            found += class_mistakes(node)
    return found


def function_mistakes(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    types: dict[str, set[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.ExceptHandler) and node.name and node.type:
            types.setdefault(node.name, set()).add(ast.unparse(node.type))
    found = [f"{function.name}: {name} has several types of error" for name, caught in types.items() if len(caught) > 1]
    if isinstance(function, ast.AsyncFunctionDef) and any(isinstance(node, ast.Yield) for node in ast.walk(function)):
        found.append(f"{function.name}: an asynchronous generator can't be compiled")
    return found


def class_mistakes(made: ast.ClassDef) -> list[str]:
    methods = {node.name for node in made.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    is_enumeration = any("Enum" in ast.unparse(base) for base in made.bases)
    found = [f"{made.name}: an enumeration has __init__"] if is_enumeration and "__init__" in methods else []
    found += [
        f"{made.name}: {ast.unparse(node.targets[0])} is a second name of {node.value.id}"
        for node in made.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in methods
    ]
    return found
