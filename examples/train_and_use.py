"""Train a VAE on the embedded garments, measure it, and use it. About a minute on two cores.

python examples/train_and_use.py [minutes]
"""

import sys
import tempfile
from pathlib import Path

import torch

import kullback as kb

minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 0.5
folder = Path(tempfile.mkdtemp()) / "garments"

data = kb.data.load("fashion", binarize="dynamic")
print(kb.data.describe_protocol(data.protocol))

outcome = kb.vae.train(data, training=kb.vae.Training(minutes=minutes), folder=folder)
figures = kb.vae.evaluate(outcome.model, data.test, draws=100)
print("ELBO:", figures.elbo)
print("L_100:", figures.log_likelihood)
print("active units:", figures.active_units, "of", figures.latent)

model = kb.vae.VAE.load(folder)  # what another process would do
x = data.test[:4].float()
mean, log_sd = model.encode(x)  # q(z|x)
print("reconstructed:", tuple(model.decode(mean).shape))
print("log p(x) is at least:", model.log_likelihood(x, draws=500).tolist(), "nats, on average")
images = model.sample(64, generator=torch.Generator().manual_seed(1), noise=False)
kb.report.pictures.save(
    kb.report.pictures.grid(images, kind="binary", scale=2), folder / "samples.png"
)
print("report:", kb.report.write(folder, data=data))
