"""`sample`, `reconstruct`, `encode`, `decode`, `report`, `export`, `checks`: a trained model's use.

No torch is imported before a command runs.
"""

import importlib.metadata
import importlib.util
import io
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from kullback.core import (
    ArgumentValueError,
    DataError,
    RunError,
    __version__,
    open_atomic,
    read_json,
    require,
    write_atomic,
)
from kullback.measure import number

from .limits import (
    CLIPS_PER_BLOCK,
    IMAGES_PER_BLOCK,
    MAX_BYTES,
    MAX_IMAGES_OF_A_PICTURE,
    MAX_PIXELS_OF_A_PICTURE,
    MAX_SAMPLED_IMAGES,
    OUTPUTS_PER_BLOCK,
    SAMPLES_PER_BLOCK,
    SOUNDS,
)
from .options import Shared, Whole
from .session import bar, check_new, log, prepare, print_json, say, write

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor

    from kullback.vae import VAE

__all__ = ["checks", "decode", "encode", "export", "reconstruct", "report", "sample"]

EXTRAS = {
    "audio": ["soundfile", "soxr"],
    "codec": ["constriction"],
    "flows": ["zuko"],
    "h5ad": ["h5py"],
    "lm": ["transformers"],
    "onnx": ["onnx", "onnxscript", "onnxruntime"],
    "tables": ["ibis", "duckdb", "pyarrow"],
    "tensorboard": ["tensorboard"],
}
LATENT_FILES = (".npz", ".npy")
PACKAGES = ("torch", "numpy", "safetensors", "cyclopts", "rich", "pillow", "matplotlib")


def encode(
    run: Annotated[Path, Parameter(help="A run directory.")],
    data: Annotated[str, Parameter(help="Images or sound: fashion, a folder, a file, .npy, .npz.")],
    /,
    *,
    label: Annotated[str | None, Parameter(help="Of a model with labels: which.")] = None,
    out: Annotated[Path, Parameter(help="A .npz: mean, sd, name.")] = Path("latent.npz"),
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative="")] = False,
    shared: Shared = None,
) -> None:
    """Write the mean and standard deviation of q(z|x) of every image or clip, with file names.

    The file holds `mean` and `sd`, float32 [images, latent], and `name`, one a row.
    """
    prepare(shared)
    check_new("--out", out, ".npz", force=force)
    model = _loaded(run, label)
    x, names = images_for(model, data, run=run)
    mean, sd = encoded(model, x)
    save_arrays(out, {"mean": mean, "sd": sd, "name": names})
    say(f"{_counted(len(x), model)}: {out}")


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
    label: Annotated[str | None, Parameter(help="Of a model with labels: which.")] = None,
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

    model = _loaded(run, label)
    if model.spec is not None and model.spec.sound is not None:
        _reconstruct_sound(model, data, run, SoundFiles(out, n or SOUNDS, seed, force))
        return
    n = 32 if n is None else n
    x, _ = images_for(model, data, run=run, most=n)
    kind, levels = (model.spec.kind, model.spec.levels) if model.spec else ("", 256)
    pair = pictures.pairs(x, reconstructions(model, x), kind=kind, levels=levels)
    pictures.save(pair, out, overwrite=force)
    say(f"{_counted(len(x), model)} above their reconstructions: {out}")


