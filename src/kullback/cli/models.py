"""`kullback sample`, `reconstruct`, `encode`, `report` and `checks`: what a trained model gives.

No torch is imported before a command runs.
"""

import importlib.metadata
import importlib.util
import io
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from kullback.core import ArgumentValueError, __version__, require, write_atomic

from .limits import CLIPS_PER_BLOCK, IMAGES_PER_BLOCK, MAX_SAMPLED_IMAGES, SOUNDS
from .options import Shared, Whole
from .session import bar, check_new, log, prepare, print_json, say, write

if TYPE_CHECKING:
    from torch import Tensor

    from kullback.vae import VAE

__all__ = ["checks", "encode", "reconstruct", "report", "sample"]

EXTRAS = {
    "audio": ["soundfile", "soxr"],
    "codec": ["constriction"],
    "flows": ["zuko"],
    "lm": ["transformers"],
    "tables": ["ibis", "duckdb", "pyarrow"],
}
PACKAGES = ("torch", "numpy", "safetensors", "cyclopts", "rich", "pillow", "matplotlib")


def encode(
    run: Annotated[Path, Parameter(help="A run directory.")],
    data: Annotated[str, Parameter(help="Images or sound: fashion, a folder, a file, .npy, .npz.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="A .npz: mean, sd, name.")] = Path("latent.npz"),
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative="")] = False,
    shared: Shared = None,
) -> None:
    """Write the mean and standard deviation of q(z|x) of every image or clip, with file names.

    The file holds `mean` and `sd`, float32 [images, latent], and `name`, one a row.
    """
    prepare(shared)
    check_new("--out", out, ".npz", force=force)
    from kullback.vae import VAE

    model = VAE.load(run)
    log(f"model: {run}")
    x, names = images_for(model, data)
    mean, sd = encoded(model, x)
    save_arrays(out, {"mean": mean, "sd": sd, "name": names})
    say(f"{len(x)} {_nouns(model)}: {out}")


def reconstruct(
    run: Annotated[Path, Parameter(help="A run directory.")],
    data: Annotated[str, Parameter(help="Images or sound: fashion, a folder, a file, .npy, .npz.")],
    /,
    *,
    n: Annotated[
        Whole | None,
        Parameter(name=("-n", "--n"), help="How many, from the first on (default: 32; 8 clips)."),
    ] = None,
    out: Annotated[
        Path, Parameter(help="A .png; clips of sound go to .wav files beside it.")
    ] = Path("reconstructions.png"),
    seed: Annotated[Whole, Parameter(help="Of the draws of sound.")] = 0,
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative="")] = False,
    shared: Shared = None,
) -> None:
    """Draw images above their reconstructions: decode(mean of q(z|x)).

    A model of bits gets bits: grey images are binarised first, and that is said. Of sound, x is
    drawn from p(x|z) at the mean of q(z|x): NAME-01.wav and so on, each beside its original.
    """
    prepare(shared)
    require(n is None or n >= 1, "-n", "at least 1", n)
    check_new("--out", out, ".png", force=force)
    from kullback.report import pictures
    from kullback.vae import VAE

    model = VAE.load(run)
    log(f"model: {run}")
    if model.spec is not None and model.spec.sound is not None:
        _reconstruct_sound(model, data, SoundFiles(out, n or SOUNDS, seed, force))
        return
    n = 32 if n is None else n
    x, _ = images_for(model, data, most=n)
    kind, levels = (model.spec.kind, model.spec.levels) if model.spec else ("", 256)
    pair = pictures.pairs(x, reconstructions(model, x), kind=kind, levels=levels)
    pictures.save(pair, out, overwrite=force)
    say(f"{len(x)} images above their reconstructions: {out}")


