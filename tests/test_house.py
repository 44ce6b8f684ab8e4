"""The rules of the house that a machine can check: arrows, circles, names, words."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "kullback"
FLOORS = {
    "core": 0,
    "exact": 1,
    "sampled": 2,
    "tokens": 3,
    "variational": 3,
    "codec": 3,
    "data": 3,
    "vae": 4,
    "lm": 4,
    "report": 5,
    "cli": 6,
}
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports_of(path: Path) -> set[str]:
    """Every kullback module that a file imports anywhere, also inside its functions."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - (node.level - 1)]
            base = base if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                deeper = f"{source}.{alias.name}"
                found.add(deeper if deeper in MODULES else source)
    return {name for name in found if name in MODULES}


MODULES = {name_of(path) for path in FILES}
GRAPH = {name_of(path): imports_of(path) for path in FILES}


def test_every_room_is_on_a_floor():
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= set(FLOORS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    here = room_of(module)
    if here not in FLOORS:
        return  # the face of the package, which names rooms lazily
    for other in GRAPH[module]:
        there = room_of(other)
        allowed = there == here or there not in FLOORS or FLOORS[there] < FLOORS[here]
        assert allowed, f"{module} imports {other}: an import goes to a lower floor"


def test_no_import_cycles():
    done, path = set(), []

    def visit(module):
        assert module not in path, "circle: " + " -> ".join([*path, module])
        if module in done:
            return
        path.append(module)
        for other in GRAPH[module] - {module}:
            # a folder's face imports its files; a file importing its own folder's face is a circle
            visit(other)
        path.pop()
        done.add(module)

    for module in sorted(MODULES):
        visit(module)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_assert_and_no_print(path):
    for node in ast.walk(TREES[path]):
        assert not isinstance(node, ast.Assert), f"{path.name}:{node.lineno} assert"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path.name}:{node.lineno} print"


@pytest.mark.parametrize("name", sorted(MODULES - {"kullback.__main__"}))
def test_public_names_are_listed_and_documented(name):
    if "triton_" in name and not name.endswith("backend"):
        pytest.importorskip("triton")  # kernels are functions of it
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), f"{name} has no docstring"
    if any(part.startswith("_") for part in name.split(".")):
        return
    for public in module.__all__:
        member = getattr(module, public)
        if inspect.isclass(member) or inspect.isfunction(member):
            assert (member.__doc__ or "").strip(), f"{name}.{public} has no docstring"
            assert not member.__doc__.startswith(f"{public}("), f"{name}.{public}: no docstring"
