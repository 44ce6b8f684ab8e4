"""What to say and keep when a loss or a gradient stops being finite.

Training a VAE: one loop, and the few things around it.

`fit` is the loop, a generator that yields after every step; `kullback.vae.run.train` wraps it in a
run directory with checkpoints. A copy of `fit` is a fine start for a loop of your own.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from kullback.core import RunError
from kullback.data import Dataset
from kullback.variational import objectives

from . import store
from .fast.elbo_step import step_for
from .fast.flat import FlatParameters
from .model import VAE
from .training import Training

__all__ = ["NonFiniteError", "State", "diagnose", "fit", "loss_terms"]


def _bad_items(tensor: Tensor) -> Tensor:
    """Return which batch items (last-but-features axis first) hold NaN or infinity."""
    return ~torch.isfinite(tensor.detach().flatten(1)).all(1)


@torch.no_grad()
def _first_bad_tensor(model: VAE, x: Tensor, noise: Tensor) -> tuple[str, Tensor]:
    """Follow one batch through the model to the first tensor with a NaN or infinity."""
    mean, log_sd = model.encode(x)
    z = mean + log_sd.exp() * noise
    parameters = model.parameters_of(z)
    likelihood = model.likelihood.log_prob(parameters, x)
    for name, tensor in (
        ("the input x", x),
        ("the encoder's mean", mean),
        ("the encoder's log sd", log_sd),
        ("the latent draw z", z.movedim(0, 1)),
        ("the decoder's output", parameters.movedim(0, 1)),
        ("log p(x|z)", likelihood.movedim(0, 1)),
        ("KL(q(z|x) ‖ p(z))", model.prior.kl(mean, log_sd)),
    ):
        bad = _bad_items(tensor)
        if bool(bad.any()):
            return name, bad
    return "", torch.zeros(len(x), dtype=torch.bool)


def diagnose(
    model: VAE,
    flat: FlatParameters,
    step: int,
    x: Tensor,
    noise: Tensor,
    names: Sequence[str],
    folder: Path | None,
) -> str:
    """Describe where the first NaN or infinity arose, and keep a repro file in `folder`.

    names: of the batch items. The repro is `nonfinite-step-N.safetensors` with x, noise and the
    weights that met them. Returns the message for the user.
    """
    tensor, bad = _first_bad_tensor(model, x, noise)
    parameter = flat.first_bad()
    place = tensor or (f"the gradient of {parameter}" if parameter else "the sum over the batch")
    items = [names[i] for i in torch.nonzero(bad).flatten().tolist()] if tensor else []
    which = f" for {len(items)} of {len(x)} batch items ({', '.join(items[:5])})" if items else ""
    text = f"step {step}: the loss or its gradient is not finite; the first NaN or infinity is in "
    text += f"{place}{which}. Try: a lower --learning-rate or a smaller --clip"
    if folder is None:
        return text
    path = folder / f"nonfinite-step-{step}.safetensors"
    tensors = {"x": x, "noise": noise, "weights": flat.vector}
    store.save_tensors(path, tensors, note=text)
    return f"{text}. The batch is kept in {path}"


AVERAGE_EVERY = 10  # steps between updates of the averaged weights


class NonFiniteError(RunError):
    """A loss or a gradient stopped being finite; the weights are still those before the step."""


@dataclass(slots=True)
class State:
    """All that the next step needs; what a checkpoint holds.

    totals: sums over the steps since the last reading of (ELBO, rate).
    """

    flat: FlatParameters
    optimiser: torch.optim.AdamW
    generator: torch.Generator
    step: int = 0
    seconds: float = 0.0
    totals: Tensor = field(default_factory=lambda: torch.zeros(2))

    @classmethod
    def start(
        cls, model: VAE, settings: Training, *, precision: torch.dtype = torch.float32
    ) -> "State":
        """Make the state of a run that has not begun, on the model's device."""
        flat = FlatParameters(model, precision=precision)
        weights = nn.Parameter(flat.vector)
        weights.grad = flat.gradient
        optimiser = torch.optim.AdamW([weights], weight_decay=0.0, fused=True)
        device = flat.vector.device
        generator = torch.Generator(device).manual_seed(settings.seed)
        return cls(flat, optimiser, generator, totals=torch.zeros(2, device=device))


