"""Bits a sample on spoken digits: the evidence of held-out clips against FLAC on the same clips.

    python benchmarks/sound.py CLIPS.npz [--minutes 10] [--draws 10] [--threads 1] [--out DIR]

The data are not part of the package: an .npz with `samples`, `offset` and `test` (the official
split of the Free Spoken Digit Dataset: takes 0 to 4 of each digit and speaker, 300 test clips).
Every real sample of every test clip is counted once; the padding is not. FLAC is libsndfile's at
its highest level, on the 300 clips joined into one file and on each clip with its header. Prints
JSON and writes it to benchmarks/results/sound.json.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from measuring import finish, machine

from kullback.core import write_json
from kullback.data import PADDING, describe_protocol, load
from kullback.vae import Architecture, Training, evaluate, train


def flac_bits(clips, rate):
    """Return bits a sample of FLAC: all clips in one file, and a file for each."""

    def size(samples):
        buffer = io.BytesIO()
        how = {"format": "FLAC", "subtype": "PCM_16", "compression_level": 1.0}
        soundfile.write(buffer, samples, rate, **how)
        return 8 * len(buffer.getvalue())

    total = sum(map(len, clips))
    return size(np.concatenate(clips)) / total, sum(map(size, clips)) / total


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--out", type=Path, help="keep the run here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load(options.data)
    given = {"batch_size": options.batch_size, "learning_rate": options.learning_rate}
    settings = Training.usual("sound", minutes=options.minutes, **given)

    def progress(now):
        sys.stderr.write(f"\rstep {now.step}, ELBO {now.elbo:.1f}, {now.seconds:.0f} s   ")

    outcome = train(
        data,
        architecture=Architecture(hidden=(options.hidden,)),
        training=settings,
        folder=options.out or Path(tempfile.mkdtemp()) / "run",
        progress=progress,
    )
    sys.stderr.write("\n")
    figures = evaluate(outcome.model, data.test, draws=options.draws)
    real = [clip[clip != PADDING].numpy().astype(np.int16) for clip in data.test[:, 0]]
    joined, each = flac_bits(real, data.protocol["sound"]["rate"])
    write_json(
        outcome.folder / "evaluation.json",
        {
            "format": 1,
            "kullback": "benchmark",
            "unit": "nats",
            "evaluation": figures.to_dict(),
            "data": data.protocol,
        },
    )
    finish(
        "sound",
        {
            "benchmark": "sound",
            "machine": machine(options.threads),
            "protocol": describe_protocol(data.protocol | {"source": options.data.name}),
            "settings": given | {"minutes": options.minutes, "hidden": options.hidden},
            "clips": len(real),
            "samples": sum(map(len, real)),
            "bits a sample": figures.bits_per_dim.value,
            "standard error": figures.bits_per_dim.standard_error,
            "nats a clip": figures.log_likelihood.value,
            "minus ELBO, nats a clip": -figures.elbo.value,
            "rate, nats a clip": figures.rate.value,
            "draws": options.draws,
            "FLAC, clips joined": joined,
            "FLAC, a file a clip": each,
        },
    )


if __name__ == "__main__":
    main()
