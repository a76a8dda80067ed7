"""The layout of the tests: each module has its test at the mirrored path, and no test depends on a test module."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[1]
MOST_CHARACTERS: Final = 75  # of a test's name
#: Directories of tests that mirror no package.
NOT_MIRRORED: Final = frozenset({"e2e", "kit", "fuzz", "benchmarks", "grafana", "peers"})
#: Tests of the repository itself.
OF_REPOSITORY: Final = frozenset({"tests/test_docs.py", "tests/test_layout.py", "tests/test_words.py"})


def sorted_mistakes(mistakes: Iterable[tuple[Path, str]]) -> list[str]:
    """Return the mistakes, each with the file's path from the root."""
    return sorted(f"{path.relative_to(ROOT)} {mistake}" for path, mistake in mistakes)


class Tree(NamedTuple):
    """A package and its tests, below the root of the repository."""

    package: Path
    tests: Path

    def modules(self) -> set[Path]:
        """Return the modules of the package that hold code, relative to the package."""
        return {
            path.relative_to(self.package)
            for path in self.package.rglob("*.py")
            if path.name not in {"__init__.py", "__main__.py"} and has_code(path)
        }

    def test_modules(self) -> set[Path]:
        """Return the test modules that must mirror a module, relative to the directory of the tests."""
        return {
            path.relative_to(self.tests)
            for path in self.tests.rglob("test_*.py")
            if path.relative_to(self.tests).parts[0] not in NOT_MIRRORED
            if str(path.relative_to(ROOT)) not in OF_REPOSITORY
        }


TREES: Final = (
    Tree(ROOT / "gateway", ROOT / "tests"),
    Tree(ROOT / "lab" / "src" / "kmip_lab", ROOT / "lab" / "tests"),
)
TESTS: Final = sorted(path for tree in TREES for path in tree.tests.rglob("*.py"))


def has_code(path: Path) -> bool:
    """Return True if a module defines a function or a method; constants and plain classes need no test."""
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(ast.parse(path.read_text()))
    )


def is_mirror(test: Path, module: Path) -> bool:
    """Return True if a test module is test_x.py or test_x_*.py for the module x.py in the same directory."""
    name = test.stem.removeprefix("test_")
    return test.parent == module.parent and (name == module.stem or name.startswith(f"{module.stem}_"))


def imported(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def is_test_module(name: str) -> bool:
    """Return True if an imported name is in a test module of this repository, or is one."""
    parts = name.split(".")
    return parts[0] in {"tests", "", "lab"} and any(part.startswith("test_") for part in parts[1:])


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.package.name)
def test_every_module_has_a_test_at_the_mirrored_path(tree: Tree) -> None:
    tests = tree.test_modules()

    assert (
        sorted_mistakes(
            (tree.package / module, "has no test")
            for module in tree.modules()
            if module.parent / f"test_{module.name}" not in tests
        )
        == []
    )


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.package.name)
def test_every_test_module_mirrors_a_module(tree: Tree) -> None:
    modules = {path.relative_to(tree.package) for path in tree.package.rglob("*.py")}

    assert (
        sorted_mistakes(
            (tree.tests / test, "mirrors no module")
            for test in tree.test_modules()
            if not any(is_mirror(test, module) for module in modules)
        )
        == []
    )


def test_no_test_imports_from_a_test_module() -> None:
    imports = ((path, name) for path in TESTS for name in imported(path) if is_test_module(name))
    assert sorted_mistakes((path, f"imports {name}") for path, name in imports) == []


def test_names_of_tests_are_short() -> None:
    assert (
        sorted_mistakes(
            (path, f"has the long name {node.name}")
            for path in TESTS
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if node.name.startswith("test_") and len(node.name) > MOST_CHARACTERS
        )
        == []
    )


@pytest.mark.parametrize(
    ("test", "module", "mirrors"),
    [
        ("test_log.py", "log.py", True),
        ("upstream/test_pool.py", "upstream/pool.py", True),
        ("upstream/test_pool_machine.py", "upstream/pool.py", True),
        ("upstream/test_pools.py", "upstream/pool.py", False),
        ("test_pool.py", "upstream/pool.py", False),
    ],
)
def test_a_mirror_has_the_directory_and_the_name_of_its_module(test: str, module: str, mirrors: bool) -> None:
    assert is_mirror(Path(test), Path(module)) is mirrors


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tests.test_dispatcher.nursery", True),
        ("tests.upstream.test_pool.observer", True),
        ("tests.upstream.test_pool", True),
        ("tests.kit.front.Front", False),
        ("trio.testing.test_support", False),
    ],
)
def test_an_import_from_a_test_module_is_found(name: str, expected: bool) -> None:
    assert is_test_module(name) is expected
