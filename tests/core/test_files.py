"""Files written whole: every failure leaves the old file, and the error names path and reason."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kullback.core import (
    RunError,
    check_file_hash,
    make_folder,
    not_written,
    only_writer,
    open_atomic,
    read_json,
    remove_temporaries,
    write_atomic,
    write_json,
)


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
    advice = "free some space" if number == errno.ENOSPC else "a folder that you may write to"
    said = rf"a\.json: cannot be written: {os.strerror(number)}\. Try: {advice}"
    with pytest.raises(RunError, match=said):
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
    with pytest.raises(RunError, match=r"No such file .* Try: make the folder"):
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


def test_every_changed_byte_of_a_hashed_file_is_found(tmp_path):
    """All 255 other values of every byte, white space and the hash itself included."""
    path = tmp_path / "a.json"
    write_json(path, {"format": 2, "β": [1.5, "x"]}, hashed=True)
    assert read_json(path)["format"] == 2
    content = path.read_bytes()
    for place in range(len(content)):
        for value in range(256):
            changed = content[:place] + bytes([value]) + content[place + 1 :]
            if changed != content:
                with pytest.raises(RunError):
                    check_file_hash(changed, path, required=True)
    path.write_bytes(content.replace(b"1.5", b"2.5"))
    with pytest.raises(RunError, match=r"a\.json: damaged or changed .* \(file_sha256\) differs"):
        read_json(path)


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows"
    write_atomic(path, "old")
    with pytest.raises(ZeroDivisionError), open_atomic(path) as file:
        file.write(b"new")
        _ = 1 / 0
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["rows"]


@pytest.mark.parametrize("nameless", [True, False])
def test_a_kill_leaves_nothing_after_the_next_start(tmp_path, monkeypatch, nameless):
    """A child is killed while it writes; without nameless files its rest goes at the next start."""
    code = (
        "import os, sys, signal; from kullback.core import files\n"
        f"{'' if nameless else 'files._open_nameless = lambda folder: None'}\n"
        "with files.open_atomic(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert ended.returncode == -signal.SIGKILL
    if nameless and hasattr(os, "O_TMPFILE"):
        assert names_in(tmp_path) == []
    mine = tmp_path / f".b.{os.getpid()}.0123abcd.tmp"  # of a process that runs
    mine.write_bytes(b"")
    remove_temporaries(tmp_path)
    assert names_in(tmp_path) == [mine.name]


def test_one_writer_at_a_time_and_a_kill_frees_the_folder(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from kullback.core import only_writer\n"
        "with only_writer(Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        held = rf"another process writes here \(process {other.pid} "
        with pytest.raises(RunError, match=held), only_writer(tmp_path):
            pass
    finally:
        other.kill()
        other.communicate()
    assert names_in(tmp_path) == [".lock"]  # what the killed process left
    with only_writer(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert names_in(tmp_path) == []


def test_folders_that_cannot_be_made_say_what_to_try(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "a" / "b", new=True)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match=r"file: cannot be made: .* Try: another name"):
        make_folder(tmp_path / "file")
    with pytest.raises(RunError, match=r"c: cannot be made: .* Try: another place: a part of this"):
        make_folder(tmp_path / "file" / "c")
    with pytest.raises(RunError, match=r"cannot be made: .* Try: a shorter name"):
        make_folder(tmp_path / ("n" * 1000))


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO]
)
def test_what_the_system_refuses_says_what_to_try(number):
    said = str(not_written("run", OSError(number, os.strerror(number))))
    assert said.startswith(f"run: cannot be written: {os.strerror(number)}. Try: ")
    assert str(not_written("run", OSError("odd"))) == "run: cannot be written: odd"
