"""Damaged files and killed trainings, counted: what loads, what is refused, what is lost.

    python benchmarks/damage.py --files 10000 --kills 100 [--seed 0]

Each mutation flips bits, changes, inserts, deletes, doubles or zeroes bytes, or cuts a file, as
often as not several times. Weights, checkpoints and `config.json` must be refused, always: a
mutated one that loads is counted as silent. Pictures, sounds and arrays must end in values or in
the package's own error. Anything else is counted as a traceback; its first examples are printed.
Memory is the process's peak. The trainings are killed with SIGKILL at random moments and resumed;
logs and weights must then be those of a training that was never killed, byte for byte. Exit code 1
when one of it is not so.
"""

import argparse
import io
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from kullback.core import KullbackError
from kullback.data import limits as data_limits
from kullback.data import load
from kullback.data.arrays import read_arrays
from kullback.data.examples import Fitting, Reading
from kullback.data.pictures import read_folder, read_frames
from kullback.data.sounds import read_clips, read_sound
from kullback.vae import VAE, Architecture, Training, train


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return other bytes: one mutation, or up to eight of them."""
    data = bytearray(content)
    for _ in range(1 if chance.random() < 0.5 else chance.randrange(2, 9)):
        place = chance.randrange(len(data)) if data else 0
        length = min(len(data) - place, chance.choice([1, 2, 4, 16, 256]))
        kind = chance.randrange(7)
        if kind == 0 and data:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1 and data:
            data[place] = chance.randrange(256)
        elif kind == 2:
            data[place:place] = chance.randbytes(length or 1)
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        elif kind == 5:
            data[place : place + length] = bytes(length)
        else:
            del data[place:]
    return bytes(data)


@dataclass
class Count:
    """Outcomes of one kind of file."""

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def try_one(self, read: Callable[[], object], *, loaded: str) -> None:
        start = time.perf_counter()
        try:
            read()
            outcome = loaded
        except KullbackError:
            outcome = "refused"
        except Exception as error:  # noqa: BLE001 - what is counted here
            outcome = "traceback"
            self.examples.append(f"{type(error).__name__}: {error}")
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, time.perf_counter() - start)

    def line(self) -> str:
        found = ", ".join(f"{name} {n:,}" for name, n in sorted(self.outcomes.items()))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        examples = "".join(f"\n    {text}" for text in self.examples[:3])
        text = f"{self.kind:24} {sum(self.outcomes.values()):6,}  {found}"
        return f"{text}; slowest {self.slowest:.2f} s, memory {peak:.2f} GB{examples}"


def runs(folder: Path) -> list[tuple[str, Path, Path]]:
    """Make a finished and a stopped run, and return (kind, run, file) to damage."""
    small = Architecture(network="mlp", hidden=(16,), latent=3)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 6, 6), dtype=np.uint8)
    np.save(folder / "x.npy", pixels)
    whole, stopped = folder / "whole", folder / "stopped"
    train(folder / "x.npy", architecture=small, training=Training(steps=12), folder=whole)
    calls = iter(range(1000))
    train(
        folder / "x.npy",
        architecture=small,
        training=Training(steps=500),
        folder=stopped,
        stop=lambda: next(calls) > 8,
    )
    return [
        ("weights", whole, whole / "model.safetensors"),
        ("checkpoint", stopped, stopped / "checkpoints" / "last.safetensors"),
        ("config, finished run", whole, whole / "config.json"),
        ("config, stopped run", stopped, stopped / "config.json"),
    ]


def pictures() -> dict[str, list[bytes]]:
    """Encode pictures in every format that is read."""
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (6, 8, 4), dtype=np.uint8)
    rgba = Image.fromarray(smooth).resize((48, 40))
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    deep = Image.fromarray(rng.integers(0, 65536, (20, 24), dtype=np.uint16))
    several = {"save_all": True, "append_images": [grey, grey.rotate(90)]}
    made = {
        "PNG": [(rgba, {}), (rgb, {}), (deep, {}), (rgb.quantize(9), {}), (grey, several)],
        "JPEG": [(rgb, {}), (grey, {"progressive": True}), (rgb.convert("CMYK"), {})],
        "WebP": [(rgba, {}), (rgb, {"lossless": True}), (grey, several)],
        "BMP": [(rgb, {}), (rgb.quantize(9), {})],
        "GIF": [(grey, several), (rgb, {})],
        "TIFF": [(rgb, {"compression": "tiff_lzw"}), (deep, {}), (grey, several)],
    }
    encoded: dict[str, list[bytes]] = {}
    for kind, images in made.items():
        for image, options in images:
            buffer = io.BytesIO()
            image.save(buffer, kind, **options)
            encoded.setdefault(kind, []).append(buffer.getvalue())
    return encoded


def archives() -> list[bytes]:
    """Encode arrays as .npz, compressed and not."""
    rng = np.random.default_rng(0)
    parts = {"x_train": rng.integers(0, 256, (40, 5, 5), np.uint8), "y": np.arange(40)}
    made = []
    for write, arrays in (
        (np.savez, parts),
        (np.savez_compressed, parts),
        (np.savez_compressed, {"a": rng.random((30, 4), np.float32)}),
    ):
        buffer = io.BytesIO()
        write(buffer, **arrays)
        made.append(buffer.getvalue())
    return made


def sounds() -> dict[str, list[bytes]]:
    """Encode sounds in every format that is read, of one and two channels."""
    rng = np.random.default_rng(0)
    tone = np.sin(np.arange(4000) * 0.2)[:, None] * [0.5, 0.3] + rng.normal(0, 0.01, (4000, 2))
    made = {
        "WAV": ("PCM_16", "PCM_U8", "PCM_24", "FLOAT"),
        "FLAC": ("PCM_16", "PCM_24"),
        "OGG": ("VORBIS",),
        "MP3": ("MPEG_LAYER_III",),
    }
    encoded: dict[str, list[bytes]] = {}
    for kind, subtypes in made.items():
        for subtype in subtypes:
            for samples in (tone, tone[:, 0]):
                buffer = io.BytesIO()
                soundfile.write(buffer, samples, 8000, format=kind, subtype=subtype)
                encoded.setdefault(kind, []).append(buffer.getvalue())
    return encoded


def clips() -> bytes:
    """Encode clips as .npz."""
    levels = np.random.default_rng(0).integers(-900, 900, 4000).astype(np.int16)
    buffer = io.BytesIO()
    np.savez(buffer, samples=levels, offset=np.arange(0, 4001, 500), rate=np.int64(8000))
    return buffer.getvalue()


def damage(files: int, folder: Path, seed: int) -> list[Count]:
    """Read `files` mutated files, a quarter each of runs, pictures, sounds and arrays."""
    chance, counts = random.Random(seed), []
    targets = runs(folder)
    for kind, run, path in targets:
        count, content = Count(kind), path.read_bytes()
        for _ in range(files // 4 // len(targets)):
            changed = mutated(content, chance)
            if changed != content:
                path.write_bytes(changed)
                count.try_one(lambda run=run: VAE.load(run), loaded="silent")
        path.write_bytes(content)
        counts.append(count)
        print(count.line(), flush=True)
    asked = Fitting((32, 32), "crop", "auto"), Reading(frames="all", background="auto")
    encoded = pictures()
    for kind, images in encoded.items():
        count = Count(f"picture, {kind}")
        for number in range(files // 4 // len(encoded)):
            changed = mutated(images[number % len(images)], chance)
            count.try_one(
                lambda data=changed: read_frames(data, asked[0], asked[1]), loaded="image"
            )
        counts.append(count)
        print(count.line(), flush=True)
    heard = sounds()
    for kind, made in heard.items():
        count = Count(f"sound, {kind}")
        for number in range(files // 4 // len(heard)):
            changed = mutated(made[number % len(made)], chance)
            count.try_one(lambda data=changed: read_sound(data), loaded="sound")
        counts.append(count)
        print(count.line(), flush=True)
    path = folder / "damaged.npz"
    for kind, made, read in (
        ("arrays, .npz", archives(), read_arrays),
        ("clips, .npz", [clips()], read_clips),
    ):
        count = Count(kind)
        for number in range(files // 8):
            path.write_bytes(mutated(made[number % len(made)], chance))
            count.try_one(lambda read=read: read(path), loaded="values")
        counts.append(count)
        print(count.line(), flush=True)
    counts += [shards(files // 20, folder, chance), folders(files // 100, encoded, folder, chance)]
    return counts


def shards(files: int, folder: Path, chance: random.Random) -> Count:
    """Damage one of two shards of a folder and read all its rows from disk."""
    count, place = Count("shards, .npy and .npz"), folder / "shards"
    place.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (2, 40, 6), dtype=np.uint8)
    np.save(place / "a.npy", rows[0])
    made = []
    for write in (np.save, np.savez):
        buffer = io.BytesIO()
        write(buffer, rows[1])
        made.append(buffer.getvalue())
    for number in range(files):
        path = place / ("b.npy", "b.npz")[number % 2]
        path.write_bytes(mutated(made[number % 2], chance))
        count.try_one(lambda: load(place).train[:].sum(), loaded="values")
        path.unlink()
    print(count.line(), flush=True)
    return count


def folders(
    rounds: int, encoded: dict[str, list[bytes]], folder: Path, chance: random.Random
) -> Count:
    """Damage half of 60 pictures of a folder that is decoded in processes."""
    count, before = Count("folders, in processes"), data_limits.FILES_FOR_PROCESSES
    kinds = [(kind, image) for kind in ("PNG", "JPEG", "WebP", "BMP") for image in encoded[kind]]
    data_limits.FILES_FOR_PROCESSES = 1
    for number in range(rounds):
        place = folder / f"folder{number}"
        place.mkdir()
        for k in range(60):
            kind, image = kinds[k % len(kinds)]
            content = image if k % 2 else mutated(image, chance)
            (place / f"{k:02}.{kind.lower()}").write_bytes(content)
        count.try_one(lambda place=place: read_folder(place, size=(16, 16)), loaded="values")
    data_limits.FILES_FOR_PROCESSES = before
    print(count.line(), flush=True)
    return count


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kullback", "train", *map(str, arguments)]
    out = subprocess.DEVNULL
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, env=environment)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(said.decode())


def kills(wanted: int, folder: Path, seed: int) -> tuple[int, int, int]:
    """Kill trainings so often, and return (kills, trainings, trainings that differ after all)."""
    chance, done, trained, lost = random.Random(seed), 0, 0, 0
    settings = "--epochs 20 --size 14 --binarize dynamic --network mlp --hidden 64,64 --latent 8"
    often = ("--checkpoint-seconds", "0.05")
    whole = folder / "never-killed"
    finish(start(*settings.split(), *often, "--out", whole))
    while done < wanted:
        run, trained = folder / f"run{trained}", trained + 1
        process = start(*settings.split(), *often, "--out", run)
        for _ in range(10):
            while process.poll() is None and not (run / "config.json").exists():
                time.sleep(0.01)
            before = time.monotonic() + chance.uniform(0.0, 4.0)
            while process.poll() is None and time.monotonic() < before:
                time.sleep(0.01)
            if process.poll() is not None or done == wanted:
                break
            process.send_signal(signal.SIGKILL)
            process.communicate()
            done += 1
            process = start("--resume", run, *often)
        finish(process)
        names = ("metrics.jsonl", "model.safetensors")
        alike = all((run / n).read_bytes() == (whole / n).read_bytes() for n in names)
        stray = [one for one in run.rglob(".*") if one.name != ".lock"]
        lost += not alike or bool(stray)
        print(f"training {trained}: {done} kills so far, {'the same' if alike else 'DIFFERS'}")
    return done, trained, lost


def main() -> int:
    parser = argparse.ArgumentParser(description="Damaged files and killed trainings, counted.")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # that a run is unfinished; what a picture's damage is
    with tempfile.TemporaryDirectory() as name:
        counts = damage(asked.files, Path(name), asked.seed) if asked.files else []
        nothing = (0, 0, 0)
        done, trained, lost = kills(asked.kills, Path(name), asked.seed) if asked.kills else nothing
    total = sum((count.outcomes for count in counts), Counter())
    print(f"{total.total():,} files: {total['silent']} silent, {total['traceback']} tracebacks")
    print(f"{done} kills of {trained} trainings: {lost} trainings lost something")
    return int(bool(total["silent"] or total["traceback"] or lost))


if __name__ == "__main__":
    raise SystemExit(main())