def sample(
    run: Annotated[Path, Parameter(help="A run directory.")],
    /,
    *,
    n: Annotated[
        Whole | None, Parameter(name=("-n", "--n"), help="How many (default: 64; 8 clips).")
    ] = None,
    out: Annotated[
        Path,
        Parameter(help="A .png, or .npy for the numbers; sound goes to .wav files beside it."),
    ] = Path("samples.png"),
    seed: Annotated[Whole, Parameter(help="Of the draws.")] = 0,
    noise: Annotated[bool, Parameter(help="Draw x ~ p(x|z); without, show its mean.")] = False,
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative="")] = False,
    shared: Shared = None,
) -> None:
    """Draw z from the prior and decode it: new images from a run.

    By default each image is the mean of p(x|z); `--noise` draws from p(x|z) as well, which is what
    the model's evidence speaks of. Sound is always drawn: NAME-01.wav and so on, with a picture of
    their spectrograms.
    """
    prepare(shared)
    ok = n is None or 1 <= n <= MAX_SAMPLED_IMAGES
    require(ok, "-n", f"from 1 to {MAX_SAMPLED_IMAGES:,}", n)
    check_new("--out", out, ".png", ".npy", force=force)
    import torch

    from kullback.vae import VAE

    model = VAE.load(run)
    log(f"model: {run}")
    generator = torch.Generator().manual_seed(seed)
    if model.spec is not None and model.spec.sound is not None:
        _sample_sound(model, SoundFiles(out, n or SOUNDS, seed, force))
        return
    n = 64 if n is None else n
    x = model.sample(n, generator=generator, noise=noise)
    save_images(x, out, model=model, force=force)
    say(f"{n} samples: {out}")


def report(
    run: Annotated[Path, Parameter(help="A run directory.")],
    /,
    *,
    shared: Shared = None,
) -> None:
    """Write RUN/report.html again from what the run directory holds, and print its path."""
    prepare(shared)
    from kullback import report as pages

    write(f"{pages.write(run)}\n")


def checks(
    *,
    json: Annotated[bool, Parameter(help="Print one JSON object.", negative="")] = False,
    shared: Shared = None,
) -> None:
    """Show versions, the device a training would use, threads, measured speed, and extras."""
    prepare(shared)
    fields = _gather()
    if json:
        print_json(fields)
        return
    lines = [f"kullback {__version__}, Python {fields['python']}, {fields['platform']}"]
    lines += [f"  {name} {version}" for name, version in fields["packages"].items()]
    lines.append(f"device: {fields['device']}, matrix products in {fields['precision']}")
    lines.append(f"threads a training would use now: {fields['threads']} of {fields['cores']}")
    for name, rate in fields["matmul_gflops"].items():
        lines.append(f"matrix products: {rate:.0f} GFLOP/s ({name})")
    lines.append(f"compiled C: {fields['compiled']}")
    for name, state in fields["extras"].items():
        lines.append(f"extra {name}: {state}")
    write("\n".join(lines) + "\n")


def _gather() -> dict[str, Any]:
    import torch

    from kullback import vae as hardware
    from kullback.vae import compiled_state

    device, threads = hardware.pick_device(), hardware.pick_threads()
    rates = {
        f"{str(dtype).removeprefix('torch.')}, {n} thread{'s' * (n > 1)}": hardware.matmul_gflops(
            n, size=512, seconds=0.2, dtype=dtype
        )
        for dtype in (torch.float32, torch.bfloat16)
        for n in sorted({1, threads})
    }
    return {
        "kullback": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": str(device),
        "precision": str(hardware.pick_precision("auto", device)).removeprefix("torch."),
        "threads": threads,
        "cores": os.cpu_count(),
        "matmul_gflops": rates,
        "compiled": compiled_state(),
        "extras": {name: _state(name, modules) for name, modules in EXTRAS.items()},
    }


def _state(extra: str, modules: list[str]) -> str:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"missing: pip install 'kullback[{extra}]'" if missing else "installed"


def images_for(
    model: "VAE", source: str, *, most: int | None = None, channels: str = "auto"
) -> "tuple[Tensor, tuple[str, ...]]":
    """Read data in the shape and kind of a model, at most so many; say what was done to them."""
    import torch

    from kullback.data import Grid, binarize, load_images, load_sounds

    if model.spec is None:
        raise ArgumentValueError("this model does not know the shape of its data")
    if model.spec.sound is not None:
        with bar("reading") as update:
            x, names = load_sounds(
                source,
                sound=model.spec.sound,
                channels=channels,
                progress=update,
                say=lambda t: say(f"note: {t}"),
            )
        return model.check(x[:most]), names[:most]
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


def encoded(model: "VAE", x: "Tensor") -> tuple[Any, Any]:
    """Return mean and standard deviation of q(z|x) as NumPy arrays `[n, latent]`."""
    import torch

    with torch.no_grad():
        parts = [model.encode(block) for block in torch.split(x, IMAGES_PER_BLOCK)]
    mean = torch.cat([mean for mean, _ in parts])
    return mean.numpy(), torch.cat([log_sd for _, log_sd in parts]).exp().numpy()


