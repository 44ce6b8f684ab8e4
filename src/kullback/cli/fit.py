"""`kullback fit`: q(z) for the log density in a file, and bounds on the errors of the fit.

`read_reference` reads `--reference`: draws of p in a .csv file with a heading, or a .npy array.
No torch is imported before the command runs.
"""

import contextlib
import csv
import inspect
import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from kullback.core import (
    ArgumentTypeError,
    ArgumentValueError,
    DataError,
    KullbackError,
    RunError,
    message,
    one_line,
    read_npy,
    write_atomic,
)

from .options import FitOptions, Shared
from .session import bar, log, prepare, print_json, quiet, say, ticking, write
from .user_code import (
    TargetFile,
    passed,
    raised_in,
    read_target,
    user_code,
    went_through,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from kullback.variational import Fit, Projection, Target

__all__ = ["calibrate_fits", "fit", "fit_both", "fit_one", "read_reference"]

NODES = {1: 600, 2: 150}  # of the quadrature, a dimension
NAMES_SHOWN = 6  # in a message


def fit(
    target: Annotated[
        str,
        Parameter(help="file.py:log_density, file.py:model (PyMC, NumPyro, Pyro), or model.stan."),
    ],
    /,
    data: Annotated[
        Path | None, Parameter(help="A .json file with the model's data, by name.")
    ] = None,
    *,
    options: Annotated[FitOptions | None, Parameter(name="*")] = None,
    shared: Shared = None,
) -> None:
    """Approximate a posterior: fit q(z) to an unnormalised log density and bound the fit's errors.

    Prints mean, standard deviation and quantiles of every parameter with a bound on the error of
    each, the ELBO, the Pareto k-hat of the importance weights, and a verdict in words.

    The file is run as Python. Its function takes one point z (a vector) or the parameters by name,
    computes with torch, and returns the log density up to a constant; `parameters` beside it is the
    dimension of z, or a mapping of names to shapes and constraints.

    A model of another program is fitted as it is: `kullback fit model.stan data.json`, or
    `kullback fit file.py:model --data data.json` for a PyMC model, or for a function of the data
    that NumPyro or Pyro samples from.

    --sbc tests fit and model together by simulation-based calibration; simulate(generator) in the
    file draws from the model.
    """
    prepare(shared)
    options = options or FitOptions()
    options.check()
    found = read_target(target, dim=options.dim, data=data)
    if options.sbc is not None:
        calibrate_fits(found, options)
        return
    (fit_both if options.direction == "both" else fit_one)(found, options)


def read_reference(path: Path, target: "Target") -> "dict[str, Tensor]":
    r"""Read draws of the target's parameters, `{name: [n, *shape]}`, float64.

    A .csv file has one column an entry, named as the table of a fit names it (`mu`, `theta[3]`) or
    as Stan does (`theta.3`), in any order; other columns are left out. A .npy file is an array
    `[n, entries]` in the table's order, or `[chains, n, entries]`.
    Errors: `DataError` for a file that cannot be read, lacks an entry or holds what is no number.

    >>> from kullback.variational import Target
    >>> target = Target.of(lambda mu, tau: -mu * mu - tau * tau, {"mu": (), "tau": ()})
    >>> _ = Path("draws.csv").write_text("tau,mu,lp__\n1,2,-3\n4,5,-6\n")
    >>> read_reference(Path("draws.csv"), target)["mu"]
    tensor([2., 5.], dtype=torch.float64)
    """
    import torch

    from .reading import read_bytes

    content = read_bytes(path)
    names = target.layout.value_names
    reader = {".csv": _from_csv, ".npy": _from_npy}.get(path.suffix.lower())
    if reader is None:
        raise DataError(message(str(path), "a .csv or .npy file", repr(path.suffix)))
    columns = torch.from_numpy(reader(path, content, names))
    if len(columns) < 2 or not bool(columns.isfinite().all()):
        got = f"{len(columns)} draws" if len(columns) < 2 else "NaN or infinity"
        raise DataError(message(str(path), "at least 2 draws of finite numbers", got))
    found, start = {}, 0
    for name, shape in target.layout.shapes.items():
        size = math.prod(shape)
        found[name] = columns[:, start : start + size].reshape(len(columns), *shape)
        start += size
    return found


def _from_npy(path: Path, content: bytes, names: tuple[str, ...]) -> "NDArray[Any]":
    array = read_npy(content, str(path))
    good = array.ndim in (2, 3) and array.dtype.kind in "fiu"
    if not good or array.shape[-1] != len(names):
        got = f"{array.dtype} {list(array.shape)}"
        raise DataError(message(str(path), f"numbers [n, {len(names)}]: {_some(names)}", got))
    flat: NDArray[Any] = array.reshape(-1, len(names)).astype("float64")
    return flat


def _from_csv(path: Path, content: bytes, names: tuple[str, ...]) -> "NDArray[Any]":
    import numpy as np

    from .reading import decoded

    try:
        rows = [row for row in csv.reader(io.StringIO(decoded(content, str(path)))) if row]
    except csv.Error as error:
        raise DataError(f"{path}: not a table of text: {error}") from error
    rows = [row for row in rows if not row[0].startswith("#")]  # as Stan comments
    heads = [_plain(cell) for cell in rows[0]] if rows else []
    missing = [name for name in names if heads.count(_plain(name)) != 1]
    if missing:
        got = f"{_some(tuple(heads))}; {_some(tuple(missing))} not once among them"
        raise DataError(message(str(path), f"a heading with {_some(names)}", got))
    places = [heads.index(_plain(name)) for name in names]
    try:
        numbers = [[float(row[place]) for place in places] for row in rows[1:]]
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}: a row without its numbers: {error}") from error
    return np.array(numbers, dtype=np.float64).reshape(-1, len(names))


