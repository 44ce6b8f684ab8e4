"""Starts the command in several processes, for the slow tests."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

WAIT = 60.0  # seconds for another thread or process: more is a failure
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def started(size, *arguments, **more):
    """Start the command in one process, or in several on free ports of 127.0.0.1."""
    run = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    run += ["--nproc-per-node", str(size)]
    command = [sys.executable, *(run if size > 1 else []), "-m", "kullback", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT | more, **pipes)


def ended(process):
    """Return exit code, standard output and error; a command that hangs is a failure."""
    try:
        out, error = process.communicate(timeout=4 * WAIT)
    except subprocess.TimeoutExpired:
        process.terminate()
        out, error = process.communicate(timeout=WAIT)
        pytest.fail(f"the command did not end in {4 * WAIT:.0f} s: {out}{error}")
    return process.returncode, out, error


def workers(run):
    """Return the process ids of a run by rank."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes().split(b"\0")
            about = (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(one[5:]) for one in about if one.startswith(b"RANK=")]
        if ranks and str(run).encode() in command and b"torch.distributed.run" not in command:
            found[ranks[0]] = int(place.name)
    return found


def wait_for(there, process):
    end = time.monotonic() + 4 * WAIT
    while not there():
        assert process.poll() is None, ended(process)
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def figures_of(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["elbo"], row["rate"]) for row in rows]
