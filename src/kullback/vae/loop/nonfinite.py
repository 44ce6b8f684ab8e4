"""Where did a loss or a gradient stop being finite?

Which to use: `diagnose`, whose words are those of a `NonFiniteError`; the batch is kept in a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kullback.core import RunError

from ..latents import draw_with_kl
from ..model import VAE
from ..state import State, save_tensors

__all__ = ["Batch", "NonFiniteError", "diagnose"]


class NonFiniteError(RunError):
    """A loss or a gradient stopped being finite; the weights are still those before the step."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step saw: x `[batch, *event]`, noise `[draws, batch, latent]`, the items' names."""

    x: Tensor
    noise: Tensor
    names: Sequence[str]


def diagnose(model: VAE, state: State, batch: Batch, folder: Path | None) -> str:
    """Describe where the first NaN or infinity arose, and keep a repro file in `folder`.

    The repro is `nonfinite-step-N.safetensors` with x, noise and the weights of that step.
    Returns the message for the user.
    """
    step, x, names = state.step, batch.x, batch.names
    with state.flat.whole():
        tensor, bad = _first_bad_tensor(model, x, batch.noise)
    parameter, vector = state.flat.first_bad(), state.flat.vector
    parts = [part.clone() for part in state.flat.slices(vector)]  # of use until the next one
    weights = torch.cat([vector[:0], *parts])
    place = tensor or (f"the gradient of {parameter}" if parameter else "the sum over the batch")
    items = [names[i] for i in torch.nonzero(bad).flatten().tolist()] if tensor else []
    which = f" for {len(items)} of {len(x)} batch items ({', '.join(items[:5])})" if items else ""
    text = f"step {step}: the loss or its gradient is not finite; the first NaN or infinity is in "
    text += f"{place}{which}. Try: a lower --learning-rate or a smaller --clip"
    if folder is None:
        return text
    path = folder / f"nonfinite-step-{step}.safetensors"
    tensors = {"x": x, "noise": batch.noise, "weights": weights}
    save_tensors(path, tensors, note=text)
    return f"{text}. The batch is kept in {path}"


@torch.no_grad()
def _first_bad_tensor(model: VAE, x: Tensor, noise: Tensor) -> tuple[str, Tensor]:
    """Follow one batch through the model to the first tensor with a NaN or infinity."""
    encoded = model.encoded(x)
    z, kl = draw_with_kl(model.prior, model.family(encoded), noise)
    parameters = model.parameters_of(z)
    likelihood = model.likelihood.log_prob(parameters, x)
    for name, tensor in (
        ("the input x", x),
        ("the encoder's mean", encoded.mean),
        ("the encoder's log sd", encoded.log_sd),
        ("the latent draw z", z.movedim(0, 1)),
        ("the decoder's output", parameters.movedim(0, 1)),
        ("log p(x|z)", likelihood.movedim(0, 1)),
        ("KL(q(z|x) ‖ p(z))", kl),
    ):
        bad = _bad_items(tensor)
        if bool(bad.any()):
            return name, bad
    return "", torch.zeros(len(x), dtype=torch.bool)


def _bad_items(tensor: Tensor) -> Tensor:
    """Return which batch items (last-but-features axis first) hold NaN or infinity."""
    return ~torch.isfinite(tensor.detach().flatten(1)).all(1)
