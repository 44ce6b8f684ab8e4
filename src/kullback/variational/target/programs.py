"""Models of other programs: log p, its gradient and its named values, by the program's own code.

Which to use: `numpyro_model` for NumPyro and `pymc_model` for PyMC give a `Model`, of which
`Target.from_numpyro` and `Target.from_pymc` make the target; `pyro_model` for Pyro gives a
`PyroModel`, whose log density is PyTorch's and is vectorised as a user's own. Constraints and their
Jacobians are the other program's, so names and shapes are those that its own samplers return.
"""

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.distributions import biject_to

from kullback.core import (
    ArgumentTypeError,
    import_extra,
    message,
    require,
    require_type,
    warn_caller,
)
from kullback.variational import limits

from . import pytensor_graphs
from .angles import Turn, in_one_turn, is_angle
from .parameters import Layout
from .simulation import (
    Simulation,
    is_computed,
    numpyro_simulation,
    pymc_simulation,
    pyro_simulation,
)

__all__ = ["Model", "PyroModel", "numpyro_model", "pymc_model", "pyro_model"]

Arrays = Callable[[Any], Any]  # of many points `[n, dim]`: arrays with a leading `[n]`


@dataclass(slots=True)
class Compiling:
    """How long other programs' compilers took so far, in seconds."""

    seconds: float = 0.0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of a block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin


@dataclass(frozen=True, slots=True)
class Model:
    """A model of another program on unconstrained z: log p and gradient, values, names.

    score: z `[n, dim]` to log p `[n]`, with Jacobians, and its gradient `[n, dim]`. constrain: z to
    values `[n, *shape]` by name. names: of the entries of z. compiling: the time it took.
    reason: why the last point with a NaN was refused. unconstrain: one value of every parameter to
    z. simulation: what it says of its data. data: numbers by name, to name one that is missing;
    first_index: of an array in that program; missing: what its users do about a missing number.
    """

    score: Callable[[Tensor], tuple[Any, Any]]
    constrain: Callable[[Tensor], Mapping[str, Any]]
    names: tuple[str, ...]
    compiling: Compiling = field(default_factory=Compiling)
    reason: Callable[[], str] = lambda: "log p is NaN"
    unconstrain: Callable[[Mapping[str, Any]], Any] | None = None
    simulation: Simulation | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    first_index: int = 0
    missing: str = "mask them in the model"


@dataclass(frozen=True, slots=True)
class PyroModel:
    """A Pyro model at ONE unconstrained point: log p and values, of one keyword a parameter.

    log_density: reals by name to log p, with Jacobians. values: reals by name to values by name.
    reals: shapes of the reals by name. names: of the entries of z. unconstrain, simulation and
    data: as in `Model`.
    """

    log_density: Callable[..., Tensor]
    values: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    reals: dict[str, tuple[int, ...]]
    names: tuple[str, ...]
    unconstrain: Callable[[Mapping[str, Any]], Any]
    simulation: Simulation
    data: Mapping[str, Any]


