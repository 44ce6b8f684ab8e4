"""How good a model is on a data set, in nats, each figure with its error bar over images.

`evaluate` works through the images in blocks, so memory does not grow with their number or with
the draws; `Evaluation` holds the figures as estimates and turns into JSON.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kullback.core import Estimate, describe, processes, require
from kullback.data import PADDING

from .evidence import Bounds, bounds, over_images, skip_noise
from .latents import DiagonalGaussian, Quantised, TopDown, exact_kl
from .limits import (
    ACTIVE_KL,
    ACTIVE_VARIANCE,
    COLLAPSED_KL,
    DRAWS_FOR_LOOSE,
    IMAGES_PER_BLOCK,
    LOOSE_DRAWS,
    NAMED_COLUMNS,
)
from .model import VAE, names_own_parts
from .posterior import information_of
from .training import Training

__all__ = [
    "Evaluation",
    "LabelFigures",
    "active_units",
    "bits_per_sample",
    "bounds_given",
    "collapse_of_information",
    "collapse_of_rate",
    "collapse_warning",
    "evaluate",
    "image_bounds",
    "kl_of_dimensions",
    "kl_of_layers",
    "summarise",
    "unused_layers",
    "varying_units",
]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of one model on one data set; every error is over images.

    Args:
        elbo: A lower bound on log p(x) in expectation, in nats an image.
        log_likelihood: The importance-weighted bound L_K, another one.
        gap: log_likelihood − elbo, paired by image.
        rate: KL(q(z|x) ‖ p(z)); rate + distortion = −elbo. Exact for each image where the prior has
            a formula of it, else an average over the same draws (`exact_rate`).
        distortion: The reconstruction loss, −E log p(x|z).
        bits_per_dim: −L_K in bits over the number of dimensions, for data that are levels; of
            sound, over the number of samples that are no padding.
        draws: K, of q(z|x) per image.
        images: How many there are.
        effective_draws_median: Median over images of Kong's effective sample size, of `draws`.
        effective_draws_minimum: The least.
        loose: Share of images with fewer than ten effective draws; None where `draws` are fewer
            than 20, which cannot tell.
        active_units: Latent dimensions whose mean varies and that carry 0.1 nats; None where the KL
            is no sum over dimensions (a prior whose dimensions depend on each other).
        latent: Dimensions of z.
        kl_per_dimension: Mean KL of each, in nats; empty where the KL is no sum over dimensions.
        seed: Of the draws.
        varying_units: Latent dimensions whose mean varies (None in evaluations made when that alone
            was called active).
        levels: Of the data, 0 where they are continuous.
        annealed: How far a lower bound on log p(x) by annealed importance sampling lies above L_K,
            paired, over the first images; None where it was not measured.
        annealed_settled: For how many of those images more temperatures would gain little.
        exact_rate: Whether the rate of an image is exact.
        per_label: Of every label with test images, by name: how many, ELBO and L_K.
        given: What every log p(x) here is conditional on, in words; "" where on nothing.
        kl_per_layer: KL of every stochastic layer given those above it, the top one first,
            with the rate as their sum; empty where there is one layer.
        layer_sizes: Latent dimensions of every layer, the top one first; empty where there is one.
        coded: Whether q(z|x) is a deterministic code: the rate is then its length −log p(c) under
            the learned prior, no KL of densities, and L_K is the ELBO for every K.
        information_low: I(x; z) from below, of the first 500 images: the part of the rate that says
            something about x (`kullback.vae.aggregate`); None where it was not measured.
        information_high: From above.
    """

    elbo: Estimate
    log_likelihood: Estimate
    gap: Estimate
    rate: Estimate
    distortion: Estimate
    bits_per_dim: Estimate | None
    draws: int
    images: int
    effective_draws_median: float
    effective_draws_minimum: float
    loose: float | None
    active_units: int | None
    latent: int
    kl_per_dimension: tuple[float, ...]
    seed: int
    varying_units: int | None = None
    levels: int = 256
    annealed: Estimate | None = None
    annealed_settled: int | None = None
    exact_rate: bool = True
    given: str = ""
    per_label: tuple["LabelFigures", ...] = ()
    kl_per_layer: tuple[Estimate, ...] = ()
    layer_sizes: tuple[int, ...] = ()
    coded: bool = False
    information_low: Estimate | None = None
    information_high: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; estimates become dictionaries of their fields."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["kl_per_dimension"] = list(self.kl_per_dimension)
        fields["per_label"] = [one.to_dict() for one in self.per_label]
        fields["layer_sizes"] = list(self.layer_sizes)
        fields["kl_per_layer"] = [one.to_dict() for one in self.kl_per_layer]
        return {k: v.to_dict() if isinstance(v, Estimate) else v for k, v in fields.items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Evaluation":
        """Rebuild from `to_dict`."""
        later: dict[str, Any] = {"varying_units": None, "levels": 256, "exact_rate": True}
        later |= {"given": "", "per_label": ()}
        later |= {"annealed": None, "annealed_settled": None}
        later |= {"kl_per_layer": (), "layer_sizes": (), "coded": False}
        later |= {"information_low": None, "information_high": None}
        known = later | {n: fields[n] for n in cls.__slots__ if n in fields or n not in later}
        if known["draws"] < DRAWS_FOR_LOOSE:
            known["loose"] = None  # judged by fewer effective draws than ten, once
        known["per_label"] = tuple(LabelFigures.from_dict(one) for one in known["per_label"])
        for name, value in known.items():
            if isinstance(value, dict):
                known[name] = Estimate.from_dict(value)
        tuples = {name: tuple(known[name]) for name in ("kl_per_dimension", "layer_sizes")}
        layers = tuple(Estimate.from_dict(one) for one in known["kl_per_layer"])
        return cls(**(known | tuples | {"kl_per_layer": layers}))


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """Figures of the test images of one label, in nats an image.

    Args:
        label: Its name.
        images: How many there are.
        elbo: A lower bound on log p(x | label), in expectation.
        log_likelihood: The importance-weighted bound L_K.
    """

    label: str
    images: int
    elbo: Estimate
    log_likelihood: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        figures = {"elbo": self.elbo.to_dict(), "log_likelihood": self.log_likelihood.to_dict()}
        return {"label": self.label, "images": self.images} | figures

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "LabelFigures":
        """Rebuild from `to_dict`."""
        elbo, tight = (Estimate.from_dict(fields[name]) for name in ("elbo", "log_likelihood"))
        return cls(str(fields["label"]), int(fields["images"]), elbo, tight)


@names_own_parts
def bounds_given(
    model: VAE, x: Tensor, labels: Tensor | None, *, draws: int, generator: torch.Generator
) -> Bounds:
    """Return `bounds` of every x given its label, in the order of x; labels `[n]` or None."""
    if labels is None:
        return bounds(model, x, draws=draws, generator=generator)
    parts, places = [], []
    for label in torch.unique(labels):
        places.append((labels == label).nonzero().flatten())
        parts.append(bounds(model.at(label), x[places[-1]], draws=draws, generator=generator))
    order = torch.cat(places).argsort()
    names = [n for n in Bounds.__slots__ if isinstance(getattr(parts[0], n), Tensor)]
    joined: dict[str, Any] = {
        n: torch.cat([getattr(part, n) for part in parts])[order] for n in names
    }
    return replace(parts[0], **joined)


def evaluate(
    model: VAE,
    x: Tensor,
    *,
    draws: int = 500,
    seed: int = 0,
    precision: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
    labels: Tensor | None = None,
) -> Evaluation:
    """Measure a model on x: ELBO, L_K, rate, distortion, each `Estimate` over images (MATH 2.5).

    The KL inside the ELBO is exact where the prior has a formula, else an average over the K draws,
    as the reconstruction is. The error bars are
    those of the mean over images (as a sample of images), draws included; L_K itself is biased low
    as an estimate of log p(x), and `loose` says for how many images it rests on few draws.

    Args:
        model: The model.
        x: `[n, *event]` in the data's units, checked; a single image has figures without errors.
        draws: K ≥ 1, of q(z|x) per image.
        seed: Of the draws; the same seed gives the same figures.
        precision: Of the decoder; bfloat16 is faster where the hardware has it and moves figures by
            some thousandths of a nat (sums stay in float32; the encoder's q is the same).
        progress: Called with (images done, n).
        labels: Of x, `[n]`, as in `Dataset.test_labels`, for a model with labels.

    Returns:
        The figures.

    Raises:
        ArgumentValueError: No images, or x does not fit the model.

    Example:
        >>> from kullback.vae import build
        >>> figures = evaluate(build((4,), "binary"), torch.ones(8, 4), draws=16)
        >>> abs(figures.elbo.value + figures.rate.value + figures.distortion.value) < 1e-5
        True
    """
    how: dict[str, Any] = {"precision": precision, "progress": progress, "labels": labels}
    found = image_bounds(model, x, draws=draws, seed=seed, **how)
    return summarise(model, x, found, seed=seed, labels=labels)


def image_bounds(
    model: VAE,
    x: Tensor,
    *,
    draws: int = 500,
    seed: int = 0,
    precision: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
    labels: Tensor | None = None,
    group: processes.Processes | None = None,
) -> Bounds:
    """Return the terms that `evaluate` averages, image by image, in float64 on the CPU.

    Several processes share the blocks of images, and each gets the terms of all: the same numbers
    as one process alone, since each block has the same noise. Each draws the noise of the blocks
    before its own as well.

    Args:
        model: As in `evaluate`.
        x: As in `evaluate`.
        draws: As in `evaluate`.
        seed: As in `evaluate`.
        precision: As in `evaluate`.
        progress: As in `evaluate`.
        labels: As in `evaluate`.
        group: The processes that share the images and all call this; None: this one alone.

    Returns:
        Figures per image.

    Raises:
        ArgumentValueError: As `evaluate`.

    Example:
        >>> from kullback.vae import build
        >>> image_bounds(build((4,), "binary"), torch.ones(8, 4), draws=16).elbo.shape
        torch.Size([8])
    """
    require(len(x) >= 1, "x", "at least 1 image", len(x))
    fits = labels is None or labels.shape == (len(x),)
    require(
        fits, "labels", f"[{len(x)}], one for each x", None if labels is None else describe(labels)
    )
    x = model.check(x)
    group = processes.Processes() if group is None else group
    generator = torch.Generator(x.device).manual_seed(seed)
    starts = list(range(0, len(x), IMAGES_PER_BLOCK))
    own = range(len(starts))[group.share(len(starts))]
    parts: list[Bounds] = []
    with _decoder_in(model, precision):
        for number in range(own.stop if own else 0):
            block = slice(starts[number], starts[number] + IMAGES_PER_BLOCK)
            given = None if labels is None else labels[block]
            if number < own.start:
                _skip_given(model, x[block], given, draws=draws, generator=generator)
                continue
            parts.append(bounds_given(model, x[block], given, draws=draws, generator=generator))
            if progress is not None:
                done = (number + 1 - own.start) * group.size * IMAGES_PER_BLOCK
                progress(min(done, len(x)), len(x))
        if not parts:  # fewer blocks than processes: only the shapes are needed
            first = None if labels is None else labels[:1]
            parts = [bounds_given(model, x[:1], first, draws=1, generator=generator)]
    names = [name for name in Bounds.__slots__ if name not in ("draws", "exact_rate")]
    joined: dict[str, Any] = {}
    for name in names:
        mine = torch.cat([getattr(part, name) for part in parts]).double().cpu()
        place = slice(own.start * IMAGES_PER_BLOCK, min(own.stop * IMAGES_PER_BLOCK, len(x)))
        joined[name] = mine if group.size == 1 else _of_all(mine, place, len(x), group)
    return Bounds(**joined, draws=draws, exact_rate=parts[0].exact_rate)


def _of_all(own: Tensor, place: slice, n: int, group: processes.Processes) -> Tensor:
    """Return the rows of all processes, `[n, …]`; place: of this one's, which may be empty."""
    whole = own.new_zeros(n, *own.shape[1:])
    if place.start < place.stop:
        whole[place] = own
    return group.sum_(whole)


def _skip_given(
    model: VAE, x: Tensor, labels: Tensor | None, *, draws: int, generator: torch.Generator
) -> None:
    """Take from the generator what `bounds_given` would take."""
    if labels is None:
        skip_noise(model, x, draws=draws, generator=generator)
        return
    for label in torch.unique(labels):
        skip_noise(model.at(label), x[labels == label], draws=draws, generator=generator)


@contextmanager
def _decoder_in(model: VAE, precision: torch.dtype) -> Iterator[None]:
    """Let the model decode with rounded weights inside a `with` block."""
    kept = model.decoder
    if precision != torch.float32:
        model.decoder = copy.deepcopy(kept).to(precision)
    try:
        yield
    finally:
        model.decoder = kept


def summarise(
    model: VAE, x: Tensor, found: Bounds, *, seed: int = 0, labels: Tensor | None = None
) -> Evaluation:
    """Average the terms of `image_bounds` into an `Evaluation`.

    Args:
        model: That they are of.
        x: Of which they are.
        found: The terms.
        seed: Of their draws.
        labels: As in `evaluate`.

    Returns:
        The figures.

    Example:
        >>> from kullback.vae import build
        >>> model, x = build((4,), "binary"), torch.ones(8, 4)
        >>> summarise(model, x, image_bounds(model, x, draws=3)) == evaluate(model, x, draws=3)
        True
    """
    elbo, weighted, draws = found.elbo, found.importance_weighted, found.draws
    effective, means = found.effective_draws, found.mean
    loose = float((effective < LOOSE_DRAWS).double().mean())
    kl, layers = kl_of_dimensions(model, found), kl_of_layers(model, found)
    coded = isinstance(model.family, Quantised)
    below = "a lower bound on log p(x), in expectation"
    tight = f"the importance-weighted bound of {draws} draws is below log p(x) in expectation"
    log_likelihood = over_images(weighted, bias="low", why=tight)
    spec = model.spec
    levels = 0 if spec is None or spec.kind in ("continuous", "counts") else spec.levels
    levels = 2 if spec is not None and spec.kind == "binary" else levels
    discrete = spec is not None and spec.kind in ("8-bit", "levels")
    whole = information_of(model, x, labels=labels, seed=seed)
    bits = (-log_likelihood.bits()).per(x[0].numel(), "dim") if discrete else None
    if spec is not None and spec.kind == "sound":
        bits = bits_per_sample(weighted, (x != PADDING).flatten(1).sum(1))
    return Evaluation(
        elbo=over_images(elbo, bias="low", why=below),
        log_likelihood=log_likelihood,
        gap=over_images(weighted - elbo),
        rate=over_images(found.rate),
        distortion=over_images(found.distortion),
        bits_per_dim=bits,
        draws=draws,
        images=len(x),
        effective_draws_median=float(effective.median()),
        effective_draws_minimum=float(effective.min()),
        loose=loose if draws >= DRAWS_FOR_LOOSE and not coded else None,
        active_units=None if kl is None else active_units(means, kl),
        latent=means.shape[1],
        kl_per_dimension=() if kl is None else tuple(kl.tolist()),
        seed=seed,
        varying_units=varying_units(means),
        levels=levels,
        exact_rate=found.exact_rate,
        given=_given_of(model),
        per_label=()
        if labels is None
        else _per_label(model, found, labels.cpu(), why=(below, tight)),
        kl_per_layer=() if layers is None else tuple(map(over_images, layers.T)),
        layer_sizes=() if layers is None else model.layer_sizes,
        coded=coded,
        information_low=None if whole is None else whole.information_low,
        information_high=None if whole is None else whole.information_high,
    )


def _given_of(model: VAE) -> str:
    """Say what the figures of a model are conditional on."""
    if model.spec is None:
        return ""
    parts = ["the label of each item"] if model.spec.labels else []
    return " and ".join([*parts, *([GIVEN[model.spec.sizes]] if model.spec.sizes else [])])


def _per_label(
    model: VAE, found: Bounds, labels: Tensor, *, why: tuple[str, str]
) -> tuple[LabelFigures, ...]:
    """Average the bounds of each label's images by themselves."""
    names = () if model.spec is None else model.spec.labels
    figures = []
    for label in torch.unique(labels).tolist():
        own = labels == label
        elbo, tight = (
            over_images(terms[own], bias="low", why=said)
            for terms, said in zip((found.elbo, found.importance_weighted), why, strict=True)
        )
        figures.append(LabelFigures(names[label], int(own.sum()), elbo, tight))
    return tuple(figures)


GIVEN = {
    "total": "the size factor of each item, its own total count (so no probability of x alone)",
    "given": "the size factor of each item, as given",
}


def bits_per_sample(log_likelihood: Tensor, samples: Tensor) -> Estimate:
    """Return `−Σ_i L_K(x_i) / (ln 2 · Σ_i n_i)`: bits for each sample of all clips together.

    Clips differ in length, so this is a ratio of two means; its error is that of the terms
    linearised around it (the delta method).

    Args:
        log_likelihood: Of each clip in nats, `[n]`.
        samples: n_i, how many of each clip are no padding, `[n]`.

    Returns:
        The estimate, in bits/sample.

    Example:
        >>> nats = -math.log(2) * torch.tensor([70.0, 250.0])
        >>> round(bits_per_sample(nats, torch.tensor([10, 30])).value, 4)
        8.0
    """
    bits, counts = -log_likelihood.double().cpu() / math.log(2), samples.double().cpu()
    ratio = bits.sum() / counts.sum()
    terms = ratio + (bits - ratio * counts) / counts.mean()
    why = "minus a lower bound on log p(x) is above it in expectation"
    return over_images(terms, unit="bits/sample", bias="high", why=why)


def kl_of_dimensions(model: VAE, found: Bounds) -> Tensor | None:
    """Return the mean over images of KL(q(z_d|x) ‖ p(z_d)), `[latent]`, in nats, where it exists.

    Args:
        model: That the bounds are of.
        found: Bounds of some images.

    Returns:
        None where the KL is no sum over latent dimensions.

    Example:
        >>> from kullback.vae import build
        >>> model, x = build((4,), "binary"), torch.ones(8, 4)
        >>> kl_of_dimensions(model, image_bounds(model, x, draws=3)).shape
        torch.Size([32])
    """
    if not model.has_kl_per_dimension():
        return None
    if isinstance(model.family, TopDown):
        return None if found.kl is None else found.kl.mean(0)
    kl = exact_kl(model.prior, DiagonalGaussian(found.mean, found.log_sd))
    return None if kl is None else kl.mean(0)


def kl_of_layers(model: VAE, found: Bounds) -> Tensor | None:
    """Return KL(q(z_l|z_>l, x) ‖ p(z_l|z_>l)) of every stochastic layer, `[n, layers]`, in nats.

    On average over the draws of the layers above. Their sum is the rate.

    Args:
        model: That the bounds are of.
        found: Bounds of some images.

    Returns:
        The top layer first; None where there is one layer.

    Example:
        >>> from kullback.vae import Architecture, build
        >>> model, x = build((4,), "binary", Architecture(latent=4, layers=2)), torch.ones(8, 4)
        >>> kl_of_layers(model, image_bounds(model, x, draws=3)).shape
        torch.Size([8, 2])
    """
    sizes = model.layer_sizes
    if len(sizes) == 1 or found.kl is None:
        return None
    return torch.stack([part.sum(-1) for part in torch.split(found.kl, list(sizes), -1)], -1)


def varying_units(means: torch.Tensor) -> int:
    """Count the dimensions with `Var_x(E_q[z_d|x]) > 0.01` (Burda et al. 2016, section 5.2).

    That criterion counts dimensions with a KL of 0.005 nats, so it does not measure use where β is
    large: there all dimensions can vary and none carries much information.

    Args:
        means: Of q(z|x), `[n, latent]`.

    Returns:
        The count.

    Example:
        >>> varying_units(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
        1
    """
    return int((means.var(0, correction=min(1, len(means) - 1)) > ACTIVE_VARIANCE).sum())


def active_units(means: torch.Tensor, kl: torch.Tensor) -> int:
    """Count the dimensions that vary as in `varying_units` and carry 0.1 nats or more.

    Args:
        means: Of q(z|x), `[n, latent]`.
        kl: `[latent]`, the mean KL(q(z_d|x) ‖ p(z_d)) over x in nats, an upper bound on the
            information I(x; z_d).

    Returns:
        The count.

    Example:
        >>> means = torch.tensor([[0.0, 1.0, 0.2], [0.0, -1.0, -0.2]])
        >>> active_units(means, torch.tensor([0.0, 1.3, 0.02]))
        1
    """
    varies = means.var(0, correction=min(1, len(means) - 1)) > ACTIVE_VARIANCE
    return int((varies & (kl.to(means) >= ACTIVE_KL)).sum())


COLLAPSE_OF_SOUND = (
    "Of sound that is usual: p(x|z) predicts each sample from those before it, and no setting is "
    "known that makes z useful (docs/sound.md). The bits a sample hold; codes and reconstructions "
    "say next to nothing about a clip"
)


def collapse_warning(
    kl: list[float],
    active: int,
    settings: Training,
    information: Estimate | None = None,
    *,
    kind: str = "8-bit",
) -> str:
    """Say that the posterior has collapsed, and what to do; empty when it has not.

    Args:
        kl: The mean KL of every latent dimension, in nats.
        active: How many are active.
        settings: Of the training: what is in use already is no remedy.
        information: I(x; z) from above; None where it is not known.
        kind: As in `Dataset`: of sound no setting is known that helps.

    Returns:
        The warning, or "".

    Example:
        >>> collapse_warning([0.001, 0.002], 0, Training())[:18]
        'posterior collapse'
        >>> collapse_warning([2.0, 1.0], 2, Training())
        ''
    """
    total = sum(kl)
    if total > COLLAPSED_KL and information is not None:
        said = collapse_of_information(total, information, settings, kind=kind)
        if said:
            return said
    if active > 0 and total > COLLAPSED_KL:
        return ""
    says = "nothing" if total <= COLLAPSED_KL else "little"
    remedies = [f"a smaller --beta (now {settings.beta:g})"] if settings.beta > 1 else []
    remedies += [] if settings.warmup else ["--warmup 0.3"]
    more = f"larger --free-bits (now {settings.free_bits:g})"
    remedies += [more if settings.free_bits else "--free-bits 0.1"]
    remedy = f"Try: {', '.join(remedies)} or a lower --learning-rate"
    remedy = COLLAPSE_OF_SOUND if kind == "sound" else remedy
    return (
        f"posterior collapse: {active} of {len(kl)} latent dimensions are active and the KL is "
        f"{total:.2g} nats, so z says {says} about x. {remedy}"
    )


def collapse_of_information(
    rate: float,
    information: Estimate,
    settings: Training | None = None,
    *,
    kind: str = "8-bit",
) -> str:
    """Say that z says nothing about x in spite of the rate; "" where it says 0.5 nats or more.

    The rate is I(x; z) + KL(q(z) ‖ p(z)): the same shift of q(z|x) for every x has the second part
    alone.

    Args:
        rate: The mean KL(q(z|x) ‖ p(z)), in nats.
        information: I(x; z) from above.
        settings: Of the training; None where they are not known.
        kind: As in `Dataset`: of sound no setting is known that helps.

    Returns:
        The warning, or "".

    Example:
        >>> none = Estimate(0.1, 0.02, draws=500, bias="high", why="…")
        >>> collapse_of_information(11.5, none)[:55]
        'posterior collapse: I(x; z) is at most 0.1 nats of a ra'
        >>> collapse_of_information(11.5, none + 3.0)
        ''
    """
    if information.value > COLLAPSED_KL:
        return ""
    free, warmup = (None, None) if settings is None else (settings.free_bits, settings.warmup)
    remedies = [] if free == 0 else ["--free-bits 0" + (f" (now {free:g})" if free else "")]
    remedies += [] if warmup else ["--warmup 0.3"]
    remedy = f"Try: {', '.join(remedies)}{' or ' if remedies else ''}a lower --learning-rate"
    remedy = COLLAPSE_OF_SOUND if kind == "sound" else remedy
    return (
        f"posterior collapse: I(x; z) is at most {max(information.value, 0.0):.2g} nats of a rate "
        f"of {rate:.3g}, so z says next to nothing about x. The rest of the rate, "
        "KL(q(z) || p(z)), pays for codes that are away from the prior and alike for every x. "
        f"{remedy}"
    )


def collapse_of_rate(rate: float, beta: float, *, name: str = "KL") -> str:
    """Say that the posterior has collapsed where all that is known is the rate; else say nothing.

    Args:
        rate: The mean KL(q(z|x) ‖ p(z)), at least the information I(x; z), in nats.
        beta: The weight of the KL.
        name: What the rate is.

    Returns:
        The warning, or "".

    Example:
        >>> collapse_of_rate(0.01, 1.0)[:18], collapse_of_rate(3.0, 1.0)
        ('posterior collapse', '')
    """
    if rate > COLLAPSED_KL:
        return ""
    remedy = "--warmup 0.3 or a lower --learning-rate"
    remedy = f"a smaller --beta (now {beta:g}), {remedy}" if beta > 1 else remedy
    return (
        f"posterior collapse: the {name} is {rate:.2g} nats, so z says nothing about x. "
        f"Try: {remedy}"
    )


def unused_layers(kl: list[float]) -> str:
    """Say which stochastic layers carry less than 0.1 nats, and what to do; "" where none.

    Args:
        kl: The mean KL of every layer, the top one first, in nats.

    Returns:
        The warning, or "".

    Example:
        >>> unused_layers([0.01, 9.0])[:27], unused_layers([2.0, 9.0])
        ('unused stochastic layers: 1', '')
    """
    unused = [(len(kl) - place, nats) for place, nats in enumerate(kl) if nats < ACTIVE_KL]
    if not unused:
        return ""
    named = ", ".join(f"z_{layer} ({nats:.2g} nats)" for layer, nats in unused[:NAMED_COLUMNS])
    more = len(unused) - NAMED_COLUMNS
    named += f" and {more} more" if more > 0 else ""
    return (
        f"unused stochastic layers: {len(unused)} of {len(kl)} carry less than {ACTIVE_KL:g} nats: "
        f"{named}. Try: --warmup 0.3 with --balance, or fewer --layers"
    )
