"""The parts of the report that show what the model does: samples, reconstructions, the latent map.

Each function returns markup, or a sentence that says why there is nothing to show. Every draw
comes from one fixed seed, so the same run gives the same report.
"""

import math

import torch
from torch import Tensor

from kullback.vae import VAE

from .charts import scatter
from .latent import REACH, Plane, codes, nearest, plane, traversal
from .markup import esc, figure, picture, shrunk
from .pictures import compose, interleave, to_levels

__all__ = ["is_pictures", "latent_map", "reconstructions", "samples"]

MEANS, DRAWS, PAIRS, CODES = 32, 16, 16, 2000
FEWEST, VALUES = 250, 12_000_000  # large images: fewer codes, so that the report stays quick
MAP, GRID = 22, 11  # cells a side
SIDE, SMALL = 96, 32  # pixels: the longest side of an image as shown, and on the map


def is_pictures(model: VAE) -> bool:
    """Say whether the model's events are grey or RGB images."""
    shape = () if model.spec is None else model.spec.event_shape
    return len(shape) == 3 and shape[0] in (1, 3)


@torch.no_grad()
def samples(model: VAE) -> str:
    """Show what the model imagines: means of p(x|z) for z from the prior, and true draws."""
    generator = torch.Generator().manual_seed(0)
    parameters = model.parameters_of(model.prior.sample(MEANS, generator))
    means, note = _levels(model, model.likelihood.mean(parameters))
    drawn, drawn_note = _levels(model, model.likelihood.sample(parameters[:DRAWS], generator))
    upper = compose(means, columns=8, gap=2)
    lower = interleave(torch.cat([means[:DRAWS], drawn]), columns=8, gap=2)
    return figure(
        picture(upper, "samples: expected images", budget=100_000),
        "What the model imagines",
        f"{MEANS} codes z drawn from the prior, each shown as the image expected from it, "
        f"E[x|z]. Seed 0, none chosen.{_range(note)}",
    ) + figure(
        picture(lower, "expected images above true draws", budget=120_000),
        "What it really draws",
        f"Below each row of expected images, a draw from p(x|z) for each. Pixels are drawn one "
        "by one given z, so the grain is what the code leaves open: the distortion."
        f"{_range(drawn_note)}",
    )


@torch.no_grad()
def reconstructions(model: VAE, test: Tensor) -> str:
    """Show the first test images above what the model makes of their mean codes."""
    x = model.check(test[:PAIRS])
    rebuilt = model.decode(codes(model, x)[0])
    levels, note = _levels(model, torch.cat([x, rebuilt]))
    image = interleave(levels, columns=8, gap=2)
    return figure(
        picture(image, "originals above their reconstructions", budget=110_000),
        "Originals, and what is left of them",
        f"The first {len(x)} test images, none chosen; below each row, the images expected from "
        f"their mean codes.{_range(note)}",
    )


def latent_map(model: VAE, test: Tensor) -> str:
    """Show the test images on the plane of their codes, and what the decoder makes of the plane."""
    x = test[: max(FEWEST, min(CODES, VALUES // test[0].numel()))]
    found = plane(codes(model, x)[0])
    if found is None:
        return "<p>The codes of all images are the same, so there is no map to draw.</p>"
    percent = [f"{100 * float(share):.0f} %" for share in found.share]
    axes = f"across, the direction in which they vary most ({percent[0]} of their variance)"
    axes += f"; up, the next ({percent[1]})" if len(percent) > 1 else ""
    if not is_pictures(model):
        return _cloud(found, axes)
    columns, rows = _cells(model, MAP, len(percent))
    picked = nearest(found.places, columns=columns, rows=rows)
    levels, note = _levels(model, x[picked.clamp(min=0)].float(), limit=SMALL)
    left = compose(levels, columns=columns, gap=1, shown=picked >= 0)
    columns, rows = _cells(model, GRID, len(percent))
    levels, decoded_note = _levels(model, traversal(model, found, columns=columns, rows=rows))
    right = compose(levels, columns=columns, gap=1)
    return figure(
        picture(left, "test images on the plane of their codes", budget=190_000),
        "Where the images lie",
        f"Codes of {len(x):,} test images: {axes}. Each cell shows the image nearest its centre; "
        f"the edges are at {REACH:g} standard deviations.{_range(note)}",
    ) + figure(
        picture(right, "images decoded from the same plane", budget=110_000),
        "What the decoder makes of the same plane",
        "The image expected at each place, all other directions held at their mean."
        f"{_range(decoded_note)}",
    )


def _cloud(found: Plane, axes: str) -> str:
    places = [(float(row[0]), float(row[1]) if len(row) > 1 else 0.0) for row in found.places]
    chart = scatter(
        places,
        reach=1.4 * REACH,
        label="test vectors on the plane of their codes",
        names=("first direction, standard deviations", "second direction"),
    )
    return figure(
        chart, "Where the vectors lie", f"Mean codes of {len(places):,} test vectors: {axes}."
    )


def _cells(model: VAE, side: int, directions: int) -> tuple[int, int]:
    """Return columns and rows of a lattice that is about square whatever the images' shape."""
    _, height, width = (1, 1, 1) if model.spec is None else model.spec.event_shape
    stretch = min(4.0, max(0.25, math.sqrt(width / height)))
    return max(2, round(side / stretch)), max(2, round(side * stretch)) if directions > 1 else 1


def _levels(model: VAE, images: Tensor, *, limit: int = SIDE) -> tuple[Tensor, str]:
    kind = "continuous" if model.spec is None else model.spec.kind
    count = 256 if model.spec is None else model.spec.levels
    levels, note = to_levels(images, kind=kind, levels=count)
    return shrunk(levels, limit=limit), note


def _range(note: str) -> str:
    return f" {esc(note.capitalize())}." if note else ""
