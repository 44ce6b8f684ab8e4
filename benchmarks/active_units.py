"""Which latent dimensions of a VAE are active: a sweep over β, which set `vae.limits.ACTIVE_KL`.

For each β a perceptron is trained on the embedded pictures, and the latent dimensions are counted
by three rules: the variance of the mean code above 0.01 (Burda et al. 2016), the mean KL above
0.03, 0.1 and 0.3 nats, and both variance and 0.1 nats (what `evaluate` reports). The last columns
are the rate and the gap in the sorted KLs, the largest below 0.1 and the smallest above.

    python benchmarks/active_units.py [--steps 500] [--binarize static]
"""

import argparse
import tempfile
from pathlib import Path

import torch

from kullback.data import load
from kullback.vae import Architecture, Training, evaluate, train

BETAS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 200.0)
HEAD = (
    f"{'beta':>6} {'rate':>7} {'Var>.01':>8} {'>.03':>5} {'>.1':>5} {'>.3':>5} {'active':>7}   gap"
)


def main() -> None:
    """Print one row a β."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--binarize", default="none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load("fashion", binarize=options.binarize)
    shape = Architecture(network="mlp", hidden=(200,), latent=32, components=2)
    print(HEAD)
    for beta in BETAS:
        settings = Training(steps=options.steps, beta=beta, precision="float32")
        with tempfile.TemporaryDirectory() as folder:
            run = train(data, architecture=shape, training=settings, folder=Path(folder) / "run")
        found = evaluate(run.model, data.test[:1000], draws=20)
        kl = torch.tensor(found.kl_per_dimension).sort().values
        above = [int((kl >= limit).sum()) for limit in (0.03, 0.1, 0.3)]
        below, over = kl[kl < 0.1], kl[kl >= 0.1]
        ends = float(below.max()) if len(below) else 0.0, float(over.min()) if len(over) else 0.0
        gap = f"{ends[0]:.3f} to {ends[1]:.3f}"
        print(
            f"{beta:6g} {found.rate.value:7.2f} {found.varying_units:8} "
            f"{above[0]:5} {above[1]:5} {above[2]:5} {found.active_units:7}   {gap}",
            flush=True,
        )


if __name__ == "__main__":
    main()
