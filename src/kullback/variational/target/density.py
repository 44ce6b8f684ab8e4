"""The target p(z): a log density on unconstrained z, from what a user writes for one point.

Which to use: `Target.of(log_density, parameters)` for a function of one point; with `data=` for a
likelihood over rows, evaluated a batch of rows at a time, so that memory does not grow with them;
`Target.of_score(score, dim)` for a model of another program that gives log p and its gradient.
`Target.from_numpyro`, `from_pyro`, `from_pymc` and `from_stan` take a model of these as it is.
Everything else in this folder sees a `Target`: `log_density(z)` and `score(z)` over many points at
once, the Jacobians of constraints included.
"""

import contextlib
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from kullback.core import ArgumentTypeError, ArgumentValueError, message, require
from kullback.variational import limits

from .batches import Rows, in_pieces, score_in_pieces
from .parameters import Layout, Outside, Parameters
from .programs import Compiling, Model, numpyro_model, pymc_model, pyro_model
from .simulation import Simulation
from .stan import stan_model

__all__ = ["OutOfTime", "PointDensity", "RowsDensity", "Target"]

PointDensity = Callable[..., Tensor]  # a user's function of one point: a scalar, in nats
RowsDensity = Callable[[Tensor, Tensor | None], Tensor]  # z `[n, d]`, rows or None: `[n]`
Score = Callable[[Tensor], tuple[Any, Any]]  # z `[n, d]`: log p `[n]` and its gradient `[n, d]`
UNFACTORED: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
ITEM = ".item() on a Tensor"  # under vmap a distribution that refuses its arguments fails at this


@dataclass(slots=True)
class Refusals:
    """How many points a density refused, by an exception, the last one and its first words.

    value: the log p of a refused point. accepted: whether any was taken. first: points refused
    before that. taken: a point at which log p was finite when the target was made.
    """

    count: int = 0
    words: str = ""
    last: Exception | None = None
    value: float = -math.inf
    accepted: bool = False
    first: int = 0
    taken: Tensor | None = None

    @contextlib.contextmanager
    def unknown(self) -> Iterator[None]:
        """Let log p be NaN at refused points, not −inf, and count none, while rays are followed."""
        before, self.value = (self.count, self.words), math.nan
        try:
            yield
        finally:
            (self.count, self.words), self.value = before, -math.inf

    def add(self, error: Exception) -> None:
        """Count one point; raise where the function fails, not a point: it refused all so far."""
        self.count += 1
        self.first += 0 if self.accepted else 1
        self.last = error
        self.words = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        if not self.accepted and self.first >= limits.MAX_FIRST_REFUSALS:
            got = f"a refusal of each of the first {self.first} points: {self.words}"
            hint = "finite data of one length, constraints, or init= at a point that it takes"
            raise ArgumentTypeError(message("log_density", "a log density", got, hint)) from error

    def __str__(self) -> str:
        points = "point" if self.count == 1 else "points"
        if not self.count:
            return ""
        return f"{self.count:,} {points} refused by log_density count as log p = -inf: {self.words}"


class OutOfTime(Exception):
    """The time that a fit may take is over; raised where the density is evaluated."""


