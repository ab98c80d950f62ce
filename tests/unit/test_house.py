"""What a stranger may rely on when looking for a place in the tree."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in (ROOT / "segmodel").glob("*/__init__.py"))


def test_the_names_of_tests_have_at_most_80_characters() -> None:
    names = [
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(names) > 500
    assert [name for name in names if len(name) > 80] == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_says_what_it_is_for_and_what_it_may_not_touch(package: Path) -> None:
    text = (package / "__init__.py").read_text()
    purpose, _, limits = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")
    assert purpose.endswith(".")
    assert re.search("import|only", limits, re.IGNORECASE)
    assert len(text.splitlines()) <= 6


def test_every_package_stands_in_the_tree_of_contributing() -> None:
    tree = (ROOT / "docs" / "contributing.md").read_text()
    missing = [package.name for package in PACKAGES if f"| `{package.name}` |" not in tree]
    assert missing == []
