"""log p(x) = ELBO + KL(q(z|x) ‖ p(z|x)), measured: how large the KL is, and where it comes from.

`measure_gap` puts bounds on log p(x), from below on real images and from both sides on images that
the model makes (`made_by`), and takes the ELBO from them. `refit` finds the best q of the family
for each image by itself, which splits the KL into approximation (what the family costs) and
amortisation (what the encoder costs on top): Cremer, Li and Duvenaud (2018), "Inference
suboptimality in variational autoencoders". `gap_remarks` says in words what the figures mean.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kullback.core import Estimate, require

from ..evidence import bounds, outputs_of, over_images
from ..latents import Encoded, Posterior, draw_with_kl, fixed
from ..limits import ANNEALED_OUTPUTS, COLLAPSED_KL, SETTLED_WIDTH
from ..model import VAE, names_own_parts
from .annealing import Annealing, anneal

__all__ = ["Gap", "PerImage", "Refit", "gap_remarks", "made_by", "measure_gap", "refit"]

ELBO_DRAWS = 100  # of q(z|x) per image, for each of the two ELBOs that are subtracted


@dataclass(frozen=True, slots=True)
class Refit:
    """How the best q of the family is found for each image: Adam on its mean and log sd.

    Args:
        steps: Of Adam, at least 1; the learning rate falls to 0 along a cosine.
        draws: Of q per image and step, at least 1.
        learning_rate: In units of the encoder's standard deviations.

    Example:
        >>> Refit().steps
        300
    """

    steps: int = 300
    draws: int = 8
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", "at least 1", self.steps)
        require(self.draws >= 1, "draws", "at least 1", self.draws)


@dataclass(frozen=True, slots=True)
class PerImage:
    """The terms of a `Gap`, `[n]` each, in nats, float64.

    Args:
        elbo: Of the encoder's q, by 100 draws.
        refitted_elbo: Of the best q found for this image, by 100 other draws.
        rate: KL(q(z|x) ‖ p(z)) of the encoder's q.
        refitted_rate: Of the best q.
        lower: A bound on log p(x) from below, by annealing.
        upper: From above; None on data that the model did not make.
        settled: Whether both bounds are within half a nat; without an upper one, whether the
            annealed weights agree (`Annealed.settled`).
        effective_chains: Of the annealed weights.
    """

    elbo: Tensor
    refitted_elbo: Tensor
    rate: Tensor
    refitted_rate: Tensor
    lower: Tensor
    upper: Tensor | None
    settled: Tensor
    effective_chains: Tensor


@dataclass(frozen=True, slots=True)
class Gap:
    """log p(x), ELBO and the KL between them, for one set of images; errors are over images.

    Args:
        lower: Of log p(x): a stochastic lower bound.
        upper: Of log p(x): a stochastic upper bound; None on data that the model did not make.
        elbo: A lower bound.
        kl_lower: KL(q(z|x) ‖ p(z|x)) = log p(x) − ELBO from below, paired by image.
        kl_upper: From above, or None.
        width: upper − lower, paired by image, or None.
        approximation: lower − ELBO of the best q of the family, from below; high by what the
            refit missed.
        amortisation: ELBO of the best q − ELBO of the encoder's; low by what the refit missed.
        rate: KL(q(z|x) ‖ p(z)).
        refitted_rate: The same of the best q.
        settled: How many images are settled, see `PerImage`.
        images: How many there are.
        per_image: The terms.
    """

    lower: Estimate
    upper: Estimate | None
    elbo: Estimate
    kl_lower: Estimate
    kl_upper: Estimate | None
    width: Estimate | None
    approximation: Estimate
    amortisation: Estimate
    rate: Estimate
    refitted_rate: Estimate
    settled: int
    images: int
    per_image: PerImage

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary of the estimates and counts, without the terms."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "per_image"}
        return {k: v.to_dict() if isinstance(v, Estimate) else v for k, v in fields.items()}


@names_own_parts
def measure_gap(
    model: VAE,
    x: Tensor,
    *,
    exact: Tensor | None = None,
    annealing: Annealing | None = None,
    refitting: Refit | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Gap:
    """Measure log p(x) = ELBO + KL(q(z|x) ‖ p(z|x)) on images (MATH 2.1).

    Without `exact` log p(x) is bounded from below alone, and so is the KL. No upper bound is given
    there: bidirectional Monte Carlo needs a draw from p(z|x), which only data that the model made
    come with; bounds that do without one (χ or tangent bounds) average w or w² over q, which has
    infinite variance where the posterior has heavier tails than q; draws of q cannot rule that out.

    Args:
        model: The model.
        x: `[n, *event]`.
        exact: `[n, latent]`, the z that each x was drawn from p(x|z) with, if the model made x.
        annealing: By default `Annealing()`.
        refitting: By default `Refit()`.
        seed: Of all draws.
        progress: Called with (images done, n).

    Returns:
        The figures.

    Raises:
        ArgumentValueError: x does not fit the model, or `exact` does not fit x.

    Example:
        >>> from ..model import build
        >>> model = build((4,), "binary")
        >>> quick = {"annealing": Annealing(chains=2, temperatures=4), "refitting": Refit(steps=2)}
        >>> found = measure_gap(model, torch.ones(3, 4), **quick)
        >>> found.images, found.upper is None
        (3, True)
    """
    x = model.check(x)
    generator = torch.Generator(x.device).manual_seed(seed)
    annealed = anneal(
        model, x, settings=annealing, exact=exact, generator=generator, progress=progress
    )
    refitting = refitting or Refit()
    with torch.no_grad():
        outputs = outputs_of(model, model.approximate_posterior(x[:1]))
    images = max(1, ANNEALED_OUTPUTS // (refitting.draws * outputs))
    elbos = [_elbos(model, part, refitting, generator) for part in torch.split(x, images)]
    columns = [torch.cat(column).double().cpu() for column in zip(*elbos, strict=True)]
    elbo, refitted, rate, refitted_rate = columns
    lower, upper = annealed.lower.cpu(), None if annealed.upper is None else annealed.upper.cpu()
    settled = annealed.settled.cpu() if upper is None else (upper - lower).abs() <= SETTLED_WIDTH
    terms = PerImage(
        elbo=elbo,
        refitted_elbo=refitted,
        rate=rate,
        refitted_rate=refitted_rate,
        lower=lower,
        upper=upper,
        settled=settled,
        effective_chains=annealed.effective_chains.cpu(),
    )
    return _summarised(terms)


def _summarised(terms: PerImage) -> Gap:
    below = "annealed importance sampling is below log p(x) in expectation"
    above = "bidirectional Monte Carlo is above log p(x) in expectation"
    missed = "the best q of the family is only approached by gradient steps"
    upper, gain = terms.upper, terms.refitted_elbo - terms.elbo

    def from_above(less: Tensor | float) -> Estimate | None:
        return None if upper is None else over_images(upper - less, bias="high", why=above)

    return Gap(
        lower=over_images(terms.lower, bias="low", why=below),
        upper=from_above(0.0),
        elbo=over_images(terms.elbo, bias="low", why="a lower bound on log p(x), in expectation"),
        kl_lower=over_images(terms.lower - terms.elbo, bias="low", why=below),
        kl_upper=from_above(terms.elbo),
        width=from_above(terms.lower),
        approximation=over_images(terms.lower - terms.refitted_elbo, bias="unknown", why=missed),
        amortisation=over_images(gain, bias="low", why=missed),
        rate=over_images(terms.rate),
        refitted_rate=over_images(terms.refitted_rate),
        settled=int(terms.settled.sum()),
        images=len(terms.elbo),
        per_image=terms,
    )


def _elbos(
    model: VAE, x: Tensor, refitting: Refit, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ELBO of the encoder's and of the best q, and their KL to the prior, `[n]` each."""
    figures = bounds(model, x, draws=ELBO_DRAWS, generator=generator)
    fitted = _With(model, _refitted(model, x, refitting, generator))
    best = bounds(fitted, x, draws=ELBO_DRAWS, generator=generator)
    return figures.elbo, best.elbo, figures.rate, best.rate