def sample(
    run: Annotated[Path, Parameter(help="A run directory.")],
    /,
    *,
    n: Annotated[
        Whole | None, Parameter(name=("-n", "--n"), help="How many (default: 64; 8 clips).")
    ] = None,
    z: Annotated[
        str | None, Parameter(help="This z instead of draws from the prior: 0.5,-1,… or a .npz.")
    ] = None,
    out: Annotated[
        Path,
        Parameter(help="A .png, or .npy for the numbers; sound goes to .wav files beside it."),
    ] = Path("samples.png"),
    label: Annotated[str | None, Parameter(help="Of a model with labels: which.")] = None,
    seed: Annotated[Whole, Parameter(help="Of the draws.")] = 0,
    noise: Annotated[bool, Parameter(help="Draw x ~ p(x|z); without, show its mean.")] = False,
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative="")] = False,
    shared: Shared = None,
) -> None:
    """Draw z from the prior and decode it: new images from a run.

    By default each image is the mean of p(x|z); `--noise` draws from p(x|z) as well, which is what
    the model's evidence speaks of. With `--z` as numbers there is one image, of that z, and
    with `--noise` n draws, which show how much z leaves open; with a file they are of its first
    n rows.
    Sound is always drawn: NAME-01.wav and so on, with a picture of their spectrograms.
    """
    prepare(shared)
    check_new("--out", out, ".png", ".npy", force=force)
    most = MAX_SAMPLED_IMAGES if out.suffix.lower() == ".npy" else MAX_IMAGES_OF_A_PICTURE
    given = 1 if n is None else n
    fits = most < given <= MAX_SAMPLED_IMAGES
    hint = "a .npy file, which is written piece by piece" if fits else ""
    expected = f"from 1 to {most:,} in one {out.suffix}"
    require(1 <= given <= most, "-n", expected, f"{given:,}", hint)
    import torch

    model = _loaded(run, label)
    generator = torch.Generator().manual_seed(seed)
    if model.spec is not None and model.spec.sound is not None:
        n = SOUNDS if n is None else n
        codes = model.prior.sample(n, generator) if z is None else latents_from("--z", z, model)
        one = z is not None and Path(z).suffix.lower() not in LATENT_FILES
        codes = codes.expand(n, -1) if one else codes[:n]
        _draw_sound(model, codes, SoundFiles(out, len(codes), seed, force))
        return
    typed = z is not None and Path(z).suffix.lower() not in LATENT_FILES
    if n is None:
        n = 1 if typed and not noise else 64  # the mean of one z is one image
    blocks = sample_blocks(model, n, generator, noise=noise)
    if z is not None:
        rows = latents_from("--z", z, model)
        rows = rows.expand(n, -1) if typed else rows[:n]
        n, blocks = len(rows), image_blocks(model, rows, generator if noise else None)
    save_in_blocks(blocks, n, out, model=model, force=force)
    say(f"{n} sample{'' if n == 1 else 's'}: {out}")


def _loaded(run: Path, label: str | None) -> "VAE":
    """Read a model, with its label given where it has labels; refuse one that is missing."""
    from kullback.vae import VAE

    model = VAE.load(run)
    log(f"model: {run}")
    model = model if label is None else model.at(label)
    model.given_label()
    return model


def save_in_blocks(
    blocks: "Iterator[Tensor]", n: int, out: Path, *, model: "VAE", force: bool
) -> None:
    """Write n images that come in blocks: a `.npy` piece by piece, a picture whole."""
    import torch

    if out.suffix.lower() == ".npy":
        save_blocks(blocks, n, out, model=model)
    else:
        _require_pixels(model, n)
        save_images(torch.cat(list(blocks)), out, model=model, force=force)


def decode(
    run: Annotated[Path, Parameter(help="A run directory.")],
    latents: Annotated[
        Path, Parameter(help="A .npz with z, or mean as encode writes it, or a .npy.")
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="A .png, or .npy for the numbers.")] = Path("decoded.png"),
    label: Annotated[str | None, Parameter(help="Of a model with labels: which.")] = None,
    seed: Annotated[Whole, Parameter(help="Of the draws.")] = 0,
    noise: Annotated[bool, Parameter(help="Draw x ~ p(x|z); without, show its mean.")] = False,
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative="")] = False,
    shared: Shared = None,
) -> None:
    """Write the image of every z in a file: the mean of p(x|z), or with `--noise` a draw from it.

    The file holds an array [n, latent], such as `kullback encode` writes and you have changed.
    """
    prepare(shared)
    check_new("--out", out, ".png", ".npy", force=force)
    import torch

    model = _loaded(run, label)
    z = latents_from("LATENTS", str(latents), model)
    if model.spec is not None and model.spec.sound is not None:
        _draw_sound(model, z, SoundFiles(out, len(z), seed, force))
        return
    generator = torch.Generator().manual_seed(seed) if noise else None
    blocks = image_blocks(model, z, generator)
    save_in_blocks(blocks, len(z), out, model=model, force=force)
    say(f"{_counted(len(z), model)}: {out}")


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


