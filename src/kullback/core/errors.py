"""The errors a user of kullback can meet, and the exit code each has on the command line.

Every error of this package is a `KullbackError`. A bad argument is also a `ValueError` or a
`TypeError`, so library code can be caught in the usual way; the command line prints any
`KullbackError` as one plain message and lets every other exception show its traceback.
"""

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "DataError",
    "KullbackError",
    "MissingExtraError",
    "RunError",
]


class KullbackError(Exception):
    """Base class: what went wrong, where, and what to try. Exit code 1."""

    exit_code = 1


class ArgumentValueError(KullbackError, ValueError):
    """An argument has a value outside what the function accepts. Exit code 2."""

    exit_code = 2


class ArgumentTypeError(KullbackError, TypeError):
    """An argument has a type the function does not take. Exit code 2."""

    exit_code = 2


class DataError(KullbackError):
    """The user's data cannot be read or cannot be used as asked. Exit code 3."""

    exit_code = 3


class RunError(KullbackError):
    """A run failed: damaged file, non-finite loss, no space on the disk. Exit code 1."""


class MissingExtraError(KullbackError, ImportError):
    """An optional dependency is missing; the message says how to install it. Exit code 1."""
