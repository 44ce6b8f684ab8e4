"""Floor 0: the estimate, the errors, the argument checks, and files written whole or not at all."""

from .checks import describe, import_extra, message, require, require_type, warn_caller
from .errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DataError,
    KullbackError,
    MissingExtraError,
    RunError,
)
from .estimate import Estimate, short_values
from .files import parse_json, read_json, write_atomic, write_json
from .lazy import lazy
from .moved import renamed
from .version import __version__

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "DataError",
    "Estimate",
    "KullbackError",
    "MissingExtraError",
    "RunError",
    "__version__",
    "compiling",
    "describe",
    "import_extra",
    "lazy",
    "message",
    "numpy_files",
    "parse_json",
    "read_json",
    "renamed",
    "require",
    "require_type",
    "short_values",
    "warn_caller",
    "write_atomic",
    "write_json",
]

# on first use: neither is needed to start the command
__getattr__, __dir__ = lazy(
    "kullback.core", {name: f"kullback.core.{name}" for name in ("compiling", "numpy_files")}
)
