"""What a model says of its data at draws of its parameters: log likelihoods and new data.

Which to use: `Simulation`, the record that a target of another program has, made by
`numpyro_simulation`, `pyro_simulation` and `pymc_simulation`; `over_draws` for a user's function of
one draw. `kullback.variational.predictions` puts them before a user.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback.core import import_extra
from kullback.variational import limits

__all__ = [
    "Simulation",
    "is_computed",
    "numpyro_simulation",
    "over_draws",
    "pymc_simulation",
    "pyro_simulation",
]

Values = Mapping[str, Tensor]  # draws by name, `[n, *shape]`


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a model says of its data, given draws of its values, `{name: [n, *shape]}`.

    observed: the data that it is conditioned on, by name. log_likelihood: values to log p of each
    observation, `[n, *rows]` by name. predictive: values and a seed to new data of the same shapes.
    quantities: values and a seed to other generated quantities. dims: names of the axes of a value.
    coords: labels along an axis.
    """

    observed: Mapping[str, Any]
    log_likelihood: Callable[[Values], Mapping[str, Any]] | None = None
    predictive: Callable[[Values, int], Mapping[str, Any]] | None = None
    quantities: Callable[[Values, int], Mapping[str, Any]] | None = None
    dims: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    coords: Mapping[str, Any] = field(default_factory=dict)

    def impossible(self, values: Values) -> str:
        """Name the first observation without a density at all of some draws: `y[1] = -2`; or "".

        Indices count from 0, as those of the programs that have a log likelihood here.
        """
        try:
            found = {} if self.log_likelihood is None else self.log_likelihood(values)
        except Exception:  # noqa: BLE001 - the other program's: its fit has failed already
            return ""
        for name, logs in found.items():
            if name not in self.observed:  # of Stan: generated quantities
                continue
            never = ~(np.asarray(logs) > -math.inf).any(0)  # NaN as well
            y = np.asarray(self.observed[name])
            if never.shape == y.shape[: never.ndim] and never.any():
                place = tuple(int(i) for i in np.argwhere(never)[0])
                index = f"[{', '.join(map(str, place))}]" if place else ""
                return f"{name}{index} = {y[place]}"
        return ""