def loss_terms(
    model: VAE, x: Tensor, noise: Tensor, settings: Training, progress: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the loss and (ELBO, rate), batch means in nats, for noise `[draws, batch, latent]`.

    The loss is minus the objective of this point of the run; the ELBO and the rate, `[2]` and
    without gradient, are what they say whatever β is.
    """
    beta = settings.beta_at(progress)
    if settings.importance_weighted_at(progress):
        likelihood, kl, objective = model.tight_terms(x, noise, beta)
    else:
        likelihood, kl = model.elbo_terms(x, noise)
        objective = objectives.beta_elbo(likelihood, kl, beta=beta, free_bits=settings.free_bits)
    with torch.no_grad():
        rate = kl.sum() / len(x)
        elbo = likelihood.sum() / likelihood.numel() - rate
    return -objective.mean(), torch.stack([elbo, rate])


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """Return the order of the training items in one epoch: a function of seed and epoch alone."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def batches(data: Dataset, settings: Training, state: State) -> Iterator[Tensor]:
    """Yield index batches for ever from the state's step on; an incomplete last one is dropped."""
    n = len(data.train)
    size = min(settings.batch_size, n)
    per_epoch = n // size
    while True:
        epoch, first = divmod(state.step, per_epoch)
        order = epoch_order(settings.seed, epoch, n).to(data.train.device)
        for i in range(first, per_epoch):
            yield order[i * size : (i + 1) * size]


def fit(
    model: VAE,
    data: Dataset,
    settings: Training,
    state: State,
    *,
    folder: Path | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[State]:
    """Train in place, yielding the state after every step until the budget is spent.

    Errors: RunError at the first non-finite loss or gradient, before it touches the weights, with
    the step, the batch items and the tensor; a repro file is left in `folder`.
    """
    flat, optimiser = state.flat, state.optimiser
    per_epoch = max(1, len(data.train) // settings.batch_size)
    started = clock() - state.seconds
    gradient = _gradient(model, flat, settings)
    for indices in batches(data, settings, state):
        state.seconds = clock() - started
        progress = settings.progress(state.step, state.seconds, per_epoch)
        if progress >= 1.0:
            return
        untouched = state.generator.get_state()
        x = data.batch(indices, state.generator).float()
        shape = (settings.draws_at(progress), len(x), model.prior.latent)
        noise = torch.randn(shape, generator=state.generator, device=x.device)
        loss, figures = gradient(x, noise, progress)
        norm = float(flat.norm())
        if not math.isfinite(norm + float(loss.detach())):
            names = [data.train_names[i] for i in indices.tolist()]
            state.generator.set_state(untouched)
            raise NonFiniteError(diagnose(model, flat, state.step, x, noise, names, folder))
        _clip(flat, norm, settings.clip)
        rate = settings.learning_rate_at(progress, state.step)
        flat.decay(rate * settings.weight_decay)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
        flat.refresh()
        state.step += 1
        if state.step % AVERAGE_EVERY == 0:
            flat.update_average(min(1.0, AVERAGE_EVERY / (settings.average * state.step)))
        state.totals += figures
        yield state


def _gradient(
    model: VAE, flat: FlatParameters, settings: Training
) -> Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    """Return how a step gets its gradient into `flat`: by hand where that is written, or autograd.

    The function takes x, noise and the progress of the run; it returns what `loss_terms` does.
    """
    by_hand = step_for(model, flat, settings)

    def gradient(x: Tensor, noise: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        if by_hand is not None:
            return by_hand(x, noise, settings.beta_at(progress))
        loss, figures = loss_terms(model, x, noise, settings, progress)
        flat.differentiate(loss)
        return loss, figures

    return gradient


def _clip(flat: FlatParameters, norm: float, largest: float) -> None:
    """Scale the gradient down to the largest norm allowed, when it is above it."""
    if norm > largest:
        flat.gradient.mul_(largest / norm)