@dataclass(slots=True)
class Deadline:
    """When a fit must stop, on the clock of `time.monotonic`, and how long it was given."""

    ends: float = math.inf
    seconds: float = math.inf

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Let evaluations raise `OutOfTime` after so many seconds."""
        before = (self.ends, self.seconds)
        self.ends, self.seconds = time.monotonic() + seconds, seconds
        try:
            yield
        finally:
            self.ends, self.seconds = before

    @property
    def left(self) -> float:
        """Seconds until then."""
        return math.inf if self.ends == math.inf else self.ends - time.monotonic()

    def check(self) -> None:
        """Raise `OutOfTime` where the time is over."""
        if self.ends < math.inf and time.monotonic() > self.ends:
            raise OutOfTime(f"stopped after {self.seconds:g} s, the most that it was given")


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
        if given is None:
            function, looped, piece = maker._vectorised(log_density, "log_density", ())
            made = replace(maker, function=function, looped=looped, piece=piece)
            _check_own(made, "log_density")
            return made
        rows = Rows.of(given, batch_size=batch_size)
        first = rows.first()
        row_terms, looped, _ = maker._vectorised(log_density, "log_density", first)
        _check_own(
            replace(maker, function=lambda values: row_terms(values, *first).sum(-1)), "log_density"
        )
        prior, prior_looped, _ = maker._vectorised(log_prior or _flat, "log_prior", ())
        _check_own(replace(maker, function=prior), "log_prior")
        rows = rows.with_terms(lambda values, batch: row_terms(values, *batch))
        return replace(maker, function=prior, rows=rows, looped=looped or prior_looped)

    @classmethod
    def of_score(
        cls,
        score: "Score",
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
        checked = _checked(score, dim, pad=pad)
        _check_slope(checked, dim)
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
        score = _without_nan(model, refusals)
        dim = len(model.names)
        layout = Layout.of(dict.fromkeys(model.names, ()))
        made = cls(_flat, layout, scored=_checked(score, dim, pad=False))
        outside = Outside.of(model.constrain, dim, model.unconstrain)
        made = replace(
            made,
            layout=replace(made.layout, outside=outside),
            refusals=refusals,
            simulation=model.simulation,
            compiling=model.compiling,
        )
        _check_data(model, made)
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
            value: Tensor = _Scored.apply(z, self.scored)  # type: ignore[no-untyped-call]
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

    def _vectorised(
        self, function: PointDensity, name: str, batch: tuple[Tensor, ...]
    ) -> tuple[Callable[..., Tensor], bool, int]:
        """Wrap a function of one point for many; say if it had to be looped, and the best piece."""

        def one(values: dict[str, Tensor], *batch: Tensor) -> Tensor:
            if batch and batch[0].is_floating_point():  # z has float64, data often less
                values = {key: value.to(batch[0].dtype) for key, value in values.items()}
            if self.layout.named:
                return function(*batch, **values)
            return function(values["z"], *batch)

        _check_signature(function, name, self.layout, batch)
        probe = torch.linspace(-0.5, 0.5, self.dim, dtype=self.dtype)
        kept, result, known = _Kept(limits.CACHED_NUMBERS, 1), None, False
        # what is refused here is perhaps not elsewhere
        with contextlib.suppress(UNFACTORED, ValueError), _hinted(name):
            result, kept = _counted(lambda z: one(self.constrain(z), *batch), probe.clone())
            known = True
        if known:
            _check_result(result, name, len(batch[0]) if batch else None)
            if isinstance(result, Tensor) and not batch and bool(result.isfinite()):
                self.refusals.taken = probe
        piece = kept.piece
        axes = (0, *(None for _ in batch))
        vectorised = torch.func.vmap(one, in_dims=axes)
        factored = torch.func.vmap(_factored(one), in_dims=axes)
        two = torch.stack([probe, -probe])
        seen = result.detach() if result is not None else torch.zeros(())
        try:
            first = vectorised(self.constrain(two), *batch)[0]
        except UNFACTORED:
            first = None
        except (RuntimeError, ValueError) as error:
            if "randomness" in str(error):
                words = message(name, "a function of z alone", "one that draws at random")
                raise ArgumentValueError(words) from error
            if not isinstance(error, ValueError) and _refused(one, self.constrain(two), batch):
                return _surviving(vectorised, one, self.refusals, factored), False, piece
            reason = str(error).strip().splitlines()[0]
            again = partial(one, self.constrain(probe), *batch)
            _check_same(seen, again() if known else seen, again, name)
            warnings.warn(f"{name}: evaluated one point at a time, slowly: {reason}", stacklevel=4)
            return _surviving(_looped(one, self.deadline), one, self.refusals), True, piece
        if known and first is not None:
            _check_same(seen, first, lambda: vectorised(self.constrain(two), *batch)[0], name)
        return _surviving(vectorised, one, self.refusals, factored), False, piece


class _Scored(torch.autograd.Function):
    """Log p of z with the gradient that came with it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, score: Score) -> Tensor:
        value, gradient = score(z.detach())
        ctx.save_for_backward(gradient)
        log_p: Tensor = value.to(z.dtype)
        return log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream[0][:, None] * gradient, None


