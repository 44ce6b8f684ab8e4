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


@pytest.mark.sweep(8)
@pytest.mark.parametrize("name", CASES)
def test_starts_without_torch(name):
    arguments, body, code = CASES[name]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(arguments=arguments, body=body)],
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith("HEAVY "), done.stderr[-200:]
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 0.5 * SLOWNESS


def slowness() -> float:
    """How much slower than usual this machine is now, by the CPU time of a bare interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import json, dataclasses, typing"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return max(1.0, used / 0.05)


SLOWNESS = slowness()
