"""SciPy's frozen distributions as torch distributions, without importing SciPy.

Which to use: `is_scipy` to ask, `from_scipy` to turn one into a torch distribution and a shift. The
families that torch has become its own classes, so closed forms apply; every other one becomes a
`ScipyDistribution`, whose samples and log densities are SciPy's.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributions as families
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform
from torch.distributions.utils import lazy_property

from kullback.core import ArgumentValueError, message, require
from kullback.exact import InverseGaussian

__all__ = ["ScipyDistribution", "from_scipy", "is_scipy", "shifted"]

Parameters = dict[str, Tensor]
_LARGEST_SEED = 2**31 - 1  # of NumPy's legacy generators, which every SciPy version takes


class ScipyDistribution(families.Distribution):
    """A SciPy distribution that torch has no class for: SciPy draws and scores, in float64.

    No gradient flows. The samples are seeded by torch's generator, so a fixed seed repeats them.

    Example:
        >>> from scipy import stats
        >>> law = ScipyDistribution(stats.logistic(0, 1))
        >>> law.log_prob(torch.tensor(0.0))
        tensor(-1.3863, dtype=torch.float64)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, frozen: Any, batch_shape: torch.Size | None = None) -> None:
        """Wrap a frozen distribution; batch_shape: what its parameters are broadcast to."""
        self.frozen = frozen
        self._log_density = getattr(frozen, "logpmf", None) or frozen.logpdf
        self._between = _support_of(frozen, discrete=hasattr(frozen, "logpmf"))
        event = () if self._between else np.shape(frozen.rvs(size=2, random_state=0))[1:]
        own = np.shape(self._log_density(0.0)) if self._between else ()
        super().__init__(
            torch.Size(own) if batch_shape is None else batch_shape,
            torch.Size(event),
            validate_args=False,
        )

    @property
    def support(self) -> constraints.Constraint:
        """The interval between SciPy's bounds; unknown over vectors."""
        if self._between is None:
            raise NotImplementedError
        return self._between

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ScipyDistribution":
        """Return the same law with more equal batch axes."""
        return ScipyDistribution(self.frozen, torch.Size(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `[*sample, *batch, *event]`, float64."""
        shape = (*sample_shape, *self.batch_shape)
        size: Any = shape if self._between else max(math.prod(shape), 1)
        drawn = self.frozen.rvs(size=size, random_state=int(torch.randint(_LARGEST_SEED, ())))
        return torch.tensor(np.asarray(drawn, dtype=np.float64)).reshape(shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return SciPy's log density or log probability `[*sample, *batch]`, float64."""
        points = value.detach().cpu().double().numpy()
        if self._between is not None:
            return torch.tensor(np.asarray(self._log_density(points), dtype=np.float64))
        shape = points.shape[: points.ndim - len(self.event_shape)]
        if len(self.event_shape) < 2:
            scored = self._log_density(points)
        else:  # SciPy's families over matrices disagree on which axes hold the samples
            rows = points.reshape(-1, *self.event_shape)
            scored = [float(np.squeeze(self._log_density(row))) for row in rows]
        return torch.tensor(np.asarray(scored, dtype=np.float64)).reshape(shape)


def is_scipy(value: Any) -> bool:
    """Say whether a value has what a frozen SciPy distribution has: `rvs` and a log density.

    Example:
        >>> from scipy import stats
        >>> is_scipy(stats.norm(0, 1)), is_scipy([0.5, 0.5])
        (True, False)
    """
    scored = any(callable(getattr(value, name, None)) for name in ("logpdf", "logpmf"))
    return scored and callable(getattr(value, "rvs", None))


def from_scipy(frozen: Any, name: str = "p") -> tuple[families.Distribution, Tensor]:
    """Return the law of `x − shift` as a torch distribution, and the shift.

    Args:
        frozen: A frozen distribution, `scipy.stats.gamma(2.0, scale=3.0)`, whose parameters may be
            arrays `[*batch]`.
        name: The argument's name in messages.

    Returns:
        The torch distribution, float64, and the shift `[*batch]`: SciPy's `loc` where torch's
        family has none (and 1 for `geom`, which counts trials where torch counts failures).

    Raises:
        ValueError: For a distribution that is not frozen, or parameters outside the family's.

    Example:
        >>> from scipy import stats
        >>> law, shift = from_scipy(stats.gamma(2.0, loc=1.0, scale=4.0))
        >>> law.rate, shift
        (tensor(0.2500, dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    require(
        not (hasattr(frozen, "freeze") or _is_unfrozen(frozen)),
        name,
        "a frozen distribution, whose parameters are given",
        type(frozen).__name__,
        "scipy.stats.norm(0, 1)",
    )
    try:
        return _converted(frozen)
    except ValueError as error:
        expected = f"parameters within the range of scipy.stats.{_family_of(frozen)}"
        raise ArgumentValueError(message(name, expected, _shown(frozen))) from error


def shifted(law: families.Distribution, shift: Tensor, frozen: Any) -> families.Distribution:
    """Return the law of `x + shift` as one distribution.

    Args:
        law: What `from_scipy` returned.
        shift: Its shift.
        frozen: The SciPy distribution it came from.

    Returns:
        `law` itself without a shift; a transformed distribution where it has a density; SciPy's
        own on the integers, whose support torch's transforms lose.

    Example:
        >>> from scipy import stats
        >>> law, shift = from_scipy(stats.expon(loc=1.0))
        >>> type(shifted(law, shift, None)).__name__
        'TransformedDistribution'
    """
    if not bool(shift.any()):
        return law
    if hasattr(frozen, "logpmf"):
        return ScipyDistribution(frozen)
    return families.TransformedDistribution(law, [AffineTransform(shift, 1.0)])


class _Between(constraints.Constraint):
    """Numbers from `low` to `high`; the log probability says which of them have mass."""

    def __init__(self, low: Tensor, high: Tensor, *, discrete: bool) -> None:
        self.low, self.high, self.is_discrete = low, high, discrete

    def check(self, value: Tensor) -> Tensor:
        return (self.low <= value) & (value <= self.high)


def _support_of(frozen: Any, *, discrete: bool) -> _Between | None:
    if not hasattr(frozen, "support"):
        return None
    low, high = (torch.tensor(np.asarray(end, dtype=np.float64)) for end in frozen.support())
    if bool(low.isnan().any() | high.isnan().any()):
        raise ValueError("parameters without a support")
    return _Between(low, high, discrete=discrete)


def _is_unfrozen(value: Any) -> bool:
    """Say whether it is one of SciPy's multivariate families, called to freeze it."""
    return type(value).__module__.startswith("scipy.stats") and callable(value)


def _family_of(frozen: Any) -> str:
    return str(getattr(getattr(frozen, "dist", None), "name", type(frozen).__name__))


def _shown(frozen: Any) -> str:
    held = [*map(str, getattr(frozen, "args", ()))]
    held += [f"{key}={value}" for key, value in getattr(frozen, "kwds", {}).items()]
    return f"{_family_of(frozen)}({', '.join(held)})"[:80]


def _converted(frozen: Any) -> tuple[families.Distribution, Tensor]:
    none, kind = torch.zeros((), dtype=torch.float64), type(frozen)
    own = kind.__module__.startswith("scipy.stats")
    if own and kind.__name__ == "multivariate_normal_frozen":
        return families.MultivariateNormal(_tensor(frozen.mean), _tensor(frozen.cov)), none
    if own and kind.__name__ == "dirichlet_frozen":
        return families.Dirichlet(_tensor(frozen.alpha)), none
    family: Any = getattr(frozen, "dist", None)
    if type(family).__module__.startswith("scipy.stats") and family.name in _FAMILIES:
        parameters = _parameters(frozen)
        made = _FAMILIES[family.name](parameters)
        if made is not None:
            _check_parameters(made)
            return made, _shift(family.name, parameters["loc"])
    return ScipyDistribution(frozen), none


def _check_parameters(law: families.Distribution) -> None:
    """Refuse parameters out of range, also where torch's own checks are off (zuko's import)."""
    for name, constraint in law.arg_constraints.items():
        lazy = isinstance(getattr(type(law), name, None), lazy_property)  # logits beside probs
        if (lazy and name not in law.__dict__) or constraints.is_dependent(constraint):  # type: ignore[no-untyped-call]
            continue
        if not bool(constraint.check(getattr(law, name)).all()):  # type: ignore[no-untyped-call]
            raise ValueError(f"{name} is not {constraint}")


def _shift(family: str, loc: Tensor) -> Tensor:
    if family in _LOCATED:
        return torch.zeros_like(loc)
    return loc + 1 if family == "geom" else loc


def _parameters(frozen: Any) -> Parameters:
    """Match the numbers a distribution was frozen with to their names; broadcast, float64."""
    family = frozen.dist
    names = [name.strip() for name in (family.shapes or "").split(",") if name.strip()]
    names += ["loc", "scale"] if hasattr(family, "pdf") else ["loc"]
    bound = {"loc": 0.0, "scale": 1.0} | dict(zip(names, frozen.args, strict=False)) | frozen.kwds
    keys = list(bound)
    values = torch.broadcast_tensors(*map(_tensor, bound.values()))  # type: ignore[no-untyped-call]
    return dict(zip(keys, values, strict=True))


def _tensor(value: Any) -> Tensor:
    return torch.tensor(np.asarray(value, dtype=np.float64))


def _beta(p: Parameters) -> families.Distribution:
    law = families.Beta(p["a"], p["b"])
    if bool((p["scale"] == 1).all()):
        return law
    zero = torch.zeros_like(p["scale"])
    return families.TransformedDistribution(law, [AffineTransform(zero, p["scale"])])


def _chi2(p: Parameters) -> families.Distribution:
    if bool((p["scale"] == 1).all()):
        return families.Chi2(p["df"])
    return families.Gamma(p["df"] / 2, 0.5 / p["scale"])


def _von_mises(p: Parameters) -> families.Distribution | None:
    one = bool((p["scale"] == 1).all())
    return families.VonMises(p["loc"], p["kappa"]) if one else None


def _make(family: str, *parameters: Tensor) -> families.Distribution:
    """Call a class of torch's whose constructor has no types."""
    made: families.Distribution = getattr(families, family)(*parameters)
    return made


_LOCATED = {"cauchy", "genpareto", "gumbel_r", "laplace", "norm", "t", "uniform", "vonmises"}
_FAMILIES: dict[str, Callable[[Parameters], families.Distribution | None]] = {
    "bernoulli": lambda p: families.Bernoulli(p["p"]),
    "beta": _beta,
    "binom": lambda p: families.Binomial(p["n"], p["p"]),
    "cauchy": lambda p: families.Cauchy(p["loc"], p["scale"]),
    "chi2": _chi2,
    "expon": lambda p: families.Exponential(1 / p["scale"]),
    "gamma": lambda p: families.Gamma(p["a"], 1 / p["scale"]),
    "genpareto": lambda p: _make("GeneralizedPareto", p["loc"], p["scale"], p["c"]),
    "geom": lambda p: families.Geometric(p["p"]),
    "gumbel_r": lambda p: families.Gumbel(p["loc"], p["scale"]),
    "halfcauchy": lambda p: families.HalfCauchy(p["scale"]),
    "halfnorm": lambda p: families.HalfNormal(p["scale"]),
    "invgamma": lambda p: families.InverseGamma(p["a"], p["scale"]),
    "invgauss": lambda p: InverseGaussian(p["mu"] * p["scale"], p["scale"]),
    "laplace": lambda p: families.Laplace(p["loc"], p["scale"]),
    "lognorm": lambda p: families.LogNormal(p["scale"].log(), p["s"]),
    "nbinom": lambda p: families.NegativeBinomial(p["n"], 1 - p["p"]),
    "norm": lambda p: families.Normal(p["loc"], p["scale"]),
    "pareto": lambda p: families.Pareto(p["scale"], p["b"]),
    "poisson": lambda p: families.Poisson(p["mu"]),
    "t": lambda p: families.StudentT(p["df"], p["loc"], p["scale"]),
    "uniform": lambda p: families.Uniform(p["loc"], p["loc"] + p["scale"]),
    "vonmises": _von_mises,
    "weibull_min": lambda p: families.Weibull(p["scale"], p["c"]),
}
