"""The README lists what is in hfp/ in the order of the data flow, and imports go down that list, never up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for path in sorted((ROOT / "hfp").rglob("*.py")) if path != ROOT / "hfp" / "__init__.py"]
ALLOWED = {("hfp.channels", "hfp.explain")}
"""A table prints itself."""


def listed() -> list[str]:
    """The modules, and folders of modules, in the order of the README."""
    names, folder = [], ""
    for indent, name in re.findall(r"^    ((?:  )+)(\w+(?:\.py|/)) ", (ROOT / "README.md").read_text(), re.MULTILINE):
        name = name.removesuffix(".py").rstrip("/")
        folder = folder if len(indent) > 2 else name
        names.append(f"hfp.{name}" if len(indent) == 2 else f"hfp.{folder}.{name}")
    return names


LISTED = listed()


def place(module: str) -> int:
    """Of a module in the list, or of the folder that it is in."""
    found = module
    while found not in LISTED:
        assert "." in found, f"the README does not list {module}"
        found = found.rpartition(".")[0]
    return LISTED.index(found)


def imports(path: Path) -> Iterator[str]:
    """The modules of hfp that a file imports, within functions too; not those that are for types alone."""
    tree = ast.parse(path.read_text())
    for_types: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for_types.update(node.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in for_types and (node.module or "").startswith("hfp"):
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                is_module = (ROOT / f"{whole.replace('.', '/')}.py").exists()
                if is_module or node.module != "hfp":
                    yield whole if is_module else node.module or ""


def test_what_is_listed_is_there() -> None:
    there = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
    assert len(LISTED) > 50 and set(LISTED) <= there


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_the_list(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for imported in imports(path):
        assert (module, imported) in ALLOWED or place(imported) <= place(module), f"{module} imports {imported}"
