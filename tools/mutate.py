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
import gc
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
KEPT = ROOT / ".mutate"
FOLDERS = ("exact", "sampled", "tokens", "variational", "vae", "data")
BELOW = ("core", "measure")  # whose tests are recorded as well
ENDLESS = "a test that does not end"
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


def ordered(mutation: Mutation, seconds: float) -> list[str]:
    """Return the tests to run: a quick case of each function first, each part file by file."""
    first, others, spent, functions = [], [], 0.0, set()
    for test in sorted(reaching(mutation), key=lambda test: (recorded()[test], test)):
        function, took = test.partition("[")[0], recorded()[test]
        spent += took
        if took <= QUICK_SECONDS and function not in functions:
            first.append(test)
        elif spent <= seconds or not others:
            others.append(test)
        functions.add(function)
    parts = [sorted(tests, key=lambda test: test.partition("::")[0]) for tests in (first, others)]
    return parts[0] + parts[1]


def functions_of(code: types.CodeType) -> Iterator[types.CodeType]:
    """List the code of every function in a compiled module, in the order of the source."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from functions_of(constant)


def put_in_place(file: Path, source: bytes, mutated: bytes) -> bool:
    """Give every function of a file its mutated code; say whether any that exists has changed."""
    pair = [compile(text, str(file), "exec", dont_inherit=True) for text in (source, mutated)]
    both = zip(*map(functions_of, pair), strict=True)
    changed = {old: new for old, new in both if old != new}
    gc.unfreeze()
    found = [
        each
        for each in gc.get_objects()
        if type(each) is types.FunctionType
        and each.__code__.co_filename == str(file)
        and each.__code__ in changed
    ]
    for each in found:
        each.__code__ = changed[each.__code__]
    return bool(found)


def runs_on_import(mutation: Mutation) -> bool:
    """Say whether a line runs as its module is imported: it is no function's, or also then."""
    return "" in coverage_of(mutation.path).get(mutation.line, {""})


@dataclass(frozen=True)
class Tests:
    """The collected tests, on a copy of the checkout."""

    items: dict[str, Any]
    work: Path

    def failing(self, mutation: Mutation, seconds: float) -> str | None:
        """Return the first test that fails with a mutation in place, None where all pass."""
        target, names = self.work / mutation.path, ordered(mutation, seconds)
        if not names:
            return None
        source, mutated = (ROOT / mutation.path).read_bytes(), mutation.source()
        target.write_bytes(mutated)
        try:
            if not runs_on_import(mutation):
                found = self.in_fork(names, lambda: put_in_place(target, source, mutated))
                if found != "nothing changed":
                    return found
            return self.in_process(names)
        finally:
            target.write_bytes(source)

    def in_fork(self, names: list[str], prepare: Callable[[], bool]) -> str | None:
        """Run tests in a fork of this process, where every module is imported already."""
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            found: str | None = "an error of this tool"
            try:
                chosen = [self.items[name] for name in names if name in self.items]
                found = first_failure(chosen) if prepare() else "nothing changed"
            finally:
                os.write(writer, (found or "").encode())
                os._exit(0)
        os.close(writer)
        ready, _, _ = select.select([reader], [], [], patience(names))
        if not ready:
            os.kill(child, signal.SIGKILL)
        found = os.read(reader, 1000).decode() if ready else ENDLESS
        os.close(reader)
        os.waitpid(child, 0)
        return found or None

    def in_process(self, names: list[str]) -> str | None:
        """Run tests in a process that imports the mutated file anew."""
        report = self.work / "report.xml"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-xq", "-p", "no:cacheprovider", "--slow"]
        command += [f"--junitxml={report}", *names]
        try:
            done = subprocess.run(command, capture_output=True, timeout=patience(names))
        except subprocess.TimeoutExpired:
            return ENDLESS
        ran = outcomes(report) if report.exists() else {}
        failed = [test for test, outcome in ran.items() if not outcome.passed]
        return None if not done.returncode else failed[0] if failed else "the import"


def patience(names: list[str]) -> float:
    """Return after how many seconds tests are said not to end."""
    return 200 + 20 * sum(recorded()[test] for test in names)


def first_failure(items: list[Any]) -> str | None:
    """Run collected tests up to the first that fails, and return its name."""
    failed: list[str] = []

    class Watch:
        def pytest_runtest_logreport(self, report: Any) -> None:
            failed.extend([report.nodeid] if report.failed else [])

    for item, following in zip(items, [*items[1:], None], strict=True):
        if not item.config.pluginmanager.has_plugin("watch"):
            item.config.pluginmanager.register(Watch(), "watch")
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        if failed:
            return failed[0]
    return None


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


def collected(work: Path, then: Callable[[Tests], None]) -> None:
    """Collect every recorded test on a copy of the checkout, once, and do something with them."""
    import pytest

    class Loop:
        def pytest_runtestloop(self, session: Any) -> bool:
            then(Tests({item.nodeid: item for item in session.items}, work))
            return True

    copied(work)
    os.chdir(work)
    os.environ |= {"PYTHONPATH": str(work / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path.insert(0, str(work / "src"))
    sys.dont_write_bytecode = True
    # --slow: every test that reaches a line runs, whatever its place among the cases of a sweep
    files = sorted({test.partition("::")[0] for test in recorded()})
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--slow", *files], [Loop()])
    if code:
        raise RuntimeError(f"pytest ended with {code!r}")


def run(given: argparse.Namespace) -> None:
    """Try the mutations, print and keep the survivors and the share that was killed."""
    chosen = sample(given)
    output = os.fdopen(os.dup(1), "w", buffering=1)  # pytest captures the usual one

    def try_all(tests: Tests) -> None:
        killers = {}
        for number, mutation in enumerate(chosen, 1):
            killers[mutation] = by = tests.failing(mutation, given.seconds)
            print(f"{number}/{len(chosen)} {mutation} | {by or 'SURVIVES'}", file=output)
        for mutation, by in list(killers.items()):
            if by in tests.items and tests.in_fork([by], lambda: True):
                print(f"not counted, {by} fails without {mutation} too", file=output)
                del killers[mutation]
        survivors = [mutation for mutation, by in killers.items() if by is None]
        killed = len(killers) - len(survivors)
        share = killed / max(len(killers), 1)
        print(f"\nkilled {killed} of {len(killers)} ({share:.1%}); survivors:", file=output)
        for mutation in survivors:
            tried, text = len(reaching(mutation)), mutation.place()["text"]
            print(f"  {mutation} ({tried} tests)\n    {text}", file=output)
        given.survivors.write_text(json.dumps([m.place() for m in survivors], indent=1))

    with tempfile.TemporaryDirectory() as folder:
        collected(Path(folder).resolve(), try_all)


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
    given = parser.parse_intermixed_args()
    if given.verb == "record":
        record(given.files, slow=given.slow)
    else:
        run(given)


if __name__ == "__main__":
    main()
