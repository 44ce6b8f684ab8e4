"""Fixtures and the two tiers: the fast one by default, the slow one with --slow."""

import copy
import dataclasses
import gc
import os
import sys
from collections import Counter

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tier as well")


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "sweep(every): the fast tier runs one case in `every`, the slow tier the others"
    )


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config, items):
    seen = Counter()
    for item in items:
        sweep = item.get_closest_marker("sweep")
        if sweep is None or _is_slow(item):
            continue
        of = item.nodeid.partition("[")[0]
        if seen[of] % sweep.args[0]:
            item.add_marker(pytest.mark.slow)
        seen[of] += 1
    if config.getoption("--slow"):
        return
    slow = [item for item in items if _is_slow(item)]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not _is_slow(item)]


def _is_slow(item):
    return item.get_closest_marker("slow") is not None  # keywords hold the names of folders too


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect without garbage collection: rewriting asserts makes millions of short-lived nodes.

    What is then left, thousands of items and the modules, stays to the end: not to be walked again.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(20_000, 10, 10)  # 700: a sixth of the tier's time


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--slow"):
        terminalreporter.write_line("The fast tier: tests marked slow are left out (--slow).")


@pytest.fixture(autouse=True)
def _same_whatever_ran_before():
    """Seed torch's global generator, so that no test depends on the order of tests.

    Importing zuko switches the argument checks of all distributions off: they are put back.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "torch.distributions" in sys.modules:
        sys.modules["torch.distributions"].Distribution.set_default_validate_args(__debug__)


@pytest.fixture(scope="session")
def fashion():
    """The embedded images, decoded and checked once."""
    from kullback.data.loading import sources

    return sources.read_fashion()


@pytest.fixture(scope="module")
def fashion_few(fashion):
    """`load("fashion")` has one image in 20, where their number is not what is tested.

    Resizing all of them takes half a second at every command.
    """
    few = dataclasses.replace(
        fashion,
        values=fashion.values[::20],
        names=fashion.names[::20],
        is_test=fashion.is_test[::20],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kullback.data.loading.sources.read_fashion", lambda: copy.deepcopy(few))
        yield


@pytest.fixture(scope="module")
def empty_charts():
    """Pages of runs have empty charts, where only the files beside them are looked at."""
    with pytest.MonkeyPatch.context() as patch:
        empty = '<svg width="1pt" height="1pt" viewBox="0 0 1 1"></svg>'
        patch.setattr("kullback.report.figures.svg_of", lambda _figure: empty)
        yield


@pytest.fixture
def fashion_once(fashion, monkeypatch):
    """`load("fashion")` takes a copy of the images, where decoding them is not what is tested."""

    def again():
        return copy.deepcopy(fashion)

    monkeypatch.setattr("kullback.data.loading.sources.read_fashion", again)