def _checked(score: Score, dim: int, *, pad: bool) -> Score:
    """Wrap a user's function: float64 in and out, shapes checked, padded where asked."""

    def checked(z: Tensor) -> tuple[Tensor, Tensor]:
        count = len(z)
        room = (1 << max(0, count - 1).bit_length()) - count if pad else 0
        asked = torch.cat([z, z[-1:].expand(room, dim)]) if room else z
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # far points are asked
            result = score(asked.double())
        pair = isinstance(result, tuple | list) and len(result) == 2
        require(pair, "score", "a pair: log p [n] and its gradient [n, dim]", type(result).__name__)
        value, gradient = (torch.as_tensor(part, dtype=torch.float64) for part in result)
        shapes = [tuple(value.shape), tuple(gradient.shape)]
        wanted = [(len(asked),), (len(asked), dim)]
        require(shapes == wanted, "score", f"shapes {wanted[0]} and {wanted[1]}", shapes)
        return value[:count], gradient[:count]

    return checked


def _without_nan(model: Model, refusals: Refusals) -> Score:
    """Count points where log p is NaN as refused: another program leaves its bounds so."""

    def scored(z: Tensor) -> tuple[Tensor, Any]:
        value, gradient = model.score(z)
        value = torch.as_tensor(value, dtype=torch.float64)
        bad = value.isnan()
        if bool(bad.any()):
            refusals.count += int(bad.sum())
            refusals.words = model.reason()
            value = value.masked_fill(bad, refusals.value)
        return value, gradient

    return scored


def _check_own(target: "Target", name: str) -> None:
    """Refuse a user's function whose gradient is not that of its values."""
    hint = "no detach(), no_grad, .item() or numpy() on the way from the parameters to log p"
    with target.refusals.unknown(), _hinted(name):
        score: Score = lambda z: target.score(z.to(target.dtype))  # noqa: E731
        _check_slope(score, target.dim, name, hint, tolerance=limits.OWN_SLOPE_TOLERANCE)


def _check_same(once: Tensor, first: Tensor, call: Callable[[], Tensor], name: str) -> None:
    """Refuse a function whose values at one point differ: from `once`, and between two calls.

    Two, since what is vectorised may round differently.
    """

    def off(one: Tensor, other: Tensor) -> Tensor:
        return ((other - one).abs() > limits.SAME_TOLERANCE * (1 + one.abs())).reshape(-1)

    if not bool(off(once, first).any()):
        return
    second = call()
    differ = off(first, second).nonzero()
    if len(differ):
        k = int(differ[0])
        got = f"{float(first.reshape(-1)[k]):.6g} and {float(second.reshape(-1)[k]):.6g}"
        hint = "all rows of the data, and no random numbers inside; batch_size= for mini-batches"
        wanted = "a function of its parameters alone"
        raise ArgumentValueError(message(name, wanted, f"{got} at one point", hint))


def _check_slope(
    score: Score,
    dim: int,
    name: str = "score",
    hint: str = "∂ log p/∂z, of log p itself, not of −log p, at each point",
    tolerance: float = limits.SLOPE_TOLERANCE,
) -> None:
    """Refuse a gradient that central differences of log p contradict at most of a few points.

    With two steps, so that what a solver's tolerance adds to log p is not taken for its slope.
    """
    near, far = limits.SLOPE_STEPS
    found = _contradicted(score, dim, near, tolerance)
    right = not found or not _contradicted(score, dim, far, tolerance)
    if "nan" in found:
        hint = "torch.where on arguments that are finite in both branches, for NaN times 0 is NaN"
    require(right, name, "the gradient of its log p", found, hint)


