"""The user's own Python: `kullback audit`, and reading the file that `kullback fit` is given.

Which to use: `read_target` for a log density or a model of another program, `function_at` for
FILE.py:name or package.module:name, `user_code` around everything that runs it. The file is the
user's program: it is executed, with all that implies.
"""

import contextlib
import importlib
import importlib.util
import inspect
import json
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Annotated, Any

from cyclopts import Parameter

from kullback.core import DataError, KullbackError, message, one_line, require

from .options import AuditOptions, Shared
from .session import log, prepare, print_json, say, write

__all__ = [
    "TargetFile",
    "audit",
    "function_at",
    "passed",
    "raised_in",
    "read_target",
    "user_code",
    "went_through",
]


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
        raise DataError(f"{path}{_where(path, error)}: {one_line(error)}") from error


def went_through(error: BaseException, path: Path) -> bool:
    """Say whether an exception went through code of a file."""
    return bool(_where(path, error))


def raised_in(error: BaseException, package: str) -> bool:
    """Say whether the code that raised an exception is of a package, such as "kullback"."""
    return _packages(error)[-1] == package


def passed(error: BaseException, package: str) -> bool:
    """Say whether an exception went through the code of a package."""
    return package in _packages(error)


def _packages(error: BaseException) -> list[str]:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]


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
    """A log density of one point, or another program's model, and what its file says about it.

    model: what the name stands for: a log density, or a model. program: whose it is: "" (a log
    density), "stan", "numpyro", "pyro" or "pymc". parameters, data, log_prior: of a log density, as
    `Target.of` takes them. arguments: of a model, by name or in order.
    simulate: draws parameters and data from the model, for `--sbc`.
    """

    path: Path
    name: str
    model: Any
    program: str = ""
    parameters: Any = None
    data: Any = None
    log_prior: Callable[..., Any] | None = None
    simulate: Callable[..., Any] | None = None
    arguments: Any = None


def read_target(text: str, *, dim: int | None = None, data: Path | None = None) -> TargetFile:
    """Read what is to be fitted: a Stan program, or a log density or a model in a Python file.

    text: `model.stan`, or `file.py:name`; the name is `log_density`, or else `model`, where it is
    left out. A function that calls `sample` of NumPyro or Pyro is a model of it; a function that
    calls PyMC makes one. Any other function is a log density: the file's `parameters` is a
    dimension or a mapping of names to shapes and constraints; dim stands in for it. Optional: its
    `log_prior`, `simulate` (which `--sbc` needs), and `data`: tensors with rows, or the arguments
    of a model.
    data: a JSON file with the arguments of a model, or of a log density, by name.
    Errors: `DataError` for a file that is missing or fails (with its last line), or lacks a name;
    `ArgumentValueError` for text in another form.

    >>> _ = Path("normal.py").write_text("parameters = 1; log_density = lambda z: -z[0]**2")
    >>> read_target("normal.py").parameters
    1
    """
    arguments = None if data is None else _json(data)
    if text.endswith(".stan"):
        path = Path(text)
        if not path.is_file():
            raise DataError(f"{path}: no such file. Try: kullback fit model.stan data.json")
        return TargetFile(path, path.name, path, "stan", arguments=arguments)
    place, _, name = text.rpartition(":")
    if not place or name.endswith(".py"):
        place, name = text, ""
    require(place.endswith(".py"), "TARGET", "file.py:function or a .stan file", repr(text))
    path = Path(place)
    if not path.is_file():
        raise DataError(f"{path}: no such file. Try: file.py:log_density, or model.stan data.json")
    with user_code(path):
        found = runpy.run_path(str(path), run_name="kullback_target")
    name = name or ("model" if "log_density" not in found and "model" in found else "log_density")
    model, program = found.get(name), _program(found.get(name))
    if not callable(model) and program != "pymc":
        names = [k for k, v in found.items() if (callable(v) or _program(v)) and k[0] != "_"]
        listed = f" (it has {', '.join(sorted(names)[:8])})" if names else ""
        raise DataError(f"{path}: no function or model {name!r}{listed}")
    if program:
        known = found.get("data") if data is None else arguments
        simulate = found.get("simulate")
        title = f"{path.name}:{name}"
        return TargetFile(path, title, model, program, arguments=known, simulate=simulate)
    parameters = found.get("parameters") if dim is None else dim
    if parameters is None:
        raise DataError(
            f"{path}: says nothing about its parameters. Try: parameters = 2 in the file, "
            'parameters = {"mu": (), "tau": constraints.positive}, or --dim 2'
        )
    return TargetFile(
        path=path,
        name=f"{path.name}:{name}",
        model=model,
        parameters=parameters,
        data=found.get("data") if data is None else None,
        log_prior=found.get("log_prior"),
        simulate=found.get("simulate"),
        arguments=arguments,
    )


def _json(path: Path) -> dict[str, Any]:
    """Read values by name from a JSON file."""
    from .reading import decoded, read_bytes

    if path.suffix.lower() != ".json":
        raise DataError(message(str(path), "a .json file with values by name", repr(path.suffix)))
    try:
        found = json.loads(decoded(read_bytes(path), str(path)))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        got = type(found).__name__
        raise DataError(message(str(path), 'an object with values by name, {"y": [1, 2]}', got))
    return found


def _program(model: Any) -> str:
    """Say whose model it is: "numpyro", "pyro", "pymc", or "" of a log density or anything else."""
    if not isinstance(model, FunctionType):
        roots = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
        return "pymc" if "pymc" in roots and type(model).__name__ == "Model" else ""
    used = _used(model, set())
    if "pymc" in {package for package, _ in used}:
        return "pymc"
    samplers = [package for package in ("numpyro", "pyro") if (package, "sample") in used]
    if len(samplers) > 1:
        raise DataError(f"{model.__name__}: samples with NumPyro and with Pyro. Try: one of them")
    return samplers[0] if samplers else ""


def _used(function: FunctionType, seen: set[CodeType]) -> set[tuple[str, str]]:
    """Return (package, name) of what a function and those it calls use of other packages.

    A package that is used as a module goes with every name in the code that uses it.
    """
    found: set[tuple[str, str]] = set()
    codes, names = [function.__code__], set()
    while codes:
        code = codes.pop()
        if code not in seen:
            seen.add(code)
            names |= set(code.co_names)
            codes += [one for one in code.co_consts if isinstance(one, CodeType)]
    closed = inspect.getclosurevars(function).nonlocals if function.__closure__ else {}
    known = {**function.__globals__, **closed}
    names |= set(closed)
    for name in names:
        value = known.get(name, sys.modules.get(name))
        if isinstance(value, ModuleType):
            found |= {(value.__name__.partition(".")[0], other) for other in names}
        elif isinstance(value, FunctionType):
            package = value.__module__.partition(".")[0]
            found.add((package, value.__name__))
            if value.__globals__ is function.__globals__:
                found |= _used(value, seen)
    return found
