"""Files written whole: every failure leaves the old file, and the error names path and reason."""

import errno
import json
import math
import os
from pathlib import Path

import pytest

from kullback.core import RunError, read_json, write_atomic, write_json


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_bytes_and_text_arrive_and_replace(tmp_path):
    path = tmp_path / "a.bin"
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    write_atomic(path, "β = 1\n")
    assert path.read_bytes() == "β = 1\n".encode()
    assert names_in(tmp_path) == ["a.bin"]


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_atomic(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_failure_keeps_the_old_file_and_no_rubbish(tmp_path, monkeypatch, step, number):
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((os, "fsync", fail) if step == "fsync" else (Path, "replace", fail)))
    with pytest.raises(RunError, match=rf"a\.json: cannot be written: {os.strerror(number)}"):
        write_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.json"]


def test_an_interrupt_leaves_no_rubbish(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a", b"1")
    assert names_in(tmp_path) == []


def test_missing_folder_and_folder_in_the_way(tmp_path):
    with pytest.raises(RunError, match="No such file"):
        write_atomic(tmp_path / "no" / "a", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="folder: cannot be written"):
        write_atomic(tmp_path / "folder", b"")
    assert names_in(tmp_path) == ["folder"]


def test_json_keeps_order_text_and_strange_names(tmp_path):
    obj = {"z": [1, None, True], "a": {"name": "bild\udcff.png", "β": 0.1}}
    write_json(tmp_path / "a.json", obj)
    assert read_json(tmp_path / "a.json") == obj
    assert list(read_json(tmp_path / "a.json")) == ["z", "a"]
    assert "β" in (tmp_path / "a.json").read_text()
    assert json.loads((tmp_path / "a.json").read_bytes()) == obj


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_has_no_nan(tmp_path, value):
    with pytest.raises(RunError, match=r"a\.json: cannot be written as JSON"):
        write_json(tmp_path / "a.json", {"elbo": value})
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "line 1 column 1"),
        (b'{"a": 1,\n "b" 2}', "line 2 column 6"),
        (b'{"a": 1', "line 1 column 8"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b'"\xff"', "byte 1 is not UTF-8"),
        (b"[" * 100_000, "recursion"),
        (b"9" * 10_000, "digits"),
    ],
)
def test_broken_json_names_file_and_position(tmp_path, content, says):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(RunError, match=rf"a\.json: not valid JSON: .*{says}"):
        read_json(tmp_path / "a.json")


def test_missing_json(tmp_path):
    with pytest.raises(RunError, match=r"a\.json: cannot be read: No such file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(RunError, match="cannot be read"):
        read_json(tmp_path)
