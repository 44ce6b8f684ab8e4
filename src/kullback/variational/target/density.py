"""The target p(z): a log density on unconstrained z, from what a user writes for one point.

Which to use: `Target.of(log_density, parameters)` for a function of one point; with `data=` for a
likelihood over rows, evaluated a batch of rows at a time, so that memory does not grow with them;
`Target.of_score(score, dim)` for a model of another program that gives log p and its gradient.
`Target.from_numpyro`, `from_pyro`, `from_pymc` and `from_stan` take a model of these as it is.
Everything else in this folder sees a `Target`: `log_density(z)` and `score(z)` over many points at
once, the Jacobians of constraints included.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kullback.core import require
from kullback.variational import limits

from .batches import Rows, in_pieces, score_in_pieces
from .deadline import Deadline
from .density_checks import check_data, check_own, check_slope
from .functions import PointDensity, Score, Scored, checked_score
from .parameters import Layout, Outside, Parameters
from .programs import Compiling, Model, numpyro_model, pymc_model, pyro_model
from .refusals import Refusals, without_nan
from .simulation import Simulation
from .stan import stan_model
from .vectorise import Vectoriser

__all__ = ["Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """An unnormalised log density `log p(z)` on `dim` reals, z of shape `[n, dim]`, in nats.

    Made by `Target.of`, from what a user writes for one point.

    Attributes:
        function: maps a dictionary of constrained values with a leading `[n]` to log p, `[n]`,
            without Jacobians; for a target with rows it is the prior.
        layout: names, shapes and constraints of the parameters.
        dtype: of z.
        rows: the data and their likelihood, or None.
        looped: whether points are evaluated one by one.
        piece: how many points are differentiated together.
        scored: log p and its gradient at z, where another program has them (`of_score`).
        refusals: how many points the density refused by an exception so far; they have log p −inf.
        simulation: what another program's model says of its data, or None.
        compiling: how long another program's compilers took so far.
        deadline: when evaluations end, while a fit runs.

    Example:
        >>> target = Target.of(lambda z: -0.5 * (z * z).sum(), 2)
        >>> target.log_density(torch.ones(1, 2, dtype=torch.float64))
        tensor([-1.], dtype=torch.float64)
    """

    function: Callable[[dict[str, Tensor]], Tensor]
    layout: Layout
    dtype: torch.dtype = torch.float64
    rows: Rows | None = None
    looped: bool = False
    piece: int = limits.MIN_PIECE
    scored: "Score | None" = None
    refusals: Refusals = field(default_factory=Refusals, compare=False, repr=False)
    simulation: Simulation | None = None
    compiling: Compiling = field(default_factory=Compiling, compare=False, repr=False)
    deadline: Deadline = field(default_factory=Deadline, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        log_density: PointDensity,
        parameters: Parameters,
        *,
        data: Sequence[Tensor] | Tensor | None = None,
        log_prior: PointDensity | None = None,
        batch_size: int | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> "Target":
        """Build a target from a log density of ONE point, vectorised over points with `vmap`.

        Where `vmap` cannot follow the function (data-dependent control flow, `.item()`), points are
        evaluated one by one, and a warning says so. Where a matrix cannot be factored
        (`torch.linalg.LinAlgError`), or a distribution refuses its arguments (`ValueError`), log p
        is −inf, and the point is counted in `refusals`.

        Args:
            log_density: `log_density(z)` with z `[dim]`, or `log_density(**values)` with one
                keyword a parameter, each of its own shape; it returns a scalar tensor, in nats, up
                to a constant.
                With `data` it is the likelihood of rows, `log_density(z, *batch)`, or
                `log_density(*batch, **values)`, → `[rows]`, one term a row, where `batch` are the
                same rows of each data tensor.
            parameters: the dimension of z, or names with shapes and constraints (see `Layout.of`).
            data: tensors with one leading axis of equal length.
            log_prior: with `data`, the log density of the parameters alone, which is added once.
            batch_size: rows at a time.
            dtype: of z.

        Returns:
            The target.

        Raises:
            ArgumentTypeError: where its result is no tensor, or its arguments are not the
                parameters; what the function itself raises passes.
            ArgumentValueError: where its result is no scalar (or no vector of rows), where two
                calls at one point differ, or where differences of log p contradict its gradient at
                most of a few points (a `detach()`, `no_grad` or `.item()` on the way).

        Example:
            >>> x = torch.tensor([1.0, 3.0])
            >>> target = Target.of(lambda z, x: -0.5 * (x - z[0]) ** 2, 1, data=x)
            >>> target.log_density(torch.tensor([[2.0]], dtype=torch.float64))
            tensor([-1.], dtype=torch.float64)
        """
        layout = Layout.of(parameters)
        given = (data,) if isinstance(data, Tensor) else data
        if given is None:
            alone = log_prior is None and batch_size is None
            require(alone, "data", "tensors, with log_prior or batch_size", "none")
        maker = cls(lambda _: torch.zeros(()), layout, dtype)
        shared = Vectoriser(layout, dtype, maker.refusals, maker.deadline)
        if given is None:
            many = shared.over_points(log_density, "log_density", ())
            made = replace(maker, function=many.function, looped=many.looped, piece=many.piece)
            made._check_own("log_density")
            return made
        rows = Rows.of(given, batch_size=batch_size)
        first = rows.first()
        terms = shared.over_points(log_density, "log_density", first)
        summed = replace(maker, function=lambda values: terms.function(values, *first).sum(-1))
        summed._check_own("log_density")
        prior = shared.over_points(log_prior or _flat, "log_prior", ())
        made = replace(maker, function=prior.function, looped=terms.looped or prior.looped)
        made._check_own("log_prior")
        return replace(made, rows=rows.with_terms(lambda v, batch: terms.function(v, *batch)))

    @classmethod
    def of_score(
        cls,
        score: Score,
        dim: int,
        *,
        constrain: Callable[[Tensor], Mapping[str, Any]] | None = None,
        names: Sequence[str] | None = None,
        pad: bool = False,
    ) -> "Target":
        """Build a target from log p and its gradient at many points, whatever computes them.

        The gradient is the function's own: nothing is differentiated here, so JAX, Stan, NumPy or
        a compiled library can stand behind it. Few calls of many points each are made.

        Args:
            score: z `[n, dim]` of unconstrained reals to log p `[n]`, in nats, up to a constant,
                the Jacobians of the constraints included, and `∂ log p/∂z` `[n, dim]`; both as
                tensors or arrays. z is float64 and must not be changed. −inf marks a point outside
                the support.
            dim: how many reals z has.
            constrain: z `[n, dim]` to the named values that a user reads, `[n, *shape]` each; by
                default they are z itself.
            names: of the `dim` entries of z; by default `z[1]`, ….
            pad: add copies of the last point up to a power of two, so that what compiles for a
                shape (XLA) does so a few times only.

        Returns:
            The target; `fit(target)` takes it.

        Raises:
            ArgumentTypeError: for a result that is not a pair of arrays.
            ArgumentValueError: for results of other shapes, names that do not fit, or a gradient
                that differences of log p contradict at most points of a few.

        Example:
            >>> def score(z):
            ...     z = z.numpy()
            ...     return -0.5 * (z**2).sum(1), -z
            >>> target = Target.of_score(score, 2, constrain=lambda z: {"sd": z[:, 0].exp()})
            >>> log_p, gradient = target.score(torch.ones(1, 2, dtype=torch.float64))
            >>> log_p.tolist(), gradient.tolist(), target.layout.value_names
            ([-1.0], [[-1.0, -1.0]], ('sd',))
        """
        layout = Layout.of(dim)
        if names is not None:
            require(len(set(names)) == dim, "names", f"{dim} that differ", [*names])
            layout = Layout.of(dict.fromkeys(names, ()))
        outside = None if constrain is None else Outside.of(constrain, dim)
        checked = checked_score(score, dim, pad=pad)
        check_slope(checked, dim)
        return cls(_flat, replace(layout, outside=outside), scored=checked)

    @classmethod
    def from_numpyro(cls, model: Callable[..., Any], *args: Any, **kwargs: Any) -> "Target":
        """Build a target from a NumPyro model and its data, in float64, compiled by XLA.

        Log p and its gradient are NumPyro's own (`potential_energy`), so constants are kept. Values
        have the names and shapes of `MCMC.get_samples()`, deterministic sites included. 64-bit JAX
        is switched on inside the calls only. Data in float32 stay so.

        Args:
            model: a function with `numpyro.sample` sites, all continuous or observed.
            *args: its data, as `MCMC.run` takes them after the key.
            **kwargs: as for `args`.

        Returns:
            The target; `fit(target)` takes it.

        Raises:
            MissingExtraError: without NumPyro: `pip install 'kullback[numpyro]'`.
            ArgumentTypeError: for a model that cannot be called with this data.
            ArgumentValueError: for what is no model, for discrete parameters, or a subsampled
                plate.

        Example:
            >>> Target.from_numpyro(3)
            Traceback (most recent call last):
                ...
            kullback.core.errors.ArgumentValueError: model: expected a function; got int. Try: ...
        """
        return cls._of_model(numpyro_model(model, args, kwargs))

    @classmethod
    def from_pyro(cls, model: Callable[..., Any], *args: Any, **kwargs: Any) -> "Target":
        """Build a target from a Pyro model and its data, in float64, vectorised with `vmap`.

        Where `vmap` cannot follow the model (branches on values), points are evaluated one by one,
        slowly, and a warning says so. Values have the names and shapes of `MCMC.get_samples()`,
        and deterministic sites are among them. Data in `args` and `kwargs` are taken in float64;
        tensors of float32 that the model closes over stay so.

        Args:
            model: a function with `pyro.sample` sites, all continuous or observed.
            *args: its data, as `MCMC.run` takes them.
            **kwargs: as for `args`.

        Returns:
            The target; `fit(target)` takes it.

        Raises:
            MissingExtraError: without Pyro: `pip install 'kullback[pyro]'`.
            ArgumentTypeError: for a model that cannot be called with this data.
            ArgumentValueError: for what is no model, for discrete parameters, or a subsampled
                plate.
        """
        other = pyro_model(model, args, kwargs)
        inner = cls.of(other.log_density, other.reals)

        def constrain(z: Tensor) -> dict[str, Tensor]:
            reals = inner.constrain(z)
            with torch.no_grad():
                if not inner.looped:
                    values: dict[str, Tensor] = torch.func.vmap(other.values)(reals)
                    return values
                points = [other.values({k: v[i] for k, v in reals.items()}) for i in range(len(z))]
            return {key: torch.stack([point[key] for point in points]) for key in points[0]}

        model_at = Model(
            inner.score,
            constrain,
            other.names,
            unconstrain=other.unconstrain,
            simulation=other.simulation,
            data=other.data,
        )
        made = cls._of_model(model_at, inner.refusals)
        return replace(made, looped=inner.looped)

    @classmethod
    def from_pymc(cls, model: Any) -> "Target":
        """Build a target from a PyMC model: its own graph, vectorised over points and compiled.

        Values have the names and shapes of the posterior that `pymc.sample` returns, deterministic
        ones included. Where a parameter leaves its bounds, log p is −inf at that point.

        Args:
            model: a `pymc.Model` with its data, all parameters continuous.

        Returns:
            The target; `fit(target)` takes it.

        Raises:
            MissingExtraError: without PyMC: `pip install 'kullback[pymc]'`.
            ArgumentTypeError: for what is no `pymc.Model`.
            ArgumentValueError: for a model without parameters, with discrete ones, or with
                mini-batches.
        """
        return cls._of_model(pymc_model(model))

    @classmethod
    def from_stan(
        cls, model: str | Path, data: Mapping[str, Any] | str | Path | None = None
    ) -> "Target":
        """Build a target from a Stan program and its data, compiled by Stan's own compiler.

        Log p and its gradient are Stan's, with Jacobians and all constants, many points a call.
        Values are the parameters and transformed parameters; generated quantities are computed by
        `fit.predict()` and `to_arviz`. A C++ compiler must be there; a model takes about half a
        minute to compile, once: the result is kept in the user's cache folder.

        Args:
            model: a path to a `.stan` file, or the program's text.
            data: values by name, or a path to a JSON file, as CmdStan takes it.

        Returns:
            The target; `fit(target)` takes it.

        Raises:
            MissingExtraError: without httpstan (PyStan's engine): `pip install 'kullback[stan]'`.
            ArgumentValueError: for a program that Stan refuses, with its words; for data that are
                not what it declares; for complex or tuple variables.
            ArgumentTypeError: for data that are no mapping.
            DataError: for a file that cannot be read.
            RunError: without a C++ compiler, or where it fails.

        Example:
            >>> Target.from_stan("model.txt")
            Traceback (most recent call last):
                ...
            kullback.core.errors.ArgumentValueError: model: expected a .stan file; got ...
        """
        return cls._of_model(stan_model(model, data))

    @classmethod
    def _of_model(cls, model: Model, refusals: Refusals | None = None) -> "Target":
        """Build a target from another program's model; points where log p is NaN are refused."""
        refusals = refusals or Refusals()
        score = without_nan(model, refusals)
        dim = len(model.names)
        layout = Layout.of(dict.fromkeys(model.names, ()))
        made = cls(_flat, layout, scored=checked_score(score, dim, pad=False))
        outside = Outside.of(model.constrain, dim, model.unconstrain)
        made = replace(
            made,
            layout=replace(made.layout, outside=outside),
            refusals=refusals,
            simulation=model.simulation,
            compiling=model.compiling,
        )
        check_data(model, made.score, dim, refusals)
        return made

    @property
    def dim(self) -> int:
        """How many reals z has."""
        return self.layout.dim

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the entries of z: `theta[3]`."""
        return self.layout.names

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Map z `[*batch, dim]` to the parameters the user named, `{name: [*batch, *shape]}`.

        Args:
            z: unconstrained reals.

        Returns:
            The constrained values, by name.
        """
        return self.layout.constrain(z)[0]

    def unconstrain(self, values: Mapping[str, Any]) -> Tensor:
        """Map one value of every parameter, by name, to z `[dim]`: the inverse of `constrain`.

        Args:
            values: a number or an array for each parameter, of its shape.

        Returns:
            The unconstrained reals, float64.

        Raises:
            ArgumentValueError: for a missing or unknown name, another shape, or a value that its
                constraint does not allow.

        Example:
            >>> from torch.distributions import constraints
            >>> target = Target.of(lambda tau: -tau, {"tau": constraints.positive})
            >>> target.unconstrain({"tau": 1.0})
            tensor([0.], dtype=torch.float64)
        """
        return self.layout.unconstrain(values)

    def log_density(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return log p on the unconstrained space, `[n, dim]` → `[n]`, differentiable in z.

        Args:
            z: unconstrained reals, `[n, dim]`.
            rows: indices of a mini-batch, whose likelihood is scaled by N/B (unbiased over
                uniformly drawn rows); None takes all rows, a batch at a time with memory that does
                not grow.

        Returns:
            Log p with the Jacobians of the constraints, in nats.
        """
        if self.rows is None:
            return self.prior(z)
        if rows is None:
            return self.prior(z) + self.rows.everything(z, self.constrain)
        return self.prior(z) + self.rows.scaled(self.constrain(z), rows)

    def prior(self, z: Tensor) -> Tensor:
        """Return the part of log p that no row enters, with Jacobians, `[n]`; all, without data."""
        self.deadline.check()
        if self.scored is not None:
            value: Tensor = Scored.apply(z, self.scored)  # type: ignore[no-untyped-call]
            return value
        return in_pieces(self._prior, z, self.piece)

    def _prior(self, z: Tensor) -> Tensor:
        self.deadline.check()
        values, log_jacobian = self.layout.constrain(z)
        return self.function(values) + log_jacobian

    def score(self, z: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return log p `[n]` and its gradient `∂ log p/∂z` `[n, dim]`, both without a graph.

        Args:
            z: unconstrained reals, `[n, dim]`.
            rows: as in `log_density`.

        Returns:
            The values and their gradients.
        """
        self.deadline.check()
        if self.scored is not None:
            return self.scored(z.detach())
        return score_in_pieces(lambda part: self.log_density(part, rows), z, self.piece)

    def explain(self, z: Tensor) -> str:
        """Say in words where log p `[n]` of z `[n, dim]` is not finite: which value, which row.

        Args:
            z: unconstrained reals, `[n, dim]`.

        Returns:
            A sentence, or the empty string when it is finite everywhere.
        """
        with torch.no_grad():
            log_p = self.log_density(z)
        bad = (~log_p.isfinite()).nonzero().flatten()
        if len(bad) == 0:
            return ""
        point = z[int(bad[0])]
        shown = ", ".join(_shown(n, v) for n, v in self.constrain(point).items())
        text = f"log_density is {float(log_p[bad[0]])} at {shown} ({len(bad)} of {len(z)} points)"
        broken = [n for n, v in self.constrain(point).items() if not bool(v.isfinite().all())]
        if broken:
            text += f"; {', '.join(broken)} itself is not finite there"
        if self.rows is not None:
            text += self.rows.explain(self.constrain(point[None]))
        return f"{text}; {self.refusals}" if self.refusals.count else text

    def raise_if_all_refused(self, log_p: Tensor) -> None:
        """Raise what the density raised, where it refused every one of q's draws.

        Then the function fails, not a point.
        """
        if self.refusals.last is not None and bool((log_p == -math.inf).all()):
            raise self.refusals.last

    def raise_if_it_fails(self) -> None:
        """Raise what the density raises where it was finite when the target was made."""
        known, error = self.refusals.taken, self.refusals.last
        if known is not None and error is not None:
            with torch.no_grad():
                if float(self.log_density(known[None])) == -math.inf:
                    raise error

    def _check_own(self, name: str) -> None:
        score: Score = lambda z: self.score(z.to(self.dtype))  # noqa: E731
        check_own(score, self.dim, self.refusals, name)


def _flat(*_: Any, **__: Any) -> Tensor:
    return torch.zeros(())


def _shown(name: str, value: Tensor) -> str:
    flat = value.flatten()
    numbers = ", ".join(f"{float(v):.6g}" for v in flat[: limits.SHOWN_ENTRIES])
    tail = ", …" if len(flat) > limits.SHOWN_ENTRIES else ""
    return f"{name} = {numbers}" if value.ndim == 0 else f"{name} = [{numbers}{tail}]"
