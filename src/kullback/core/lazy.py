"""Names of a package that are imported on first use, so that importing it costs nothing."""

import importlib
from collections.abc import Callable
from typing import Any

__all__ = ["lazy"]


def lazy(
    package: str, names: dict[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package whose `names` live in other modules.

    names: public name to the module that holds it; a module that is itself the public name maps
    to itself.

    >>> get, _ = lazy("demo", {"sqrt": "math"})
    >>> get("sqrt")(9.0)
    3.0
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(names[name])
        return module if names[name] == f"{package}.{name}" else getattr(module, name)

    return get, lambda: sorted(names)
