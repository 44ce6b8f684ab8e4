"""KL from what was sampled: log-probabilities at samples, or two samples without densities.

Which to use: `kl_from_log_probs` where log p and log q of each sample are known; `kl_from_draws`
where there are only samples. Both take lists, NumPy arrays, pandas objects and tensors.
"""

from typing import Any

from torch import Generator, Tensor

from kullback.core import Estimate
from kullback.sampled import Estimator, Measured, Method, how_sampled, log_ratio
from kullback.sampled import kl_from_draws as _two_samples

from .inputs import read_array

__all__ = ["kl_from_draws", "kl_from_log_probs"]


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
        log_q: The same shape.
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
    found = log_ratio(
        read_array(log_p, "log_p"),
        read_array(log_q, "log_q"),
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
        y: `[m, d]` or `[m]`, independent samples from q.
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
    first, second = _samples(x, "x"), _samples(y, "y")
    found = _two_samples(first, second, method=method, neighbours=neighbours, generator=generator)
    return _measured(found)


def _array(value: Any, name: str) -> Any:
    plain = value is None or isinstance(value, int | float)
    return value if plain else read_array(value, name)


def _samples(value: Any, name: str) -> Tensor:
    """Return `[n, d]`; plain numbers are samples of one dimension."""
    array = read_array(value, name, expected="samples [n, d] or [n]")
    return array[:, None] if array.ndim == 1 else array


def _measured(found: Estimate) -> Measured:
    return Measured(found.value, how_sampled(found), found)
