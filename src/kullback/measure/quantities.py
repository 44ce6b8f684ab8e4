"""Entropies and divergences of whatever stands for P and Q: tables, distributions or text.

Which to use: `kl` for the extra code length of q's code on data from p; `js` for a symmetric,
bounded number; `jeffreys` for both directions of KL at once; `renyi` for the family around KL;
`entropy` and `cross_entropy` for code lengths; `mutual_information` for what two variables share;
`kl_from_log_probs` where log p and log q of samples are known; `kl_from_draws` for samples alone.

P and Q are tables (lists, dictionaries, NumPy arrays, pandas Series, tensors `[*batch, outcomes]`),
torch or frozen SciPy distributions, or text as on the command line: "0.5,0.25,0.25", "N(0,1)".
Everything returns a `Measured`, in nats: exact where that is known, else sampled.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Generator, Tensor
from torch.distributions import Distribution

from kullback.core import ArgumentTypeError, Estimate, message, require
from kullback.exact import Form, closed_forms, tables
from kullback.exact import mutual_information as information_of
from kullback.sampled import Estimator, Measured, Method, divergences, how_sampled, log_ratio
from kullback.sampled import kl_from_draws as two_samples

from .inputs import read_aligned, read_array, read_one, read_pair

__all__ = [
    "cross_entropy",
    "entropy",
    "jeffreys",
    "js",
    "kl",
    "kl_from_draws",
    "kl_from_log_probs",
    "mutual_information",
    "renyi",
]

_TABLE = "sum over the table"


def kl(
    p: Any,
    q: Any,
    *,
    form: Form = "probs",
    normalise: bool = False,
    draws: int = 10_000,
    estimator: Estimator = "best",
    generator: Generator | None = None,
) -> Measured:
    """Return the Kullback-Leibler divergence `KL(p‖q) = E_p[log p/q]` in nats, p first.

    Args:
        p: Of the data: a table `[*batch, outcomes]` (list, dictionary, NumPy array, pandas Series,
            tensor), a torch or frozen SciPy distribution, or text ("0.5,0.25,0.25", "N(0,1)").
        q: What p is compared with, of the same kind. Outcomes that both name are matched by name.
        form: What tables hold: "probs", "log_probs" or "logits".
        normalise: Divide tables by their sum instead of refusing one that does not sum to 1.
        draws: How many samples to take where nothing exact is known.
        estimator: Of a sampled value: "k1", "k2", "k3", a number λ, or "best" (MATH 5.5).
        generator: Seeds the samples; torch's own when None.

    Returns:
        A `Measured` `[*batch]`. Exact, with gradients, between tables, where there is a closed
        form, where supports or tails make it +inf, and as a sum over the integers; else sampled,
        without gradients. `method` says which.

    Raises:
        TypeError: For one table and one distribution, or what stands for neither.
        ValueError: For text that cannot be read; shapes or names that differ; tables that do not
            sum to 1; a discrete distribution against a continuous one.

    Source: Kullback and Leibler (1951), "On information and sufficiency".

    Example:
        >>> print(kl([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]))
        0.173287 nats (sum over the table)
        >>> print(kl("N(0,1)", "N(1,1)"))
        0.5 nats (closed form: Normal‖Normal)
        >>> import torch
        >>> found = kl("t(5)", "laplace(0,1)", generator=torch.Generator().manual_seed(0))
        >>> found.exact, found.shape
        (False, ())
    """
    first, second = read_pair(p, q, normalise=normalise)
    if isinstance(first, Tensor):
        return _over_tables(tables.kl, first, second, form=form, normalise=normalise)
    _require_plain(form)
    return divergences.kl(first, second, draws=draws, estimator=estimator, generator=generator)


def js(
    p: Any,
    q: Any,
    *,
    form: Form = "probs",
    normalise: bool = False,
    draws: int = 10_000,
    generator: Generator | None = None,
) -> Measured:
    """Return the Jensen-Shannon divergence `½ KL(p‖m) + ½ KL(q‖m)`, `m = ½(p + q)`, in nats.

    Args:
        p: As in `kl`.
        q: As in `kl`.
        form: As in `kl`.
        normalise: As in `kl`.
        draws: As in `kl`; half of them from p and half from q.
        generator: As in `kl`.

    Returns:
        A `Measured` `[*batch]` between 0 and log 2: exact for tables, Bernoulli and categorical
        distributions and on the integers, else sampled.

    Raises:
        TypeError: As in `kl`.
        ValueError: As in `kl`.

    Source: Lin (1991), "Divergence measures based on the Shannon entropy".

    Example:
        >>> print(js([1.0, 0.0], [0.0, 1.0]).bits())
        1 bits (sum over the table)
    """
    first, second = read_pair(p, q, normalise=normalise)
    if isinstance(first, Tensor):
        return _over_tables(tables.js, first, second, form=form, normalise=normalise)
    _require_plain(form)
    return divergences.js(first, second, draws=draws, generator=generator)


def jeffreys(
    p: Any,
    q: Any,
    *,
    form: Form = "probs",
    normalise: bool = False,
    draws: int = 10_000,
    generator: Generator | None = None,
) -> Measured:
    """Return the Jeffreys divergence `KL(p‖q) + KL(q‖p)`, in nats.

    Args:
        p: As in `kl`.
        q: As in `kl`.
        form: As in `kl`.
        normalise: As in `kl`.
        draws: As in `kl`, of each direction that must be sampled.
        generator: As in `kl`.

    Returns:
        A `Measured` `[*batch]`: exact where both directions are, or where one is +inf.

    Raises:
        TypeError: As in `kl`.
        ValueError: As in `kl`.

    Source: Jeffreys (1946), "An invariant form for the prior probability in estimation problems".

    Example:
        >>> print(jeffreys("N(0,1)", "N(1,1)"))
        1 nats (closed form: Normal‖Normal)
    """
    first, second = read_pair(p, q, normalise=normalise)
    if isinstance(first, Tensor):
        return _over_tables(tables.jeffreys, first, second, form=form, normalise=normalise)
    _require_plain(form)
    forward = divergences.kl(first, second, draws=draws, generator=generator)
    if _infinite(forward):
        return forward
    backward = divergences.kl(second, first, draws=draws, generator=generator)
    return backward if _infinite(backward) else _sum(forward, backward)


def renyi(
    p: Any,
    q: Any,
    *,
    alpha: float,
    form: Form = "probs",
    normalise: bool = False,
) -> Measured:
    """Return the Rényi divergence `D_α(p‖q) = log E_p[(p/q)^(α−1)] / (α − 1)`, in nats.

    Args:
        p: As in `kl`.
        q: As in `kl`.
        alpha: The order: 0 ≤ α ≤ inf between tables, 0 < α < inf between distributions; 1 is `kl`.
        form: As in `kl`.
        normalise: As in `kl`.

    Returns:
        A `Measured` `[*batch]`, always exact, with gradients.

    Raises:
        TypeError: As in `kl`, and for distributions between which no closed form is known.
        ValueError: As in `kl`, and for an order out of range.

    Source: van Erven and Harremoës (2014), "Rényi divergence and Kullback-Leibler divergence".

    Example:
        >>> print(renyi("N(0,1)", "N(1,1)", alpha=2))
        1 nats (closed form: Normal‖Normal)
    """
    first, second = read_pair(p, q, normalise=normalise)
    if isinstance(first, Tensor):
        value = tables.renyi(first, second, alpha=alpha, form=form, normalise=normalise)
        return Measured(value, _TABLE)
    _require_plain(form)
    kinds = f"{type(first).__name__}‖{type(second).__name__}"
    return Measured(closed_forms.renyi(first, second, alpha=alpha), f"closed form: {kinds}")


def entropy(
    p: Any,
    *,
    form: Form = "probs",
    normalise: bool = False,
    draws: int = 10_000,
    generator: Generator | None = None,
) -> Measured:
    """Return the entropy `H(p) = −E_p[log p]` in nats, differential where p has a density.

    Args:
        p: As in `kl`.
        form: As in `kl`.
        normalise: As in `kl`.
        draws: As in `kl`.
        generator: As in `kl`.

    Returns:
        A `Measured` `[*batch]`: exact for tables, by closed forms and on the integers, else
        sampled.

    Raises:
        TypeError: As in `kl`.
        ValueError: As in `kl`.

    Source: Shannon (1948), "A mathematical theory of communication".

    Example:
        >>> print(entropy([0.5, 0.25, 0.25]).bits())
        1.5 bits (sum over the table)
    """
    given = read_one(p, normalise=normalise)
    if given.table:
        return Measured(tables.entropy(given.value, form=form, normalise=normalise), _TABLE)
    _require_plain(form)  # a shift changes no entropy
    return divergences.entropy(given.value, draws=draws, generator=generator)


def cross_entropy(
    p: Any,
    q: Any,
    *,
    form: Form = "probs",
    normalise: bool = False,
    draws: int = 10_000,
    generator: Generator | None = None,
) -> Measured:
    """Return the cross-entropy `H(p, q) = −E_p[log q] = H(p) + KL(p‖q)`, in nats.

    Args:
        p: The distribution of the data, as in `kl`.
        q: The distribution that the code is made for, as in `kl`.
        form: As in `kl`.
        normalise: As in `kl`.
        draws: As in `kl`.
        generator: As in `kl`.

    Returns:
        A `Measured` `[*batch]`: exact where entropy and KL are, else sampled.

    Raises:
        TypeError: As in `kl`.
        ValueError: As in `kl`.

    Example:
        >>> print(cross_entropy([0.5, 0.5], [0.25, 0.75]))
        0.836988 nats (sum over the table)
    """
    first, second = read_pair(p, q, normalise=normalise)
    if isinstance(first, Tensor):
        return _over_tables(tables.cross_entropy, first, second, form=form, normalise=normalise)
    _require_plain(form)
    return divergences.cross_entropy(first, second, draws=draws, generator=generator)


def mutual_information(joint: Any, *, form: Form = "probs", normalise: bool = False) -> Measured:
    """Return `I(X; Y) = KL(p(x, y) ‖ p(x) p(y))` of a joint table, in nats.

    Args:
        joint: `[*batch, X, Y]`: nested lists, a NumPy array, a pandas DataFrame or a tensor, which
            sums to 1 over both variables.
        form: As in `kl`.
        normalise: Divide by the sum, as for a table of counts.

    Returns:
        A `Measured` `[*batch]`, exact, with gradients.

    Raises:
        TypeError: For anything but numbers.
        ValueError: For fewer than two axes, or a table that does not sum to 1.

    Source: Shannon (1948), "A mathematical theory of communication".

    Example:
        >>> print(mutual_information([[0.5, 0.0], [0.0, 0.5]]).bits())
        1 bits (sum over the table)
        >>> print(mutual_information([[30, 10], [10, 30]], normalise=True))
        0.130812 nats (sum over the table)
    """
    expected = "a joint table [*batch, X, Y]: nested lists, an array, a DataFrame or a tensor"
    if isinstance(joint, str | Distribution):
        raise ArgumentTypeError(message("joint", expected, type(joint).__name__))
    value = read_array(joint, "joint", expected=expected)
    require(value.ndim >= 2, "joint", expected, f"shape {list(value.shape)}")
    return Measured(information_of(value, form=form, normalise=normalise), _TABLE)


def kl_from_log_probs(
    log_p: Any,
    log_q: Any,
    *,
    estimator: Estimator = "k1",
    full_support: bool = False,
    ratio_mean: Any = None,
    entropies: Any = None,
    cross_fit: bool = True,
    log_weights: Any = None,
    self_normalise: bool = False,
    controls: Any = None,
) -> Measured:
    """Estimate `KL(p‖q) = E_p[log p(x) − log q(x)]` from log-probabilities at samples x ~ p.

    Args:
        log_p: `[*batch, draws]`, natural logarithms, normalised.
        log_q: The same shape. Two pandas objects are matched by their index.
        estimator: "k1" (right whatever the supports), "k2", "k3", a number λ or "best".
        full_support: Assert that q has no mass outside p's support, which k3, λ and "best" need.
        ratio_mean: The known mean of q/p under p, a number or `[*batch]`, instead of it.
        entropies: `[*batch, draws]`, p's entropy at each sample's position: a check.
        cross_fit: Whether "best" takes λ from the other half of the samples.
        log_weights: `[*batch, draws]`, log p − log m where the samples come from m.
        self_normalise: Whether to divide by the mean weight.
        controls: `[*batch, draws, K]`, further functions of mean 0 under p, for "best".

    Returns:
        A `Measured` `[*batch]`, sampled, without gradients. `sampled.log_ratio` says what each
        option does and when there is no standard error.

    Raises:
        TypeError: For anything but numbers.
        ValueError: As `sampled.log_ratio`.

    Source: MATH 5.1 to 5.6.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=4000)
        >>> print(kl_from_log_probs(-0.5 * x**2, -0.5 * (x - 0.1) ** 2))
        0.0065 ± 0.0016 nats (sampled: k1, 4,000 draws)
    """
    many = {"ratio_mean": ratio_mean, "entropies": entropies, "log_weights": log_weights}
    many |= {"controls": controls}
    read = {name: _array(value, name) for name, value in many.items()}
    first, second = read_aligned(log_p, log_q, ("log_p", "log_q"), paired=True)
    found = log_ratio(
        first,
        second,
        estimator=estimator,
        full_support=full_support,
        cross_fit=cross_fit,
        self_normalise=self_normalise,
        **read,
    )
    return _measured(found)


def kl_from_draws(
    x: Any,
    y: Any,
    *,
    method: Method = "neighbours",
    neighbours: int | None = None,
    generator: Generator | None = None,
) -> Measured:
    """Estimate `KL(p‖q) = E_p[log p/q]`, in nats, from samples alone: x ~ p and y ~ q.

    Args:
        x: `[n, d]` or `[n]`, independent samples from p, at least 80.
        y: `[m, d]` or `[m]`, independent samples from q. Columns of two DataFrames are matched by
            name.
        method: "neighbours" for smooth densities in few dimensions; "classifier" for a lower bound
            whatever the laws are.
        neighbours: One number of neighbours instead of an extrapolation; no error bar then.
        generator: Seeds what is shuffled; a fixed seed when None.

    Returns:
        A `Measured`, sampled, without gradients. `sampled.kl_from_draws` says when there is no
        standard error.

    Raises:
        TypeError: For anything but numbers.
        ValueError: As `sampled.kl_from_draws`.

    Source: Wang, Kulkarni and Verdú (2009); Moon et al. (2018).

    Example:
        >>> import numpy as np
        >>> seed = np.random.default_rng(0)
        >>> found = kl_from_draws(seed.normal(size=200), 1 + seed.normal(size=200))
        >>> found.exact, found.shape
        (False, ())
    """
    expected = "samples [n, d] or [n]"
    both = read_aligned(x, y, ("x", "y"), paired=False, expected=expected)
    first, second = map(_as_rows, both)
    found = two_samples(first, second, method=method, neighbours=neighbours, generator=generator)
    return _measured(found)


def _over_tables(
    function: Callable[..., Tensor], p: Tensor, q: Tensor, *, form: Form, normalise: bool
) -> Measured:
    return Measured(function(p, q, form=form, normalise=normalise), _TABLE)


def _require_plain(form: str) -> None:
    expected = "'probs', which is unused, beside distributions"
    require(form == "probs", "form", expected, repr(form))


def _infinite(found: Measured) -> bool:
    return found.exact and bool((found.value == math.inf).all())


def _sum(first: Measured, second: Measured) -> Measured:
    """Add two numbers, of which one or both may be sampled, each from its own samples."""
    if first.estimate is None and second.estimate is None:
        method = first.method if first.method == second.method else ""
        return Measured(first.value + second.value, method or f"{first.method} + {second.method}")
    if first.estimate is not None and second.estimate is not None:
        found = first.estimate + second.estimate
        return Measured(found.value, how_sampled(found), found)
    sampled, exact = (first, second) if second.exact else (second, first)
    known = exact.value.detach()
    estimate: Any = sampled.estimate
    total = estimate + (known if known.ndim else float(known))
    return Measured(total.value, f"{exact.method} + {sampled.method}", total)


def _array(value: Any, name: str) -> Any:
    plain = value is None or isinstance(value, int | float)
    return value if plain else read_array(value, name)


def _as_rows(array: Tensor) -> Tensor:
    """Return `[n, d]`; plain numbers are samples of one dimension."""
    return array[:, None] if array.ndim == 1 else array


def _measured(found: Estimate) -> Measured:
    return Measured(found.value, how_sampled(found), found)
