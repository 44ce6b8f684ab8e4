"""`kullback encode`: where each image lies in latent space.

`kullback reconstruct`: images and what is left of them after encoding and decoding.

`kullback sample`: images drawn from the model.

`kullback report`: rebuild a run's page.
"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kullback.core import require

from .options import Whole
from .session import check_new, prepare, say, write

__all__ = ["encode", "reconstruct", "report", "sample"]


def encode(
    run: Annotated[Path, Parameter(help="A run directory.")],
    data: Annotated[str, Parameter(help="Images: fashion, a folder, a file, .npy or .npz.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="A .npz: mean, sd, name.")] = Path("latent.npz"),
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative="")] = False,
) -> None:
    """Write the mean and standard deviation of q(z|x) of every image, with file names.

    The file holds `mean` and `sd`, float32 [images, latent], and `name`, one a row.
    """
    prepare()
    check_new("--out", out, ".npz", force=force)
    from kullback.vae import VAE

    from .output import encoded, images_for, save_arrays

    model = VAE.load(run)
    x, names = images_for(model, data)
    mean, sd = encoded(model, x)
    save_arrays(out, {"mean": mean, "sd": sd, "name": names})
    say(f"{len(x)} images: {out}")


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


def report(run: Annotated[Path, Parameter(help="A run directory.")], /) -> None:
    """Write RUN/report.html again from what the run directory holds, and print its path."""
    prepare()
    from kullback import report as pages

    write(f"{pages.write(run)}\n")
