"""The public face: what people type is there, documented with examples that hold, and rooms import only downwards."""

import ast
import doctest
import importlib
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import bpevo

PACKAGE = pathlib.Path(bpevo.__file__).parent
ROOMS = (
    "rules", "layers", "models", "data", "training", "evolution", "workers", "runs", "search", "evaluation", "report", "command",
)  # fmt: skip
ENTRY_POINTS = ("launch", "evaluate", "doctor", "bench", "report.__main__")
MODULES = [
    m.name
    for m in pkgutil.walk_packages([str(PACKAGE)], "bpevo.")
    if not m.name.endswith("__main__") and m.name != "bpevo.bench.torch_backprop"  # where PyTorch is installed
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed


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


def test_importing_the_package_costs_nothing_and_its_rooms_come_when_they_are_asked_for():
    code = "import sys, bpevo; assert 'jax' not in sys.modules; bpevo.rules.parse('g'); print(bpevo.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0 and done.stdout.strip() == bpevo.__version__, done.stderr
    assert {"rules", "layers", "models", "__version__"} <= set(dir(bpevo))
    with pytest.raises(AttributeError, match="no attribute 'rulez'"):
        _ = bpevo.rulez


@pytest.mark.parametrize("name", MODULES)
def test_no_docstring_begins_with_of(name):
    tree = ast.parse(pathlib.Path(importlib.import_module(name).__file__).read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    assert not [text for text in texts if text.startswith("Of ")]
