"""The user's own Python: `kullback audit`, and reading the file that `kullback fit` is given.

Which to use: `read_target` for FILE.py:log_density, `function_at` for FILE.py:name or
package.module:name, `user_code` around everything that runs it. The file is the user's program: it
is executed, with all that implies.
"""

import contextlib
import importlib
import importlib.util
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from cyclopts import Parameter

from kullback.core import DataError, KullbackError, require

from .options import AuditOptions, Shared
from .session import log, prepare, print_json, say, write

__all__ = ["TargetFile", "audit", "function_at", "read_target", "user_code"]


def audit(
    loss: Annotated[str, Parameter(help="FILE.py:function, or package.module:function.")],
    /,
    *,
    options: Annotated[AuditOptions | None, Parameter(name="*")] = None,
    shared: Shared = None,
) -> None:
    """Find the divergence that a policy loss minimises, by enumeration of tiny worlds.

    The function is given what its parameters are called: logp, ref_logp, behaviour_logp (or
    old_logp), logits, ref_logits, tokens, mask, advantages and the usual other spellings. It runs:
    audit only code that you trust. The verdict is a result, not a failure: the exit code is 0.
    """
    prepare(shared)
    options = options or AuditOptions()
    options.check()
    import torch

    from kullback import tokens
    from kullback.report import audit_page

    torch.set_num_threads(1)  # the tables are tiny
    function = function_at(loss)
    with user_code(None, traceback=True):
        found = tokens.audit(function, **options.arguments())
    log(f"audited {loss} as a {found.form}")
    if options.html is not None:
        audit_page.write(found, options.html)
        say(f"report: {options.html}")
    if options.json:
        print_json(found.to_json())
    else:
        write(audit_page.audit_table(found) + "\n")


@contextlib.contextmanager
def user_code(path: Path | None, *, traceback: bool = False) -> Iterator[None]:
    """Run a block that calls the user's code in `path`, which prints on standard error.

    traceback: let its own exceptions through as they are, for one who debugs it.
    Errors: `DataError` for an exception that went through the file, or one of its syntax, and for
    `sys.exit`. Others (a bug of this package, an interrupt) come through as they are.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KullbackError:
        raise
    except SystemExit as error:
        place = "" if path is None else f"{path}{_where(path, error)}: "
        raise DataError(f"{place}the code calls exit({error.code!r})") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if traceback or path is None:
            raise
        if not _where(path, error) and not isinstance(error, SyntaxError):
            raise  # not the user's
        first = (str(error).strip() or "without a message").splitlines()[0]
        words = f"{type(error).__name__}: {first}"
        raise DataError(f"{path}{_where(path, error)}: {words}") from error


def _where(path: Path, error: BaseException) -> str:
    """Return `, line 3`: the last line of the file that the error went through."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if _same(trace.tb_frame.f_code.co_filename, path):
            line = trace.tb_lineno
        trace = trace.tb_next
    if line is None and isinstance(error, SyntaxError) and _same(error.filename or "", path):
        line = error.lineno
    return "" if line is None else f", line {line}"


def _same(name: str, path: Path) -> bool:
    return name == str(path) or (bool(name) and Path(name).absolute() == path.absolute())


def function_at(place: str) -> Callable[..., Any]:
    """Import the file or module of `place` and return its function.

    Errors: `ValueError` for a place that is not FILE.py:name; `DataError` for a file or module that
    is not there, or has no such function, with those that it has, or that fails when it is run.

    >>> function_at("math:sqrt")(9.0)
    3.0
    """
    source, _, name = place.rpartition(":")
    require(bool(source and name), "LOSS", "FILE.py:function or package.module:function", place)
    module = _file(Path(source)) if source.endswith(".py") else _module(source)
    found = getattr(module, name, None)
    if not callable(found):
        known = [n for n, f in vars(module).items() if callable(f) and not n.startswith("_")]
        known = [n for n in known if getattr(vars(module)[n], "__module__", "") == module.__name__]
        raise DataError(f"{source}: has no function {name!r}. It has: {', '.join(known) or 'none'}")
    return found  # type: ignore[no-any-return]


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem], before = module, sys.modules.get(path.stem)
    sys.path.insert(0, str(path.parent.resolve()))  # as when Python runs a script
    try:
        with user_code(path):
            spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent.resolve()))
        if before is not None:
            sys.modules[path.stem] = before
    return module


def _module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        with user_code(None, traceback=True):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise DataError(f"{name}: no such module. Try: FILE.py:function") from error
        raise
    finally:
        sys.path.remove(str(Path.cwd()))


@dataclass(frozen=True, slots=True)
class TargetFile:
    """A log density of one point and what its file says about it: `parameters`, `data`, prior.

    simulate: draws parameters and data from the model, for `--sbc`.
    """

    path: Path
    name: str
    log_density: Callable[..., Any]
    parameters: Any
    data: Any = None
    log_prior: Callable[..., Any] | None = None
    simulate: Callable[..., Any] | None = None


def read_target(text: str, *, dim: int | None = None) -> TargetFile:
    """Run a Python file and take its log density and its `parameters`.

    text: `file.py:function`; the function is `log_density` where it is left out. The file's
    `parameters` is a dimension or a mapping of names to shapes and constraints; dim stands in for
    it. Optional: `data` (tensors with rows) and `log_prior`; `simulate`, which `--sbc` needs.
    Errors: `DataError` for a file that is missing or fails (with its last line), or lacks a name;
    `ArgumentValueError` for text in another form.

    >>> _ = Path("normal.py").write_text("parameters = 1; log_density = lambda z: -z[0]**2")
    >>> read_target("normal.py").parameters
    1
    """
    place, _, function = text.rpartition(":")
    if not place or function.endswith(".py"):
        place, function = text, "log_density"
    require(place.endswith(".py"), "TARGET", "file.py:function", repr(text))
    path = Path(place)
    if not path.is_file():
        raise DataError(f"{path}: no such file. Try: file.py:log_density")
    with user_code(path):
        found = runpy.run_path(str(path), run_name="kullback_target")
    if not callable(found.get(function)):
        names = [name for name, value in found.items() if callable(value) and name[0] != "_"]
        listed = f" (it has {', '.join(sorted(names)[:8])})" if names else ""
        raise DataError(f"{path}: no function {function!r}{listed}")
    parameters = found.get("parameters") if dim is None else dim
    if parameters is None:
        raise DataError(
            f"{path}: says nothing about its parameters. Try: parameters = 2 in the file, "
            'parameters = {"mu": (), "tau": constraints.positive}, or --dim 2'
        )
    return TargetFile(
        path=path,
        name=f"{path.name}:{function}",
        log_density=found[function],
        parameters=parameters,
        data=found.get("data"),
        log_prior=found.get("log_prior"),
        simulate=found.get("simulate"),
    )
