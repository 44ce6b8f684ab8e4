"""What a step minimises: minus the objective of this point of the run, and the weights of its KL.

Which to use: `loss_terms` for loss, ELBO and rate of a batch; `balance_weights` for the weights of
several layers; `require_parts_fit` says whether a model has what settings ask for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kullback.core import processes, require
from kullback.variational import WeightedBound, objectives

from ..latents import InverseAutoregressive, Quantised
from ..model import VAE
from ..training import Training

__all__ = ["balance_weights", "loss_terms", "require_parts_fit"]


def loss_terms(
    model: VAE,
    x: Tensor,
    noise: Tensor,
    settings: Training,
    progress: float = 1.0,
    *,
    group: processes.Processes | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss and (ELBO, rate), batch means in nats, for noise `[draws, batch, latent]`.

    The loss is minus the objective of this point of the run; the ELBO and the rate, `[2]` and
    without gradient, are what they say whatever β is. group: processes that have equal shares of
    the batch; what depends on a mean over the whole batch then gets it, and all else is of x.
    """
    beta = settings.beta_at(progress)
    name = settings.bound_at(progress)
    if name != "elbo":
        bound = WeightedBound(name, settings.alpha, settings.groups_at(progress))
        likelihood, kl, objective = model.tight_terms(x, noise, beta, bound)
    else:
        likelihood, kl = model.elbo_terms(x, noise)
        balanced = settings.balance and progress < settings.warmup
        free = settings.free_bits
        means = _mean_of_all(kl, group) if balanced or free else None
        if balanced:
            weights = balance_weights(kl if means is None else means[None], model.layer_sizes)
            kl_charged, means = kl * weights, None if means is None else means * weights
        else:
            kl_charged = kl
        objective = objectives.beta_elbo(
            likelihood, kl_charged, beta=beta, free_bits=free, means=means
        )
    with torch.no_grad():
        rate = kl.sum() / len(x)
        elbo = likelihood.sum() / likelihood.numel() - rate
    return -objective.mean(), torch.stack([elbo, rate])


@torch.no_grad()
def _mean_of_all(kl: Tensor, group: processes.Processes | None) -> Tensor | None:
    """Return the mean over the batches of all processes, `[latent]`; None where there is one."""
    if group is None or group.size == 1:
        return None
    return group.sum_(kl.mean(0)) / group.size


@torch.no_grad()
def balance_weights(kl: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the weight of every latent dimension's KL, `[latent]`, of mean 1 over layers.

    The weight of a layer is proportional to its KL a dimension, on average over the batch: a layer
    that carries little is charged little, so that it is not given up before it is used. Where no
    layer has a KL every weight is 1.
    Reference: Vahdat and Kautz (2020), "NVAE", appendix A.

    Args:
        kl: `[batch, latent]`, in nats.
        sizes: Dimensions of every layer.

    Returns:
        Without a graph.

    Example:
        >>> balance_weights(torch.tensor([[3.0, 1.0, 1.0]]), (1, 2))
        tensor([1.5000, 0.5000, 0.5000])
    """
    means = torch.stack([part.mean() for part in torch.split(kl, list(sizes), -1)])
    total = means.sum()
    weights = torch.where(total > 0, len(sizes) * means / total, 1.0)
    return weights.repeat_interleave(torch.tensor(sizes, device=kl.device))


def require_parts_fit(model: VAE, settings: Training) -> None:
    """Raise an ArgumentValueError where settings ask for what the model's parts do not have."""
    known = not settings.free_bits or model.has_kl_per_dimension()
    why = "0 where there is no KL of a single latent dimension (a learned prior, a full q)"
    hint = "free_bits=0, or prior normal with posterior diagonal"
    require(known, "free_bits", why, settings.free_bits, hint)
    several = len(model.layer_sizes) > 1
    why = "several stochastic layers, between which the KL is balanced"
    require(several or not settings.balance, "balance", why, "one", "layers=2")
    plain = settings.objective == "elbo" and settings.draws == 1 and not settings.tighten
    coded = isinstance(model.family, Quantised)
    why = (
        "elbo with one draw and no tighten for a quantised posterior, whose draws are all the same"
    )
    require(plain or not coded, "objective", why, f"{settings.objective}, {settings.draws} draws")
    apart = settings.objective != "piwae" or not isinstance(model.family, InverseAutoregressive)
    why = "another with posterior iaf, whose log q at a given z takes many passes"
    require(apart, "objective", why, "piwae", "miwae")
