"""`Composed`: an encoder, a decoder, a likelihood and a prior, and what every objective is made of.

Everything here is differentiable. `VAE` adds figures without a graph, samples and files.
"""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from kullback.core import ArgumentValueError, describe, message, require
from kullback.data import PADDING
from kullback.variational import WeightedBound, objectives

from ..architecture import Spec
from ..latents import (
    Diagonal,
    Encoded,
    Family,
    Posterior,
    Prior,
    TopDown,
    draw_with_kl,
    has_closed_form,
    held_log_ratio,
    kl_of_draws,
    log_ratio,
)
from ..likelihoods import Likelihood
from ..limits import NAMED_LABELS
from .input_checks import checked
from .own_modules import names_own_parts

__all__ = ["Composed"]


class Composed(nn.Module):
    """A latent-variable model `p(x) = ∫ p(x|z) p(z) dz` with an approximate posterior q(z|x).

    Everywhere x is `[batch, *event]` in the data's own units: 0/1, levels 0 … K − 1, or continuous.

    Args:
        encoder: `[batch, *event]` floats to (mean, log_sd), `[batch, latent]` each; for a family
            that needs more, (mean, log_sd, extra) with extra `[batch, family.extra]`.
        decoder: `[rows, latent]` to `[rows, channels, places]`.
        likelihood: See `kullback.vae.likelihoods`.
        prior: See `kullback.vae.latents.priors`.
        shift: x enters the encoder (and only it) as (x − shift) / scale; a number or `[*event]`.
        scale: As `shift`, positive.
        spec: The description that `save` writes; None for parts of your own.
        family: Of q(z|x), see `kullback.vae.latents.posteriors`; by default `Diagonal()`.

    Example:
        >>> from kullback.vae import Architecture, build
        >>> model = build((1, 4, 4), "binary", Architecture(hidden=(8,), latent=2))
        >>> model.encode(torch.zeros(3, 1, 4, 4))[0].shape
        torch.Size([3, 2])
    """

    shift: Tensor
    scale: Tensor
    label: Tensor | None = None  # by `at`
    label_inputs: (
        Tensor  # [labels, *event], added to what the encoder reads, where there are labels
    )

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        prior: Prior,
        *,
        shift: Tensor | None = None,
        scale: float | Tensor = 1.0,
        spec: Spec | None = None,
        family: Family | None = None,
    ) -> None:
        super().__init__()
        self.family = Diagonal() if family is None else family
        self.encoder, self.decoder = encoder, decoder
        self.likelihood, self.prior = likelihood, prior
        self.register_buffer("shift", torch.zeros(()) if shift is None else shift.clone())
        scale = scale.clone() if isinstance(scale, Tensor) else torch.tensor(float(scale))
        self.register_buffer("scale", scale)
        self.spec = spec
        self.unfinished = ""  # by `load`: a sentence, where these are weights of a checkpoint

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and log standard deviation of q(z|x), `[batch, latent]` each."""
        if isinstance(self.family, Diagonal):
            encoded: tuple[Tensor, Tensor] = self.encoder(self.encoder_input(x))
            return encoded
        return self.approximate_posterior(x).moments()

    def encoded(self, x: Tensor) -> Encoded:
        """Return what the encoder gives for x, of which `family` makes q(z|x)."""
        if isinstance(self.family, Diagonal):
            mean, log_sd = self.encode(x)
            return Encoded(mean, log_sd)
        outputs = self.encoder(self.encoder_input(x))
        return Encoded(outputs[0], outputs[1], outputs[2] if len(outputs) > 2 else None)

    def at(self, label: str | int | Tensor) -> Self:
        """Return this model with the label given: q(z|x, y), p(x|z, y), sharing all weights.

        Args:
            label: One of the model's labels, for all x; or a tensor of places in the list of them,
                `[]` for all x or `[batch]`, one for each x.

        Returns:
            The conditional model: every figure of it is one of log p(x | y).

        Raises:
            ArgumentValueError: The model has no such label, or none at all.

        Example:
            >>> from kullback.vae import build
            >>> model = build((4,), "binary", labels=("cat", "dog"))
            >>> model.at("dog").sample(3).shape
            torch.Size([3, 4])
        """
        labels = () if self.spec is None else self.spec.labels
        if not isinstance(label, Tensor):
            known = str(label) in labels
            require(known, "label", _one_of(labels), repr(label))
            label = torch.tensor(labels.index(str(label)), device=self.scale.device)
        given = copy.copy(self)
        given.label = label
        return given

    def given_label(self) -> Tensor | None:
        """Return the label's place, None for a model without labels.

        Raises:
            ArgumentValueError: The model is conditional on a label, and none is given.
        """
        labels = () if self.spec is None else self.spec.labels
        if labels and self.label is None:
            hint = f"label={labels[0]!r}"
            text = f"{_one_of(labels)}: the model is conditional on it"
            raise ArgumentValueError(message("label", text, "none", hint))
        return self.label if labels else None

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return x centred and scaled, as the encoder reads it; padding of sound is the centre.

        Counts are read as log(1 + x). With labels a learned row of the label is added; not to
        sound, where the decoder alone reads the label.
        """
        if self.spec is not None and self.spec.kind == "sound":
            x = torch.where(x == PADDING, self.shift, x)
        if self.spec is not None and self.spec.kind == "counts":
            x = x.log1p()
        centred, label = (x - self.shift) / self.scale, self.given_label()
        reads = label is not None and self.spec is not None and self.spec.kind != "sound"
        rows = x.shape[0]  # not len(x), which would be a constant in an exported graph
        fits = label is None or label.ndim == 0 or label.shape == (rows,)
        if not fits:
            require(fits, "label", f"[{rows}], one for each x", describe(label))
        return centred + self.label_inputs[label] if reads else centred

    def approximate_posterior(self, x: Tensor) -> Posterior:
        """Return q(z|x), which can be drawn from and has a density."""
        return self.family(self.encoded(x))

    def has_kl_per_dimension(self) -> bool:
        """Say whether KL(q(z|x) ‖ p(z)) is a sum over latent dimensions in closed form.

        With several stochastic layers the KL of a dimension is that given the groups above, on
        average over draws of them.
        """
        if isinstance(self.family, TopDown):
            return self.family.prior is self.prior
        return isinstance(self.family, Diagonal) and has_closed_form(self.prior)

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """The latent dimensions of every stochastic layer, the top one first."""
        if isinstance(self.family, TopDown) and self.family.prior is self.prior:
            return self.family.prior.sizes
        return (self.prior.latent,)

    def parameters_of(self, z: Tensor) -> Tensor:
        """Decode z `[*lead, latent]` to likelihood parameters `[*lead, channels, places]`."""
        given = self.decoder_input(z)
        flat: Tensor = self.decoder(given.reshape(-1, given.shape[-1]))
        return flat.reshape(*z.shape[:-1], *flat.shape[1:])

    def decoder_input(self, z: Tensor) -> Tensor:
        """Return what the decoder reads: z `[*lead, latent]`, then a 1 in the label's place."""
        label = self.given_label()
        if label is None or self.spec is None:
            return z
        one_hot = torch.nn.functional.one_hot(label.to(z.device), len(self.spec.labels))
        return torch.cat([z, one_hot.to(z).expand(*z.shape[:-1], -1)], -1)

    @names_own_parts
    def decode(self, z: Tensor) -> Tensor:
        """Return the expected x given z: `[*lead, latent]` to `[*lead, *event]`."""
        return self.likelihood.mean(self.parameters_of(z))

    @names_own_parts
    def tight_terms(
        self, x: Tensor, noise: Tensor, beta: float = 1.0, bound: WeightedBound | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `elbo_terms` and a bound by log-weights, `[batch]`, in nats; by default L_K.

        Its gradient to q goes by the path of z (for L_K it is doubly reparameterised). With
        "iwae_plain", or a q whose density at a given z takes many passes, it is the plain one.

        Args:
            x: `[batch, *event]`.
            noise: Standard normal, `[draws, batch, latent]`.
            beta: Weight of log p(z) − log q(z|x).
            bound: Which, see `kullback.variational.objectives`.

        Returns:
            log p(x|z) `[draws, batch]`, the KL as in `terms`, and the bound `[batch]`.
        """
        bound = bound or WeightedBound()
        q = self.approximate_posterior(x)
        drawn = q.draw(noise)
        apart = bound.name == "piwae"
        z = drawn.z.detach().requires_grad_() if apart else drawn.z
        likelihood = self.likelihood.log_prob(self.parameters_of(z), x)
        held = apart or (q.path_gradient and bound.by_path)
        ratio = held_log_ratio(self.prior, q, z) if held else log_ratio(self.prior, q, drawn)
        weights = objectives.log_weights(likelihood, ratio, beta=beta)
        if apart:
            value = objectives.piwae(weights, z, drawn.z, bound.groups, beta=beta)
        elif held:
            value = objectives.with_path_gradient(weights, z, bound, beta=beta)
        else:
            value = bound.value(weights)
        return likelihood, kl_of_draws(self.prior, q, drawn, ratio.detach()), value

    @names_own_parts
    def terms(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what every objective is made of, in nats, for noise `[draws, batch, latent]`.

        log p(x|z) `[draws, batch]`; log p(z) − log q(z|x) `[draws, batch]`; KL(q(z|x) ‖ p(z)),
        as `kl_of_draws` gives it. Differentiable.
        """
        q = self.approximate_posterior(x)
        drawn = q.draw(noise)
        log_likelihood = self.likelihood.log_prob(self.parameters_of(drawn.z), x)
        ratio = log_ratio(self.prior, q, drawn)
        return log_likelihood, ratio, kl_of_draws(self.prior, q, drawn, ratio)

    @names_own_parts
    def elbo_terms(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and the last of `terms`: all that the ELBO needs."""
        z, kl = draw_with_kl(self.prior, self.approximate_posterior(x), noise)
        return self.likelihood.log_prob(self.parameters_of(z), x), kl

    def check(self, x: Tensor) -> Tensor:
        """Return x as floats ready for the model, or refuse it.

        Args:
            x: `[batch, *event]`, any dtype.

        Returns:
            x as float32.

        Raises:
            ArgumentValueError: The shape is not `[batch, *event]`, a binary model gets anything but
                0 and 1, an 8-bit model anything but integers 0 … 255, a model of K levels anything
                but 0 … K − 1, a model of counts anything but whole numbers from 0 (and a positive
                size factor), a model of sound anything but its signed levels followed by
                `PADDING`, or x is not finite.

        Example:
            >>> from kullback.vae import build
            >>> build((2,), "binary").check(torch.tensor([[0, 1]], dtype=torch.uint8))
            tensor([[0., 1.]])
        """
        return checked(x, self.spec, self.likelihood)


def _one_of(labels: tuple[str, ...]) -> str:
    """Name the labels of a model, the first ten of many."""
    more = ", …" if len(labels) > NAMED_LABELS else ""
    return (
        f"one of {', '.join(labels[:NAMED_LABELS])}{more}" if labels else "none: it has no labels"
    )
