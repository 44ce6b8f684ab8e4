"""What a run's page shows of its model: samples, reconstructions, sound and the latent space.

Every draw comes from one fixed seed, so the same run gives the same pictures.
"""

import math
from typing import Any

import torch
from torch import Tensor

from kullback.data import Dataset
from kullback.vae import VAE

from .. import html, pictures
from ..limits import (
    LATENT_REACH,
    SOUND_BYTES,
)
from ..pictures import compose, interleave, to_levels
from .run_charts import (
    codes,
    latent_scatter,
    nearest,
    plane,
    traversal,
)
from .run_record import Record

__all__ = ["is_pictures", "is_sound", "shown"]

MEANS, DRAWS, PAIRS, CODES = 32, 16, 16, 2000
CLIPS = 8  # of sound, drawn and reconstructed
FEWEST, VALUES = 250, 12_000_000  # large images: fewer codes, so that the report stays quick
LABEL_ROWS = 10  # of samples, one a label
MAP, GRID = 22, 11  # cells a side
SIDE, SMALL = 96, 32  # pixels: the longest side of an image as shown, and on the map


def is_pictures(model: VAE) -> bool:
    """Say whether the model's events are grey or RGB images."""
    shape = () if model.spec is None else model.spec.event_shape
    return len(shape) == 3 and shape[0] in (1, 3)


def shown(record: Record) -> dict[str, Any]:
    """Return what needs the model, and the data where they are there."""
    model, data = record.model, record.data
    if model is not None and model.spec is not None and model.spec.labels:
        return _shown_by_label(model, data)
    shown: dict[str, Any] = {"samples": None, "rebuilt": None, "plane": None, "heard": None}
    if model is not None and is_pictures(model):
        shown["samples"] = _samples(model)
    if model is not None and is_sound(model):
        shown["heard"] = _heard(model, None if data is None else data.test.cpu())
    if model is not None and data is not None:
        test = data.test.cpu()
        shown["rebuilt"] = _reconstructions(model, test) if is_pictures(model) else None
        if len(test) > 1:  # one point has no plane
            shown["plane"] = _latent_map(model, test)
    return shown


def _shown_by_label(model: VAE, data: Dataset | None) -> dict[str, Any]:
    """Show samples of every label, a row each, and reconstructions; there is no one latent map."""
    shown: dict[str, Any] = {"samples": None, "rebuilt": None, "plane": None, "heard": None}
    if not is_pictures(model) or model.spec is None:
        return shown
    names = model.spec.labels[:LABEL_ROWS]
    labels = torch.arange(len(names)).repeat_interleave(8)
    shown["samples"] = _samples(model.at(labels), len(labels)) | {"labels": names}
    if data is not None and data.test_labels is not None:
        test = data.test[:PAIRS].cpu()
        shown["rebuilt"] = _reconstructions(model.at(data.test_labels[: len(test)].cpu()), test)
    return shown


@torch.no_grad()
def _samples(model: VAE, count: int = 0) -> dict[str, Any]:
    """Show the means of p(x|z) for z from the prior, and draws from it."""
    generator, count = torch.Generator().manual_seed(0), count or MEANS
    parameters = model.parameters_of(model.prior.sample(count, generator))
    means, note = _levels(model, model.likelihood.mean(parameters))
    drawn, drawn_note = _levels(model, model.likelihood.sample(parameters[:DRAWS], generator))
    upper = compose(means, columns=8, gap=2)
    lower = interleave(torch.cat([means[:DRAWS], drawn]), columns=8, gap=2)
    return {
        "count": count,
        "labels": (),
        "before": "" if model.spec is None else model.spec.architecture.pixels_before,
        "means": html.picture(upper, "samples: expected images", budget=100_000),
        "means_note": note,
        "draws": html.picture(lower, "expected images above draws", budget=120_000),
        "draws_note": drawn_note,
    }


def is_sound(model: VAE) -> bool:
    """Say whether the model's events are clips of sound."""
    return model.spec is not None and model.spec.kind == "sound"


