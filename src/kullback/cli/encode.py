"""`kullback encode`: where each image lies in latent space."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .session import check_new, prepare, say

__all__ = ["encode"]


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
