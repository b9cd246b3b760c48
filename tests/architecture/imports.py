"""Who imports whom in src/fairweather, read from the source without running it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

SOURCE = ROOT / "src" / "fairweather"


@dataclass(frozen=True)
class Import:
    """One import statement: `module` as a full dotted name, and whether it waits inside a function."""

    file: str
    line: int
    module: str
    late: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}{' (in a function)' if self.late else ''}"


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def room(file: str) -> str:
    """`restoring/tiles.py` is of the room `restoring`, `cards.py` of the room `cards`."""
    return file.split("/")[0].removesuffix(".py")


def imports_of(path: Path, base: Path = SOURCE) -> list[Import]:
    """Every import of a file; those under `if TYPE_CHECKING` run never and are left out."""
    found: list[Import] = []
    file = path.relative_to(base).as_posix()
    package = ["fairweather", *path.relative_to(base).parts[:-1]]

    def visit(node: ast.AST, late: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(file, node.lineno, alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*parent, *([node.module] if node.module else [])])
            found.extend(Import(file, node.lineno, f"{module}.{alias.name}", late) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child, late)
            return
        inside = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return found
