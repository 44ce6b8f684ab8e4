"""The Kullback-Leibler divergence, measured, minimised and paid.

Everything here loads on first use: `import kullback` alone imports no torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Estimate": "kullback.core",
    "KullbackError": "kullback.core",
}
_FOLDERS = ("core", "data", "sampled", "vae", "variational")

__all__ = [
    "Estimate",
    "KullbackError",
    "__version__",
    "core",
    "data",
    "sampled",
    "vae",
    "variational",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _FOLDERS:
        return importlib.import_module(f"kullback.{name}")
    raise AttributeError(f"module 'kullback' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