def over_draws(function: Callable[[dict[str, Tensor]], Any], values: Values, seed: int = 0) -> Any:
    """Apply a function of one draw to all: a tensor `[n, …]`, or a mapping of such.

    Vectorised with `vmap`, with other random numbers for each draw; where that fails, one by one.
    PyTorch's global generator is seeded for the call, and then as it was before.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        many = torch.func.vmap(function, randomness="different", chunk_size=limits.MAX_PIECE)
        try:
            return many(dict(values))
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            torch.manual_seed(seed)
            count = len(next(iter(values.values())))
            each = [function({k: v[i] for k, v in values.items()}) for i in range(count)]
    if isinstance(each[0], Mapping):
        return {k: torch.stack([torch.as_tensor(one[k]) for one in each]) for k in each[0]}
    return torch.stack([torch.as_tensor(one) for one in each])


def numpyro_simulation(model: Callable[[], Any], sites: Mapping[str, Any]) -> Simulation:
    """Take observations and new data from a NumPyro model, closed over its data."""
    observed = _observed(sites)

    def in_jax(function: Callable[[dict[str, Any], Any], Mapping[str, Any]]) -> Any:
        jax = import_extra("jax", "numpyro")

        def called(values: Values, seed: int = 0) -> dict[str, Any]:
            with jax.enable_x64(True):  # noqa: FBT003
                arrays = {name: value.numpy() for name, value in values.items()}
                found = function(arrays, jax.random.PRNGKey(seed))
                return {name: np.array(found[name]) for name in observed}

        return called

    def log_likelihood(values: dict[str, Any], _: Any) -> Mapping[str, Any]:
        numpyro = import_extra("numpyro", "numpyro")
        infer = import_extra("numpyro.infer", "numpyro")
        with numpyro.validation_enabled(False):  # noqa: FBT003
            found: Mapping[str, Any] = infer.log_likelihood(model, values)
        return found

    def predictive(values: dict[str, Any], key: Any) -> Mapping[str, Any]:
        handlers = import_extra("numpyro.handlers", "numpyro")
        infer = import_extra("numpyro.infer", "numpyro")
        drawn = infer.Predictive(handlers.uncondition(model), values, return_sites=[*observed])
        found: Mapping[str, Any] = drawn(key)
        return found

    return Simulation(
        observed={name: np.array(value) for name, value in observed.items()},
        log_likelihood=in_jax(log_likelihood) if observed else None,
        predictive=in_jax(predictive) if observed else None,
        dims=_plates(sites),
    )


def pyro_simulation(model: Callable[[], Any], sites: Mapping[str, Any]) -> Simulation:
    """Take observations and new data from a Pyro model, closed over its data."""
    observed = _observed(sites)
    samples = (name for name, site in sites.items() if site["type"] == "sample")
    latent = [name for name in samples if not sites[name]["is_observed"]]

    def log_likelihood(values: Values) -> Mapping[str, Any]:
        pyro, poutine = (import_extra(name, "pyro") for name in ("pyro", "pyro.poutine"))

        def one(draw: dict[str, Tensor]) -> dict[str, Tensor]:
            trace = poutine.trace(poutine.condition(model, data=draw)).get_trace()
            with pyro.validation_enabled(False):  # noqa: FBT003
                trace.compute_log_prob()
            return {name: trace.nodes[name]["log_prob"] for name in observed}

        found: Mapping[str, Any] = over_draws(one, {name: values[name] for name in latent})
        return found

    def predictive(values: Values, seed: int) -> Mapping[str, Any]:
        poutine = import_extra("pyro.poutine", "pyro")
        messenger = import_extra("pyro.poutine.messenger", "pyro").Messenger

        class Anew(messenger):  # type: ignore[misc, valid-type]
            """Draw what was observed."""

            def _pyro_sample(self, site: dict[str, Any]) -> None:
                if site["name"] in observed:
                    site.update(is_observed=False, value=None, done=False)

        def one(draw: dict[str, Tensor]) -> dict[str, Tensor]:
            trace = poutine.trace(poutine.condition(Anew()(model), data=draw)).get_trace()
            return {name: trace.nodes[name]["value"] for name in observed}

        found: Mapping[str, Any] = over_draws(one, {name: values[name] for name in latent}, seed)
        return found

    return Simulation(
        observed=observed,
        log_likelihood=log_likelihood if observed else None,
        predictive=predictive if observed else None,
        dims=_plates(sites),
    )


def pymc_simulation(model: Any) -> Simulation:
    """Take observations and new data from a PyMC model."""
    observed = {rv.name: model.rvs_to_values[rv].eval() for rv in model.observed_RVs}
    free = [rv.name for rv in model.free_RVs]

    def tree(values: Values) -> Any:
        arviz = import_extra("arviz", "pymc")
        return arviz.from_dict(posterior={name: values[name].numpy()[None] for name in free})

    def log_likelihood(values: Values) -> Mapping[str, Any]:
        pymc, given = import_extra("pymc", "pymc"), tree(values)
        options = {"extend_inferencedata": False, "progressbar": False}
        with _without_initial_values(model):
            found = pymc.compute_log_likelihood(given, model=model, **options)
        return {name: found[name].to_numpy()[0] for name in observed}

    def predictive(values: Values, seed: int) -> Mapping[str, Any]:
        pymc, given = import_extra("pymc", "pymc"), tree(values)
        options = {"random_seed": seed, "progressbar": False}
        found = pymc.sample_posterior_predictive(given, model=model, **options)
        return {name: found.posterior_predictive[name].to_numpy()[0] for name in observed}

    return Simulation(
        observed=observed,
        log_likelihood=log_likelihood if observed else None,
        predictive=predictive if observed else None,
        dims={name: tuple(dims) for name, dims in model.named_vars_to_dims.items()},
        coords={n: _labels(labels) for n, labels in model.coords.items() if labels is not None},
    )


def _labels(labels: Sequence[Any]) -> Any:
    """Return the labels of an axis as xarray takes them: tuples each as one label."""
    if not any(isinstance(label, tuple) for label in labels):
        return list(labels)
    whole = np.empty(len(labels), dtype=object)
    whole[:] = [*labels]
    return whole


@contextlib.contextmanager
def _without_initial_values(model: Any) -> Iterator[None]:
    """Take `initval=` from a PyMC model within a block: PyMC copies no model that has some."""
    own = dict(model.rvs_to_initial_values)
    model.rvs_to_initial_values.update(dict.fromkeys(own))
    try:
        yield
    finally:
        model.rvs_to_initial_values.update(own)


def _observed(sites: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trace of NumPyro or Pyro observes."""
    samples = {name: site for name, site in sites.items() if site["type"] == "sample"}
    return {
        name: site["value"]
        for name, site in samples.items()
        if site["is_observed"] and not is_computed(site)
    }


def is_computed(site: Mapping[str, Any]) -> bool:
    """Say whether a site is a deterministic one, or what Pyro's `reparam` makes: a point mass."""
    law: Any = site.get("fn")
    while hasattr(law, "base_dist") and type(law).__name__ != "Delta":
        law = law.base_dist
    deterministic = bool((site.get("infer") or {}).get("_deterministic"))
    return deterministic or (bool(site.get("is_observed")) and type(law).__name__ == "Delta")


def _plates(sites: Mapping[str, Any]) -> dict[str, tuple[str | None, ...]]:
    """Name the axes of values after the plates of a trace of NumPyro or Pyro."""
    dims = {}
    for name, site in sites.items():
        frames: Iterable[Any] = site.get("cond_indep_stack") or ()
        if site["type"] != "sample" or not frames:
            continue
        shape = np.shape(site["value"])
        axes: list[str | None] = [None] * len(shape)
        last = len(shape) - site["fn"].event_dim
        for frame in frames:
            axis = last + frame.dim if frame.dim is not None else -1
            if axis >= 0 and shape[axis] == frame.size:
                axes[axis] = frame.name
        dims[name] = tuple(axes)
    return dims
