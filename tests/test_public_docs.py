"""What users call is documented in Google style: arguments, result, an example that runs."""

import importlib
import inspect

import pytest

FOLDERS = ("core", "exact", "sampled", "measure", "tokens", "variational", "data", "vae", "report")


def public_functions():
    """Functions that a folder's `__init__` offers, and those of the modules it offers."""
    found = {}
    for folder in FOLDERS:
        package = importlib.import_module(f"kullback.{folder}")
        for name in package.__all__:
            member = getattr(package, name)
            names = getattr(member, "__all__", ()) if inspect.ismodule(member) else ()
            for one in [member, *(getattr(member, other) for other in names)]:
                if inspect.isfunction(one) and one.__module__.startswith("kullback."):
                    found[f"{one.__module__}.{one.__qualname__}"] = one
    return found


PUBLIC = public_functions()


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_arguments_result_and_example(name):
    function = PUBLIC[name]
    text, signature = inspect.getdoc(function) or "", inspect.signature(function)
    if signature.parameters:
        assert "Args:" in text, f"{name}: say what every argument is, under Args:"
    if signature.return_annotation not in (None, "None"):
        assert "Returns:" in text or "Yields:" in text, f"{name}: say what comes back"