def _plain(name: str) -> str:
    """Write `theta[1,2]`, `theta.1.2` and `theta[1, 2]` alike."""
    return name.strip().replace(" ", "").replace("[", ".").replace(",", ".").replace("]", "")


def _some(names: tuple[str, ...]) -> str:
    shown = names[:NAMES_SHOWN]
    return ", ".join(shown if shown == names else (*shown, "…"))


def fit_one(file: TargetFile, options: FitOptions) -> None:
    """Fit in one direction; print the verdict and the table, or JSON; draw and keep if asked.

    Errors: `RunError` for an improper target, of which there is nothing to print.
    """
    import torch

    from kullback.report import explain_fit, plot_fit
    from kullback.variational import assess, compare, resample, save, summarise
    from kullback.variational import fit as fit_density

    with user_code(file.path), ticking(f"fitting {file.name}") as now:
        target = _target(file)
        now(f"{target.dim:,} parameters")
        log(f"target: {file.name}, {target.dim:,} parameters")
        reference = None if options.reference is None else read_reference(options.reference, target)
        generator = torch.Generator().manual_seed(options.seed)
        with _evaluated_by(file, file.program):
            found = fit_density(
                target,
                family=options.family,
                direction="forward" if options.direction == "forward" else "reverse",
                evaluation_draws=options.draws,
                generator=generator,
                progress=not quiet(),
                **options.time,
            )
        name = type(found.family).__name__
        if found.compile_seconds:
            log(f"compiled: {file.program}, {found.compile_seconds:.1f} s, apart from the fit")
        log(f"q: {name}, {found.method}, {found.seconds:.1f} s: {found.reason}")
        now(f"{target.dim:,} parameters: diagnosing the fit")
        if found.improper:
            raise RunError(f"{file.name}: {found.reason}")
        bad = target.explain(found.draws)
        if bad:
            say(f"warning: {bad}")
        judged = assess(found, generator=generator)
        table = summarise(found, judged)
        draws = found.posterior
        if options.resample:
            draws = resample(found, options.draws, judged, generator=generator)
        against = None if reference is None else compare(target, draws, reference)
        truth = explain_fit.exact_posterior(target) if options.explain else None
        explained = explain_fit.explain_fit(found, judged, truth) if options.explain else None
    if options.plot is not None:
        if reference is None and truth is not None and target.dim == 1:
            reference = explain_fit.exact_posterior_draws(target, truth)
        svg = plot_fit(draws, reference=reference, trace=found.trace, title=judged.verdict)
        write_atomic(options.plot, svg)
    if options.out is not None:
        save(found, options.out, judged, force=options.force)
    if options.json:
        held = {} if against is None else {"reference": against.to_dict()}
        fields = _facts(file, found, options) | judged.to_dict() | table.to_dict() | held
        fields |= {} if explained is None else {"explanation": explained}
        print_json(fields)
    else:
        words = "" if explained is None else f"\n{explained}\n"
        held_to = "" if against is None else f"\n{against}\n"
        write(f"{table}\n{held_to}\n{_numbers(found, judged)}\n{words}")
    _said(options)


