"""`VAE`: an encoder, a decoder, a likelihood and a prior, composed; and `build`, which does so.

`build` makes one from an `Architecture` and the data's shape and kind; `VAE(...)` takes any parts
you have written yourself. `VAE.load` reads a run directory. Figures come back per image: `elbo`
and `log_likelihood` are lower bounds, higher is better; `kullback.vae.evaluate` puts error bars
on their averages. `location_and_spread` finds the units in which a model of continuous data works.
"""

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kullback.core import (
    ArgumentTypeError,
    ArgumentValueError,
    DataError,
    RunError,
    describe,
    make_folder,
    message,
    require,
    require_count,
)
from kullback.data import MOST_COUNT, PADDING, Moments, moments_of
from kullback.variational import WeightedBound, objectives

from .architecture import COUNTS, Architecture, Spec
from .checkpoint import (
    averaged_weights,
    is_hashed,
    load_tensors,
    read_config,
    refuse_to_overwrite,
    save_tensors,
    write_config,
)
from .evidence import bounds
from .latents import (
    CodePrior,
    CouplingFlow,
    Diagonal,
    DiagonalGaussian,
    Encoded,
    Family,
    FullRank,
    InverseAutoregressive,
    LowRank,
    MixtureOfGaussians,
    Posterior,
    Prior,
    Quantised,
    StandardNormal,
    TopDown,
    TopDownPrior,
    VampPrior,
    draw_with_kl,
    has_closed_form,
    held_log_ratio,
    kl_of_draws,
    layer_sizes,
    log_ratio,
    place_of,
)
from .likelihoods import (
    Bernoulli,
    BetaBinomial,
    Categorical,
    ContinuousBernoulli,
    Counts,
    DiscretisedLogistics,
    Event,
    Gaussian,
    Likelihood,
    Neighbours,
    WithContext,
)
from .limits import (
    CATEGORICAL_LEVELS,
    FLOAT32_RESOLUTION,
    NAMED_COLUMNS,
    NAMED_LABELS,
    TRIAL_DRAWS,
    TRIAL_ERRORS,
    TRIAL_ROUNDINGS,
    UNIT_SCALE_LEVELS,
)
from .networks import (
    ConvDecoder,
    ConvEncoder,
    MlpDecoder,
    MlpEncoder,
    OwnDecoder,
    OwnEncoder,
    PatchDecoder,
    patch_side,
)
from .sound import AutoregressiveLogistics, SoundDecoder, SoundEncoder

__all__ = ["VAE", "Parts", "build", "location_and_spread", "location_and_spread_of", "with_parts"]


@dataclass(frozen=True, slots=True)
class Parts:
    """Modules of your own in the place of those that `build` makes; None keeps those.

    Args:
        encoder: `[batch, *event]` floats to (mean, log_sd), `[batch, latent]` each, and a third
            tensor where the family of q needs more; x is centred and scaled.
        decoder: `[rows, latent]` to the likelihood's parameters, `[rows, channels, places]` or the
            same numbers in another shape; with labels `[rows, latent + labels]`, a 1 in the place
            of the label after z.
        likelihood: See `kullback.vae.likelihoods.Likelihood`.
        prior: See `kullback.vae.latents.Prior`.

    Raises:
        ArgumentTypeError: A part is no module, or lacks a member.

    Example:
        >>> Parts(decoder=nn.Linear(2, 4)).named()
        {'decoder': 'torch.nn.modules.linear.Linear'}
    """

    encoder: nn.Module | None = None
    decoder: nn.Module | None = None
    likelihood: Likelihood | None = None
    prior: Prior | None = None

    def __post_init__(self) -> None:
        for name in ("encoder", "decoder"):
            one = getattr(self, name)
            got = f"the class {one.__name__}" if isinstance(one, type) else type(one).__name__
            if one is not None and not isinstance(one, nn.Module):
                raise ArgumentTypeError(message(name, "a torch.nn.Module", got))
        wanted = {
            "likelihood": ("channels", "log_prob", "mean", "sample"),
            "prior": ("latent", "log_prob", "sample"),
        }
        for name, members in wanted.items():
            one = getattr(self, name)
            missing = [member for member in members if not hasattr(one, member)]
            if one is not None and (missing or isinstance(one, type)):
                got = f"{getattr(one, '__name__', type(one).__name__)} without {', '.join(missing)}"
                got = got if missing else f"the class {one.__name__}"
                raise ArgumentTypeError(message(name, f"an object with {', '.join(members)}", got))

    def named(self) -> dict[str, str]:
        """Return the parts that are given, with the names of their classes."""
        every = {name: getattr(self, name) for name in self.__slots__}
        given = {name: type(one) for name, one in every.items() if one is not None}
        return {name: f"{one.__module__}.{one.__qualname__}" for name, one in given.items()}

    def latent(self, x: Tensor) -> int | None:
        """Return the dimensions of z that the encoder gives for x `[batch, *event]`."""
        if self.encoder is None:
            return None
        with torch.no_grad(), evaluating(self.encoder):
            mean = _tried("encoder", OwnEncoder(self.encoder), x)[0]
        require(mean.ndim == 2, "encoder", "mean [batch, latent]", list(mean.shape))
        return int(mean.shape[1])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Let a module and all in it be in evaluation mode inside a `with` block."""
    every = [(one, one.training) for one in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for one, mode in every:
            one.training = mode


def _tried(name: str, module: nn.Module, x: Tensor) -> Any:
    """Call a user's module; where torch refuses the shapes say which it was given."""
    try:
        return module(x)
    except RuntimeError as error:
        text = f"{name}: expected a module that takes {describe(x)}; it fails: {error}"
        raise ArgumentValueError(text) from error