def _heard(model: VAE, test: Tensor | None) -> dict[str, Any]:
    """Play clips drawn from the model, and test clips beside what is drawn at their mean codes."""
    generator = torch.Generator().manual_seed(0)
    drawn = model.sample(CLIPS, generator=generator)
    shown: dict[str, Any] = {
        "count": CLIPS,
        "drawn": pictures.players(model, drawn, budget=SOUND_BYTES),
        "picture": _spectrograms(drawn, None, "spectrograms of drawn clips"),
        "originals": [],
    }
    if test is None:
        return shown
    x = model.check(test[:CLIPS])
    rebuilt = pictures.reconstructed(model, x, generator)
    return shown | {
        "originals": pictures.players(model, x, budget=SOUND_BYTES),
        "rebuilt": pictures.players(model, rebuilt, budget=SOUND_BYTES),
        "pairs": _spectrograms(x, rebuilt, "spectrograms, originals above reconstructions"),
    }


def _spectrograms(clips: Tensor, below: Tensor | None, alt: str) -> html.Picture:
    return html.picture(pictures.spectrogram_grid(clips, below), alt, budget=200_000)


@torch.no_grad()
def _reconstructions(model: VAE, test: Tensor) -> dict[str, Any]:
    """Show the first test images above what the model makes of their mean codes."""
    x = model.check(test[:PAIRS])
    rebuilt = model.decode(codes(model, x)[0])
    levels, note = _levels(model, torch.cat([x, rebuilt]))
    image = interleave(levels, columns=8, gap=2)
    shown = html.picture(image, "originals above their reconstructions", budget=110_000)
    return {"count": len(x), "picture": shown, "note": note}


def _latent_map(model: VAE, test: Tensor) -> dict[str, Any]:
    """Show the test images on the plane of their codes, and what the decoder makes of the plane."""
    x = test[: max(FEWEST, min(CODES, VALUES // test[0].numel()))]
    found = plane(codes(model, x)[0])
    if found is None:
        return {"shares": []}
    shares = [f"{100 * float(share):.0f} %" for share in found.share]
    shown = {"shares": shares, "count": len(x), "reach": f"{LATENT_REACH:g}", "scatter": None}
    if not is_pictures(model):
        places = [(float(row[0]), float(row[1]) if len(row) > 1 else 0.0) for row in found.places]
        chart = latent_scatter(
            places,
            reach=1.4 * LATENT_REACH,
            label="test vectors on the plane of their codes",
            names=("first direction, standard deviations", "second direction"),
        )
        return shown | {"scatter": html.markup(chart)}
    columns, rows = _cells(model, MAP, len(shares))
    picked = nearest(found.places, columns=columns, rows=rows)
    levels, note = _levels(model, x[picked.clamp(min=0)].float(), limit=SMALL)
    left = compose(levels, columns=columns, gap=1, shown=picked >= 0)
    columns, rows = _cells(model, GRID, len(shares))
    levels, decoded_note = _levels(model, traversal(model, found, columns=columns, rows=rows))
    right = compose(levels, columns=columns, gap=1)
    return shown | {
        "codes": html.picture(left, "test images on the plane of their codes", budget=190_000),
        "codes_note": note,
        "decoded": html.picture(right, "images decoded from the same plane", budget=110_000),
        "decoded_note": decoded_note,
    }


def _cells(model: VAE, side: int, directions: int) -> tuple[int, int]:
    """Return columns and rows of a lattice that is about square whatever the images' shape."""
    _, height, width = (1, 1, 1) if model.spec is None else model.spec.event_shape
    stretch = min(4.0, max(0.25, math.sqrt(width / height)))
    return max(2, round(side / stretch)), max(2, round(side * stretch)) if directions > 1 else 1


def _levels(model: VAE, images: Tensor, *, limit: int = SIDE) -> tuple[Tensor, str]:
    kind = "continuous" if model.spec is None else model.spec.kind
    count = 256 if model.spec is None else model.spec.levels
    levels, note = to_levels(images, kind=kind, levels=count)
    return html.shrunk(levels, limit=limit), note
