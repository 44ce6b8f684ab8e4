"""Old names of modules: each is found, warns, and has the public names of the new one."""

import importlib
import importlib.util

import pytest

from kullback.core.moved import MOVED


@pytest.mark.sweep(6)
@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_gives_the_new_module_and_a_warning(old):
    new = MOVED[old]
    if "triton_" in new and not new.endswith("backend"):
        pytest.importorskip("triton")
    target = importlib.import_module(new)
    with pytest.warns(DeprecationWarning, match=new):
        module = importlib.reload(importlib.import_module(old))
    for name in target.__all__:
        assert getattr(module, name) is getattr(target, name)
    package, _, leaf = old.rpartition(".")
    offered = getattr(importlib.import_module(package), "__all__", [])
    assert leaf not in offered, f"{package}.{leaf} would be shadowed"


def test_other_names_are_not_found():
    assert importlib.util.find_spec("kullback.tokens.nothing") is None
