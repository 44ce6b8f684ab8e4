"""What follows from the draws of a fit: new data, log likelihoods, and the tree for ArviZ.

Which to use: `predict` (`fit.predict`) for the posterior predictive, by a function of the user's or
the model's own simulation; `to_arviz` for everything that ArviZ does: `loo`, predictive checks,
plots.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kullback.core import ArgumentTypeError, import_extra, message, require

from .target.density import Target
from .target.simulation import Simulation, over_draws

__all__ = ["Drawn", "Supplied", "predict", "to_arviz"]

Values = Mapping[str, Tensor]
Supplied = Callable[..., Any] | Mapping[str, Any] | bool | None
NOTHING = Simulation(observed={})
UNNAMED = "obs"  # of a function's one result, where no observed name says what it is


class Drawn(Protocol):
    """What a fit must have: its target and draws of q, with both log densities."""

    @property
    def target(self) -> Target:
        """The target p."""

    @property
    def draws(self) -> Tensor:
        """Draws of q on the unconstrained space, `[n, d]`."""

    @property
    def log_p(self) -> Tensor:
        """Log p at them."""

    @property
    def log_q(self) -> Tensor:
        """Log q at them."""


def predict(
    fit: Drawn,
    function: Callable[..., Any] | None = None,
    *,
    draws: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Evaluate a function at every draw: the posterior predictive, or any other quantity.

    Args:
        fit: what `fit` or `load` returned.
        function: of ONE draw, with one keyword a parameter (or z), to a tensor or a mapping of
            tensors; it may draw at random with PyTorch's own functions, or call other code on one
            draw at a time. By default the model simulates its observations, where the target is a
            model of another program (of Stan: generated quantities such as `y_rep`).
        draws: `{name: [n, *shape]}`, such as `resample` returns; by default those of q.
        generator: the source of randomness; seed 0 by default.

    Returns:
        `{name: [n, …]}`; a function's bare tensor is called "obs".

    Raises:
        ArgumentValueError: without a function, where the target cannot simulate.
        ArgumentTypeError: for a function of other names than the parameters'.

    Example:
        >>> from kullback.variational import fit
        >>> found = fit(lambda mu: -0.5 * (mu - 3.0) ** 2, {"mu": ()})
        >>> new = predict(found, lambda mu: mu + torch.randn(5, dtype=mu.dtype))
        >>> new["obs"].shape, round(float(new["obs"].var()))
        (torch.Size([4000, 5]), 2)
    """
    values, seed = _values(fit, draws), _seed(generator)
    if function is None:
        own = (fit.target.simulation or NOTHING).predictive
        hint = "a function of one draw: predict(lambda mu, sigma: torch.normal(mu, sigma))"
        require(own is not None, "function", "one, for a target that cannot simulate", "none", hint)
        return _tensors(own(values, seed)) if own is not None else {}
    require(callable(function), "function", "a function of one draw", type(function).__name__)
    return _tensors(_called(function, values, seed))


