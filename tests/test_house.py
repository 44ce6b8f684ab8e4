"""The rules of the house that a machine can check: arrows, circles, names, words."""

import ast
import functools
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "kullback"
FLOORS = {
    "core": 0,
    "exact": 1,
    "sampled": 2,
    "measure": 3,
    "tokens": 3,
    "variational": 3,
    "codec": 3,
    "data": 3,
    "vae": 4,
    "lm": 4,
    "report": 5,
    "cli": 6,
}
MOST_PARAMETERS = 6  # positional ones; keyword-only options of a public face are apart
MOST_ENTRIES = 16  # files and folders of one folder
MOST_FILES_A_THOUSAND_LINES = 4.5
COUNTS = {-1, 0, 1, 2, 3, 4, 0.5, 1.5}  # small numbers of things, and halves, are no thresholds
FILES = sorted(ROOT.rglob("*.py"))


@functools.cache  # read where a test asks: every process collects all, and runs a share
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree_of(path)))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@functools.cache
def imports_of(path: Path) -> set[str]:
    """Every kullback module that a file imports anywhere, also inside its functions."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    found = set()
    for node in nodes_of(path):
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


MODULES = {name_of(path): path for path in FILES}


def test_every_room_is_on_a_floor():
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= set(FLOORS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    here = room_of(module)
    if here not in FLOORS:
        return  # the face of the package, which names rooms lazily
    for other in imports_of(MODULES[module]):
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
        for other in imports_of(MODULES[module]) - {module}:
            # a folder's face imports its files; a file importing its own folder's face is a circle
            visit(other)
        path.pop()
        done.add(module)

    for module in sorted(MODULES):
        visit(module)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_assert_and_no_print(path):
    for node in nodes_of(path):
        assert not isinstance(node, ast.Assert), f"{path.name}:{node.lineno} assert"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path.name}:{node.lineno} print"


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"kullback.__main__"}))
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


# What travels, what limits, what is offered


def functions_of(path: Path) -> list[ast.FunctionDef]:
    return [node for node in nodes_of(path) if isinstance(node, ast.FunctionDef)]


def positional(function: ast.FunctionDef) -> int:
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
    return len([name for name in names if name not in ("self", "cls")])


def is_kernel(function: ast.FunctionDef) -> bool:
    """Whether Triton compiles it: a kernel takes pointers and strides one by one."""
    return any("jit" in ast.unparse(one) for one in function.decorator_list)


def test_at_most_six_positional_parameters():
    """Values that travel together are one record."""
    assert not [
        f"{name_of(path)}:{function.lineno} {function.name}: {positional(function)} parameters"
        for path in FILES
        for function in functions_of(path)
        if positional(function) > MOST_PARAMETERS and not is_kernel(function)
    ]


@functools.cache
def fixed_parameters() -> set[str]:
    """Functions and classes of the package that do not declare `*args`."""
    fixed, open_ended = set(), set()
    for path in FILES:
        for node in nodes_of(path):
            if isinstance(node, ast.ClassDef):
                fixed.add(node.name)
            elif isinstance(node, ast.FunctionDef):
                (open_ended if node.args.vararg else fixed).add(node.name)
    return fixed - open_ended - TENSOR_METHODS


TENSOR_METHODS = {name for name in dir(__import__("torch").Tensor) if not name.startswith("_")}


def unpacks(node: ast.AST) -> bool:
    """Whether a tuple is unpacked into the parameters of a function or class of the package."""
    if not isinstance(node, ast.Call) or not any(isinstance(a, ast.Starred) for a in node.args):
        return False
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    return name == "cls" or name in fixed_parameters()


def test_no_tuple_is_unpacked_into_parameters():
    """Fields are passed by name, or as a record."""
    assert not [
        f"{name_of(path)}:{node.lineno} {ast.unparse(node)}"
        for path in FILES
        for node in nodes_of(path)
        if unpacks(node)
    ]


@functools.cache
def offered(folder: str) -> set[str]:
    init = tree_of(ROOT / folder / "__init__.py")
    return {
        node.value
        for node in ast.walk(init)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def source_of(path: Path, node: ast.ImportFrom) -> list[str]:
    """The dotted parts of the module that a `from … import` names, its dots resolved."""
    package = name_of(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    base = package[: len(package) - (node.level - 1)] if node.level else []
    return [*base, *(node.module.split(".") if node.module else [])]


def goes_deep(path: Path, node: ast.ImportFrom) -> bool:
    """Whether another folder is imported past what its `__init__` offers."""
    here, source = room_of(name_of(path)), source_of(path, node)
    if here not in FLOORS or source[:1] != ["kullback"] or len(source) < 2:
        return False
    if source[1] in (here, "__main__"):
        return False
    return len(source) > 2 or not {one.name for one in node.names} <= offered(source[1])


def test_other_folders_are_entered_by_their_init():
    assert not [
        f"{name_of(path)}:{node.lineno} {ast.unparse(node)}"
        for path in FILES
        for node in nodes_of(path)
        if isinstance(node, ast.ImportFrom) and goes_deep(path, node)
    ]


def literals(node: ast.Compare) -> list[float]:
    sides = [
        side.operand if isinstance(side, ast.UnaryOp) else side
        for side in (node.left, *node.comparators)
    ]
    found = [side.value for side in sides if isinstance(side, ast.Constant)]
    return [one for one in found if isinstance(one, (int, float)) and not isinstance(one, bool)]


@functools.cache
def names_compared() -> set[str]:
    return {
        name
        for path in FILES
        for node in nodes_of(path)
        if isinstance(node, ast.Compare)
        for part in ast.walk(node)
        if (name := getattr(part, "attr", getattr(part, "id", ""))).isupper()
    }


NUMBER_PARTS = (ast.Constant, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop)


def is_limit(node: ast.stmt) -> bool:
    """Whether a module gives a number to a name in capitals that something is compared with."""
    if not isinstance(node, ast.Assign):
        return False
    parts = list(ast.walk(node.value))
    text = any(isinstance(one, ast.Constant) and isinstance(one.value, str) for one in parts)
    names = {one.id for one in node.targets if isinstance(one, ast.Name)} & names_compared()
    return bool(names) and not text and all(isinstance(one, NUMBER_PARTS) for one in parts)


def test_no_threshold_outside_the_limits():
    """What is compared with a number finds it, with its source, in the folder's `limits.py`."""
    rest = [path for path in FILES if path.stem != "limits"]
    assert not [
        f"{name_of(path)}:{node.lineno} {ast.unparse(node)}"
        for path in rest
        for node in nodes_of(path)
        if isinstance(node, ast.Compare) and set(literals(node)) - COUNTS
    ]
    assert not [
        f"{name_of(path)}:{node.lineno} {ast.unparse(node)}"
        for path in rest
        for node in tree_of(path).body
        if is_limit(node)
    ]


def test_least_squares_are_repeatable():
    """LAPACK's gelsy, the default on a CPU, reads pivots that PyTorch leaves uninitialised."""
    assert not [
        f"{name_of(path)}:{node.lineno} lstsq without driver="
        for path in FILES
        for node in nodes_of(path)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "lstsq"
        if "driver" not in {one.arg for one in node.keywords}
    ]


def test_few_entries_a_folder():
    apart = ("__init__.py", "__pycache__")
    entries = {
        folder.name: sum(one.name not in apart for one in folder.iterdir())
        for folder in {path.parent for path in FILES}
    }
    assert not {name: count for name, count in entries.items() if count > MOST_ENTRIES}


def test_few_files_for_what_they_hold():
    lines = sum(len(path.read_text().splitlines()) for path in FILES)
    assert 1000 * len(FILES) / lines <= MOST_FILES_A_THOUSAND_LINES
