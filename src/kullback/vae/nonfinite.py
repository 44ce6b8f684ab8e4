"""What to say and keep when a loss or a gradient stops being finite."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from . import store
from .flat import FlatParameters
from .model import VAE

__all__ = ["diagnose"]


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
