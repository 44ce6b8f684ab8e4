"""What the commands that use a trained model share: data in its shape, pictures and arrays out."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback.core import ArgumentValueError, write_atomic
from kullback.data import Grid, binarize, load_images
from kullback.report import pictures
from kullback.vae import VAE

from .session import bar, say

__all__ = ["encoded", "images_for", "reconstructions", "save_arrays", "save_images"]

BLOCK = 500


def images_for(
    model: VAE, source: str, *, most: int | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Read data in the shape and kind of a model, at most so many; say what was done to them."""
    if model.spec is None:
        raise ArgumentValueError("this model does not know the shape of its data")
    with bar("reading") as update:
        x, names = load_images(
            source,
            event_shape=model.spec.event_shape,
            progress=update,
            say=lambda t: say(f"note: {t}"),
            kind=model.spec.kind,
            grid=None if model.spec.grid is None else Grid.from_dict(model.spec.grid),
        )
    x, names = x[:most], names[:most]
    if model.spec.kind == "binary" and x.dtype == torch.uint8 and int(x.max()) > 1:
        say("note: the model is one of bits: grey values binarised with seed 0")
        x = binarize(x, torch.Generator().manual_seed(0))
    return model.check(x), names


@torch.no_grad()
def encoded(model: VAE, x: Tensor) -> tuple[Any, Any]:
    """Return mean and standard deviation of q(z|x) as NumPy arrays `[n, latent]`."""
    parts = [model.encode(x[i : i + BLOCK]) for i in range(0, len(x), BLOCK)]
    mean = torch.cat([mean for mean, _ in parts])
    return mean.numpy(), torch.cat([log_sd for _, log_sd in parts]).exp().numpy()


@torch.no_grad()
def reconstructions(model: VAE, x: Tensor) -> Tensor:
    """Return decode(mean of q(z|x)), `[n, *event]`."""
    return torch.cat(
        [model.decode(model.encode(x[i : i + BLOCK])[0]) for i in range(0, len(x), BLOCK)]
    )


def save_images(x: Tensor, out: Path, *, model: VAE, force: bool) -> None:
    """Write images as one PNG grid, or as numbers when the file is called .npy."""
    if out.suffix.lower() == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, in_units(x, model))
        write_atomic(out, buffer.getvalue())
        return
    kind = model.spec.kind if model.spec else ""
    levels = model.spec.levels if model.spec else 256
    pictures.save(pictures.grid(x, kind=kind, levels=levels), out, overwrite=force)


def in_units(x: Tensor, model: VAE) -> Any:
    """Return x in the caller's units: values where the model has levels of a grid, else x."""
    if model.spec is None or model.spec.grid is None:
        return x.numpy()
    return Grid.from_dict(model.spec.grid).values_of(x.numpy()).astype(np.float32)


def save_arrays(out: Path, arrays: dict[str, Any]) -> None:
    """Write arrays as one .npz, whole or not at all; no pickles in it."""
    buffer = io.BytesIO()
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(buffer, **plain)
    write_atomic(out, buffer.getvalue())
