"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

import kullback

SLOW = (  # half a second or more: they train, fit, or audit
    "data.loading.model_inputs",
    "data.loading.protocol",
    "data.loading.sources",
    "data.loading.training_data",
    "report.audit_page",
    "report.training_runs.run_page",
    "sampled.two_sample",
    "tokens.auditing.run",
    "variational.optimise.grid",
    "variational.diagnostics.summary",
)
MODULES = [
    pytest.param(name, marks=pytest.mark.slow) if name.endswith(SLOW) else name
    for _, name, _ in pkgutil.walk_packages(kullback.__path__, "kullback.")
    if not name.endswith("__main__")
]


@pytest.mark.sweep(9)
@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "triton_" in name and not name.endswith("backend"):
        pytest.importorskip("triton")  # kernels are functions of it
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
