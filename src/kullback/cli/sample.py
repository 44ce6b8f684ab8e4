"""`kullback sample`: images drawn from the model."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kullback.core import require

from .numerals import Whole
from .session import check_new, prepare, say

__all__ = ["sample"]

MOST = 100_000  # images


def sample(
    run: Annotated[Path, Parameter(help="A run directory.")],
    /,
    *,
    n: Annotated[Whole, Parameter(name=("-n", "--n"), help="How many.")] = 64,
    out: Annotated[Path, Parameter(help="A .png, or .npy for the numbers.")] = Path("samples.png"),
    seed: Annotated[Whole, Parameter(help="Of the draws.")] = 0,
    noise: Annotated[bool, Parameter(help="Draw x ~ p(x|z); without, show its mean.")] = False,
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative="")] = False,
) -> None:
    """Draw z from the prior and decode it: new images from a run.

    By default each image is the mean of p(x|z); `--noise` draws from p(x|z) as well, which is what
    the model's evidence speaks of.
    """
    prepare()
    require(1 <= n <= MOST, "-n", f"from 1 to {MOST:,}", n)
    check_new("--out", out, ".png", ".npy", force=force)
    import torch

    from kullback.vae import VAE

    from .output import save_images

    model = VAE.load(run)
    x = model.sample(n, generator=torch.Generator().manual_seed(seed), noise=noise)
    save_images(x, out, model=model, force=force)
    say(f"{n} samples: {out}")
