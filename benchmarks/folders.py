"""Evidence against time on folders of pictures as people have them.

    python benchmarks/folders.py [--steps 250 500 1000] [--threads 1] [--also NAME=PATH …]
    python benchmarks/folders.py --loading 100000

Three folders of PNG files are made, and read as `kullback train FOLDER` reads them:

- `faces`: 1,965 grey frames of 28x20 of a drawn face that turns, blinks and smiles. The kind of the
  Frey faces: neighbouring frames are alike, and fall on both sides of the split by chance.
- `characters`: 3,000 characters of 105x105 black pixels, two to four strokes each, `--size 28
  --binarize dynamic`. The kind of Omniglot.
- `photographs`: 32x32 colour crops of scikit-learn's two sample photographs, the right third of
  each for testing. The kind of CIFAR, with fewer pictures.

They stand in for sets that cannot be shipped; `--also frey=FOLDER` measures such a set as well.
For every number of steps a run of its own, since the schedule ends with the run: the usual
settings, one seed. Prints L_20 of up to 300 test images over CPU seconds of training and writes
them to benchmarks/results/folders.json. Errors are over images.

`--loading N` measures reading alone: N files of 64x64 colour pixels, JPEG and PNG by turns, smooth
with noise. Printed are wall and CPU seconds (of the processes too) of the first `load`, which
decodes, of the second, which takes the cache, and of the floor: one loop that reads, hashes and
decodes every file with Pillow and keeps nothing. They go to benchmarks/results/folder_loading.json.
"""

import argparse
import hashlib
import io
import math
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import finish, machine
from PIL import Image, ImageDraw

from kullback.data import load
from kullback.vae import Architecture, Training, evaluate, pick_precision
from kullback.vae.loop import fit
from kullback.vae.run.new_model import fresh_model
from kullback.vae.state import State

IMAGES, DRAWS = 300, 20
FACES, CHARACTERS, SCALE = 1965, 3000, 8


def face(turn, smile, eyes, light):
    """Draw one face of 28x20 grey pixels: every argument from -1 to 1."""
    picture = Image.new("L", (20 * SCALE, 28 * SCALE), 60)
    draw = ImageDraw.Draw(picture)

    def oval(x, y, wide, high, grey):
        box = (x - wide, y - high, x + wide, y + high)
        draw.ellipse([SCALE * side for side in box], fill=int(grey))

    middle = 10 + 1.5 * turn
    oval(10, 14, 8, 12, 170 + 40 * light)
    oval(10, 4, 8, 4, 50)  # hair
    for side in (-3, 3):
        oval(middle + side, 11, 1.6, 0.3 + 0.8 * (1 + eyes) / 2, 40)
    oval(middle + 0.5 * turn, 15, 0.8, 1.8, 130 + 40 * light)
    oval(middle, 20, 2.5 + smile, 0.6 + 0.5 * abs(smile), 70)
    return picture.resize((20, 28), Image.Resampling.BOX)


def faces(folder, chance):
    """Write frames of a face whose parts move slowly, each at its own pace."""
    paces = np.array([97.0, 61.0, 23.0, 331.0])
    for frame in range(FACES):
        moved = np.sin(2 * math.pi * frame / paces) + 0.15 * chance.standard_normal(4)
        pixels = np.asarray(face(*moved.clip(-1, 1)), np.float64)
        noisy = (pixels + chance.normal(0, 3, pixels.shape)).clip(0, 255)
        Image.fromarray(np.rint(noisy).astype(np.uint8)).save(folder / f"{frame:04}.png")


