"""kill -9 at random moments, then --resume: bit for bit the run that was never killed."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest

ARGUMENTS = "--epochs 12 --size 14 --binarize dynamic --network mlp --hidden 64,64 --latent 8"
OFTEN = ["--checkpoint-seconds", "0.05"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def kullback(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "kullback", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        **options,
    )


def finished(process):
    _, error = process.communicate(timeout=600)
    return process.returncode, error.decode()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, error = finished(kullback("train", *ARGUMENTS.split(), *OFTEN, "--out", folder))
    assert code == 0, error
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_and_resumed_is_bit_identical(seed, whole, tmp_path):
    chance = random.Random(seed)
    folder = tmp_path / "run"
    kills = 0
    process = kullback("train", *ARGUMENTS.split(), *OFTEN, "--out", folder)
    for _ in range(4):
        wait_for(lambda: (folder / "config.json").exists(), process)
        wait_for(lambda: (folder / "checkpoints").exists(), process)
        time.sleep(chance.uniform(0.0, 0.8))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        for name in ("config.json", "evaluation.json"):
            if (folder / name).exists():
                json.loads((folder / name).read_text())
        process = kullback("train", "--resume", folder, *OFTEN)
    code, error = finished(process)
    if kills == 0:
        assert code == 0, error
    code, error = finished(kullback("train", "--resume", folder, *OFTEN))
    assert code == 0, error
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    ours, theirs = (json.loads((f / "evaluation.json").read_text()) for f in (folder, whole))
    assert ours["data"] == theirs["data"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_saves_and_says_so(number, whole, tmp_path):
    folder = tmp_path / "run"
    process = kullback("train", *ARGUMENTS.split(), *OFTEN, "--out", folder)
    wait_for(lambda: (folder / "metrics.jsonl").exists(), process)
    process.send_signal(number)
    code, error = finished(process)
    assert code == 130, error
    assert f"kullback train --resume {folder}" in error
    assert (folder / "checkpoints" / "last.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    code, error = finished(kullback("train", "--resume", folder, *OFTEN))
    assert code == 0, error
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_a_disk_that_refuses_is_named_and_leaves_nothing_half_written(tmp_path):
    """Files of more than 50 kB are refused by the system: the weights do not fit."""
    folder = tmp_path / "run"
    arguments = ["--steps", "20", "--size", "14", "--network", "mlp", "--hidden", "64,64"]
    limit = (50_000, 50_000)
    process = kullback(
        "train",
        *arguments,
        "--out",
        folder,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    code, error = finished(process)
    assert code == 1, error
    assert "model.safetensors: cannot be written" in error
    assert "Traceback" not in error
    assert not (folder / "model.safetensors").exists()
    assert not list(folder.rglob("*.tmp"))
    json.loads((folder / "config.json").read_text())
    code, error = finished(kullback("train", "--resume", folder))
    assert code == 0, error


def wait_for(condition, process):
    end = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