class VAE(nn.Module):
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

    def at(self, label: str | int | Tensor) -> "VAE":
        """Return this model with the label given: q(z|x, y), p(x|z, y), sharing all weights.

        Args:
            label: One of the model's labels, for all x; or a tensor of places in the list of them,
                `[]` for all x or `[batch]`, one for each x.

        Returns:
            The conditional model: every figure of it is one of log p(x | y).

        Raises:
            ArgumentValueError: The model has no such label, or none at all.

        Example:
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

    def decode(self, z: Tensor) -> Tensor:
        """Return the expected x given z: `[*lead, latent]` to `[*lead, *event]`."""
        return self.likelihood.mean(self.parameters_of(z))

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
            >>> build((2,), "binary").check(torch.tensor([[0, 1]], dtype=torch.uint8))
            tensor([[0., 1.]])
        """
        if self.spec is not None:
            wanted = ["batch", *self.spec.event_shape]
            ok = tuple(x.shape[1:]) == self.spec.event_shape
            require(ok, "x", f"shape {wanted}".replace("'", ""), describe(x))
        x = x.float()
        require(bool(torch.isfinite(x).all()), "x", "finite values", "NaN or infinity")
        kind = None if self.spec is None else self.spec.kind
        span = f"values in [{x.min():.4g}, {x.max():.4g}]" if x.numel() else "nothing"
        if kind == "binary":
            ok = bool(((x == 0) | (x == 1)).all())
            require(ok, "x", "0 and 1 only", span, "binarise the data first")
        if self.spec is not None and kind in ("8-bit", "levels"):
            top = self.spec.levels - 1
            ok = bool(((x == x.round()) & (x >= 0) & (x <= top)).all())
            hint = "pass uint8 images" if kind == "8-bit" else "pass levels, see kullback.data.Grid"
            require(ok, "x", f"integers 0 to {top}", span, hint)
        if self.spec is not None and kind == "counts":
            _check_counts(x, self.spec, span)
        unit = self.spec is not None and isinstance(self.likelihood, ContinuousBernoulli)
        inside = not unit or bool(((x >= 0) & (x <= 1)).all())
        require(inside, "x", "values from 0 to 1 for a continuous Bernoulli", span, "gaussian")
        if self.spec is not None and self.spec.sound is not None:
            _check_sound(x, self.spec, span)
        return x

    def elbo(
        self, x: Tensor, *, draws: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return `E_q[log p(x|z)] − KL(q(z|x) ‖ p(z))`, `[batch]`, in nats; higher is better.

        The expectation is a mean of `draws` draws, the KL is exact (MATH 2.3) where the prior has a
        formula, else an average over the same draws. A lower bound on log p(x) in expectation.

        Args:
            x: `[batch, *event]`, checked.
            draws: Of q(z|x) per x.
            generator: Source of the draws; by default one with seed 0.

        Returns:
            `[batch]`, without a graph.

        Raises:
            ArgumentValueError: x does not fit the model.
        """
        generator = generator or torch.Generator(self.scale.device).manual_seed(0)
        return bounds(self, self.check(x), draws=draws, generator=generator).elbo

    def log_likelihood(
        self, x: Tensor, *, draws: int = 1000, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the importance-weighted bound L_K on log p(x), `[batch]`, in nats (MATH 2.5).

        A lower bound in expectation that rises with `draws`.

        Args:
            x: `[batch, *event]`, checked.
            draws: K, of q(z|x) per x.
            generator: Source of the draws; by default one with seed 0.

        Returns:
            `[batch]`, without a graph.

        Raises:
            ArgumentValueError: x does not fit the model.
        """
        generator = generator or torch.Generator(self.scale.device).manual_seed(0)
        return bounds(self, self.check(x), draws=draws, generator=generator).importance_weighted

    @torch.no_grad()
    def sample(
        self, n: int, *, generator: torch.Generator | None = None, noise: bool = True
    ) -> Tensor:
        """Draw n x's: z ~ p(z), then x ~ p(x|z), or its mean when `noise=False`.

        Args:
            n: How many.
            generator: Source of the draws; by default one with seed 0.
            noise: Whether x is drawn, or its mean given z is returned.

        Returns:
            `[n, *event]` in the data's units.

        Raises:
            ArgumentTypeError: n is no integer.
            ArgumentValueError: n is below 1.
        """
        generator = generator or torch.Generator(self.scale.device).manual_seed(0)
        parameters = self.parameters_of(self.prior.sample(require_count(n, "n"), generator))
        if noise:
            return self.likelihood.sample(parameters, generator)
        return self.likelihood.mean(parameters)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` (the description) and `model.safetensors` (the weights).

        Args:
            folder: Where to; made if need be.

        Raises:
            RunError: The parts are your own (save `state_dict()` yourself then), the folder holds a
                model already, or the system refuses.
        """
        if self.spec is None:
            raise RunError("this VAE was composed by hand: only models from `build` can be saved")
        folder = Path(folder)
        refuse_to_overwrite(folder / "config.json")
        make_folder(folder)
        save_tensors(folder / "model.safetensors", self.state_dict())
        write_config(folder, {"model": self.spec.to_dict()})

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        parts: Parts | None = None,
    ) -> "VAE":
        """Read a model from a run directory; nothing is unpickled, no code in it is run.

        Of a run that is not finished, the averaged weights of its last checkpoint are read; a
        warning says so, and the model's `unfinished` holds the same sentence.

        Args:
            folder: What `save` or `train` wrote.
            device: Where the weights go.
            parts: For a run of modules of your own: the same ones, into which the weights go.

        Returns:
            The model, in evaluation mode.

        Raises:
            RunError: A file is missing, damaged, changed (its hash differs), or does not match its
                description; or the run has parts of your own and they are not given.
        """
        folder = Path(folder)
        config = read_config(folder, "model")
        spec = Spec.from_dict(config["model"], source=str(folder / "config.json"))
        require_own(folder, spec, parts)
        with torch.device("meta"):
            units = torch.ones(spec.event_shape) if _has_units(spec) else None
            model = build(
                spec.event_shape,
                spec.kind,
                spec.architecture,
                levels=spec.levels,
                grid=spec.grid,
                spread=units,
                sound=spec.sound,
                sizes=spec.sizes,
                labels=spec.labels,
            )
        if parts is not None:
            model = _fitted_with(model.to_empty(device="cpu"), parts)
        expected = model.state_dict()
        path, hashed = folder / "model.safetensors", is_hashed(config)
        if path.exists():
            tensors = load_tensors(path, like=expected, hashed=hashed)
        else:
            tensors, model.unfinished = averaged_weights(folder, model, hashed=hashed)
            warnings.warn(model.unfinished, stacklevel=2)
        model.load_state_dict(tensors, assign=True)
        return model.to(device).eval()


def with_parts(model: VAE, parts: Parts, x: Tensor, *, examples: Tensor | None = None) -> VAE:
    """Put a user's modules into a model of `build` and try them on examples, forth and back.

    Args:
        model: For the same data and as many latent dimensions as the encoder gives.
        parts: The modules; they are used themselves, not copied.
        x: A few examples, `[batch, *event]`.
        examples: As in `build`.

    Returns:
        The model.

    Raises:
        ArgumentValueError: Shapes do not fit (both are named), the decoder's output has no gradient
            in z, or a parameter has no part in the loss.
        ArgumentTypeError: A part returns something else than tensors.

    Example:
        >>> class Halves(nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x).chunk(2, -1)
        >>> model = build((4,), "binary", Architecture(latent=3))
        >>> parts = Parts(encoder=Halves(4, 6), decoder=nn.Linear(3, 4))
        >>> with_parts(model, parts, torch.ones(2, 4)).spec.own["encoder"].rpartition(".")[2]
        'Halves'
    """
    spec = model.spec
    if spec is None:
        raise RunError("only models from `build` take parts")
    require(spec.kind != "sound", "data", "images or vectors for parts of your own", "sound")
    shared = isinstance(model.family, TopDown | Quantised)
    what = "the model's own, which q shares, with several layers or a quantised posterior"
    require(parts.prior is None or not shared, "prior", what, "another")
    for name in ("likelihood", "prior"):
        if getattr(parts, name) is not None:
            delattr(model, name)  # a module's place takes no other object
            setattr(model, name, getattr(parts, name))
    if parts.encoder is not None:
        model.encoder = OwnEncoder(parts.encoder)
    if parts.decoder is not None:
        places = getattr(model.likelihood, "places", Event(spec.event_shape).places)
        model.decoder = OwnDecoder(parts.decoder, model.likelihood.channels, places)
    if parts.prior is None and parts.encoder is not None and spec.architecture.prior == "vamp":
        model = _with_prior(model, spec, examples)
    model.spec = replace(spec, own=parts.named())
    with evaluating(model):
        _try_parts(model.at(torch.tensor(0)) if spec.labels else model, model.check(x))
    return model


def _try_parts(model: VAE, x: Tensor) -> None:
    """Run a model on a few examples, forth and back; refuse what does not fit."""
    outputs = _tried("encoder", model.encoder, model.encoder_input(x))
    mean, log_sd, latent = outputs[0], outputs[1], model.prior.latent
    fits = mean.shape == log_sd.shape and mean.ndim == 2 and len(mean) == len(x)
    shapes = f"{list(mean.shape)} and {list(log_sd.shape)}"
    require(fits, "encoder", "mean and log_sd of one shape [batch, latent]", shapes)
    more = [list(one.shape) for one in outputs[2:]]  # of those needed the family says what is wrong
    alone = "mean and log_sd alone for this posterior"
    require(model.family.extra > 0 or not more, "encoder", alone, f"{more} besides")
    fits = mean.shape[1] == latent
    wanted = f"one of {mean.shape[1]} dimensions, as the encoder's mean {list(mean.shape)}"
    require(fits, "prior", wanted, f"{latent} dimensions")
    z = mean.detach().requires_grad_()
    parameters = _tried("decoder", model.decoder, model.decoder_input(z))
    slope = None
    if parameters.requires_grad:
        slope = torch.autograd.grad(parameters.sum(), z, allow_unused=True)[0]
    channels = model.likelihood.channels
    wanted = f"one of {parameters.shape[-2]} channels, as the decoder's output"
    hint = "a decoder of your own too, or an architecture with this likelihood"
    require(parameters.shape[-2] == channels, "likelihood", wanted, f"{channels} channels", hint)
    hint = "no .detach(), no torch.no_grad() and no rounding in it"
    got = f"{list(parameters.shape)} without one"
    require(slope is not None, "decoder", "an output with a gradient in z", got, hint)
    log_p, drawn = model.prior.log_prob(z), model.prior.sample(2, torch.Generator(z.device))
    fits = log_p.shape == (len(x),) and drawn.shape == (2, latent)
    wanted = f"log_prob of [{len(x)}] for z {list(z.shape)}, and samples [2, {latent}]"
    require(fits, "prior", wanted, f"{list(log_p.shape)} and {list(drawn.shape)}")
    _require_agreeing("prior", model.prior, ("log_prob", "sample"))
    _require_agreeing("prior", model.prior, ("kl", "draw_and_kl", "log_ratio"))
    _require_agreeing("likelihood", model.likelihood, ("log_prob", "mean", "sample"))
    _require_own_kl(model, x)
    noise = torch.randn(1, *mean.shape, generator=torch.Generator().manual_seed(0)).to(mean)
    likelihood, kl = model.elbo_terms(x, noise)
    fits = likelihood.shape == (1, len(x))
    require(fits, "likelihood", f"log_prob of [1, {len(x)}]", list(likelihood.shape))
    named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    require(len(named) > 0, "parts", "a parameter to train", "none")
    dtypes = sorted({str(one.dtype).removeprefix("torch.") for _, one in named})
    good = dtypes in (["float32"], ["float64"])  # an average moves by less than a bfloat16 has
    wanted = "parameters of one dtype, float32 or float64"
    require(good, "parts", wanted, " and ".join(dtypes), ".float() on them; precision='bfloat16'")
    loss = kl.sum() - likelihood.sum()
    slopes = torch.autograd.grad(loss, [one for _, one in named], allow_unused=True)
    unused = [name for (name, _), one in zip(named, slopes, strict=True) if one is None]
    hint = "requires_grad_(False) on it"
    require(not unused, "parts", "parameters that the loss depends on", ", ".join(unused[:3]), hint)


def _require_agreeing(name: str, part: object, members: tuple[str, ...]) -> None:
    """Refuse a class that overrides one of several members which are of one distribution."""
    for own in members:
        for other in members:
            base = next((one for one in type(part).__mro__ if other in vars(one)), object)
            overridden = place_of(part, own) < place_of(part, other) and hasattr(base, own)
            wanted = f"{other} of the same distribution as {own}, which {type(part).__name__} has"
            hint = f"{other} too; {other} = {base.__name__}.{other} if that is right"
            require(not overridden, name, wanted, f"that of {base.__name__}", hint)


def _require_own_kl(model: VAE, x: Tensor) -> None:
    """Refuse a prior whose closed forms are not those of its log_prob, by draws of q."""
    q, prior = model.approximate_posterior(x), model.prior
    if type(prior) is StandardNormal or not isinstance(q, DiagonalGaussian):
        return
    closed = prior
    if not has_closed_form(closed):
        return
    noise = torch.randn(TRIAL_DRAWS, *q.mean.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn = q.draw(noise.to(q.mean))
        log_p = prior.log_prob(drawn.z)
        ratio, exact = log_p - drawn.log_q, closed.kl(q.mean, q.log_sd).sum(-1)
        rounding = (
            TRIAL_ROUNDINGS
            * torch.finfo(x.dtype).eps
            * (log_p.abs() + drawn.log_q.abs() + prior.latent)
        )
        apart = (closed.log_ratio(drawn.z, q.log_sd, drawn.noise) - ratio).abs() > rounding
        error = ratio.std(0) / TRIAL_DRAWS**0.5
        off = (exact + ratio.mean(0)).abs() > TRIAL_ERRORS * error + rounding.amax(0)
        _, joint = closed.draw_and_kl(q.mean, q.log_sd, drawn.noise)
        off |= (joint.sum(-1) - exact).abs() > rounding.amax(0)
    good = "log_ratio = log_prob(z) − log q(z)"
    require(not bool(apart.any()), "prior", good, "another value at draws of q")
    good = "kl and draw_and_kl = the mean of log q(z) − log_prob(z)"
    got = f"{exact[0]:.5g} against {-ratio.mean(0)[0]:.5g} ± {error[0]:.2g} by draws"
    require(not bool(off.any()), "prior", good, got, "no kl: then it is estimated")


def _fitted_with(model: VAE, parts: Parts) -> VAE:
    """Put parts into a model whose other weights are still to be read, on examples of zeros.

    Size factors are 1.
    """
    spec = model.spec
    if spec is None:
        raise RunError("only models from `build` take parts")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(1.0)
    x = torch.zeros(2, *spec.event_shape)
    x[..., -1:] += 1.0 if spec.sizes else 0.0
    return with_parts(model, parts, x)


def require_own(folder: Path, spec: Spec, parts: Parts | None) -> None:
    """Raise a RunError where a run's own parts are not given, or others."""
    wanted = set(spec.own or {})
    given = set() if parts is None else set(parts.named())
    if wanted != given:
        names = ", ".join(f"{name} ({one})" for name, one in (spec.own or {}).items())
        hint = "parts=kullback.vae.Parts(...) in Python, with the modules it was trained with"
        got = ", ".join(sorted(given)) or "none"
        raise RunError(
            f"{folder}: expected its own parts, {names or 'none'}; got {got}. Try: {hint}"
        )


def build(
    event_shape: tuple[int, ...],
    kind: str,
    architecture: Architecture | None = None,
    *,
    mean: Tensor | None = None,
    scale: float | None = None,
    levels: int = 256,
    grid: dict[str, Any] | None = None,
    spread: Tensor | None = None,
    sound: dict[str, int] | None = None,
    moments: Tensor | None = None,
    shares: Tensor | None = None,
    examples: Tensor | None = None,
    sizes: str = "",
    labels: tuple[str, ...] = (),
) -> VAE:
    """Build a VAE for events of a shape and kind; weights come from torch's global generator.

    Args:
        event_shape: `(C, H, W)`, `(D,)`, or `(1, T)` for sound.
        kind: "binary", "8-bit", "levels", "counts", "continuous" or "sound".
        architecture: By default `Architecture()`.
        mean: The training data's mean `[*event]` in its own units: it centres the encoder's input
            and is the decoder's first output.
        scale: What the centred input is divided by.
        levels: How many the data have, where they are levels.
        grid: What those stand for, see `Spec`.
        spread: The training data's deviation `[*event]`, all positive, instead of a scale:
            continuous data are then standardised inside the model, and more than 256 levels have
            it for their unit, while x and every figure stay in the data's units.
        sound: Rate, step and clip length, for sound; see `Spec`.
        moments: Of the training data's sound, `kullback.vae.sound.second_moments`.
        shares: Of the training data's sound, `kullback.vae.sound.shift_shares`.
        examples: Training examples `[n, *event]` at which the pseudo-inputs of a "vamp" prior
            start, repeated where they are fewer; without them they are standard normal, in the
            encoder's units.
        labels: On which the model is to be conditional, by name: see `VAE.at`.
        sizes: Of counts, "total" or "given" where the last column is a size factor; see `Spec`.

    Returns:
        The model, with fresh weights.

    Raises:
        ArgumentValueError: As `Architecture` and `choose`, and for conv networks on vectors.

    Example:
        >>> build((1, 28, 28), "8-bit").spec.architecture.likelihood
        'logistics'
    """
    architecture = (architecture or Architecture()).resolved(tuple(event_shape), kind)
    inside = spread is not None and kind == "continuous"
    spec = Spec(
        tuple(event_shape),
        kind,
        architecture,
        levels,
        grid,
        standardised=inside,
        sound=sound,
        sizes=sizes,
        labels=labels,
    )
    if kind == "sound":
        return _with_prior(_of_sound(spec, scale, moments, shares), spec, examples)
    top = levels - 1
    usual = {"binary": (0.5, 1.0), "8-bit": (127.5, 64.0), "continuous": (0.0, 1.0)}
    usual |= {"levels": (top / 2, max(1.0, top / 4)), "counts": (1.0, 1.0)}
    shift, width = usual[kind]
    mean = torch.full(spec.event_shape, shift) if mean is None else mean.float()
    spread = None if spread is None else spread.float()
    likelihood = _likelihood(spec, mean, spread)
    bias = likelihood.initial_bias(mean)
    hidden, latent = architecture.hidden, architecture.latent
    codes = latent + len(labels)  # the decoder reads z and which label it is
    family = _family(architecture)
    if architecture.network == "mlp":
        act = architecture.activation
        encoder: nn.Module = MlpEncoder(
            event_shape, hidden, latent, activation=act, extra=family.extra
        )
        decoder: nn.Module = MlpDecoder(codes, hidden[::-1], bias, activation=act)
    else:
        encoder = ConvEncoder(event_shape, hidden, latent, extra=family.extra)
        decoder = _conv_decoder(spec, likelihood, bias, codes)
    scale = width if scale is None else scale
    require(math.isfinite(scale) and scale > 0, "scale", "a positive number", scale)
    divide_by = scale if spread is None else spread
    prior = StandardNormal(latent)
    model = VAE(
        encoder,
        decoder,
        likelihood,
        prior,
        shift=mean.log1p() if kind == "counts" else mean,
        scale=divide_by,
        spec=spec,
        family=family,
    )
    if labels:
        model.label_inputs = nn.Parameter(torch.zeros(len(labels), *spec.event_shape))
    return _with_prior(model, spec, examples)


def _one_of(labels: tuple[str, ...]) -> str:
    """Name the labels of a model, the first ten of many."""
    more = ", …" if len(labels) > NAMED_LABELS else ""
    return (
        f"one of {', '.join(labels[:NAMED_LABELS])}{more}" if labels else "none: it has no labels"
    )


def _family(architecture: Architecture) -> Family:
    """Return the family of q(z|x) of an architecture."""
    latent = architecture.latent
    layers = architecture.layers
    sizes = layer_sizes(latent, layers) if isinstance(layers, int) else layers
    if len(sizes) > 1:
        return TopDown(TopDownPrior(sizes))
    if architecture.posterior == "full":
        return FullRank(latent)
    if architecture.posterior == "low_rank":
        return LowRank(latent, architecture.rank)
    if architecture.posterior == "quantised":
        return Quantised(CodePrior(latent, architecture.codes))
    return InverseAutoregressive(latent) if architecture.posterior == "iaf" else Diagonal()


def _with_prior(model: VAE, spec: Spec, examples: Tensor | None) -> VAE:
    """Give a model the prior of its description; "vamp" looks at the encoder and at examples."""
    kind, latent = spec.architecture.prior, spec.architecture.latent
    count = spec.architecture.prior_components
    if isinstance(model.family, TopDown | Quantised):
        model.prior = model.family.prior
    elif kind == "mixture":
        model.prior = MixtureOfGaussians(latent, count)
    elif kind == "flow":
        model.prior = CouplingFlow(latent)
    elif kind == "vamp":
        inputs = torch.randn(count, *spec.event_shape)
        if examples is not None:
            rows = torch.arange(count) % len(examples)
            first = model.at(torch.tensor(0)) if spec.labels else model
            inputs = first.encoder_input(examples.float()[rows])
        model.prior = VampPrior(model.encoder, inputs, latent=latent)
    return model


def _of_sound(
    spec: Spec, scale: float | None, moments: Tensor | None, shares: Tensor | None
) -> VAE:
    """Build a VAE of clips of integer samples; `scale` is their deviation."""
    known = spec.sound or {}
    good = len(spec.event_shape) == 2 and spec.event_shape[0] == 1
    require(good, "event_shape", "(1, T) for sound", spec.event_shape)
    samples, (width,) = spec.event_shape[1], spec.architecture.hidden
    latent = spec.architecture.latent
    likelihood = AutoregressiveLogistics(
        samples,
        width=width,
        components=spec.architecture.components,
        levels=spec.levels,
        step=known.get("step", 1),
        moments=moments,
        shares=shares,
        context=tuple(one for one in spec.architecture.context if one),
    )
    family = _family(spec.architecture)
    encoder = SoundEncoder(samples, width, latent, extra=family.extra)
    decoder = SoundDecoder(latent + len(spec.labels), width)
    prior = StandardNormal(latent)
    scale = 1.0 if scale is None else scale
    return VAE(encoder, decoder, likelihood, prior, scale=scale, spec=spec, family=family)


def _check_sound(x: Tensor, spec: Spec, span: str) -> None:
    """Refuse clips that are not levels of the model followed by padding."""
    step, half = (spec.sound or {}).get("step", 1), spec.levels // 2
    levels, padded = x / step, x == PADDING
    ok = padded | ((levels == levels.round()) & (levels >= -half) & (levels < half))
    expected = f"integers {-half * step} to {(half - 1) * step}"
    expected += f", multiples of {step}" if step > 1 else ""
    require(bool(ok.all()), "x", expected, span, "read them with kullback.data.load_sounds")
    ends = bool((padded[..., 1:] >= padded[..., :-1]).all()) and not bool(padded[..., 0].any())
    require(ends, "x", "padding after the samples only, and one sample at least", "padding within")


def _check_counts(x: Tensor, spec: Spec, span: str) -> None:
    """Refuse what is no count, and size factors that are not positive."""
    counts = x[:, :-1] if spec.sizes else x
    ok = bool(((counts == counts.round()) & (counts >= 0) & (counts <= MOST_COUNT)).all())
    require(ok, "x", f"whole numbers from 0 to {MOST_COUNT:,}", span, "raw counts, no logarithms")
    sized = not spec.sizes or bool((x[:, -1] > 0).all())
    require(sized, "x", "positive size factors in the last column", span, "drop items of total 0")


def _has_units(spec: Spec) -> bool:
    """Say whether a model of this description holds the data's spread."""
    return spec.standardised or (spec.kind == "levels" and spec.levels > UNIT_SCALE_LEVELS)


def _conv_decoder(spec: Spec, likelihood: Any, bias: Tensor, codes: int) -> nn.Module:
    shape, hidden = spec.event_shape, spec.architecture.hidden
    if spec.architecture.network == "conv":
        return ConvDecoder(shape, codes, hidden, bias)
    patched = likelihood.event.patch > 0
    return PatchDecoder(shape, codes, hidden, bias, patched=patched)


_LAWS = {"gaussian": "normal", "laplace": "laplace", "student": "student"}


def _likelihood(spec: Spec, mean: Tensor, spread: Tensor | None) -> Any:
    architecture, shape = spec.architecture, spec.event_shape
    beside, context = architecture.neighbours, architecture.context
    if architecture.likelihood == "logistics":
        event = Event(shape)
        units = {} if spread is None else {"centre": mean, "spread": spread}
        split = {name: event.split(value)[0] for name, value in units.items()}
        patched = architecture.network == "patch" and spread is None
        own = "0 where levels are in units of the data's own spread"
        require(spread is None or not beside, "neighbours", own, beside)
        own = own.replace("0", "none", 1)
        require(spread is None or not context, "context", own, context)
        mixture = DiscretisedLogistics(
            shape,
            components=architecture.components,
            levels=spec.levels,
            centre=split.get("centre"),
            spread=split.get("spread"),
            patch=patch_side(shape) if patched else 0,
        )
        return _given_pixels(mixture, architecture)
    if architecture.likelihood in _LAWS:
        location = None if spread is None else mean
        law = _LAWS[architecture.likelihood]
        return Gaussian(shape, location=location, spread=spread, law=law)
    if architecture.likelihood in COUNTS:
        return Counts(shape, law=architecture.likelihood, typical=mean[-1] if spec.sizes else None)
    if architecture.likelihood == "continuous_bernoulli":
        return ContinuousBernoulli(shape)
    if architecture.likelihood == "beta_binomial":
        return BetaBinomial(shape, levels=spec.levels)
    if architecture.likelihood == "categorical":
        few = spec.levels <= CATEGORICAL_LEVELS
        require(
            few, "likelihood", f"logistics for more than {CATEGORICAL_LEVELS} levels", "categorical"
        )
        return Categorical(shape, levels=spec.levels)
    return _given_pixels(Bernoulli(shape), architecture)


def _given_pixels(likelihood: Any, architecture: Architecture) -> Any:
    """Return a likelihood of pixels that depend on those before them, where they are to."""
    if architecture.context:
        return WithContext(likelihood, architecture.context)
    if architecture.neighbours:
        return Neighbours(likelihood, architecture.neighbours)
    return likelihood


def location_and_spread(train: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean `[*event]` and standard deviation `[*event]` of `[N, *event]`, in float32.

    Vectors have a deviation for each column; images one for each channel, at every pixel, around
    each pixel's own mean. The deviation has N below. Nothing overflows within float32's range.

    Args:
        train: Training examples alone, `[N, *event]`.

    Returns:
        Mean and deviation.

    Raises:
        DataError: Floats have columns or channels that are constant (a density on a constant has
            no finite maximum) or that float32 cannot resolve (values of one apart around 1e8).

    Example:
        >>> location_and_spread(torch.tensor([[1.0, 0.0], [3.0, 1e-6]]))
        (tensor([2.0000e+00, 5.0000e-07]), tensor([1.0000e+00, 5.0000e-07]))
    """
    return location_and_spread_of(moments_of(train), floats=train.is_floating_point())


def location_and_spread_of(moments: Moments, *, floats: bool) -> tuple[Tensor, Tensor]:
    """Return what `location_and_spread` does, of examples whose moments are known.

    floats: whether the examples are continuous, of which no column may be constant.
    """
    over = tuple(range(1, moments.mean.ndim))
    rows = moments.squares / moments.count
    spread = (rows.mean(over, keepdim=True) if over else rows).sqrt()
    if floats:
        _require_resolved(spread.flatten(), moments)
    return moments.mean.float(), spread.expand(moments.mean.shape).float().contiguous()


def _require_resolved(spread: Tensor, moments: Moments) -> None:
    """Refuse what is constant or below float32's resolution, by name."""
    what = "column" if moments.mean.ndim == 1 else "channel"
    over = tuple(range(1, moments.mean.ndim))
    extreme = torch.maximum(moments.low.abs(), moments.high.abs())
    extreme = (extreme.amax(over) if over else extreme).float()
    infinite = torch.full_like(extreme, torch.inf)
    ulp = torch.nextafter(extreme, infinite).double() - extreme.double()
    tiny = ~(spread >= torch.finfo(torch.float32).tiny) | spread.isinf()
    same = (moments.low == moments.high).reshape(len(spread), -1)
    constant = (spread == 0) | same.all(1)
    if bool(constant.any()):
        raise DataError(
            f"{_named(constant, what)} constant in the {moments.count:,} training examples: a "
            f"density on a constant has no finite maximum. Try: leave {what}s like that out"
        )
    coarse = (ulp > FLOAT32_RESOLUTION * spread) | tiny
    if bool(coarse.any()):
        worst = int(coarse.nonzero()[0])
        raise DataError(
            f"{_named(coarse, what)} too fine for float32: {what} {worst} varies by "
            f"{float(spread[worst]):.2g} around {float(extreme[worst]):.6g}. "
            "Try: subtract its mean, or scale it, before saving"
        )


def _named(flags: Tensor, what: str) -> str:
    found = flags.nonzero().flatten().tolist()
    more = f" and {len(found) - NAMED_COLUMNS:,} more" if len(found) > NAMED_COLUMNS else ""
    verb = "is" if len(found) == 1 else "are"
    plural = what if len(found) == 1 else f"{what}s"
    return f"{plural} {', '.join(map(str, found[:NAMED_COLUMNS]))}{more} {verb}"
