"""Help, version and typing errors cost nothing: no torch, under half a second of CPU time."""

import resource
import subprocess
import sys

import pytest

CODE = """
import sys
sys.argv = ["kullback", *{arguments!r}]
code = 0
try:
    {body}
except SystemExit as stop:
    code = stop.code or 0
heavy = [name for name in ("torch", "numpy", "PIL", "matplotlib") if name in sys.modules]
sys.stderr.write("HEAVY " + " ".join(heavy))
sys.exit(code)
"""
MAIN = "from kullback.cli.main import main; main()"
CASES = {
    "help": (["--help"], MAIN, 0),
    "no arguments": ([], MAIN, 0),
    "version": (["--version"], MAIN, 0),
    "help of train": (["train", "--help"], MAIN, 0),
    "help of evaluate": (["evaluate", "--help"], MAIN, 0),
    "help of kl": (["kl", "--help"], MAIN, 0),
    "help of fit": (["fit", "--help"], MAIN, 0),
    "unusable option of fit": (["fit", "x.py", "--draws", "1"], MAIN, 2),
    "help of entropy": (["entropy", "--help"], MAIN, 0),
    "too few arguments": (["kl", "0.5,0.5"], MAIN, 2),
    "unknown unit": (["kl", "1", "1", "--unit", "hartleys"], MAIN, 2),
    "unusable option": (["js", "1", "1", "--draws", "1"], MAIN, 2),
    "mistyped command": (["trian"], MAIN, 2),
    "mistyped option": (["train", "--minuets", "1"], MAIN, 2),
    "bad number": (["train", "--minutes", "soon"], MAIN, 2),
    "import": ([], "import kullback", 0),
}


LIMIT = 0.5  # CPU seconds on a machine whose bare interpreter takes BARE
BARE = 0.05


@pytest.mark.sweep(8)
@pytest.mark.parametrize("name", CASES)
def test_starts_without_torch(name):
    arguments, body, code = CASES[name]
    command = [sys.executable, "-c", CODE.format(arguments=arguments, body=body)]
    done, seconds = run(command)
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith("HEAVY "), done.stderr[-200:]
    # Other work on the machine only adds to a CPU time: the least of a few is the command's own.
    others = [run(command)[1] for _ in range(2)] if seconds >= LIMIT else []
    assert min([seconds, *others]) < LIMIT * (pace() if others else 1.0)


def run(command):
    """The finished process and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def pace() -> float:
    """How much slower than usual this machine is now, by the CPU time of a bare interpreter."""
    bare = [sys.executable, "-c", "import json, dataclasses, typing"]
    return max(1.0, min(run(bare)[1] for _ in range(3)) / BARE)
