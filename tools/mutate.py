"""Mutation testing by hand: change one operator or constant, run the tests that reach it, count.

`python tools/mutate.py record` runs the fast tests once under coverage and keeps which test reaches
which line, and how long it takes (`.mutate`); `record --slow` adds the slow tests, `record FILES`
brings some test files up to date. `run --count 200 --seed 0` samples mutations over the folders of
`src/kullback`, runs for each the tests that reach its line, a quick case of each function first,
and prints those that no test noticed; `run --again` tries these once more. Needs `pytest-cov` (the
extra `dev`). Nothing in the checkout is changed: the mutated file is written into a copy.

What is sampled: every binary operator, comparison, `and`/`or`, `not`, minus sign and number of the
code. Nothing is left out: the Triton kernels run in Triton's interpreter (slow tier), and mutations
that change no outcome stay in the count as survivors, to be told apart by a reader.

Which tests are asked: those that reach the statement; of a default, those that reach its function;
of a module's or class's constant, those that reach a line which uses its name; those of `OUTSIDE`
for code that tests run in another process, where coverage does not look. They are all run, up to
`--seconds` of their recorded time. At the end the tests that failed are run without any mutation:
a mutation that only such a test noticed, one that fails without it as well, is not counted.
"""

import argparse
import ast
import functools
import importlib
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
KEPT = ROOT / ".mutate"
FOLDERS = ("exact", "sampled", "tokens", "variational", "vae", "data")
BELOW = ("core", "measure")  # whose tests are recorded as well
QUICK_SECONDS = 0.3  # a test that takes longer waits until the others have passed
OUTSIDE = {  # tested in processes of their own
    "src/kullback/tokens/backends/triton_kernels.py": "tests/tokens/test_triton.py",
    "src/kullback/tokens/backends/triton_backend.py": "tests/tokens/test_triton.py",
    "src/kullback/tokens/divergences/sharded.py": "tests/tokens/test_parallel.py",
}

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
    """One change: `before` at byte `start` of a file becomes `after`; `line` is where."""

    path: str
    line: int
    start: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before} -> {self.after}"

    def source(self) -> bytes:
        """Return the file with the change."""
        source = (ROOT / self.path).read_bytes()
        end = self.start + len(self.before.encode())
        return source[: self.start] + self.after.encode() + source[end:]

    def place(self) -> dict[str, str]:
        """Say what is changed, in words that outlive changes elsewhere in the file."""
        source = (ROOT / self.path).read_bytes()
        first, last = source.rfind(b"\n", 0, self.start) + 1, source.find(b"\n", self.start)
        text = source[first : self.start] + "⟦".encode() + source[self.start : last]
        return {"path": self.path, "text": text.decode().strip(), "after": self.after}


def mutations_of(path: Path) -> list[Mutation]:
    """List every mutation of a file: operators swapped, numbers changed, `not` left out."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []

    def add(line: int, start: int, before: str, after: str) -> None:
        found.append(Mutation(str(path.relative_to(ROOT)), line, start, before, after))

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


def pytest_in(where: Path, arguments: list[str]) -> int:
    """Run pytest in this process on the package of a tree, in silence."""
    import pytest

    os.chdir(where)
    os.environ |= {"PYTHONPATH": str(where / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path.insert(0, str(where / "src"))
    sys.dont_write_bytecode = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return pytest.main(["-q", "-p", "no:cacheprovider", "--slow", *arguments])


def passes(work: Path, tests: list[str], report: Path, *options: str) -> bool:
    """Say whether tests pass, in a fork of this process: what it has imported need not be again.

    They run with `--slow`: every one of them, whatever its place among the cases of a sweep.
    """
    report.unlink(missing_ok=True)
    arguments = [f"--junitxml={report}", *options, *tests]
    child = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(int(pytest_in(work, arguments)))
    )
    child.start()
    child.join(60 + 5 * sum(recorded()[test] for test in tests))
    if child.is_alive():  # a test that no longer ends has noticed
        child.kill()
        child.join()
    elif not report.exists():
        raise RuntimeError(f"pytest could not start, code {child.exitcode}")
    return child.exitcode == 0


def record(files: list[str], *, slow: bool) -> None:
    """Run tests once and keep which reaches which line and how long each takes."""
    KEPT.mkdir(exist_ok=True)
    tests = files or [f"tests/{folder}" for folder in (*FOLDERS, *BELOW)]
    command = ["--cov=src/kullback", "--cov-context=test", "--cov-report="]
    command += ["--cov-append"] if files or slow else []
    command += ["--slow", "-m", "slow"] if slow else []
    number = len(list(KEPT.glob("*.xml"))) if files or slow else 0
    command += ["-p", "no:cacheprovider", f"--junitxml={KEPT / f'{number:03}.xml'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    environment["COVERAGE_FILE"] = str(KEPT / "coverage")
    pytest = [sys.executable, "-m", "pytest", "-q"]
    subprocess.run([*pytest, *command, *tests], cwd=ROOT, env=environment, check=False)


@dataclass(frozen=True)
class Outcome:
    """What a test took, and whether it passed."""

    seconds: float
    passed: bool


def outcomes(report: Path) -> dict[str, Outcome]:
    """Read a JUnit report: the outcome of every test that ran."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is None and case.get("classname"):
            name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
            failed = case.find("failure") is not None or case.find("error") is not None
            found[name] = Outcome(float(case.get("time", 0)), not failed)
    return found