def numpyro_model(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Model:
    """Read a NumPyro model, called with its data: XLA compiles it in float64, for three batches.

    64-bit JAX is switched on inside the calls only. Errors: `MissingExtraError` without NumPyro;
    `ArgumentTypeError` for what cannot be called with the data; `ArgumentValueError` for a model
    without parameters, with discrete ones, or that draws a part of its rows.
    """
    _check_call(model, args, kwargs)
    jax = import_extra("jax", "numpyro")
    numpyro = import_extra("numpyro", "numpyro")
    ravel = import_extra("jax.flatten_util", "numpyro").ravel_pytree
    handlers, util = (import_extra(f"numpyro.{m}", "numpyro") for m in ("handlers", "infer.util"))
    with jax.enable_x64(True), numpyro.validation_enabled(False):  # noqa: FBT003
        seeded = handlers.substitute(handlers.seed(model, 0), substitute_fn=util.init_to_uniform)
        with _traced_by_jax(jax):
            sites = handlers.trace(seeded).get_trace(*args, **kwargs)
        plates = {name: s["args"] for name, s in sites.items() if s["type"] == "plate"}
        parts = [name for name, (size, seen) in plates.items() if _is_part(size, seen)]
        require(not parts, "model", "one that sees all its rows", f"subsampled plates {parts}")
        drawn = _latent(sites, lambda site: bool(site["fn"].support.is_discrete))
        inits = {name: sites[name]["value"] for name in drawn}
        model = _of_whole_rows(model, _imputed(sites))
        free = dict(util.unconstrain_fn(model, args, kwargs, inits))
        unravel = ravel(free)[1]

        def log_p(z: Any) -> Any:
            return -util.potential_energy(model, args, kwargs, unravel(z))

        def values(z: Any) -> Any:
            point = unravel(z)
            return util.constrain_fn(model, args, kwargs, point, return_deterministic=True)

        score = jax.jit(jax.vmap(jax.value_and_grad(log_p)))
        constrain = jax.jit(jax.vmap(values))

    def in_float64(compiled: Arrays) -> Arrays:
        def called(z: Any) -> Any:
            with jax.enable_x64(True), _traced_by_jax(jax):  # noqa: FBT003
                return jax.tree.map(np.array, compiled(z))

        return _padded(called, piece, compiling)

    compiling = Compiling()
    piece = _piece(np.size(site["value"]) for site in sites.values())
    shapes = {name: (np.shape(free[name]), np.shape(inits[name])) for name in sorted(free)}
    scored, constrained = in_float64(score), in_float64(constrain)

    def unconstrain(values: Mapping[str, Any]) -> Any:
        with jax.enable_x64(True), numpyro.validation_enabled(False):  # noqa: FBT003
            asarray = jax.numpy.asarray  # NumPy's arrays cannot be indexed in a `scan`
            given = {name: asarray(values[name], dtype=np.float64) for name in drawn}
            point = util.unconstrain_fn(model, args, kwargs, given)
            return np.array(ravel({name: point[name] for name in drawn})[0])

    simulation = numpyro_simulation(lambda: model(*args, **kwargs), sites)
    return Model(
        lambda z: _in_pieces(scored, z, piece),
        lambda z: _in_pieces(constrained, z, piece),
        _names(shapes),
        compiling=compiling,
        unconstrain=_of_all(drawn, unconstrain),
        simulation=simulation,
        data=_given(model, args, kwargs) | dict(simulation.observed),
    )


def _onto(law: Any) -> Any:
    """Return Pyro's transform of reals onto the support of a distribution; None if it has none."""
    try:
        return biject_to(law.support)
    except NotImplementedError:
        return None


@contextlib.contextmanager
def _traced_by_jax(jax: Any) -> Iterator[None]:
    """Say what to do where JAX cannot trace a model: NumPy or Python on a value that it traces."""
    try:
        yield
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        got = str(error).strip().splitlines()[0]
        hint = "y = jnp.asarray(y) in the model for data that it indexes, and jnp.where for an if"
        raise ArgumentTypeError(message("model", "one that JAX can trace", got, hint)) from error


def _of_whole_rows(model: Any, imputed: Sequence[str]) -> Any:
    """Give the entries of `…_unobserved` that `obs_mask` takes from the data their own prior.

    NumPyro masks it, so that log p is flat along entries that nothing reads: improper. The prior
    of what is never read integrates to 1, and leaves all other marginals as they are.
    """
    messenger = import_extra("numpyro.primitives", "numpyro").Messenger

    class Whole(messenger):  # type: ignore[misc, valid-type]
        """Take the mask off."""

        def process_message(self, msg: dict[str, Any]) -> None:
            if msg.get("name") in imputed and hasattr(msg["fn"], "base_dist"):
                msg["fn"] = msg["fn"].base_dist

    return Whole(model) if imputed else model


def _imputed(sites: Mapping[str, Any]) -> list[str]:
    """Name what `obs_mask` makes of missing rows: y_unobserved, beside y_observed and y."""
    parts = [(name, name.removesuffix("_unobserved")) for name in sites]
    return [name for name, y in parts if name != y and {y, f"{y}_observed"} <= set(sites)]


def pyro_model(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> PyroModel:
    """Read a Pyro model, called with its data as float64.

    PyTorch's default dtype and validation are changed inside the calls only. Bounds may depend on
    other parameters: the transform is that of the support at each point. Errors: as
    `numpyro_model`.
    """
    _check_call(model, args, kwargs)
    pyro = import_extra("pyro", "pyro")
    messenger = import_extra("pyro.poutine.messenger", "pyro").Messenger
    start = import_extra("pyro.infer.autoguide.initialization", "pyro")
    args, kwargs = (_in_double(given) for given in (tuple(args), dict(kwargs)))

    class At(messenger):  # type: ignore[misc, valid-type]
        """Put the values of given reals at their sites, and sum the Jacobians."""

        def __init__(self, reals: dict[str, Tensor]) -> None:
            super().__init__()
            self.reals, self.log_jacobian = reals, torch.zeros((), dtype=torch.float64)

        def _pyro_sample(self, site: dict[str, Any]) -> None:
            if site["name"] in imputed:
                site["mask"] = None  # see `_of_whole_rows`
            if site["name"] in self.reals:
                transform, x = onto(site), self.reals[site["name"]]
                value = transform(x)
                jacobian = transform.log_abs_det_jacobian(x, value).sum()
                self.log_jacobian = self.log_jacobian + jacobian
                site.update(value=value, done=True)

    def onto(site: dict[str, Any]) -> Any:
        law = site["fn"]
        return Turn.around(law) if site["name"] in angles else biject_to(law.support)

    def traced(context: Any) -> Any:
        with _torch_in_double(), pyro.validation_enabled(False), context:  # noqa: FBT003
            return pyro.poutine.trace(model).get_trace(*args, **kwargs)

    def log_density(**reals: Tensor) -> Tensor:
        at = At(reals)
        trace = traced(at)
        with _torch_in_double(), pyro.validation_enabled(False):  # noqa: FBT003
            return cast("Tensor", trace.log_prob_sum() + at.log_jacobian)

    def values(reals: dict[str, Tensor]) -> dict[str, Tensor]:
        nodes = traced(At(reals)).nodes
        kept = [n for n, s in nodes.items() if n in reals or is_computed(s)]
        return {name: nodes[name]["value"] for name in kept}

    def unconstrain(values: Mapping[str, Any]) -> Tensor:
        given = {name: torch.as_tensor(values[name], dtype=torch.float64) for name in drawn}
        nodes = traced(pyro.poutine.condition(data=given)).nodes
        parts = [onto(nodes[n]).inv(given[n]).reshape(-1) for n in drawn]
        return torch.cat(parts)

    def begin(site: dict[str, Any]) -> Any:
        law = site["fn"]
        transform = None if law.support.is_discrete else _onto(law)
        if transform is None:  # refused below, by name
            return law()
        return transform(4 * torch.rand(transform.inverse_shape(law.shape())) - 2)

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        nodes = traced(start.InitMessenger(begin)).nodes
    plates = {n: s for n, s in nodes.items() if type(s.get("fn")).__name__ == "_Subsample"}
    parts = [n for n, s in plates.items() if _is_part(s["fn"].size, s["fn"].subsample_size)]
    frames = [f for s in nodes.values() for f in s.get("cond_indep_stack") or ()]
    given = {f.name for f in frames if f.full_size is not None and f.size < f.full_size}
    parts += sorted(given - set(parts))  # of `subsample=`
    require(not parts, "model", "one that sees all its rows", f"subsampled plates {parts}")
    sites = {name: site for name, site in nodes.items() if name not in plates}
    imputed = _imputed(sites)
    drawn = _latent(sites, lambda site: bool(site["fn"].support.is_discrete))
    odd = [name for name in drawn if _onto(nodes[name]["fn"]) is None]
    sphere = any("sphere" in str(getattr(nodes[n]["fn"], "support", "")).lower() for n in odd)
    hint = "its density by `pyro.factor`, and an ImproperUniform parameter"
    if sphere:
        hint = "poutine.reparam(model, {name: ProjectedNormalReparam()}), of pyro.infer.reparam"
    require(not odd, "model", "parameters with a support that reals map onto", odd, hint)
    with pyro.validation_enabled(False):  # noqa: FBT003
        angles = {name for name in drawn if is_angle(nodes[name]["fn"], nodes[name]["value"])}
    shapes = {name: tuple(nodes[name]["value"].shape) for name in drawn}
    reals = {name: tuple(onto(nodes[name]).inverse_shape(shape)) for name, shape in shapes.items()}
    names = _names({name: (reals[name], shapes[name]) for name in drawn})

    def in_double() -> Any:
        with _torch_in_double(), pyro.validation_enabled(False):  # noqa: FBT003
            return model(*args, **kwargs)

    inverse, simulation = _of_all(drawn, unconstrain), pyro_simulation(in_double, sites)
    data = _given(model, args, kwargs) | dict(simulation.observed)
    return PyroModel(log_density, values, reals, names, inverse, simulation, data)


def pymc_model(model: Any) -> Model:
    """Read a PyMC model: its graph for one point, vectorised over points and compiled.

    Parameters outside their bounds give −inf at that point alone: PyMC's checks become switches
    before the graph is vectorised, since a check of many points refuses all of them. Errors:
    `MissingExtraError` without PyMC; `ArgumentTypeError` for another object; `ArgumentValueError`
    for a model without parameters, with discrete ones, or with mini-batches.
    """
    pymc = import_extra("pymc", "pymc")
    pytensor = import_extra("pytensor", "pymc")
    graphs = import_extra("pymc.pytensorf", "pymc")
    require_type(model, pymc.Model, "model", "the object of `with pymc.Model() as model:`")
    free = [rv.name for rv in model.free_RVs]
    discrete = [model.values_to_rvs[value].name for value in model.discrete_value_vars]
    _check_parameters(free, discrete, bool(model.observed_RVs or model.potentials))
    shown = [*model.free_RVs, *model.deterministics]
    with in_one_turn(model):
        start = model.initial_point()
        parts = [model.logp(), *model.replace_rvs_by_values(shown)]
    flat_size = sum(np.size(part) for part in start.values())
    outputs, flat = graphs.join_nonshared_inputs(start, parts, model.continuous_value_vars)
    log_p = pytensor_graphs.switched(outputs[0])
    random = graphs.find_rng_nodes([log_p])
    require(not random, "model", "one that sees all its rows", "one that draws mini-batches")

    def compiled(each: list[Any]) -> Arrays:
        points, arrays = pytensor_graphs.batched(each, flat, flat_size)
        function: Arrays = graphs.compile([points], arrays, mode=pytensor_graphs.mode())
        return function

    compiling = Compiling()
    with compiling.timed():
        score = compiled([log_p, pytensor.grad(log_p, flat)])
        constrain = compiled(outputs[1:])

    observed = (model.rvs_to_values[rv].shape.eval() for rv in model.observed_RVs)
    piece = _piece([sum(math.prod(shape) for shape in observed) + flat_size])

    def many(function: Arrays, z: Tensor) -> Any:
        return _in_pieces(lambda part: tuple(function(part.astype(flat.dtype))), z, piece)

    def named(z: Tensor) -> dict[str, Any]:
        arrays = many(constrain, z)
        return {rv.name: array for rv, array in zip(shown, arrays, strict=True)}

    with compiling.timed():
        first = named(torch.zeros(1, flat_size))

    def unconstrain(values: Mapping[str, Any]) -> Any:
        making = import_extra("pymc.initial_point", "pymc").make_initial_point_fn
        given = {rv: np.asarray(values[rv.name], dtype=np.float64) for rv in model.free_RVs}
        with in_one_turn(model):
            point = making(model=model, overrides=given, jitter_rvs=set())(0)
        return np.concatenate([np.ravel(point[v.name]) for v in model.continuous_value_vars])

    simulation = pymc_simulation(model)
    shapes = {}
    for value in model.continuous_value_vars:
        name = model.values_to_rvs[value].name
        shapes[name] = (np.shape(start[value.name]), first[name].shape[1:])
    return Model(
        lambda z: many(score, z),
        named,
        _names(shapes),
        compiling=compiling,
        unconstrain=_of_all(free, unconstrain),
        simulation=simulation,
        data=pytensor_graphs.constants(log_p) | _shared(model) | dict(simulation.observed),
    )


def _shared(model: Any) -> dict[str, Any]:
    """Return what `pymc.Data` holds, by name."""
    return {one.name: one.get_value() for one in model.data_vars if hasattr(one, "get_value")}


def _given(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays of floating point that a model is called with, by the names it has."""
    bound = inspect.signature(model).bind(*args, **kwargs).arguments
    return dict(part for name, value in bound.items() for part in _floats(name, value))


def _floats(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Find arrays of floating point in tuples, lists and dictionaries."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _floats(f"{name}[{key!r}]", each)
    elif isinstance(value, tuple | list) and not all(isinstance(each, float) for each in value):
        for i, each in enumerate(value):
            yield from _floats(f"{name}[{i}]", each)
    elif isinstance(value, Tensor):
        yield name, value.detach().cpu().numpy()
    elif isinstance(value, float | tuple | list) or hasattr(value, "__array__"):
        yield name, np.asarray(value)


def _of_all(names: Sequence[str], unconstrain: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Let values by name be put into z, once there is one of every parameter."""

    def checked(values: Mapping[str, Any]) -> Any:
        missing = [name for name in names if name not in values]
        require(not missing, "values", f"one of each of {[*names]}", f"none of {missing}")
        return unconstrain(values)

    return checked


@contextlib.contextmanager
def _torch_in_double() -> Iterator[None]:
    """Let tensors that a model makes be float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _in_double(given: Any) -> Any:
    """Return tensors of floating point as float64, in tuples, lists and dictionaries too."""
    if isinstance(given, Tensor):
        return given.double() if given.is_floating_point() else given
    if isinstance(given, dict):
        return {key: _in_double(value) for key, value in given.items()}
    return type(given)(map(_in_double, given)) if type(given) in (list, tuple) else given


def _check_call(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse what is no function of these arguments, before the other program does."""
    hint = "the function itself, with its data after it"
    require(callable(model), "model", "a function", type(model).__name__, hint)
    try:
        signature = inspect.signature(model)
    except (TypeError, ValueError):  # a built-in function has none to look at
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        got = f"{getattr(model, '__name__', 'model')}{signature}: {error}"
        hint = "pass the data after the model, as you would to the sampler"
        raise ArgumentTypeError(message("model", "its own arguments", got, hint)) from error


def _latent(sites: Mapping[str, Any], is_discrete: Callable[[Any], bool]) -> list[str]:
    """Name the parameters among the sites of a trace; refuse a model that z cannot stand for."""
    samples = {name: site for name, site in sites.items() if site["type"] == "sample"}
    latent = [name for name, site in samples.items() if not site["is_observed"]]
    discrete = [name for name in latent if is_discrete(samples[name])]
    _check_parameters(latent, discrete, len(latent) < len(samples))
    fixed = [name for name, site in sites.items() if site["type"] == "param"]
    if fixed:
        words = f"model: {fixed} of `param` keep their first values: only what is sampled is fitted"
        warn_caller(f"{words}. Try: a prior, with `sample`", UserWarning)
    return latent


def _check_parameters(free: list[str], discrete: list[str], observed: bool) -> None:  # noqa: FBT001
    require(bool(free), "model", "one with parameters to fit (sample sites)", "none")
    hint = "sum over it in the model (a mixture distribution)"
    require(not discrete, "model", "continuous parameters", f"discrete {discrete}", hint)
    if not observed:
        words = "model: nothing is observed: the target is the prior. Try: pass the data"
        warn_caller(words, UserWarning)


def _is_part(size: int, subsample: int | None) -> bool:
    return subsample is not None and subsample < size


def _names(shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> tuple[str, ...]:
    """Name the entries of z from the shapes of reals and of values: braces where they differ."""
    names: list[str] = []
    for name, (reals, value) in shapes.items():
        if math.prod(reals) == 0:  # an array without entries
            continue
        entries = Layout.of({name: reals}).names
        same = reals == value
        names += entries if same else [n.replace("[", "{").replace("]", "}") for n in entries]
    return tuple(names)


def _piece(sizes: Iterable[int]) -> int:
    """How many points are evaluated together: what is kept for the gradient stays in the cache."""
    most = limits.CACHED_NUMBERS // max(1, sum(sizes))
    room = min(limits.MAX_PIECE, max(limits.MIN_PIECE, most))
    return 1 << (room.bit_length() - 1)


def _in_pieces(function: Arrays, z: Tensor, piece: int) -> Any:
    """Evaluate many points, `piece` at a time."""
    results = [function(part) for part in np.split(z.numpy(), range(piece, len(z), piece))]
    return _each(lambda *arrays: np.concatenate(arrays), *results)


def _padded(function: Arrays, most: int, compiling: Compiling) -> Arrays:
    """Let a function see few numbers of points, 64, 512, … and `most`: each is compiled for."""
    known: set[int] = set()

    def called(part: Any) -> Any:
        size = limits.FEWEST_COMPILED
        while size < len(part):
            size = min(most, size * limits.COMPILED_STEP)
        asked = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        with contextlib.nullcontext() if size in known else compiling.timed():
            found = function(asked)
        known.add(size)
        return _each(lambda array: array[: len(part)], found)

    return called


def _each(function: Callable[..., Any], *results: Any) -> Any:
    """Apply a function to the arrays of results, all tuples or all dictionaries."""
    first = results[0]
    if isinstance(first, Mapping):
        return {key: function(*(result[key] for result in results)) for key in first}
    return tuple(function(*arrays) for arrays in zip(*results, strict=True))
