"""Floor 0: the estimate, the errors, the argument checks, and files written whole or not at all."""

from .checks import describe, message, require, require_type, warn_caller
from .errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DataError,
    KullbackError,
    MissingExtraError,
    RunError,
)
from .estimate import Estimate, short_values
from .files import read_json, write_atomic, write_json
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
    "message",
    "read_json",
    "renamed",
    "require",
    "require_type",
    "short_values",
    "warn_caller",
    "write_atomic",
    "write_json",
]