class _With:
    """A model with q given image by image instead of an encoder, for `bounds`."""

    def __init__(self, model: VAE, q: Posterior) -> None:
        self.likelihood, self.prior = model.likelihood, model.prior
        self.parameters_of = model.parameters_of
        self.q = q

    def approximate_posterior(self, _x: Tensor) -> Posterior:
        return self.q


@names_own_parts
def refit(
    model: VAE, x: Tensor, settings: Refit | None = None, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return mean and log sd of the q of the model's family with the highest ELBO for each x.

    Adam on what the encoder gives for each x, with reparameterised draws and the prior's KL (its
    closed form where there is one). Decoder and prior stay.

    Args:
        model: The model.
        x: `[n, *event]`, as `model.check` returns it.
        settings: By default `Refit()`.
        generator: Source of the draws.

    Returns:
        `[n, latent]` each, without a graph.

    Example:
        >>> from ..model import build
        >>> model = build((4,), "binary")
        >>> refit(model, torch.ones(3, 4), Refit(steps=2), generator=torch.Generator())[0].shape
        torch.Size([3, 32])
    """
    return _refitted(model, x, settings or Refit(), generator).moments()


def _refitted(model: VAE, x: Tensor, settings: Refit, generator: torch.Generator) -> Posterior:
    """Do what `refit` does; return q."""
    with torch.no_grad():
        start, prior = model.encoded(x), fixed(model.prior)
    shift, widen = (torch.zeros_like(start.mean, requires_grad=True) for _ in range(2))
    more = None if start.extra is None else torch.zeros_like(start.extra, requires_grad=True)
    moved = [shift, widen] if more is None else [shift, widen, more]
    optimiser = torch.optim.Adam(moved, lr=settings.learning_rate)

    def q_now() -> Posterior:
        place = start.mean + start.log_sd.exp() * shift
        extra = None if start.extra is None or more is None else start.extra + more
        return model.family(Encoded(place, start.log_sd + widen, extra))

    for step in range(settings.steps):
        rate = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        optimiser.param_groups[0]["lr"] = settings.learning_rate * rate
        shape = (settings.draws, *start.mean.shape)
        noise = torch.randn(shape, generator=generator, device=x.device).to(start.mean.dtype)
        z, kl = draw_with_kl(prior, q_now(), noise)
        likelihood = model.likelihood.log_prob(model.parameters_of(z), x).mean(0)
        loss = (kl.sum(-1) - likelihood).sum()
        gradients = torch.autograd.grad(loss, moved, allow_unused=True, materialize_grads=True)
        for one, gradient in zip(moved, gradients, strict=True):
            one.grad = gradient
        optimiser.step()
    with torch.no_grad():
        return q_now()


def gap_remarks(test: Gap, own: Gap) -> list[str]:
    """Say in one sentence each what a sandwich means, whether it holds, and what to try.

    Args:
        test: Of data.
        own: Of images that the model made, with both bounds.

    Returns:
        Sentences.

    Example:
        >>> from ..model import build
        >>> quick = {"annealing": Annealing(chains=2, temperatures=4), "refitting": Refit(steps=2)}
        >>> found = measure_gap(build((4,), "binary"), torch.ones(3, 4), **quick)
        >>> len(gap_remarks(found, found)) >= 2
        True
    """
    said = [
        "There is no upper bound on real data: it takes an exact draw from p(z|x), which only "
        "images that the model made come with. The same chains are tried on those, from both sides."
    ]
    if own.width is not None:
        said.append(_width(own.width))
    if test.settled < test.images:
        said.append(
            f"{test.images - test.settled} of {test.images} test images are not settled (the "
            "variance of log w over chains is above 1): their log p(x) may be higher. "
            "Try: twice the --temperatures"
        )
    return [*said, *_collapse(test), *_split(test)]


def _width(width: Estimate) -> str:
    if width.value <= SETTLED_WIDTH:
        return (
            f"On the model's own images the two bounds are {width.value:.2g} nats apart on "
            "average: there the chains find the whole posterior."
        )
    return (
        f"Not settled: on the model's own images the two bounds are {width.value:.3g} nats apart "
        "on average. The chains are too short, and every lower bound here, also one called "
        "settled, may be low by as much. Try: twice the --temperatures, or --sandwich-minutes 10"
    )


def _collapse(test: Gap) -> list[str]:
    """Tell an encoder that collapsed from a decoder that ignores z."""
    rate, best = test.rate.value, test.refitted_rate.value
    if rate > COLLAPSED_KL:
        return []
    if best > COLLAPSED_KL:
        return [
            "The encoder has collapsed, the decoder has not: q refitted for each image has a KL "
            f"of {best:.2g} nats to the prior, the encoder's {rate:.2g}. Try: more steps, wider "
            "--hidden or a lower --learning-rate"
        ]
    return [
        f"The decoder ignores z: q refitted for each image has a KL of {best:.2g} nats to the "
        "prior as well. Try: --warmup 0.3, --free-bits 0.1 or a smaller --beta"
    ]


def _split(test: Gap) -> list[str]:
    """Name the larger part of the gap, where the difference is more than its error."""
    family, encoder = test.approximation, test.amortisation
    if abs(family.value - encoder.value) <= 2 * (family - encoder).standard_error:
        return []
    if encoder.value > family.value:
        return ["Most of the gap is amortisation. Try: more steps, or wider --hidden"]
    return [
        "Most of the gap is approximation: no q of this family is near p(z|x). "
        "Try: --posterior full or iaf, or --tighten 0.4 --draws 4, which trains for the "
        "importance-weighted bound"
    ]


@names_own_parts
def made_by(model: VAE, n: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Draw z ~ p(z) and x ~ p(x|z): n images, each with an exact draw from its p(z|x).

    Args:
        model: The model.
        n: How many.
        seed: Of the draws.

    Returns:
        x `[n, *event]` and z `[n, latent]`.

    Example:
        >>> from ..model import build
        >>> x, z = made_by(build((4,), "binary"), 3, seed=0)
        >>> x.shape, z.shape
        (torch.Size([3, 4]), torch.Size([3, 32]))
    """
    generator = torch.Generator(model.scale.device).manual_seed(seed)
    with torch.no_grad():
        z = model.prior.sample(n, generator).to(model.scale.dtype)
        return model.likelihood.sample(model.parameters_of(z), generator), z