def reconstructions(model: "VAE", x: "Tensor") -> "Tensor":
    """Return decode(mean of q(z|x)), `[n, *event]`."""
    import torch

    with torch.no_grad():
        return torch.cat(
            [model.decode(model.encode(b)[0]) for b in torch.split(x, IMAGES_PER_BLOCK)]
        )


@dataclass(frozen=True, slots=True)
class SoundFiles:
    """Where sounds go: `out` names the picture of spectrograms, NAME-01.wav and on the sounds."""

    out: Path
    count: int
    seed: int
    force: bool

    def names(self, *endings: str) -> list[Path]:
        """Return the names of every WAV file, and refuse those that exist already."""
        width = max(2, len(str(self.count)))
        numbers = [f"{k:0{width}d}" for k in range(1, self.count + 1)]
        names = [
            self.out.with_name(f"{self.out.stem}-{number}{ending}.wav")
            for number in numbers
            for ending in endings
        ]
        for name in names:
            check_new("--out", name, ".wav", force=self.force)
        return names


def _sample_sound(model: "VAE", files: SoundFiles) -> None:
    """Draw clips and write them as WAV files with their spectrograms, or as one .npy."""
    import torch

    from kullback.report import pictures

    names = files.names("")
    generator = torch.Generator().manual_seed(files.seed)
    with bar("drawing") as update:
        blocks = []
        for start in range(0, files.count, CLIPS_PER_BLOCK):
            count = min(CLIPS_PER_BLOCK, files.count - start)
            blocks.append(model.sample(count, generator=generator))
            update(start + count, files.count)
    x = torch.cat(blocks)
    if files.out.suffix.lower() == ".npy":
        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, x[:, 0].short().numpy())
        write_atomic(files.out, buffer.getvalue())
        say(f"{files.count} samples: {files.out}")
        return
    pictures.save_wavs(model, x, names)
    pictures.save_spectrograms(x, files.out, overwrite=files.force)
    say(f"{files.count} samples: {names[0]} and so on; their spectrograms: {files.out}")


def _reconstruct_sound(model: "VAE", data: str, files: SoundFiles) -> None:
    """Write originals and what is drawn from p(x|z) at their mean codes, with spectrograms."""
    import torch

    from kullback.report import pictures

    x, _ = images_for(model, data, most=files.count)
    files = replace(files, count=len(x))
    names = files.names("-original", "")
    rebuilt = pictures.rebuilt(model, x, torch.Generator().manual_seed(files.seed))
    pictures.save_wavs(model, x, names[::2])
    pictures.save_wavs(model, rebuilt, names[1::2])
    pictures.save_spectrograms(x, files.out, below=rebuilt, overwrite=files.force)
    say(
        f"{len(x)} clips and their reconstructions: {names[0]} and so on; spectrograms: {files.out}"
    )


def _nouns(model: "VAE") -> str:
    return "clips" if model.spec is not None and model.spec.sound is not None else "images"


def save_images(x: "Tensor", out: Path, *, model: "VAE", force: bool) -> None:
    """Write images as one PNG grid, or as numbers when the file is called .npy."""
    import numpy as np

    from kullback.report import pictures

    if out.suffix.lower() == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, in_units(x, model))
        write_atomic(out, buffer.getvalue())
        return
    kind = model.spec.kind if model.spec else ""
    levels = model.spec.levels if model.spec else 256
    pictures.save(pictures.grid(x, kind=kind, levels=levels), out, overwrite=force)


def in_units(x: "Tensor", model: "VAE") -> Any:
    """Return x in the caller's units: values where the model has levels of a grid, else x."""
    if model.spec is None or model.spec.grid is None:
        return x.numpy()
    from kullback.data import Grid

    return Grid.from_dict(model.spec.grid).values_of(x.numpy()).astype("float32")


def save_arrays(out: Path, arrays: dict[str, Any]) -> None:
    """Write arrays as one .npz, whole or not at all; no pickles in it."""
    import numpy as np

    buffer = io.BytesIO()
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(buffer, **plain)
    write_atomic(out, buffer.getvalue())
