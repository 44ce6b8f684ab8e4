"""Help, version and typing errors cost nothing: no torch, and few calls of functions.

Half a second of a processor is meant; seconds depend on the machine, calls do not.
"""

import subprocess
import sys

import pytest

CODE = """
import cProfile
import sys
sys.argv = ["kullback", *{arguments!r}]
code = 0
profile = cProfile.Profile()
profile.enable()
try:
    {body}
except SystemExit as stop:
    code = stop.code or 0
profile.disable()
heavy = [name for name in ("torch", "numpy", "PIL", "matplotlib") if name in sys.modules]
calls = sum(entry.callcount for entry in profile.getstats())
sys.stderr.write(f"\\nHEAVY {{calls}} {{' '.join(heavy)}}")
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

CALLS = 700_000  # 0.4 s where the bare interpreter takes 0.05 s


@pytest.mark.slow
@pytest.mark.sweep(8)
@pytest.mark.parametrize("name", CASES)
def test_starts_without_torch(name):
    arguments, body, code = CASES[name]
    command = [sys.executable, "-c", CODE.format(arguments=arguments, body=body)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    mark, calls, *heavy = done.stderr.splitlines()[-1].split()
    assert mark == "HEAVY"
    assert not heavy
    assert int(calls) < CALLS
