"""The model that a training begins with, made for its data.

Which to use: `fresh_model`; its weights are a function of the seed alone, its units and biases of
the training data.
"""

import math
from dataclasses import replace

import torch

from kullback.data import PADDING, Dataset, Rows

from ..architecture import Architecture, Spec
from ..limits import UNIT_SCALE_LEVELS
from ..model import VAE, Parts, build, location_and_spread_of, with_parts
from ..sound import second_moments, shift_shares

__all__ = ["fresh_model"]


def fresh_model(
    data: Dataset,
    architecture: Architecture,
    seed: int,
    spec: Spec | None,
    *,
    parts: Parts | None = None,
) -> VAE:
    """Build the model for the data, its weights a function of the seed alone.

    spec: of a run to go on with, which may have been made before data were standardised.
    """
    inside = data.kind == "continuous" and (spec is None or spec.standardised)
    units = inside or (data.kind == "levels" and data.levels > UNIT_SCALE_LEVELS)
    sound, train = data.protocol.get("sound"), data.train
    mean = spread = None
    scale = 1.0
    if sound is not None:
        scale = _deviation_of(_in_memory(train))
    else:
        moments = data.moments()
        mean = moments.mean.float()
        if units:
            mean, spread = location_and_spread_of(moments, floats=data.kind == "continuous")
        elif data.kind == "counts" and len(train) > 1:
            scale = float((_in_memory(train).float().log1p() - mean.log1p()).std())
        elif data.kind != "binary":
            numbers = moments.count * mean.numel()
            scale = math.sqrt(float(moments.squares.sum()) / max(1, numbers - 1))
        if data.dynamic:
            mean = mean / 255.0
    latent = None if parts is None else parts.latent(data.train[:2].cpu().float())
    architecture = architecture if latent is None else replace(architecture, latent=latent)
    outputs = parts is not None and (parts.decoder is not None or parts.likelihood is not None)
    if outputs and architecture.neighbours < 0:  # what a decoder of one's own gives is its own
        architecture = replace(architecture, neighbours=0)
    examples = _examples(data, architecture, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(
            data.event_shape,
            data.kind,
            architecture,
            mean=mean,
            scale=scale or 1.0,
            levels=data.levels if data.kind in ("levels", "sound") else 256,
            grid=data.protocol.get("grid"),
            spread=None if spread is None else (spread if inside else spread.clamp(min=1.0)),
            sound=None if sound is None else {n: int(sound[n]) for n in ("rate", "step", "clip")},
            moments=None
            if sound is None
            else second_moments(_in_memory(train), step=int(sound["step"])),
            shares=None
            if sound is None
            else shift_shares(_in_memory(train), step=int(sound["step"])),
            examples=examples,
            sizes=str(data.protocol.get("sizes", "")),
            labels=tuple(data.protocol.get("labels", ())),
        )
        if parts is None:
            return model
        bits = torch.Generator(data.train.device).manual_seed(seed)
        few = torch.arange(min(2, len(data.train)), device=data.train.device)
        return with_parts(model, parts, data.batch(few, bits).cpu(), examples=examples)


def _in_memory(rows: torch.Tensor | Rows) -> torch.Tensor:
    return rows[:] if isinstance(rows, Rows) else rows


def _examples(data: Dataset, architecture: Architecture, seed: int) -> torch.Tensor | None:
    """Pick the training examples at which the pseudo-inputs of a "vamp" prior start."""
    if architecture.prior != "vamp":
        return None
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(data.train), generator=generator)[: architecture.prior_components]
    device = data.train.device
    bits = torch.Generator(device).manual_seed(seed)
    return data.batch(picked.to(device), bits).float().cpu()


def _deviation_of(clips: torch.Tensor) -> float:
    """Return the root mean square of all samples that are no padding."""
    squares, count = 0.0, 0
    for block in torch.split(clips, 256):
        real = block[block != PADDING].double()
        squares, count = squares + float(real.square().sum()), count + len(real)
    return math.sqrt(squares / max(1, count))