def to_arviz(
    fit: Drawn,
    draws: Mapping[str, Tensor] | None = None,
    *,
    log_likelihood: Supplied = None,
    posterior_predictive: Supplied = None,
    observed_data: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> Any:
    """Return an ArviZ data tree: one chain of the fit's draws, and what the model says of its data.

    Groups: `posterior`, `sample_stats` (log p and log q, of q's own draws), and where there is
    something to put in `log_likelihood` (then `arviz_stats.loo` runs), `posterior_predictive`,
    `observed_data`. A model of Stan, NumPyro, Pyro or PyMC has them by itself: of Stan from
    generated quantities called `log_lik…`, and `…_rep`, `…_pred`, `…_hat`, `…_tilde`, `…_new`,
    `…_sim`; others of its generated quantities join the posterior. A target with `data=` has the
    log likelihood of its rows.

    Args:
        fit: what `fit` or `load` returned.
        draws: `{name: [n, *shape]}`, such as `resample` returns; by default those of q. Log p and
            log q at q's draws go to the group `sample_stats`, so that weights can be computed.
        log_likelihood: a function of one draw (as in `predict`) to log p of each observation; or
            arrays `{name: [n, *rows]}`; False leaves the group out.
        posterior_predictive: a function of one draw to new data; or arrays; or False.
        observed_data: what was observed, by name.
        dims: names of the axes of a value, `{"theta": ["school"]}`; a model's own by default.
        coords: labels along an axis, `{"school": [...]}`.
        generator: the source of randomness; seed 0 by default.

    Returns:
        What `arviz_base.from_dict` makes: arrays `[1, n, *shape]`, by name. ArviZ before 1.0 takes
        `arviz.InferenceData.from_datatree(tree)`.

    Raises:
        MissingExtraError: where arviz-base is not installed.
        ArgumentValueError: for arrays of another number of draws, and for dims and coords that fit
            no value.
        ArgumentTypeError: for a function of other names than the parameters'.

    Example:
        >>> from kullback.variational import fit
        >>> tree = to_arviz(fit(lambda z: -0.5 * (z * z).sum(), 2))
        >>> tree["posterior"]["z"].shape
        (1, 4000, 2)
    """
    arviz: Any = import_extra("arviz_base", "arviz")
    values, seed, model = _values(fit, draws), _seed(generator), fit.target.simulation or NOTHING
    observed = dict(model.observed if observed_data is None else observed_data)
    extra = {} if model.quantities is None else model.quantities(values, seed)
    named = [*observed] if len(observed) == 1 else [UNNAMED]

    def group(name: str, given: Supplied, own: Callable[[], Any] | None) -> dict[str, Any]:
        if given is None or given is True:
            return {} if own is None else dict(own())
        if callable(given):
            return _called(given, values, seed, named[0])
        return _checked(name, given, len(next(iter(values.values())))) if given else {}

    simulate, density = model.predictive, _own_log_likelihood(fit.target, model, named[0])
    predictive = None if simulate is None else lambda: simulate(values, seed)
    terms = None if density is None else lambda: density(values)
    groups: dict[str, Mapping[str, Any]] = {"posterior": {**values, **extra}}
    if draws is None:
        groups["sample_stats"] = {"lp": fit.log_p, "log_q": fit.log_q}
    groups["log_likelihood"] = group("log_likelihood", log_likelihood, terms)
    groups["posterior_predictive"] = group("posterior_predictive", posterior_predictive, predictive)
    chains = {
        name: {key: _array(value)[None] for key, value in group.items()}
        for name, group in groups.items()
        if group
    }
    if observed:
        chains["observed_data"] = {name: _array(value) for name, value in observed.items()}
    _check_axes(chains, dims or {}, coords or {})
    axes = _axes(chains, {**model.dims, **(dims or {})})
    return arviz.from_dict(chains, dims=axes, coords={**model.coords, **(coords or {})})


def _values(fit: Drawn, draws: Values | None) -> dict[str, Tensor]:
    with torch.no_grad():
        values = fit.target.constrain(fit.draws) if draws is None else draws
    return {name: torch.as_tensor(value).detach() for name, value in values.items()}


def _seed(generator: torch.Generator | None) -> int:
    return 0 if generator is None else int(torch.randint(2**31, (), generator=generator))


def _called(
    function: Callable[..., Any], values: Values, seed: int, name: str = UNNAMED
) -> dict[str, Any]:
    """Evaluate a user's function of one draw at all draws."""
    _check_names(function, values)
    found = over_draws(lambda draw: function(**draw), values, seed)
    return dict(found) if isinstance(found, Mapping) else {name: found}


def _check_names(function: Callable[..., Any], values: Values) -> None:
    """Refuse a function that cannot be called with one keyword a value."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a built-in function has none to look at
        return
    try:
        signature.bind(**values)
    except TypeError as error:
        wanted = f"a function of ({', '.join(f'{name}=' for name in values)})"
        hint = "take what is not needed by **rest"
        words = message("function", wanted, f"one of {signature}", hint)
        raise ArgumentTypeError(words) from error


def _own_log_likelihood(
    target: Target, model: Simulation, name: str
) -> Callable[[Values], Mapping[str, Any]] | None:
    """Return the target's log likelihood of each observation: another program's, or of its rows."""
    rows = target.rows
    if rows is None:
        return model.log_likelihood

    def terms(values: Values) -> dict[str, Tensor]:
        with torch.no_grad():
            parts = [rows.terms(dict(values), batch) for batch in rows.batches()]
        return {name: torch.cat(parts, 1)}

    return terms


def _checked(name: str, given: Any, count: int) -> dict[str, Any]:
    good = isinstance(given, Mapping)
    require(good, name, "a function of one draw, or arrays by name", type(given).__name__)
    for key, value in given.items():
        sides = list(np.shape(value))
        require(sides[:1] == [count], f"{name}: {key}", f"an array [{count}, …]", sides)
    return dict(given)


def _array(value: Any) -> Any:
    return value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _tensors(found: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in found.items()}


def _check_axes(
    groups: Mapping[str, Mapping[str, Any]],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Any],
) -> None:
    """Refuse names of axes that fit no value, and labels of another number."""
    shapes: dict[str, tuple[int, ...]] = {}
    for group, values in groups.items():
        begin = 0 if group == "observed_data" else 2  # chain and draw
        shapes |= {name: np.shape(value)[begin:] for name, value in values.items()}
    for name, axes in dims.items():
        require(name in shapes, "dims", f"names among {[*shapes]}", repr(name))
        count, given = len(shapes[name]), [*axes]
        listed = not isinstance(axes, str) and len(given) == count
        hint = f'{{"{name}": {[f"axis {i + 1}" for i in range(count)]}}}'
        require(listed, f"dims[{name!r}]", f"{count} names of axes, in a list", repr(axes), hint)
        for side, axis in zip(shapes[name], given, strict=True):
            labels = coords.get(axis, range(side))
            right = len(labels) == side
            require(right, f"coords[{axis!r}]", f"{side} labels, as {name!r} has", len(labels))


def _axes(
    groups: Mapping[str, Mapping[str, Any]], dims: Mapping[str, Sequence[str | None]]
) -> dict[str, list[str]]:
    """Name all axes of the values that dims speak of; a name that a value has is no axis."""
    taken = {name for group in groups.values() for name in group}
    axes = {}
    for name, given in dims.items():
        names = [f"{name}_dim_{i}" if d is None or d in taken else d for i, d in enumerate(given)]
        if name in taken:
            axes[name] = names
    return axes
