"""The house: rooms import only downwards, and nothing imports an entry point."""

import ast
import pathlib

import pytest

import bpevo

PACKAGE = pathlib.Path(bpevo.__file__).parent
ROOMS = (
    "rules", "layers", "models", "data", "training", "evolution", "workers", "runs", "search", "evaluation", "report", "command",
)  # fmt: skip
FILES = sorted(p for p in PACKAGE.rglob("*.py"))


def imports(path: pathlib.Path) -> set[str]:
    """Modules of the project that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bpevo"):
            found |= {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("bpevo.")}
    return {name.removeprefix("bpevo.") for name in found}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_before_it_and_no_entry_point(room):
    allowed = ROOMS[: ROOMS.index(room) + 1]
    for path in (PACKAGE / room).rglob("*.py"):
        if path.name == "__main__.py":
            continue
        for name in imports(path):
            assert name.partition(".")[0] in allowed, f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_docstring_begins_with_of(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    assert not [text for text in texts if text.startswith("Of ")]
