"""`kullback reconstruct`: images and what is left of them after encoding and decoding."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kullback.core import require

from .numerals import Whole
from .session import check_new, prepare, say

__all__ = ["reconstruct"]


def reconstruct(
    run: Annotated[Path, Parameter(help="A run directory.")],
    data: Annotated[str, Parameter(help="Images: fashion, a folder, a file, .npy or .npz.")],
    /,
    *,
    n: Annotated[Whole, Parameter(name=("-n", "--n"), help="How many, from the first on.")] = 32,
    out: Annotated[Path, Parameter(help="A .png.")] = Path("reconstructions.png"),
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative="")] = False,
) -> None:
    """Put images above their reconstructions: decode(mean of q(z|x)).

    A model of bits gets bits: grey images are binarised first, and that is said.
    """
    prepare()
    require(n >= 1, "-n", "at least 1", n)
    check_new("--out", out, ".png", force=force)
    from kullback.report import pictures
    from kullback.vae import VAE

    from .output import images_for, reconstructions

    model = VAE.load(run)
    x, _ = images_for(model, data, most=n)
    kind, levels = (model.spec.kind, model.spec.levels) if model.spec else ("", 256)
    pair = pictures.pairs(x, reconstructions(model, x), kind=kind, levels=levels)
    pictures.save(pair, out, overwrite=force)
    say(f"{len(x)} images above their reconstructions: {out}")
