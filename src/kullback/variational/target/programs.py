"""Models of other programs: log p, its gradient and its named values, by the program's own code.

Which to use: `numpyro_model` for NumPyro. Each gives a `Model`, of which `Target.from_numpyro`
makes the target. Constraints and their Jacobians are the other program's, so names and shapes are
those that its own samplers return.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from kullback.core import (
    ArgumentTypeError,
    import_extra,
    message,
    require,
    warn_caller,
)
from kullback.variational import limits

from .parameters import Layout

__all__ = ["Model", "numpyro_model"]

Arrays = Callable[[Any], Any]  # of many points `[n, dim]`: arrays with a leading `[n]`


@dataclass(frozen=True, slots=True)
class Model:
    """A model of another program on unconstrained z: log p and gradient, values, names.

    score: z `[n, dim]` to log p `[n]`, with Jacobians, and its gradient `[n, dim]`. constrain: z to
    values `[n, *shape]` by name. names: of the entries of z.
    """

    score: Callable[[Tensor], tuple[Any, Any]]
    constrain: Callable[[Tensor], Mapping[str, Any]]
    names: tuple[str, ...]


def numpyro_model(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Model:
    """Read a NumPyro model, called with its data: XLA compiles it in float64, for three batches.

    64-bit JAX is switched on inside the calls only. Errors: `MissingExtraError` without NumPyro;
    `ArgumentTypeError` for what cannot be called with the data; `ArgumentValueError` for a model
    without parameters, with discrete ones, or that draws a part of its rows.
    """
    jax = import_extra("jax", "numpyro")
    ravel = import_extra("jax.flatten_util", "numpyro").ravel_pytree
    handlers, util = (import_extra(f"numpyro.{m}", "numpyro") for m in ("handlers", "infer.util"))
    _check_call(model, args, kwargs)
    with jax.enable_x64(True):  # noqa: FBT003
        seeded = handlers.substitute(handlers.seed(model, 0), substitute_fn=util.init_to_uniform)
        sites = handlers.trace(seeded).get_trace(*args, **kwargs)
        parts = [n for n, s in sites.items() if s["type"] == "plate" and _is_part(*s["args"])]
        require(not parts, "model", "one that sees all its rows", f"subsampled plates {parts}")
        drawn = _latent(sites, lambda site: bool(site["fn"].support.is_discrete))
        inits = {name: sites[name]["value"] for name in drawn}
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
            with jax.enable_x64(True):  # noqa: FBT003
                return jax.tree.map(np.array, compiled(z))

        return called

    piece = _piece(site["value"] for site in sites.values())
    shapes = {name: (np.shape(free[name]), np.shape(inits[name])) for name in sorted(free)}
    return Model(
        lambda z: _in_shapes(in_float64(score), z, piece),
        lambda z: _in_shapes(in_float64(constrain), z, piece),
        _names(shapes),
    )


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
    require(bool(latent), "model", "one with parameters (sample sites)", f"sites {[*sites]}")
    discrete = [name for name in latent if is_discrete(samples[name])]
    hint = "sum over it in the model (a mixture distribution)"
    require(not discrete, "model", "continuous parameters", f"discrete {discrete}", hint)
    if len(latent) == len(samples):
        words = "model: nothing is observed: the target is the prior. Try: pass the data"
        warn_caller(words, UserWarning)
    return latent


def _is_part(size: int, subsample: int | None) -> bool:
    return subsample is not None and subsample < size


def _names(shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> tuple[str, ...]:
    """Name the entries of z from the shapes of reals and of values: braces where they differ."""
    names: list[str] = []
    for name, (reals, value) in shapes.items():
        entries = Layout.of({name: reals}).names
        same = reals == value
        names += entries if same else [n.replace("[", "{").replace("]", "}") for n in entries]
    return tuple(names)


def _piece(values: Iterable[Any]) -> int:
    """How many points are evaluated together: what is kept for the gradient stays in the cache."""
    kept = sum(int(np.size(value)) for value in values)
    most = limits.CACHED_NUMBERS // max(1, kept)
    room = min(limits.MAX_PIECE, max(limits.MIN_PIECE, most))
    return 1 << (room.bit_length() - 1)


def _in_shapes(function: Arrays, z: Tensor, piece: int) -> Any:
    """Evaluate many points, `piece` at a time, padded to sizes 64, 512, …: few to compile for."""
    parts = []
    for part in np.split(z.numpy(), range(piece, len(z), piece)):
        steps = math.ceil(
            math.log(max(1.0, len(part) / limits.FEWEST_COMPILED), limits.COMPILED_STEP)
        )
        size = min(piece, limits.FEWEST_COMPILED * limits.COMPILED_STEP**steps)
        padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        parts.append(function(padded))
    return _each(lambda *arrays: np.concatenate(arrays)[: len(z)], *parts)  # the last is padded


def _each(function: Callable[..., Any], *results: Any) -> Any:
    """Apply a function to the arrays of results, all tuples or all dictionaries."""
    first = results[0]
    if isinstance(first, Mapping):
        return {key: function(*(result[key] for result in results)) for key in first}
    return tuple(function(*arrays) for arrays in zip(*results, strict=True))