def export(
    run: Annotated[Path, Parameter(help="A run directory.")],
    out: Annotated[Path, Parameter(help="The new folder.")],
    /,
    *,
    without_onnx: Annotated[
        bool, Parameter(help="Leave encoder.onnx and decoder.onnx out.", negative="")
    ] = False,
    name: Annotated[str, Parameter(help="Of the model in its card (default: OUT's).")] = "",
    shared: Shared = None,
) -> None:
    """Write a run as a folder to publish: weights, ONNX graphs, model card; nothing is uploaded.

    The layout is that of a Hugging Face model repository. The ONNX graphs are compared with PyTorch
    first (extra `onnx`). The folder is written whole or not at all; its license is yours to choose.
    """
    prepare(shared)
    from kullback import report as pages

    found = pages.export(run, out, onnx=not without_onnx, name=name)
    onnx = read_json(found / "config.json").get("onnx")
    if onnx is not None:
        say(
            f"ONNX against PyTorch on {onnx['examples']} examples: log p(x|z) differs by at most "
            f"{onnx['log_likelihood_error']:.1e} nats"
        )
    write(f"{found}\n")


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
    model: "VAE",
    source: str,
    *,
    run: Path,
    most: int | None = None,
    channels: str = "auto",
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
    background, frames, labelled = _reading_options(run)
    with bar("reading") as update:
        x, names = load_images(
            source,
            event_shape=model.spec.event_shape,
            progress=update,
            say=lambda t: say(f"note: {t}"),
            kind=model.spec.kind,
            grid=None if model.spec.grid is None else Grid.from_dict(model.spec.grid),
            background=background,
            frames=frames,
            size_factors=model.spec.sizes or "none",
            label=labelled,
        )
    x, names = x[:most], names[:most]
    if model.spec.kind == "binary" and x.dtype == torch.uint8 and int(x.max()) > 1:
        say("note: the model is one of bits: grey values binarised with seed 0")
        x = binarize(x, torch.Generator().manual_seed(0))
    return model.check(x), names


def latents_from(name: str, given: str, model: "VAE") -> "Tensor":
    """Read z `[n, latent]` from a file, or from numbers as typed, and check them."""
    import torch

    latent = model.prior.latent
    if Path(given).suffix.lower() in LATENT_FILES:
        z = torch.from_numpy(_latent_array(Path(given)))
    else:
        numbers = [number(part) for part in given.split(",")]
        good = all(one is not None for one in numbers)
        require(good, name, f"{latent} numbers, or a .npz or .npy file", repr(given))
        z = torch.tensor([[float(one) for one in numbers if one is not None]])
    fits = z.ndim == 2 and z.shape[1] == latent and len(z) > 0
    require(fits, name, f"z of shape [n, {latent}]", list(z.shape))
    require(bool(torch.isfinite(z).all()), name, "finite numbers", "NaN or infinity")
    few = len(z) <= MAX_SAMPLED_IMAGES
    require(few, name, f"at most {MAX_SAMPLED_IMAGES:,} rows", f"{len(z):,}")
    return z.float()


def _latent_array(path: Path) -> Any:
    """Return `z`, or else `mean`, of a .npz, or what a .npy holds."""
    import zipfile

    import numpy as np

    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                size = sum(one.file_size for one in archive.infolist())
        else:
            size = path.stat().st_size
        require(size <= MAX_BYTES, str(path), f"at most {MAX_BYTES:,} bytes", f"{size:,}")
        held = np.load(path, allow_pickle=False)
        if not isinstance(held, np.ndarray):
            with held as arrays:
                key = next((one for one in ("z", "mean") if one in arrays), None)
                if key is None:
                    raise DataError(f"{path}: expected an array z or mean; got {arrays.files}")
                held = arrays[key]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, ArgumentValueError):
            raise
        raise DataError(f"{path}: not a readable array: {error}") from error
    if held.dtype.kind not in "fiu":
        raise DataError(f"{path}: expected numbers; got {held.dtype}")
    return held.astype(np.float32)


def image_blocks(
    model: "VAE", z: "Tensor", generator: "torch.Generator | None"
) -> "Iterator[Tensor]":
    """Yield the mean of p(x|z) of rows of z, or with a generator draws from it, in blocks."""
    import torch

    for block in torch.split(z, IMAGES_PER_BLOCK):
        with torch.no_grad():
            parameters = model.parameters_of(block)
            if generator is None:
                yield model.likelihood.mean(parameters)
            else:
                yield model.likelihood.sample(parameters, generator)


def _reading_options(run: Path) -> tuple[str, str, str]:
    """Return how the run's own data were read: background, frames and the array of labels.

    A run made before has black backgrounds.
    """
    data = read_json(run / "config.json").get("data", {})
    label = str(data.get("label", ""))
    known = data.get("background", "black"), data.get("frames", "first")
    return *known, "" if label == "folder" else label


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