def calibrate_fits(file: TargetFile, options: FitOptions) -> None:
    """Fit to simulated data, and print whether the true parameters rank uniformly (`--sbc`).

    Errors: `DataError` for a file that cannot simulate, or whose density takes no data.
    """
    import torch

    from kullback.report import plot_calibration
    from kullback.variational import calibrate
    from kullback.variational import fit as fit_density

    simulate = file.simulate
    if simulate is None:
        hint = "def simulate(generator): return parameters, data"
        if file.program == "stan":  # which has no place for it
            hint = "in Python, calibrate(simulate, lambda data: Target.from_stan(path, data))"
        raise DataError(
            f"{file.path}: --sbc needs a function that draws from the model. Try: {hint}"
        )
    fitter = partial(
        fit_density,
        family=options.family,
        direction="forward" if options.direction == "forward" else "reverse",
        evaluation_draws=options.draws,
        **options.time,
    )
    with user_code(file.path), bar(f"calibrating {file.name}") as update:
        try:
            found = calibrate(
                simulate,
                _of_data(file),
                simulations=options.sbc or 0,
                fitter=fitter,
                resampled=options.resample,
                workers=options.workers,
                generator=torch.Generator().manual_seed(options.seed),
                progress=lambda done, total: update(done, total, f"{done:,} of {total:,} fits"),
            )
        except (ArgumentTypeError, ArgumentValueError) as error:
            if str(error).startswith("family"):  # an option
                raise
            raise DataError(f"{file.path}: {error}") from error
    if options.plot is not None:
        write_atomic(options.plot, plot_calibration(found))
    if options.json:
        print_json({"target": file.name, "seed": options.seed} | found.to_dict())
    else:
        write(f"{found}\n")
    _said(options)


def _of_data(file: TargetFile) -> "Callable[[Any], Target]":
    """Return the target of given data: the file's rows, a model's arguments, or `data=`."""
    if file.data is not None:
        return lambda data: _target(replace(file, data=data))
    if file.program:
        return lambda data: _target(replace(file, arguments=data))
    takes = inspect.signature(file.model).parameters.values()
    if not any(one.name == "data" or one.kind is one.VAR_KEYWORD for one in takes):
        function = file.name.partition(":")[2]
        hint = f"def {function}({', '.join([*map(str, takes), 'data'])})"
        raise DataError(f"{file.path}: --sbc needs a {function} that takes data. Try: {hint}")
    density = file.model
    return lambda data: _target(replace(file, model=partial(density, data=data)))


def _facts(file: TargetFile, found: "Fit", options: FitOptions) -> dict[str, Any]:
    times = {"seconds": found.seconds, "compile_seconds": found.compile_seconds}
    return {
        "target": file.name,
        "family": type(found.family).__name__,
        "direction": found.direction,
        "method": found.method,
        "converged": found.converged,
        "reason": found.reason,
        "seed": options.seed,
        "draws": options.draws,
        **(times if file.program else {}),
    }


def fit_both(file: TargetFile, options: FitOptions) -> None:
    """Find the nearest Gaussian and mixture in both directions, exactly, by quadrature."""
    import torch

    from kullback.exact import quadrature
    from kullback.report import plot_directions
    from kullback.variational import find_box, project

    with user_code(file.path), ticking(f"fitting {file.name} in both directions"):
        target = _target(file)
        lower, upper = find_box(target.log_density, target.dim)
        with torch.no_grad():
            p = quadrature.posterior(
                target.log_density, lower=lower, upper=upper, nodes=NODES[target.dim]
            )
        names = ["one Gaussian"]
        counts = [1]
        if options.components > 1:
            names.append(f"{options.components} Gaussians")
            counts.append(options.components)
        found = [
            [
                project(p, "forward", components=count),
                project(p, "reverse", components=count),
            ]
            for count in counts
        ]
    if options.plot is not None:
        write_atomic(options.plot, plot_directions(p, found, names))
    pairs = [(name, one) for name, row in zip(names, found, strict=True) for one in row]
    if options.json:
        print_json(
            {
                "target": file.name,
                "log_evidence": float(p.log_evidence),
                "quadrature_error": p.error,
                "fits": [_exact(name, one) for name, one in pairs],
            }
        )
    else:
        lines = [f"{'q':<14}{'minimises':<12}{'KL(p‖q)':>10}{'KL(q‖p)':>10}   nats, exact"]
        for name, one in pairs:
            what = "KL(p‖q)" if one.direction == "forward" else "KL(q‖p)"
            lines.append(f"{name:<14}{what:<12}{one.forward:>z10.4f}{one.reverse:>z10.4f}")
        write("\n".join(lines) + "\n")
    _said(options)


def _target(file: TargetFile) -> "Target":
    try:
        with _evaluated_by(file):
            return _own(file) if not file.program else _of_program(file)
    except (ArgumentTypeError, ArgumentValueError) as error:  # the file's fault, not an option's
        raise DataError(f"{file.path}: {error}") from error


