"""Objectives: functions of log-weights `[draws, batch]` in nats; higher is better.

A log-weight is `log w = log p(x, z) − log q(z|x)` at a draw z ~ q, summed over every dimension of
x and z. Which to use: `elbo` when all there is are log-weights; `beta_elbo` when the KL to the
prior has a closed form (less variance; β and free bits act on it); `iwae` for the tighter bound;
`renyi` for what lies between and beyond; `miwae` and `ciwae` between the two; `WeightedBound` names
any of them, and `with_path_gradient` gives it the gradient of lower variance. `score_function` is
the ELBO for draws that cannot be differentiated. What is minimised is the *loss*, minus the batch
mean of one of these.

`loss_of` puts an objective, a gradient estimator, a target and a family together: a function of the
family and its noise, for `fit`.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from kullback.core import require
from kullback.sampled import log_mean_exp
from kullback.variational.families import Draws, Family
from kullback.variational.target.density import Target
from kullback.variational.target.functions import RowsDensity

__all__ = [
    "BOUNDS",
    "Gradient",
    "Loss",
    "Objective",
    "WeightedBound",
    "beta_elbo",
    "ciwae",
    "doubly_reparameterised",
    "elbo",
    "iwae",
    "log_weights",
    "loss_of",
    "miwae",
    "piwae",
    "renyi",
    "score_function",
    "with_path_gradient",
]


def log_weights(log_likelihood: Tensor, log_ratio: Tensor, *, beta: float = 1.0) -> Tensor:
    """Return `log p(x|z) + β (log p(z) − log q(z|x))`, `[draws, batch]`, in nats.

    With β = 1 these are true log-weights and their `elbo` and `iwae` are bounds on log p(x); with
    any other β they are not.

    Args:
        log_likelihood: `[draws, batch]`, log p(x|z).
        log_ratio: `[draws, batch]`, log p(z) − log q(z|x).
        beta: the weight of the second.

    Returns:
        `[draws, batch]`.

    Example:
        >>> log_weights(torch.tensor([[-3.0]]), torch.tensor([[-1.0]]), beta=2.0)
        tensor([[-5.]])
    """
    return log_likelihood + beta * log_ratio


def elbo(log_weights: Tensor) -> Tensor:
    """Return the evidence lower bound `(1/K) Σ_k log w_k`, `[batch]`, in nats (MATH 2.3).

    An unbiased estimate of the ELBO, itself a lower bound on log p(x). −inf stays −inf and
    NaN stays NaN.

    Args:
        log_weights: `[draws, batch]`, K ≥ 1 draws, in nats.

    Returns:
        `[batch]`, differentiable in the weights.

    Raises:
        ArgumentValueError: for another shape.

    Example:
        >>> elbo(torch.tensor([[-1.0, -2.0], [-3.0, -2.0]]))
        tensor([-2., -2.])
    """
    require(log_weights.ndim == 2, "log_weights", "[draws, batch]", list(log_weights.shape))
    return log_weights.mean(0)


def iwae(log_weights: Tensor) -> Tensor:
    """Return the importance-weighted bound `log (1/K) Σ_k w_k`, `[batch]`, in nats (MATH 2.5).

    In expectation it rises with K to log p(x) and never passes it; K = 1 is the ELBO. Its gradient
    weighs draws by their normalised weights.
    Reference: Burda, Grosse and Salakhutdinov (2016), eq. 8.

    Args:
        log_weights: `[draws, batch]`, K ≥ 1 draws, in nats.

    Returns:
        `[batch]`, differentiable in the weights.

    Raises:
        ArgumentValueError: for another shape.

    Example:
        >>> iwae(torch.log(torch.tensor([[0.1], [0.3]]))).exp()
        tensor([0.2000])
    """
    require(log_weights.ndim == 2, "log_weights", "[draws, batch]", list(log_weights.shape))
    return log_mean_exp(log_weights, dim=0)


def renyi(log_weights: Tensor, alpha: float) -> Tensor:
    """Return the variational Rényi bound `1/(1−α) · log (1/K) Σ_k w_k^(1−α)`, `[batch]`, in nats.

    With infinitely many draws it is `log p(x) − D_α(q‖posterior)`: the ELBO as α → 1 (taken as its
    limit there), log p(x) at α = 0, where it is `iwae`; a lower bound on log p(x) for α > 0 and an
    upper one for α < 0. From K draws it is biased towards the ELBO (Jensen).
    Reference: Li and Turner (2016), "Rényi divergence variational inference", eq. 6.

    Args:
        log_weights: `[draws, batch]`, in nats.
        alpha: the order, any finite number.

    Returns:
        `[batch]`, differentiable in the weights.

    Raises:
        ArgumentValueError: for another shape or an α that is not finite.

    Example:
        >>> renyi(torch.log(torch.tensor([[0.1], [0.3]])), 0.0).exp()
        tensor([0.2000])
    """
    require(math.isfinite(alpha), "alpha", "a finite number", alpha)
    require(log_weights.ndim == 2, "log_weights", "[draws, batch]", list(log_weights.shape))
    if alpha == 1.0:
        return elbo(log_weights)
    return log_mean_exp((1.0 - alpha) * log_weights, dim=0) / (1.0 - alpha)


def score_function(log_weights: Tensor, log_q: Tensor) -> Tensor:
    """Return the ELBO `[batch]` with a gradient that needs no derivative of the draws.

    The value is that of `elbo`, exactly. The gradient to q's parameters is `(1/K) Σ_k (log w_k −
    b_k) ∂ log q(z_k)`, where b_k is the mean of the other draws' log-weights (a control variate
    that leaves the expectation alone, and removes what all log-weights have in common): unbiased
    for discrete z and for densities with jumps, of higher variance than reparameterisation. The
    gradient to everything else, through log_weights with log q detached, is the ELBO's.
    Reference: Mnih and Rezende (2016), "Variational inference for Monte Carlo objectives";
    Kool, van Hoof and Welling (2019), "Buy 4 REINFORCE samples, get a baseline for free!".

    Args:
        log_weights: `[draws, batch]`, K ≥ 2, in nats.
        log_q: `[draws, batch]`, in nats, differentiable in q's parameters at fixed draws.

    Returns:
        `[batch]`, in nats.

    Raises:
        ArgumentValueError: for one draw or other shapes.

    Example:
        >>> log_q = torch.tensor([[-1.0], [-2.0]], requires_grad=True)
        >>> score_function(torch.tensor([[-3.0], [-5.0]]), log_q).backward()
        >>> log_q.grad.flatten()
        tensor([ 1., -1.])
    """
    require(log_weights.ndim == 2, "log_weights", "[draws, batch]", list(log_weights.shape))
    draws = len(log_weights)
    require(draws >= 2, "log_weights", "at least 2 draws", draws)
    fits = log_q.shape == log_weights.shape
    require(fits, "log_q", f"{list(log_weights.shape)}, as log_weights", list(log_q.shape))
    held = log_weights.detach()
    others = (held.sum(0) - held) / (draws - 1)
    signal = ((held - others) * log_q).mean(0)
    return elbo(log_weights) + (signal - signal.detach())


def doubly_reparameterised(log_weights: Tensor, z: Tensor) -> Tensor:
    """Return the importance-weighted bound `[batch]` with a gradient of lower variance.

    The value is that of `iwae`, exactly. The gradient to the parameters of q, which must reach the
    weights through z alone, has the same expectation as that of `iwae`, and a signal-to-noise
    ratio that does not sink as K grows: `Σ_k w̄_k² ∂log w_k/∂z_k · ∂z_k/∂φ` with normalised weights
    w̄. The gradient to everything else (the decoder) is that of `iwae`.
    Reference: Tucker et al. (2019), "Doubly Reparameterized Gradient Estimators", eq. 8.

    Args:
        log_weights: `[draws, batch]`, in nats, computed with the parameters of q *detached* in
            log q(z|x).
        z: `[draws, batch, latent]`, the reparameterised draws they were computed from; a hook on z
            scales its gradient, so use z for nothing else.

    Returns:
        `[batch]`, in nats.

    Raises:
        ArgumentValueError: for log-weights of another shape.

    Example:
        >>> z = torch.zeros(2, 1, 1, requires_grad=True) * 1.0
        >>> doubly_reparameterised(z.sum(-1) + torch.tensor([[0.0], [0.0]]), z)
        tensor([0.], grad_fn=<AddBackward0>)
    """
    return with_path_gradient(log_weights, z, WeightedBound("iwae"))


def miwae(log_weights: Tensor, groups: int) -> Tensor:
    """Return the mean over groups of `iwae`, `(1/M) Σ_m log (1/K) Σ_k w_mk`, `[batch]`, in nats.

    M = 1 is `iwae` of all draws, one draw a group the ELBO; a lower bound on log p(x) between them,
    whose gradient to q has less noise than that of `iwae`.
    Reference: Rainforth et al. (2018), "Tighter variational bounds are not necessarily better",
    eq. 13.

    Args:
        log_weights: `[draws, batch]`, in nats.
        groups: M, a divisor of the number of draws.

    Returns:
        `[batch]`, differentiable in the weights.

    Raises:
        ArgumentValueError: for another shape, or groups of unequal size.

    Example:
        >>> miwae(torch.log(torch.tensor([[0.1], [0.3], [0.2], [0.2]])), 2).exp()
        tensor([0.2000])
    """
    return log_mean_exp(_in_groups(log_weights, groups), dim=1).mean(0)


def ciwae(log_weights: Tensor, share: float) -> Tensor:
    """Return `share · elbo + (1 − share) · iwae` of the same draws, `[batch]`, in nats.

    A lower bound on log p(x) in expectation for a share from 0 to 1.
    Reference: Rainforth et al. (2018), eq. 15.

    Args:
        log_weights: `[draws, batch]`, in nats.
        share: of the ELBO, 0 to 1.

    Returns:
        `[batch]`, differentiable in the weights.

    Raises:
        ArgumentValueError: for another shape, or a share outside 0 to 1.

    Example:
        >>> ciwae(torch.tensor([[-1.0], [-1.0]]), 0.5)
        tensor([-1.])
    """
    require(0 <= share <= 1, "share", "0 to 1", share)
    return share * elbo(log_weights) + (1.0 - share) * iwae(log_weights)


BOUNDS = ("stl", "iwae", "iwae_plain", "renyi", "ciwae", "miwae", "piwae")


@dataclass(frozen=True, slots=True)
class WeightedBound:
    """Which function of K log-weights is maximised, and with which gradient to q.

    Args:
        name: "stl", the ELBO by the path of z alone (sticking the landing); "iwae"; "iwae_plain",
            the same bound with its plain gradient to q (Burda et al. 2016, eq. 13), whose
            signal-to-noise ratio sinks with K; "renyi"; "ciwae"; "miwae"; "piwae", whose gradient
            to q is that of "miwae" and to everything else that of "iwae" of all draws.
        alpha: the order of "renyi", or the share of the ELBO in "ciwae".
        groups: M of "miwae" and "piwae".

    Raises:
        ArgumentValueError: for an unknown name or values outside these.

    Example:
        >>> WeightedBound("renyi", alpha=0.0).value(torch.log(torch.tensor([[0.1], [0.3]]))).exp()
        tensor([0.2000])
    """

    name: str = "iwae"
    alpha: float = 0.5
    groups: int = 1

    @property
    def by_path(self) -> bool:
        """Whether its gradient to q goes by the path of z alone."""
        return self.name != "iwae_plain"

    def __post_init__(self) -> None:
        require(self.name in BOUNDS, "objective", f"one of {', '.join(BOUNDS)}", repr(self.name))
        share = self.name != "ciwae" or 0 <= self.alpha <= 1
        require(share and math.isfinite(self.alpha), "alpha", "0 to 1 for ciwae", self.alpha)
        require(self.groups >= 1, "groups", "at least 1", self.groups)

    def value(self, log_weights: Tensor) -> Tensor:
        """Return the bound `[batch]`, in nats, with its plain gradient."""
        if self.name == "stl":
            return elbo(log_weights)
        if self.name == "renyi":
            return renyi(log_weights, self.alpha)
        if self.name == "ciwae":
            return ciwae(log_weights, self.alpha)
        return miwae(log_weights, self.groups if self.name == "miwae" else 1)

    def coefficients(self, log_weights: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return what multiplies ∂log w_k: to all but q, and to q by the path of z.

        With normalised weights v of order α the plain gradient to q is Σ v_k (∂_z log w_k ∂z − β ∂
        log q(z_k)). The expectation of v_k ∂ log q(z_k) is that of ∂_z v_k ∂z = (1 − α)(v_k − v_k²)
        ∂_z log w_k ∂z, which leaves `v_k − β(1 − α)(v_k − v_k²)`: v_k² for the importance-weighted
        bound (Tucker et al. 2019, eq. 8), 1/K for the ELBO.

        Args:
            log_weights: `[draws, batch]`, in nats.
            beta: the weight of log q in them.

        Returns:
            Two `[draws, batch]`, without a graph.
        """
        logs = log_weights.detach()
        if self.name == "stl":
            even = torch.full_like(logs, 1.0 / len(logs))
            return even, even
        groups = self.groups if self.name in ("miwae", "piwae") else 1
        power = 1.0 - self.alpha if self.name == "renyi" else 1.0
        v = torch.softmax(power * _in_groups(logs, groups), 1).reshape(logs.shape)
        charged = beta * power
        others, path = v / groups, v * ((1.0 - charged) + charged * v) / groups
        if self.name == "piwae":
            return torch.softmax(logs, 0), path
        if self.name == "ciwae":
            each, rest = self.alpha / len(logs), 1.0 - self.alpha
            return each + rest * others, each + rest * path
        return others, path


def _in_groups(log_weights: Tensor, groups: int) -> Tensor:
    """Return `[draws, batch]` as `[groups, draws/groups, batch]`."""
    require(log_weights.ndim == 2, "log_weights", "[draws, batch]", list(log_weights.shape))
    draws = len(log_weights)
    fits = groups >= 1 and draws % groups == 0
    require(fits, "groups", f"a divisor of the {draws} draws", groups)
    return log_weights.reshape(groups, draws // groups, -1)


def with_path_gradient(
    log_weights: Tensor, z: Tensor, bound: WeightedBound, *, beta: float = 1.0
) -> Tensor:
    """Return a bound `[batch]` whose gradient to q goes by the path of z alone.

    The value is `bound.value`, exactly; the expectation of the gradient is that of its plain one,
    and its variance vanishes for "stl" as q tends to the posterior.
    Reference: Roeder, Wu and Duvenaud (2017), "Sticking the landing"; Tucker et al. (2019).

    Args:
        log_weights: `[draws, batch]`, in nats, computed with the parameters of q *detached* in
            log q(z|x).
        z: `[draws, batch, latent]`, the reparameterised draws they were computed from; a hook on z
            scales its gradient, so use z for nothing else.
        bound: which, other than "piwae" (see `piwae`) and "iwae_plain".
        beta: the weight of log q in the log-weights.

    Returns:
        `[batch]`, in nats.

    Raises:
        ArgumentValueError: for log-weights of another shape, "piwae" or "iwae_plain".

    Example:
        >>> z = torch.zeros(2, 1, 1, requires_grad=True) * 1.0
        >>> with_path_gradient(z.sum(-1), z, WeightedBound("stl"))
        tensor([0.], grad_fn=<AddBackward0>)
    """
    apart = bound.name != "piwae"
    require(apart, "bound", "one with a single weight for a draw", "piwae", "the function piwae")
    plain = "one whose gradient to q goes by the path of z"
    require(bound.by_path, "bound", plain, bound.name, "iwae, or the function iwae")
    others, path = bound.coefficients(log_weights, beta)
    if z.requires_grad:
        ratio = torch.where(others > 0, path / others, 0.0).unsqueeze(-1)
        z.register_hook(lambda gradient: gradient * ratio)  # type: ignore[no-untyped-call]
    surrogate = (others * log_weights).sum(0)
    return surrogate + (bound.value(log_weights.detach()) - surrogate.detach())


def piwae(
    log_weights: Tensor, leaf: Tensor, z: Tensor, groups: int, *, beta: float = 1.0
) -> Tensor:
    """Return `iwae` `[batch]` whose gradient to q is that of `miwae`, by the path of z.

    Everything but q learns from the bound of all draws, q from groups, whose gradient has less
    noise.
    Reference: Rainforth et al. (2018), section 4.2.

    Args:
        log_weights: `[draws, batch]`, in nats, computed from `leaf` with the parameters of q
            *detached* in log q(z|x).
        leaf: `z.detach().requires_grad_()`, `[draws, batch, latent]`.
        z: the reparameterised draws.
        groups: M, a divisor of the number of draws.
        beta: the weight of log q in the log-weights.

    Returns:
        `[batch]`, in nats.

    Raises:
        ArgumentValueError: for log-weights of another shape, or groups of unequal size.

    Example:
        >>> z = torch.zeros(2, 1, 1, requires_grad=True) * 1.0
        >>> leaf = z.detach().requires_grad_()
        >>> piwae(leaf.sum(-1), leaf, z, 2).detach()
        tensor([0.])
    """
    _, path = WeightedBound("piwae", groups=groups).coefficients(log_weights, beta)
    (slope,) = torch.autograd.grad((path * log_weights).sum(), leaf, retain_graph=True)
    by_path = (slope * z).sum((0, -1))
    return iwae(log_weights) + (by_path - by_path.detach())


def beta_elbo(
    log_likelihood: Tensor,
    kl: Tensor,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    means: Tensor | None = None,
) -> Tensor:
    """Return `(1/K) Σ_k log p(x|z_k) − β Σ_j KL_j`, `[batch]`, in nats, with a closed-form KL.

    β = 1 and free_bits = 0 give the ELBO; any other setting gives an objective that is not a bound
    on log p(x).
    Reference: Higgins et al. (2017), eq. 4; Kingma et al. (2016), eq. 15.

    Args:
        log_likelihood: `[draws, batch]`, in nats, summed over the dimensions of x.
        kl: `[batch, latent]`, in nats, the exact KL(q(z_j|x) ‖ p(z_j)) of every latent dimension.
        beta: the weight of the KL, at least 0.
        free_bits: nats each latent dimension may spend before it is charged: the *batch mean* of
            KL_j is replaced by free_bits where it is lower (its gradient is then zero).
        means: the batch mean of every KL_j, `[latent]`, where `kl` is of a share of a batch.

    Returns:
        `[batch]`, differentiable in both.

    Raises:
        ArgumentValueError: for a negative β or free_bits or for other shapes.

    Example:
        >>> beta_elbo(torch.tensor([[-10.0]]), torch.tensor([[1.0, 0.1]]), beta=2.0)
        tensor([-12.2000])
        >>> beta_elbo(torch.tensor([[-10.0]]), torch.tensor([[1.0, 0.1]]), free_bits=0.5)
        tensor([-11.5000])
    """
    require(beta >= 0, "beta", "a number of at least 0", beta)
    require(free_bits >= 0, "free_bits", "nats, at least 0", free_bits)
    require(kl.ndim == 2, "kl", "[batch, latent]", list(kl.shape))
    if free_bits > 0:
        means = kl.mean(0) if means is None else means
        kl = kl + torch.clamp(free_bits - means, min=0.0)
        kl = torch.where(means < free_bits, kl.detach(), kl)
    return elbo(log_likelihood) - beta * kl.sum(-1)


Objective = Literal["elbo", "iwae", "renyi"]
Gradient = Literal["reparameterised", "stl", "dreg", "score"]


class Loss(Protocol):
    """A function of the family and its noise `[n, noise_dim]`: a scalar to minimise, in nats."""

    def __call__(self, family: Family, noise: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the loss, for all data or for the rows of a mini-batch."""
        ...


def loss_of(
    target: Target,
    *,
    objective: Objective = "elbo",
    gradient: Gradient = "reparameterised",
    group: int = 8,
    alpha: float = 0.5,
    log_density: RowsDensity | None = None,
) -> Loss:
    """Return the loss, minus the objective's estimate, as a function of the family and its noise.

    Reference: Roeder, Wu and Duvenaud (2017), "Sticking the landing"; Tucker et al. (2019).

    Args:
        target: p.
        objective: "elbo"; "iwae" and "renyi", averaged over groups of draws.
        gradient: "reparameterised" (with the closed-form entropy where there is one); "stl",
            sticking the landing: the path derivative alone, whose variance vanishes as q tends to
            the posterior, for the ELBO; "dreg", its counterpart for "iwae"; "score", for the ELBO
            of what cannot be reparameterised.
        group: draws in each importance-weighted term.
        alpha: the order of "renyi".
        log_density: what stands in for the target's own (a control variate).

    Returns:
        The loss, in nats.

    Raises:
        ArgumentValueError: for an unknown name or a pair that does not belong together.
    """
    known = objective in get_args(Objective)
    require(known, "objective", "elbo, iwae or renyi", repr(objective))
    known = gradient in get_args(Gradient)
    require(known, "gradient", "reparameterised, stl, dreg or score", repr(gradient))
    partner = {"stl": "elbo", "dreg": "iwae", "score": "elbo"}.get(gradient, objective)
    require(partner == objective, "gradient", f"one for {objective}", gradient, "reparameterised")
    require(group >= 1, "group", "at least 1 draw", group)
    require(math.isfinite(alpha), "alpha", "a finite number", alpha)
    log_p = target.log_density if log_density is None else log_density
    if objective == "elbo":
        losses = {"reparameterised": _plain, "stl": _stl, "score": _score}
        return lambda family, noise, rows=None: losses[gradient](family, noise, log_p, rows)
    power = 0.0 if objective == "iwae" else alpha

    def grouped(family: Family, noise: Tensor, rows: Tensor | None = None) -> Tensor:
        draws, size = family.push(noise), math.gcd(group, len(noise))
        if gradient == "dreg":
            return -_doubly(family, draws, len(noise), size, log_p, rows)
        logs = draws.spread(log_p(draws.z, rows) - draws.log_q)
        logs = _grouped(logs, len(noise), size)
        return -(iwae(logs) if power == 0.0 else renyi(logs, power)).mean()

    return grouped


def _plain(family: Family, noise: Tensor, log_p: RowsDensity, rows: Tensor | None) -> Tensor:
    draws, entropy = family.push(noise), family.entropy()
    if entropy is None:
        return -draws.mean(log_p(draws.z, rows) - draws.log_q)
    return -draws.mean(log_p(draws.z, rows)) - entropy


def _stl(family: Family, noise: Tensor, log_p: RowsDensity, rows: Tensor | None) -> Tensor:
    draws = family.push(noise)
    return -draws.mean(log_p(draws.z, rows) - family.held_log_prob(draws.z))


def _score(family: Family, noise: Tensor, log_p: RowsDensity, rows: Tensor | None) -> Tensor:
    z = family.push(noise).z.detach()
    log_q = family.log_prob(z)
    weights = (log_p(z, rows) - log_q).detach()
    return -score_function(weights[:, None], log_q[:, None]).sum()


def _doubly(
    family: Family, draws: Draws, n: int, size: int, log_p: RowsDensity, rows: Tensor | None
) -> Tensor:
    z = _grouped(draws.z, n, size)
    flat = z.flatten(0, 1)
    logs = log_p(flat, rows) - family.held_log_prob(flat)
    spread = draws._replace(share=_shares_like(draws, n, size)).spread(logs)
    return doubly_reparameterised(spread.reshape(z.shape[:2]), z).mean()


def _shares_like(draws: Draws, n: int, size: int) -> Tensor | None:
    return None if draws.share is None else _grouped(draws.share, n, size).flatten()


def _grouped(values: Tensor, n: int, size: int) -> Tensor:
    """Arrange `[strata · n, …]` as `[strata · size, n / size, …]`: a group has every stratum."""
    strata = len(values) // n
    shaped = values.reshape(strata, size, n // size, *values.shape[1:])
    return shaped.flatten(0, 1)