def _draw_sound(model: "VAE", z: "Tensor", files: SoundFiles) -> None:
    """Draw a clip for each z: WAV files with their spectrograms, or one .npy."""
    import numpy as np
    import torch

    from kullback.report import pictures

    names = [] if files.out.suffix.lower() == ".npy" else files.names("")
    generator = torch.Generator().manual_seed(files.seed)
    blocks = []
    with bar("drawing") as update, torch.no_grad():
        for block in torch.split(z, CLIPS_PER_BLOCK):
            blocks.append(model.likelihood.sample(model.parameters_of(block), generator))
            update(sum(map(len, blocks)), len(z))
    x = torch.cat(blocks)
    if not names:
        buffer = io.BytesIO()
        np.save(buffer, x[:, 0].short().numpy())
        write_atomic(files.out, buffer.getvalue())
        say(f"{len(x)} clips: {files.out}")
        return
    pictures.save_wavs(model, x, names)
    pictures.save_spectrograms(x, files.out, overwrite=files.force)
    say(f"{len(x)} clips: {names[0]} to {names[-1].name}; their spectrograms: {files.out}")


def _reconstruct_sound(model: "VAE", data: str, run: Path, files: SoundFiles) -> None:
    """Write originals and what is drawn from p(x|z) at their mean codes, with spectrograms."""
    import torch

    from kullback.report import pictures

    x, _ = images_for(model, data, run=run, most=files.count)
    files = replace(files, count=len(x))
    names = files.names("-original", "")
    rebuilt = pictures.reconstructed(model, x, torch.Generator().manual_seed(files.seed))
    pictures.save_wavs(model, x, names[::2])
    pictures.save_wavs(model, rebuilt, names[1::2])
    pictures.save_spectrograms(x, files.out, below=rebuilt, overwrite=files.force)
    say(
        f"{len(x)} clips and their reconstructions: {names[0]} and so on; spectrograms: {files.out}"
    )


def _counted(n: int, model: "VAE") -> str:
    """Write how many examples of a model's data there are: 60 images, 1 clip, 1,200 vectors."""
    from kullback.report import evaluation_text

    shape = () if model.spec is None else model.spec.event_shape
    return evaluation_text.counted(n, {"event_shape": shape})


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


def sample_blocks(
    model: "VAE", n: int, generator: "Generator", *, noise: bool
) -> "Iterator[Tensor]":
    """Draw n samples in blocks, so that memory does not grow with n."""
    from torch import Generator

    outputs = model.parameters_of(model.prior.sample(1, Generator().manual_seed(0))).numel()
    size = max(1, min(SAMPLES_PER_BLOCK, OUTPUTS_PER_BLOCK // outputs))
    for start in range(0, n, size):
        yield model.sample(min(size, n - start), generator=generator, noise=noise)


def _require_pixels(model: "VAE", n: int) -> None:
    """Refuse a picture too large to be made in memory."""
    if model.spec is None or len(model.spec.event_shape) == 1:
        return  # vectors are no picture, which is said when one is made of them
    height, width = model.spec.event_shape[1:]
    most = max(1, MAX_PIXELS_OF_A_PICTURE // (height * width))
    got = f"{n:,} images of {height}x{width}"
    require(n <= most, "-n", f"at most {most:,} in one picture", got, "--out samples.npy")


def save_blocks(blocks: "Iterator[Tensor]", n: int, out: Path, *, model: "VAE") -> None:
    """Write blocks of samples, n in all, as one `.npy`, each as it comes."""
    import numpy as np

    start = 0
    with open_atomic(out) as file, bar("sampling") as update:
        for x in blocks:
            block = in_units(x, model)
            if start == 0:
                dtype = np.lib.format.dtype_to_descr(block.dtype)
                header = {"descr": dtype, "fortran_order": False, "shape": (n, *block.shape[1:])}
                _require_space(out, n * block[0].nbytes)
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(block).data)
            start += len(block)
            update(start, n)


def _require_space(out: Path, size: int) -> None:
    """Refuse before the work a file that does not fit the disk."""
    free = shutil.disk_usage(out.parent).free
    if size > free:
        need = f"{size / 2**30:.1f} GB, and {free / 2**30:.1f} GB are free"
        raise RunError(f"{out}: cannot be written: it takes {need}. Try: a smaller -n")


def in_units(x: "Tensor", model: "VAE") -> Any:
    """Return x in the caller's units: values where the model has levels of a grid, else x.

    Of counts the last column is left out where it is the size factor.
    """
    if model.spec is not None and model.spec.sizes:
        return x[:, :-1].numpy()
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
