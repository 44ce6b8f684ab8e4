"""Floor 0: the estimate, the errors, the argument checks, and files written whole or not at all."""

from .checks import require, require_type
from .errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DataError,
    KullbackError,
    MissingExtraError,
    RunError,
)
from .estimate import Estimate

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "DataError",
    "Estimate",
    "KullbackError",
    "MissingExtraError",
    "RunError",
    "require",
    "require_type",
]