@contextlib.contextmanager
def _evaluated_by(file: TargetFile, package: str = "") -> Iterator[None]:
    """Say in one line what the program of a model raises; with a package, what went through it."""
    try:
        yield
    except KullbackError:
        raise
    except Exception as error:
        if not file.program or raised_in(error, "kullback") or went_through(error, file.path):
            raise
        if package and not passed(error, package):
            raise
        words = one_line(error)
        raise DataError(
            f"{file.path}: {file.program} refuses the model or its data: {words}"
        ) from error


def _own(file: TargetFile) -> "Target":
    """Build the target of a log density; arguments from a file are tensors that it is given."""
    from kullback.variational import Target

    log_density = file.model
    if file.arguments is not None:
        shape, own = inspect.signature(log_density), file.parameters
        taken = [*own] if isinstance(own, Mapping) else []
        spare = any(one.kind is one.VAR_KEYWORD for one in shape.parameters.values())
        odd = [n for n in file.arguments if n in taken or not (spare or n in shape.parameters)]
        if odd:
            wanted = f"names of {file.name}{shape} that are no parameters"
            raise DataError(message("data", wanted, odd))
        log_density = partial(log_density, **_tensors(file.arguments))
    extra = {} if file.data is None else {"data": file.data, "log_prior": file.log_prior}
    return Target.of(log_density, file.parameters, **extra)


def _of_program(file: TargetFile) -> "Target":
    """Build the target of another program's model, with its data by name or in order."""
    from kullback.variational import Target

    given = {} if file.arguments is None else file.arguments
    if file.program == "stan":
        return Target.from_stan(file.model, given)
    if file.program == "pymc" and not callable(file.model):
        hint = "a function of the data that returns the model"
        got = "data beside a PyMC model, which has its own"
        if file.arguments is not None:
            raise DataError(message(str(file.path), "no data", got, hint))
        return Target.from_pymc(file.model)
    if not isinstance(given, dict):
        given = given if isinstance(given, list | tuple) else (given,)
        given = dict(zip(inspect.signature(file.model).parameters, given, strict=False))
    _check_arguments(file, given)
    if file.program == "pyro":
        return Target.from_pyro(file.model, **_tensors(given))
    arrays = {name: _array(value) for name, value in given.items()}
    if file.program == "numpyro":
        return Target.from_numpyro(file.model, **arrays)
    return Target.from_pymc(file.model(**arrays))


def _check_arguments(file: TargetFile, given: dict[str, Any]) -> None:
    """Refuse data that are not the arguments of a model's function."""
    shape = inspect.signature(file.model)
    try:
        shape.bind(**given)
    except TypeError as error:
        wanted = f"values for {file.name}{shape}"
        got = f"{[*given]}: {error}" if given else "none"
        hint = "--data FILE.json with a value for each name"
        raise DataError(message("data", wanted, got, hint)) from error


def _array(value: Any) -> Any:
    """Return a list of numbers as an array; anything else (names, rows of other lengths) as is."""
    import numpy as np

    if not isinstance(value, list):
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        return value
    return array if array.dtype.kind in "biuf" else value


def _tensors(given: dict[str, Any]) -> dict[str, Any]:
    """Return arrays, and lists of numbers, as tensors, reals in float64; anything else as is."""
    import numpy as np
    import torch

    arrays = {name: _array(value) for name, value in given.items()}
    return {k: torch.as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in arrays.items()}


def _numbers(found: "Fit", judged: Any) -> str:
    """Write the figures behind the verdict, one a line."""
    rows = [
        ("ELBO", str(judged.elbo)),
        ("evidence bound", str(judged.evidence_bound)),
        ("KL(q‖p)", str(judged.kl)),
        ("Pareto k-hat", f"{judged.k_hat:.2f}"),
        ("effective draws", f"{judged.ess_fraction:.1%} of {len(found.draws):,}"),
        ("sd of log weights", f"{judged.sd_log_weights:.3g} nats"),
        ("fit", f"{type(found.family).__name__}, {found.method}: {found.reason}"),
    ]
    if found.compile_seconds:
        rows.append(
            ("time", f"{found.seconds:.1f} s, and {found.compile_seconds:.1f} s to compile")
        )
    lines = [f"{name:<19}{value}" for name, value in rows]
    lines += [f"- {reason}" for reason in judged.reasons]
    if judged.resampling:
        lines.append(f"- no importance resampling: {judged.resampling}")
    return "\n".join(lines)


def _exact(name: str, one: "Projection") -> dict[str, Any]:
    return {
        "q": name,
        "direction": one.direction,
        "kl_p_q": one.forward,
        "kl_q_p": one.reverse,
        "elbo": one.steps[-1].elbo,
        "steps": len(one.steps),
    }


def _said(options: FitOptions) -> None:
    for name, path in (("plot", options.plot), ("out", options.out)):
        if path is not None:
            say(f"{name}: {path}")
