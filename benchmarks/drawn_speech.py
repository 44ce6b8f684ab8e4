"""How much drawn clips are like speech: voices, resonances and loud clicks, beside real clips.

    python benchmarks/drawn_speech.py CLIPS.npz NAME=RUN [NAME=RUN ...] [--clips 24]

CLIPS.npz and the runs are those of `benchmarks/sound.py --out RUN`. Of every loud frame of 40 ms
(within 20 dB of the clip's loudest) it takes the linear predictor of order 12 and says whether the
frame is voiced (the residual's largest normalised correlation at lags of 2.5 to 17 ms exceeds 0.5),
how many peaks of 6 dB the envelope has, and its flatness in dB. Frames of white noise are never
voiced and have 0.2 peaks. Three sets: test clips, clips drawn from the model, and clips drawn on
from the first 0.15 s of a loud part of test clips, by time since then. Prints JSON and writes it
to benchmarks/results/drawn_speech.json.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from measuring import finish, machine
from scipy.linalg import solve_toeplitz
from scipy.signal import butter, find_peaks, freqz, lfilter

from kullback.vae import VAE
from kullback.vae.sound import _Drawn

ORDER, FRAME, HOP, GIVEN, DRAWN = 12, 320, 80, 1200, 1600
SPANS = {"0 to 50 ms": (0, 400), "50 to 100 ms": (400, 800), "100 to 200 ms": (800, 1600)}


def predictor(frame):
    """Return `1 − Σ a_k z^−k` of a frame, by the autocorrelation method with a Hamming window."""
    frame = frame * np.hamming(len(frame))
    r = np.correlate(frame, frame, "full")[len(frame) - 1 : len(frame) + ORDER]
    r[0] = 1e-3 + r[0] * (1 + 1e-4)
    return np.concatenate([[1.0], -solve_toeplitz(r[:-1], r[1:])])


def periodicity(frame, a):
    """Return the largest normalised correlation of the residual below 900 Hz with itself."""
    residual = lfilter(*butter(2, 900 / 4000), lfilter(a, [1.0], frame)[ORDER:])
    residual = residual - residual.mean()
    pairs = [(residual[lag:], residual[:-lag]) for lag in range(20, 134)]
    return max(float(u @ v / np.sqrt((u @ u) * (v @ v) + 1e-9)) for u, v in pairs)


def figures(clips):
    """Return shares and means over the loud frames of clips."""
    rows = []
    for clip in clips:
        starts = range(0, len(clip) - FRAME + 1, HOP)
        frames = [np.asarray(clip[i : i + FRAME], float) for i in starts]
        loud = [np.sqrt((frame**2).mean()) for frame in frames]
        for frame, size in zip(frames, loud, strict=True):
            if size < max(50.0, 0.1 * max(loud)):
                continue
            bright = np.append(frame[0], frame[1:] - 0.95 * frame[:-1])
            a = predictor(bright)
            envelope = -20 * np.log10(np.abs(freqz(a, worN=128)[1]))
            power = 10 ** (envelope / 10)
            flatness = envelope.mean() - 10 * np.log10(power.mean())
            peaks = len(find_peaks(envelope, prominence=6)[0])
            rows.append((periodicity(bright, a) > 0.5, peaks, flatness))
    names = ("voiced", "peaks of 6 dB", "flatness, dB")
    means = np.mean(np.array(rows, float), 0) if rows else [float("nan")] * 3
    return {"frames": len(rows), **{n: float(v) for n, v in zip(names, means, strict=True)}}


def loud_parts(clips, count):
    """Return the loudest 0.2 s of clips with the 0.15 s before, `[count, 2800]`."""
    found = []
    for clip in clips:
        if len(clip) > GIVEN + DRAWN and len(found) < count:
            size = np.convolve(np.abs(clip.astype(float)), np.ones(DRAWN), "valid")
            start = min(int(size.argmax()), len(clip) - GIVEN - DRAWN)
            found.append(clip[start : start + GIVEN + DRAWN])
    return np.stack(found)


@torch.no_grad()
def continued(model, given, generator):
    """Draw on from the samples given, `[clips, P]`, with z from the prior."""
    likelihood, n = model.likelihood, len(given)
    parameters = model.parameters_of(model.prior.sample(n, generator))
    past = _Drawn(n, GIVEN + DRAWN, given.device, likelihood.context)
    shift = torch.zeros(n, dtype=torch.long)
    for t in range(GIVEN + DRAWN):
        seen = past.before(t)
        if t < GIVEN:
            past.add(t, given[:, t])
            continue
        condition = likelihood._condition_at(parameters, t)
        log_pi, location, log_scale = likelihood._shape(likelihood._of(seen), condition, shift)
        pick = torch.multinomial(log_pi.exp(), 1, generator=generator)
        noise = torch.logit(torch.rand(pick.shape, generator=generator), eps=1e-7)
        drawn = location.gather(1, pick) + log_scale.gather(1, pick).exp() * noise
        past.add(t, drawn[:, 0].round().clamp(-32768, 32767))
    return past.levels.numpy()


def after(clips):
    """Return the figures of clips by time since their first 0.15 s."""
    return {
        name: figures([c[GIVEN + a : GIVEN + b] for c in clips]) for name, (a, b) in SPANS.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--clips", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(options.data) as loaded:
        samples, offset, take = (loaded[name] for name in ("samples", "offset", "take"))
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(take < 10))
    clips = [samples[offset[i] : offset[i + 1]] for i in chosen]
    clips = [clip for clip in clips if (clip % 256).any()]  # of 16 bits
    parts = loud_parts(clips, options.clips)
    found = {"test clips": {"clips": figures(clips[:48]), "loud parts": after(parts)}}
    for name, run in (text.split("=", 1) for text in options.runs):
        model = VAE.load(Path(run)).eval()
        drawn = model.sample(options.clips)[:, 0].numpy()
        size = np.sqrt((drawn.astype(float) ** 2).mean(-1))
        on = continued(
            model, torch.tensor(parts[:, :GIVEN]).float(), torch.Generator().manual_seed(1)
        )
        own = figures(drawn) | {"clips louder than 8,000 (rms)": int((size > 8000).sum())}
        found[name] = {"clips": own, "loud parts": after(on)}
    settings = {"clips": options.clips}
    finish("drawn_speech", {"machine": machine(1), "settings": settings, **found})


if __name__ == "__main__":
    main()
