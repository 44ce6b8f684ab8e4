"""Floor 0, no torch: what every other folder stands on.

`estimate`: a sampled number with its error bar; `errors`: the errors of the package and the
argument checks that raise them; `files`: files written whole or not at all, JSON and NumPy's files;
`compiling`: C compiled at first use; `moved`: names imported on first use, and old names of
modules; `processes`: several processes of one command; `memory`: freed memory
kept; `limits`: the thresholds of this folder.
"""

from . import processes
from .errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DataError,
    KullbackError,
    MissingExtraError,
    RunError,
    describe,
    import_extra,
    message,
    one_line,
    printable,
    require,
    require_count,
    require_type,
    warn_caller,
)
from .estimate import Bias, Estimate, json_value, short_values, two_sided
from .files import (
    NO_HASH,
    check_file_hash,
    make_folder,
    not_written,
    numpy_error,
    numpy_errors,
    only_writer,
    open_atomic,
    parse_json,
    read_json,
    read_npy,
    remove_temporaries,
    write_atomic,
    write_hashed,
    write_json,
)
from .memory import memory_kept
from .moved import install, lazy, renamed

__all__ = [
    "NO_HASH",
    "ArgumentTypeError",
    "ArgumentValueError",
    "Bias",
    "DataError",
    "Estimate",
    "KullbackError",
    "MissingExtraError",
    "RunError",
    "__version__",
    "check_file_hash",
    "compiling",
    "describe",
    "import_extra",
    "install",
    "json_value",
    "lazy",
    "make_folder",
    "memory_kept",
    "message",
    "not_written",
    "numpy_error",
    "numpy_errors",
    "one_line",
    "only_writer",
    "open_atomic",
    "parse_json",
    "printable",
    "processes",
    "read_json",
    "read_npy",
    "remove_temporaries",
    "renamed",
    "require",
    "require_count",
    "require_type",
    "short_values",
    "two_sided",
    "warn_caller",
    "write_atomic",
    "write_hashed",
    "write_json",
]

__version__ = "0.1.0"

# on first use: it is not needed to start the command
__getattr__, __dir__ = lazy("kullback.core", {"compiling": "kullback.core.compiling"})