def characters(folder, chance):
    """Write characters of two to four strokes; each of 150 is drawn by 20 shaking hands."""
    for alphabet in range(150):
        strokes = [chance.uniform(15, 90, (4, 2)) for _ in range(chance.integers(2, 5))]
        for hand in range(CHARACTERS // 150):
            picture = Image.new("1", (105, 105), 0)
            draw = ImageDraw.Draw(picture)
            for stroke in strokes:
                points, t = stroke + chance.normal(0, 4, (4, 2)), np.linspace(0, 1, 24)[:, None]
                weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
                line = weights @ points
                draw.line([tuple(point) for point in line.tolist()], fill=1, width=3)
            picture.save(folder / f"{alphabet:03}-{hand:02}.png")


def photographs(folder, _chance):
    """Write crops: overlapping ones of the left two thirds to train on, others to test on."""
    from sklearn.datasets import load_sample_images

    for name, picture in enumerate(load_sample_images().images):
        height, width = picture.shape[:2]
        border = 2 * width // 3
        places = {
            "train": (range(0, height - 31, 8), range(0, border - 31, 8)),
            "test": (range(0, height - 31, 32), range(border, width - 31, 32)),
        }
        for part, (rows, columns) in places.items():
            (folder / part).mkdir(exist_ok=True)
            for row in rows:
                for column in columns:
                    crop = picture[row : row + 32, column : column + 32]
                    Image.fromarray(crop).save(folder / part / f"{name}-{row}-{column}.png")


MADE = {
    "faces": (faces, {}),
    "characters": (characters, {"size": 28, "binarize": "dynamic"}),
    "photographs": (photographs, {}),
}


def trained(data, steps):
    """Train with the usual settings; return CPU seconds and the evidence of test images."""
    settings = Training.usual(data.kind, data.event_shape, steps=steps)
    model = fresh_model(data, Architecture(), settings.seed, None)
    precision = pick_precision("auto", torch.device("cpu"))
    state = State.start(model, settings, precision=precision)
    start = time.process_time()
    for _ in fit(model, data, settings, state):
        pass
    seconds = time.process_time() - start
    state.flat.release(model)
    found = evaluate(model.eval(), data.test[:IMAGES], draws=DRAWS)
    row = {"steps": steps, "passes": steps * settings.batch_size / len(data.train)}
    row |= {"cpu_seconds": seconds, "nats": found.log_likelihood.value}
    row["nats_error"] = found.log_likelihood.standard_error
    if found.bits_per_dim is not None:
        row["bits_per_dim"] = found.bits_per_dim.value
        row["bits_error"] = found.bits_per_dim.standard_error
    return row


def line(row):
    """Return one line of the table."""
    bits = ""
    if "bits_per_dim" in row:
        bits = f"   {row['bits_per_dim']:.3f} ± {row['bits_error']:.3f} bits/dim"
    nats = f"{row['nats']:10.2f} ± {row['nats_error']:.2f} nats"
    return f"  {row['cpu_seconds']:7.1f} CPU s {row['steps']:6,} steps {nats}{bits}"


def textures(folder, count):
    """Write pictures of 64x64 cut out of a smooth colour texture, with noise: JPEG, PNG, JPEG, …"""
    chance = np.random.default_rng(0)
    place = np.add.outer(2 * np.arange(256), 3 * np.arange(256))
    smooth = np.stack([np.sin(place / 40), np.cos(place / 31), np.sin(place / 57)], -1)
    for number in range(count):
        inside = folder / f"{number // 1000:03}"
        inside.mkdir(exist_ok=True)
        row, column = chance.integers(0, 190, 2)
        part = smooth[row : row + 64, column : column + 64] * chance.uniform(0.3, 1, 3)
        noisy = (part + 1) * 100 + chance.normal(0, 6, (64, 64, 1))
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(inside / f"{number:06}.{'png' if number % 2 else 'jpg'}")


def bare(folder):
    """Read, hash and decode every file, and keep nothing."""
    for path in folder.rglob("*.*"):
        content = path.read_bytes()
        hashlib.sha256(content).digest()
        np.asarray(Image.open(io.BytesIO(content)))


def seconds_of(call):
    """Return the wall seconds of a call, and its CPU seconds with those of its processes."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)

    def cpu():
        used = [resource.getrusage(who) for who in whose]
        return sum(one.ru_utime + one.ru_stime for one in used)

    start, before = time.perf_counter(), cpu()
    call()
    return {"wall_seconds": time.perf_counter() - start, "cpu_seconds": cpu() - before}


def loading(count, threads):
    """Measure a folder of `count` files: the floor, the first and the second `load`."""
    result = {"benchmark": "folder_loading", "machine": machine(threads), "files": count}
    with tempfile.TemporaryDirectory() as work:
        os.environ["XDG_CACHE_HOME"] = str(Path(work) / "cache")
        folder = Path(work) / "textures"
        folder.mkdir()
        textures(folder, count)
        time.sleep(3)  # files changed a moment ago are not cached
        calls = {"bare loop": bare, "first load": load, "second load": load}
        for name, call in calls.items():
            result[name] = seconds_of(lambda call=call: call(folder))
            wall, cpu = result[name]["wall_seconds"], result[name]["cpu_seconds"]
            print(f"{name:12} {wall:7.2f} s, {cpu:7.2f} CPU s", flush=True)
    finish("folder_loading", result, digits=4)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, nargs="*", default=[250, 500, 1000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sets", nargs="*", choices=[*MADE], default=[*MADE])
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME=PATH")
    parser.add_argument("--loading", type=int, metavar="FILES", help="measure reading alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.loading:
        return loading(options.loading, options.threads)
    result = {"benchmark": "folders", "machine": machine(options.threads), "sets": {}}
    with tempfile.TemporaryDirectory() as work:
        sources = {}
        for name in options.sets:
            write, asked = MADE[name]
            folder = Path(work) / name
            folder.mkdir()
            write(folder, np.random.default_rng(0))
            sources[name] = (folder, asked)
        for given in options.also:
            name, _, path = given.partition("=")
            sources[name] = (Path(path), {})
        for name, (folder, asked) in sources.items():
            data = load(folder, **asked)
            shape = f"{len(data.train):,} + {len(data.test):,} of {list(data.event_shape)}"
            print(f"{name}: {shape}, {data.kind}", flush=True)
            rows = []
            for steps in options.steps:
                rows.append(trained(data, steps))
                print(line(rows[-1]), flush=True)
            result["sets"][name] = {"data": shape, "kind": data.kind, "runs": rows}
            finish("folders", result, digits=5)


if __name__ == "__main__":
    main()