def _contradicted(score: Score, dim: int, step: float, tolerance: float) -> str:
    """Say where the slopes of a score are not those of differences so far apart; "" if they are."""
    generator = torch.Generator().manual_seed(0)
    z, way = torch.randn(2, limits.SLOPE_PROBES, dim, generator=generator, dtype=torch.float64)
    way = way / way.norm(dim=1, keepdim=True)
    value, gradient = score(torch.cat([z, z + step * way, z - step * way]))
    middle, up, down = value.chunk(3)
    known = torch.stack([middle, up, down]).isfinite().all(0)
    seen, said = (up - down) / (2 * step), (gradient[: len(z)] * way).sum(1)
    size = torch.maximum(seen.abs(), (gradient[: len(z)] * way).norm(dim=1))
    noise = limits.SLOPE_ROUNDING * middle.abs() / step
    bend = (up - 2 * middle + down).abs() / step
    wrong = ~((seen - said).abs() <= tolerance * size + bend + noise)
    if int(wrong[known].sum()) <= 0.5 * int(known.sum()):
        return ""
    k = int((known & wrong).nonzero()[0])
    return f"a slope of {float(said[k]):.4g} where log p rises by {float(seen[k]):.4g}"


def _check_data(model: Model, target: "Target") -> None:
    """Name NaN and infinities in the data where log p is finite nowhere: masked ones do no harm."""
    places = [_not_finite(name, value, model.first_index) for name, value in model.data.items()]
    held = ", ".join(place for place in places if place)
    if not held:
        return
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(limits.DATA_PROBES, target.dim, generator=generator, dtype=torch.float64)
    z = torch.cat([torch.zeros(1, target.dim, dtype=torch.float64), 4 * spread - 2])
    with target.refusals.unknown():
        finite = bool(target.score(z)[0].isfinite().any())
    hint = f"leave those rows out, or {model.missing}"
    words = f"{held} (log p is finite at none of {len(z)} points)"
    require(finite, "data", "finite numbers", words, hint)


def _not_finite(name: str, value: Any, first_index: int) -> str:
    """Return where an array is NaN or infinite, "NaN in x[3] and 2 more"; "" where it is not."""
    array = np.asarray(value)
    if array.dtype.kind != "f" or bool(np.isfinite(array).all()):
        return ""
    bad = np.argwhere(np.isnan(array) if np.isnan(array).any() else np.isinf(array))
    index = ",".join(str(int(i) + first_index) for i in bad[0])
    more = f" and {len(bad) - 1:,} more" if len(bad) > 1 else ""
    kind = "NaN" if np.isnan(array).any() else "infinity"
    return f"{kind} in {name}{f'[{index}]' if index else ''}{more}"


def _flat(*_: Any, **__: Any) -> Tensor:
    return torch.zeros(())


def _looped(one: PointDensity, deadline: Deadline) -> PointDensity:
    def at(values: dict[str, Tensor], i: int, batch: tuple[Tensor, ...]) -> Tensor:
        deadline.check()
        value: Tensor = one({k: v[i] for k, v in values.items()}, *batch)
        return value

    def many(values: dict[str, Tensor], *batch: Tensor) -> Tensor:
        count = len(next(iter(values.values())))
        return torch.stack([at(values, i, batch) for i in range(count)])

    return many


