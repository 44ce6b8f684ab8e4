"""Modules of a user's own in a model: `Parts` names them, `with_parts` puts them in and tries them.

What does not fit is refused with both shapes, before a run begins.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kullback.core import (
    ArgumentTypeError,
    ArgumentValueError,
    RunError,
    describe,
    message,
    require,
)

from ..architecture import Spec
from ..latents import (
    DiagonalGaussian,
    Prior,
    Quantised,
    StandardNormal,
    TopDown,
    has_closed_form,
    place_of,
)
from ..likelihoods import Event, Likelihood
from ..limits import TRIAL_DRAWS, TRIAL_ERRORS, TRIAL_ROUNDINGS
from .components import put_prior
from .composed import Composed
from .own_modules import OwnDecoder, OwnEncoder, names_own_parts

__all__ = ["Parts", "evaluating", "fitted_with", "require_own", "with_parts"]

Model = TypeVar("Model", bound=Composed)


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


def with_parts(model: Model, parts: Parts, x: Tensor, *, examples: Tensor | None = None) -> Model:
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
        >>> from kullback.vae import Architecture, build
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
        put_prior(model, examples)
    model.spec = replace(spec, own=parts.named())
    with evaluating(model):
        _try_parts(model.at(torch.tensor(0)) if spec.labels else model, model.check(x))
    return model


@names_own_parts
def _try_parts(model: Composed, x: Tensor) -> None:
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


def _require_own_kl(model: Composed, x: Tensor) -> None:
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


def fitted_with(model: Model, parts: Parts) -> Model:
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