@functools.cache
def recorded() -> dict[str, float]:
    """Return the seconds of every recorded test that passed."""
    found: dict[str, Outcome] = {}
    for report in sorted(KEPT.glob("*.xml")):
        found |= outcomes(report)
    return {name: outcome.seconds for name, outcome in found.items() if outcome.passed}


@functools.cache
def coverage_of(path: str) -> dict[int, set[str]]:
    """Return line by line the tests that reach a file."""
    from coverage import CoverageData

    data = CoverageData(basename=str(KEPT / "coverage"))
    data.read()
    lines = data.contexts_by_lineno(str(ROOT / path)).items()
    return {line: {context.split("|")[0] for context in found} for line, found in lines}


def reached(path: str, lines: range) -> set[str]:
    """Return the tests that reach any of some lines."""
    kept = coverage_of(path)
    return {test for line in lines for test in kept.get(line, ())} & recorded().keys()


def head(node: ast.stmt) -> range:
    """Return the lines of a statement without the statements inside it."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    body = getattr(node, "body", None)
    return range(first, body[0].lineno if body else (node.end_lineno or first) + 1)


@functools.cache
def sources() -> dict[str, ast.Module]:
    """Return every file of the package, parsed."""
    files = sorted((ROOT / "src/kullback").rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_bytes()) for path in files}


def uses(names: set[str]) -> Iterator[tuple[str, int]]:
    """List where names are read, in the whole package."""
    for path, tree in sources().items():
        for node in ast.walk(tree):
            name = getattr(node, "id", getattr(node, "attr", None))
            if name in names and isinstance(node.ctx, ast.Load):
                yield path, node.lineno


def reaching(mutation: Mutation) -> set[str]:
    """Return the tests that reach a mutation, as the module's text says."""
    path, tree = mutation.path, sources()[mutation.path]
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and node.lineno <= mutation.line <= (node.end_lineno or 0)
    ]
    innermost = max(around, key=lambda node: (node.lineno, -(node.end_lineno or 0)))
    tests = reached(path, range(mutation.line, mutation.line + 1))
    tests = tests or reached(path, head(innermost))
    if not tests and isinstance(innermost, ast.FunctionDef):
        tests = reached(path, range(innermost.body[0].lineno, (innermost.end_lineno or 0) + 1))
    if not tests and not any(isinstance(node, ast.FunctionDef) for node in around):
        names = {node.name for node in around if isinstance(node, ast.ClassDef)}
        names |= {
            n.id
            for n in ast.walk(innermost)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        tests = {
            test for where, line in uses(names) for test in reached(where, range(line, line + 1))
        }
    return tests | {test for test in recorded() if test.startswith(OUTSIDE.get(path, "outside"))}


def rounds(mutation: Mutation, seconds: float) -> list[list[str]]:
    """Return the tests to run, in two runs: a quick case of each function, then all others."""
    first, others, spent, functions = [], [], 0.0, set()
    for test in sorted(reaching(mutation), key=lambda test: (recorded()[test], test)):
        function, took = test.partition("[")[0], recorded()[test]
        spent += took
        if took <= QUICK_SECONDS and function not in functions:
            first.append(test)
        elif spent <= seconds or not others:
            others.append(test)
        functions.add(function)
    return [sorted(tests, key=lambda test: test.partition("::")[0]) for tests in (first, others)]


def noticed(mutation: Mutation, work: Path, seconds: float) -> list[str] | None:
    """Return the tests that fail with a mutation in place, or None where all pass."""
    target, report = work / mutation.path, work / "report.xml"
    target.write_bytes(mutation.source())
    try:
        for tests in rounds(mutation, seconds):
            if tests and not passes(work, tests, report, "-x"):
                ran = outcomes(report) if report.exists() else {}
                return [test for test, outcome in ran.items() if not outcome.passed]
        return None
    finally:
        shutil.copy(ROOT / mutation.path, target)


def copied(work: Path) -> None:
    """Copy what git knows of the checkout."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, work / name)


def sample(given: argparse.Namespace) -> list[Mutation]:
    """Return the mutations to try: a piece of a sample, or those that survived before."""
    files = [p for folder in given.folders for p in (ROOT / "src/kullback" / folder).rglob("*.py")]
    everything = [mutation for path in sorted(files) for mutation in mutations_of(path)]
    if given.again:
        old = json.loads(given.survivors.read_text())
        chosen = [mutation for mutation in everything if mutation.place() in old]
        print(f"{len(old)} survived; of these {len(chosen)} are still there")
        return chosen
    chosen = random.Random(given.seed).sample(everything, min(given.count, len(everything)))
    return chosen[given.skip :]


def failing_without(tests: list[str], work: Path) -> set[str]:
    """Return those of some tests that fail without a mutation."""
    report = work / "report.xml"
    if not tests or passes(work, tests, report):
        return set()
    return {test for test, outcome in outcomes(report).items() if not outcome.passed}


def run(given: argparse.Namespace) -> None:
    """Try the mutations, print and keep the survivors and the share that was killed."""
    for name in ("mpmath", "scipy.stats", "torch"):
        importlib.import_module(name)  # once, for every fork

    chosen = sample(given)
    killers: dict[Mutation, list[str] | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        copied(work)
        for number, mutation in enumerate(chosen, 1):
            killers[mutation] = by = noticed(mutation, work, given.seconds)
            how = "SURVIVES" if by is None else f"killed by {by[0]}" if by else "killed"
            print(f"{number}/{len(chosen)} {mutation} | {how}", flush=True)
        failing = sorted({test for by in killers.values() for test in by or ()})
        unsound = failing_without(failing, work)
    for mutation, by in killers.items():
        if by and unsound.issuperset(by):
            print(f"not counted, fails without a mutation too: {by[0]} ({mutation})")
    counted = {m: by for m, by in killers.items() if not by or not unsound.issuperset(by)}
    survivors = [mutation for mutation, by in counted.items() if by is None]
    killed = len(counted) - len(survivors)
    print(f"\nkilled {killed} of {len(counted)} ({killed / len(counted):.1%}); survivors:")
    for mutation in survivors:
        print(f"  {mutation} ({len(reaching(mutation))} tests)\n    {mutation.place()['text']}")
    given.survivors.write_text(json.dumps([m.place() for m in survivors], indent=1))


def main() -> None:
    """Read the arguments; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("record", "run"))
    parser.add_argument("files", nargs="*", help="record: these test files only, added to the rest")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="leave out so many of the sample")
    parser.add_argument("--folders", nargs="+", default=list(FOLDERS))
    parser.add_argument("--slow", action="store_true", help="record: the slow tests, added")
    parser.add_argument("--again", action="store_true", help="only what survived before")
    parser.add_argument("--survivors", type=Path, default=KEPT / "survivors.json")
    parser.add_argument("--seconds", type=float, default=120, help="of tests, for one mutation")
    given = parser.parse_args()
    if given.verb == "record":
        record(given.files, slow=given.slow)
    else:
        run(given)


if __name__ == "__main__":
    main()