def _surviving(
    many: PointDensity,
    one: PointDensity,
    refusals: Refusals,
    factored: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None,
) -> PointDensity:
    """Give −inf to points that the density refuses by an exception, and count them.

    A matrix that cannot be factored, or a distribution that refuses its arguments: `factored` (see
    `_factored`) finds those points in one call. Points that anything else refuses are found by
    halving.
    """

    def survived(values: dict[str, Tensor], *batch: Tensor) -> Tensor:
        try:
            found = many(values, *batch)
            refusals.accepted = True
            return found
        except (UNFACTORED, ValueError, RuntimeError) as error:
            if not _refuses(error):
                raise
            many_points = len(next(iter(values.values()))) > 1
            at_once = factored is not None and (many_points or isinstance(error, UNFACTORED))
            others = _found(values, batch) if at_once else None
            return _halved(values, batch) if others is None else others

    def _found(values: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor | None:
        try:
            result, bad, invalid = cast(Any, factored)(values, *batch)
            bad = bad | invalid
            if bool(bad.all()):
                return _none(values, batch)
            if bool(invalid.any()):  # NaN there would reach the gradient: another point's value
                spare = torch.where(bad, int((~bad).nonzero()[0]), torch.arange(len(bad)))
                result = many({k: v[spare] for k, v in values.items()}, *batch)
        except (UNFACTORED, ValueError, RuntimeError):
            return None  # something else fails as well
        places = bad.nonzero().flatten()
        if len(places) == 0:
            return None
        refusals.accepted = True
        first = int(places[0])
        _alone(one, {k: v[first : first + 1] for k, v in values.items()}, batch, refusals)
        refusals.count += len(places) - 1
        return torch.where(bad[:, None] if result.ndim > 1 else bad, refusals.value, result)

    def _none(values: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        count = len(next(iter(values.values())))
        if not refusals.accepted:
            refusals.first += count - 1
        one_point = _alone(one, {k: v[:1] for k, v in values.items()}, batch, refusals)
        refusals.count += count - 1
        return one_point.expand(count, *one_point.shape[1:])

    def _halved(values: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        first = next(iter(values.values()))
        half = len(first) // 2
        if half == 0:
            return _alone(one, values, batch, refusals)
        parts = ({k: v[:half] for k, v in values.items()}, {k: v[half:] for k, v in values.items()})
        return torch.cat([survived(part, *batch) for part in parts])

    return survived


class _Factoring(TorchFunctionMode):
    """Note where a matrix has no Cholesky factor, or a distribution refuses its arguments.

    The identity is factored instead; the distribution goes on with what it refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bad = self.invalid = torch.zeros((), dtype=torch.bool)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace the argument of Cholesky factorisations, and what distributions ask of theirs."""
        kwargs = kwargs or {}
        if func is torch._is_all_true and args:
            self.invalid = self.invalid | ~args[0].detach().all()
            return torch.ones((), dtype=torch.bool)
        if func in CHOLESKY and args:
            matrix, *others = args
            failed = torch.linalg.cholesky_ex(matrix.detach())[1] != 0
            self.bad = self.bad | failed.any()
            whole = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
            args = (torch.where(failed[..., None, None], whole, matrix), *others)
        return func(*args, **kwargs)


CHOLESKY = (torch.linalg.cholesky, torch.cholesky, torch.Tensor.cholesky)


def _factored(one: PointDensity) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return a function that also says what `_Factoring` notes: without a factor, and refused."""

    def checked(values: dict[str, Tensor], *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with _Factoring() as factoring:
            result = one(values, *batch)
        return result, factoring.bad, factoring.invalid

    return checked


def _refused(one: PointDensity, values: dict[str, Tensor], batch: tuple[Tensor, ...]) -> bool:
    """Say whether a density refuses one of two points, so that vmap is not what fails."""
    for i in range(2):
        try:
            one({k: v[i] for k, v in values.items()}, *batch)
        except (UNFACTORED, ValueError):
            return True
    return False


def _alone(
    one: PointDensity, values: dict[str, Tensor], batch: tuple[Tensor, ...], refusals: Refusals
) -> Tensor:
    """Evaluate one point without vmap, which hides the words of a refusal; −inf if it is one."""
    try:
        found = one({k: v[0] for k, v in values.items()}, *batch)[None]
        refusals.accepted = True
        return found
    except (UNFACTORED, ValueError) as error:
        refusals.add(error)
        zero = (
            0.0 * torch.stack([value.sum() for value in values.values()]).sum()
        )  # keeps the graph
        return (zero + refusals.value).expand((1, len(batch[0])) if batch else (1,))


def _refuses(error: Exception) -> bool:
    """Say whether an exception is about the values at a point, not about the function."""
    return isinstance(error, UNFACTORED | ValueError) or ITEM in str(error)


class _Kept(NamedTuple):
    """How many numbers, in how many tensors, are kept for the gradient at one point."""

    numbers: int
    tensors: int

    @property
    def piece(self) -> int:
        """How many points to differentiate together.

        As many as keep the graph in the cache; more where its tensors would be so small that the
        calls cost more than the numbers in them, as in the steps of a differential equation.
        """
        numbers = max(1, self.numbers)
        small = limits.SMALL_TENSOR * self.tensors // numbers
        roomy = min(small, limits.MAX_KEPT_NUMBERS // numbers)
        piece = max(limits.MIN_PIECE, limits.CACHED_NUMBERS // numbers, roomy)
        return min(limits.MAX_PIECE, piece)


def _counted(function: Callable[[Tensor], Any], z: Tensor) -> tuple[Any, _Kept]:
    """Return function(z) and what is kept for its gradient."""
    sizes: list[int] = []

    def count(saved: Tensor) -> Tensor:
        sizes.append(saved.numel())
        return saved

    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved)
    with torch.enable_grad(), hooks:
        result = function(z.requires_grad_())
    return result, _Kept(sum(sizes), len(sizes))


def _check_signature(
    function: PointDensity, name: str, layout: Layout, batch: tuple[Tensor, ...]
) -> None:
    """Refuse a function that cannot be called with these parameters and this data."""
    rows = [f"data {i}" for i in range(1, len(batch) + 1)]
    words = [*rows, *(f"{n}=" for n in layout.parts)] if layout.named else ["z", *rows]
    try:
        shape = inspect.signature(function)
    except (TypeError, ValueError):  # a built-in function has none to look at
        return
    try:
        shape.bind(*batch, **layout.parts) if layout.named else shape.bind(None, *batch)
    except TypeError as error:
        got, hint = f"{name}{shape}", ""
        if layout.named and not rows and len(shape.parameters) == 1:  # of a dictionary?
            hint = f"a function of each value, or lambda **values: {name}(values)"
        raise ArgumentTypeError(
            message(name, f"a function of ({', '.join(words)})", got, hint)
        ) from error


@contextlib.contextmanager
def _hinted(name: str) -> Iterator[None]:
    """Say what to do where PyTorch refuses to mix float32 with z, or to leave for NumPy."""
    try:
        yield
    except RuntimeError as error:
        words, hint = str(error).strip().splitlines()[0], ""
        if "dtype" in words or "scalar type" in words:
            hint = "data in float64, x.double(), as the parameters are"
        elif "numpy()" in words:
            hint = "compute with torch, or give log p and its gradient: Target.of_score"
        elif "in-place" in words or "inplace" in words:
            hint = "x = x.clone() before x is changed in place"
        if hint and not isinstance(error, UNFACTORED):
            raise ArgumentTypeError(f"{name}: {words}. Try: {hint}") from error
        raise


def _check_result(result: Any, name: str, rows: int | None) -> None:
    wanted = "a scalar tensor" if rows is None else "a tensor [rows], one term a row"
    if not isinstance(result, Tensor):
        hint = "compute with torch, and return the sum of the log densities"
        raise ArgumentTypeError(message(f"{name}(z)", wanted, type(result).__name__, hint))
    shape = () if rows is None else (rows,)
    hint = "sum over the last axis" if rows is None else "do not sum over rows"
    require(tuple(result.shape) == shape, f"{name}(z)", wanted, list(result.shape), hint)
    require(not result.is_complex(), f"{name}(z)", "real numbers", str(result.dtype), "its .real")


def _shown(name: str, value: Tensor) -> str:
    flat = value.flatten()
    numbers = ", ".join(f"{float(v):.6g}" for v in flat[: limits.SHOWN_ENTRIES])
    tail = ", …" if len(flat) > limits.SHOWN_ENTRIES else ""
    return f"{name} = {numbers}" if value.ndim == 0 else f"{name} = [{numbers}{tail}]"
