"""Mutation testing by hand: change one operator or constant, run the tests that reach it, count.

`python tools/mutate.py record` runs the tests once under coverage and keeps which test reaches
which line (`.mutate/coverage`); `python tools/mutate.py run --count 200 --seed 0` samples mutations
over the folders of `src/kullback`, runs for each the tests that reach its line, and prints those
that no test noticed. Needs `pytest-cov` (the extra `dev`). Nothing in the checkout is changed: the
mutated file is put in front of the package in a copy.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ROOT / ".mutate"
FOLDERS = ("exact", "sampled", "tokens", "variational", "vae", "data")
MOST_TESTS = 60  # per mutation: the first that reach the line, a file at a time

SWAPPED: dict[type, tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.Pow: ("**", "*"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}


@dataclass(frozen=True)
class Mutation:
    """One change: bytes `start` to `end` of a file become `after`; `line` is where."""

    path: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before} -> {self.after}"


def mutations_of(path: Path) -> list[Mutation]:
    """List every mutation of a file: operators swapped, numbers changed, `not` left out."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []

    def add(line: int, start: int, before: str, after: str) -> None:
        name = str(path.relative_to(ROOT))
        found.append(Mutation(name, line, start, start + len(before.encode()), before, after))

    def place(line: int | None, column: int | None) -> int:
        return starts[(line or 1) - 1] + (column or 0)

    def between(left: ast.expr, right: ast.expr, operator: ast.AST) -> None:
        if type(operator) not in SWAPPED:
            return
        before, after = SWAPPED[type(operator)]
        start = place(left.end_lineno, left.end_col_offset)
        gap = source[start : place(right.lineno, right.col_offset)]
        at = gap.find(before.encode())
        if at >= 0 and b"#" not in gap[:at]:
            add(source.count(b"\n", 0, start + at) + 1, start + at, before, after)

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp):
            between(node.left, node.right, node.op)
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            between(node.left, node.comparators[0], node.ops[0])
        elif isinstance(node, ast.BoolOp):
            between(node.values[0], node.values[1], node.op)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            add(node.lineno, place(node.lineno, node.col_offset), "not ", "")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            add(node.lineno, place(node.lineno, node.col_offset), "-", "+")
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            start = place(node.lineno, node.col_offset)
            text = source[start : place(node.end_lineno, node.end_col_offset)].decode()
            changed = node.value + 1 if type(node.value) is int else node.value * 1.5 + 0.01
            add(node.lineno, start, text, repr(changed))
    return found


def record(slow: bool) -> None:  # noqa: FBT001
    """Run the tests once and keep which test reaches which line."""
    KEPT.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "--cov=src/kullback", "--cov-context=test"]
    command += ["--cov-report=", "-p", "no:cacheprovider", *(["--slow"] if slow else [])]
    tests = [f"tests/{folder}" for folder in FOLDERS]
    environment = {**os.environ, "COVERAGE_FILE": str(KEPT / "coverage")}
    subprocess.run([*command, *tests], cwd=ROOT, env=environment, check=False)


def reaching(path: str, line: int) -> list[str]:
    """Return the tests that reach a line, at most `MOST_TESTS`, spread over test functions."""
    from coverage import CoverageData

    data = CoverageData(basename=str(KEPT / "coverage"))
    data.read()
    contexts = data.contexts_by_lineno(str(ROOT / path)).get(line, [])
    tests = sorted({context.split("|")[0] for context in contexts if "::" in context})
    if not tests:  # reached on import only: constants, defaults
        folder = Path(path).parts[2]
        return [f"tests/{folder}"]
    random.Random(0).shuffle(tests)
    return tests[:MOST_TESTS]


def survives(mutation: Mutation, work: Path, *, slow: bool, seconds: int) -> bool:
    """Say whether the tests that reach a mutation pass with it in place."""
    tests = reaching(mutation.path, mutation.line)
    target = work / mutation.path
    source = (ROOT / mutation.path).read_bytes()
    target.write_bytes(source[: mutation.start] + mutation.after.encode() + source[mutation.end :])
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    command += ["--slow"] if slow else []
    environment = {**os.environ, "PYTHONPATH": str(work / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *tests], cwd=work, env=environment, capture_output=True, timeout=seconds
        )
        return done.returncode == 0
    except subprocess.TimeoutExpired:
        return False  # a test that no longer ends has noticed
    finally:
        target.write_bytes(source)


def run(count: int, seed: int, folders: list[str], *, slow: bool, seconds: int) -> None:
    """Sample mutations, try each, print the survivors and the share that was killed."""
    files = [p for folder in folders for p in (ROOT / "src/kullback" / folder).rglob("*.py")]
    everything = [mutation for path in sorted(files) for mutation in mutations_of(path)]
    chosen = random.Random(seed).sample(everything, min(count, len(everything)))
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in ("src", "tests", "tools", "docs", "pyproject.toml"):
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, work / name)
        for number, mutation in enumerate(chosen, 1):
            alive = survives(mutation, work, slow=slow, seconds=seconds)
            survivors += [mutation] if alive else []
            print(
                f"{number}/{len(chosen)} {'SURVIVES' if alive else 'killed'} {mutation}", flush=True
            )
    killed = len(chosen) - len(survivors)
    print(f"\nkilled {killed} of {len(chosen)} ({killed / len(chosen):.1%}); survivors:")
    for mutation in survivors:
        print(f"  {mutation}")
    (KEPT / "survivors.json").write_text(json.dumps([str(m) for m in survivors], indent=1))


def main() -> None:
    """Read the arguments; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("record", "run"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folders", nargs="+", default=list(FOLDERS))
    parser.add_argument("--slow", action="store_true", help="the slow tests too")
    parser.add_argument("--seconds", type=int, default=300, help="the most for one mutation")
    given = parser.parse_args()
    if given.verb == "record":
        record(given.slow)
    else:
        run(given.count, given.seed, given.folders, slow=given.slow, seconds=given.seconds)


if __name__ == "__main__":
    main()
