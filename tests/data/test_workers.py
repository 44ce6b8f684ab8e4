"""Decoding in other processes gives what decoding here gives, and leaves nothing behind."""

import functools
import operator
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from kullback.core import DataError
from kullback.data import limits, load
from kullback.data.pictures import workers


@pytest.fixture
def mixed(tmp_path):
    """Pictures in grey, colour and with alpha, animations, damaged and empty files, in folders."""
    rng = np.random.default_rng(0)
    for k in range(150):
        shape = ((8, 8), (8, 8, 3), (8, 8, 4))[k % 3]
        path = tmp_path / f"{k % 7}" / f"{k:03d}{('.png', '.bmp', '.webp')[k % 3]}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    frames = [Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    whole = (tmp_path / "0" / "000.png").read_bytes()
    (tmp_path / "1" / "cut.png").write_bytes(whole[:60])
    (tmp_path / "2" / "empty.png").touch()
    (tmp_path / "3" / "text.png").write_text("no picture")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    return tmp_path


def everything(data):
    tensors = torch.cat([data.train, data.test]).tolist()
    return tensors, data.train_names, data.test_names, data.protocol


def in_processes(monkeypatch, count=2):
    monkeypatch.setattr(limits, "FILES_FOR_PROCESSES", 1)
    monkeypatch.setattr(workers, "available_cores", lambda: count)


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize("options", [{}, {"frames": "all", "channels": "grey", "size": 5}])
def test_processes_give_what_this_one_does(mixed, monkeypatch, options):
    here = load(mixed, **options)
    assert here.protocol["skipped"]["count"] == 4
    in_processes(monkeypatch)
    steps = []
    there = load(mixed, **options, progress=lambda done, total: steps.append((done, total)))
    assert everything(there) == everything(here)
    assert steps == [(k, 155) for k in range(1, 156)]


@pytest.mark.slow
def test_settings_of_pillow_reach_the_processes(mixed, monkeypatch):
    in_processes(monkeypatch)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match="more pixels than the safety limit"):
        load(mixed, size=8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load(mixed).protocol["skipped"]["count"] == 3  # the one cut short is read


@pytest.mark.slow
def test_results_come_in_order_and_processes_end():
    function = functools.partial(operator.mul, 3)
    started = []
    process = workers._Process
    spy = lambda f: started.append(process(f)) or started[-1]  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_Process", spy)
        results = workers.in_processes(function, range(100), 2)
        assert next(results) == 0
        children = [one.child for one in started]
        assert all(child.poll() is None for child in children)
        results.close()
    assert all(child.returncode is not None for child in children)
    assert list(workers.in_processes(function, range(9), 2)) == list(range(0, 27, 3))


def test_what_a_process_raises_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        list(workers.in_processes(functools.partial(operator.floordiv, 1), [1, 0], 1))


def _parent_or_death(parent, x):
    if os.getpid() != parent:
        os._exit(3)
    return -x


def test_inputs_of_a_process_that_dies_are_worked_on_here():
    here = functools.partial(_parent_or_death, os.getpid())
    assert list(workers.in_processes(here, [1, 2, 3], 2)) == [-1, -2, -3]


def test_without_an_interpreter_to_start_all_is_done_here(monkeypatch):
    for executable in ("/nowhere/python", "", None):
        monkeypatch.setattr(sys, "executable", executable)
        assert list(workers.in_processes(abs, [-1, 2], 2)) == [1, 2]


@pytest.mark.slow
def test_a_script_needs_no_guard_and_is_run_once(mixed, tmp_path):
    script = tmp_path.parent / f"{tmp_path.name}.py"
    script.write_text(
        textwrap.dedent(f"""
        from kullback.data import limits, load
        from kullback.data.pictures import workers
        limits.FILES_FOR_PROCESSES, workers.available_cores = 1, lambda: 2
        print(len(load({str(mixed)!r}).train_names))
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(load(mixed).train_names))]
    assert not done.stderr
