"""The page of closed forms says what the registry knows; the example runs and says the numbers."""

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_closed_forms_is_up_to_date():
    tool = load(ROOT / "tools" / "closed_forms_table.py")
    page = tool.PAGE.read_text()
    assert tool.replaced(page) == page, "run: python tools/closed_forms_table.py"


@pytest.mark.slow  # CI runs the example as well; this reads its numbers
def test_the_founding_example_runs(capsys):
    pytest.importorskip("constriction")
    runpy.run_path(str(ROOT / "examples" / "founding_example.py"), run_name="__main__")
    said = capsys.readouterr().out
    for number in ("1.500", "1.750", "0.250", "0.469"):
        assert number in said


def test_the_founding_example_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(SystemExit, match=r"pip install 'kullback\[codec\]'"):
        runpy.run_path(str(ROOT / "examples" / "founding_example.py"), run_name="__main__")
