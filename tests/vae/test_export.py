"""ONNX graphs against PyTorch for every kind of part, and refusals that leave nothing behind."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from kullback import report
from kullback.core import ArgumentValueError, MissingExtraError, RunError
from kullback.data import load
from kullback.vae import Architecture, Parts, Training, build, require_exportable, train
from kullback.vae.architecture import Spec
from kullback.vae.latents import LowRank
from kullback.vae.training import OBJECTIVES

PARTS = {
    "vectors of bits": ((6,), "binary", {}),
    "full posterior": ((6,), "binary", {"posterior": "full"}),
    "flow posterior": ((6,), "binary", {"posterior": "iaf"}),
    "quantised": ((6,), "binary", {"posterior": "quantised"}),
    "two layers": ((6,), "binary", {"layers": 2}),
    "pseudo-inputs": ((6,), "binary", {"prior": "vamp"}),
    "flow prior": ((6,), "binary", {"prior": "flow"}),
    "labels": ((6,), "binary", {"labels": ("a", "b", "c")}),
    "pixels": ((1, 8, 8), "8-bit", {"neighbours": 4}),
    "context": ((1, 8, 8), "binary", {"context": (4, 4)}),
    "colours": ((3, 9, 10), "8-bit", {"neighbours": 0}),
    "4096 levels": ((6,), "levels", {"levels": 4096, "spread": torch.full((6,), 50.0)}),
    "beta-binomial": ((6,), "levels", {"likelihood": "beta_binomial", "levels": 16}),
    "categorical": ((6,), "levels", {"likelihood": "categorical", "levels": 16}),
    "Student": ((6,), "continuous", {"likelihood": "student", "spread": torch.full((6,), 3.0)}),
    "unit interval": ((6,), "continuous", {"likelihood": "continuous_bernoulli"}),
    "counts": ((7,), "counts", {"likelihood": "negative_binomial", "sizes": "total"}),
    "many zeros": ((6,), "counts", {"likelihood": "zero_inflated_negative_binomial"}),
}


def model_of(shape, kind, more):
    """A model whose parts all matter: its weights are moved from where they start."""
    beside = {n: more[n] for n in ("labels", "levels", "spread", "sizes") if n in more}
    rest = {name: value for name, value in more.items() if name not in beside}
    hidden = (8,) if len(shape) == 1 else ()
    torch.manual_seed(0)
    model = build(shape, kind, Architecture(hidden=hidden, latent=4, **rest), **beside).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("name", PARTS)
def test_graphs_are_the_model(name, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from kullback.vae import write_graphs

    parity = write_graphs(model_of(*PARTS[name]), tmp_path)
    # float32 has 6e-8; sums of hundreds of products and exponentials of them some ten of those
    assert max(parity.encoder, parity.decoder) < 1e-5 and parity.examples == 64
    assert parity.log_likelihood <= 1e-4 * max(1.0, abs(parity.nats))
    assert {path.name for path in tmp_path.iterdir()} == {"encoder.onnx", "decoder.onnx"}


@pytest.mark.parametrize("name", ["vectors of bits", "labels", "Student", "counts", "pixels"])
def test_the_gate_is_a_few_roundings_of_log_p(name):
    from kullback.vae import onnx_graphs

    model = model_of(*PARTS[name])
    with torch.no_grad():
        inputs = onnx_graphs._examples(model)
        encoder, decoder = onnx_graphs.EncoderGraph(model), onnx_graphs.DecoderGraph(model)
        inputs["z"] = encoder(*(inputs[one] for one in encoder.inputs))[0]
        wanted = decoder(*(inputs[one] for one in decoder.inputs))[0]
        log_p = model.likelihood.log_prob(wanted, inputs["x"])
        found = onnx_graphs._rounding(model, inputs, log_p, torch.ones(64, dtype=torch.bool))
    one = torch.finfo(torch.float32).eps * log_p.abs().max().item()
    assert one <= found <= 20 * one
    assert next(model.parameters()).dtype == torch.float32


class Halves(nn.Linear):
    def forward(self, x):
        return super().forward(x).chunk(2, -1)


class FixedRows(nn.Linear):
    def forward(self, z):
        return super().forward(z).reshape(len(z), 1, 6)


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("decoder", [nn.Linear, FixedRows])
def test_a_run_of_own_modules_is_exported_or_refused_whole(decoder, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    x = torch.randint(2, (90, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    own = {"encoder": Halves(6, 4), "decoder": decoder(2, 6)}
    train(x, **own, training=Training(steps=3, batch_size=20), folder=tmp_path / "a")
    with pytest.raises(RunError, match="expected its own parts, encoder"):
        report.export(tmp_path / "a", tmp_path / "out")
    parts = Parts(encoder=Halves(6, 4), decoder=decoder(2, 6))
    if decoder is FixedRows:
        with pytest.raises(ArgumentValueError, match=r"x\.shape\[0\] instead of len\(x\)"):
            report.export(tmp_path / "a", tmp_path / "out", parts=parts)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        return
    out = report.export(tmp_path / "a", tmp_path / "out", parts=parts)
    fields = json.loads((out / "config.json").read_text())
    assert fields["onnx"]["encoder_error"] < 1e-5
    assert "ONNX Runtime differ" in (out / "README.md").read_text()


def test_what_onnx_cannot_hold_is_refused_in_one_line(tmp_path, monkeypatch):
    low = build((4,), "binary", Architecture(posterior="low_rank", latent=4, rank=2))
    assert isinstance(low.family, LowRank)
    sound = build(
        (1, 64),
        "sound",
        Architecture(latent=2),
        sound={"rate": 8000, "step": 1, "clip": 64},
        levels=65536,
    )
    for model, text in ((low, "low_rank needs a Cholesky factor"), (sound, "p.x.z. of sound is a")):
        with pytest.raises(ArgumentValueError, match=text) as refused:
            require_exportable(model)
        assert "\n" not in str(refused.value) and "--without-onnx" in str(refused.value)
    from kullback.vae import onnx_graphs

    def missing(module, extra):
        raise MissingExtraError(f"{module} is not installed; pip install 'kullback[{extra}]'")

    monkeypatch.setattr(onnx_graphs, "import_extra", missing)
    with pytest.raises(MissingExtraError, match=r"kullback\[onnx\]"):
        onnx_graphs.write_graphs(model_of((4,), "binary", {}), tmp_path)
    assert not list(tmp_path.iterdir())


WORDS = {
    "prior": {
        "N(0, I)": {},
        "learned mixture of 7 Gaussians": {"prior": "mixture", "prior_components": 7},
        "VampPrior, q(z|u) at 50 learned pseudo-inputs u": {"prior": "vamp"},
        "learned normalising flow": {"prior": "flow"},
        "learned distribution of codes": {"posterior": "quantised"},
        "N(0, I) of the top layer, of each other a Gaussian given those above it": {"layers": 2},
    },
    "posterior": {
        "Gaussian with a diagonal covariance": {},
        "Gaussian with a diagonal covariance of each layer given those above it": {"layers": 3},
        "Gaussian with a full covariance": {"posterior": "full"},
        "Gaussian with a covariance of rank 3 and a diagonal": {"posterior": "low_rank", "rank": 3},
        "inverse autoregressive flow": {"posterior": "iaf"},
        "one code of 8 values a dimension": {"posterior": "quantised"},
    },
    "latent": {
        "32 dimensions": {},
        "32 dimensions in 2 layers": {"layers": 2},
        "32 dimensions in layers of 4, 28 from the top": {"layers": (4, 28)},
    },
    "likelihood": {
        "bernoulli": {},
        "bernoulli; a pixel depends on the 2 pixels before it too": {"neighbours": 2},
        "bernoulli; a pixel depends on 9 features of the pixels before it too": {"context": (9, 9)},
    },
}


@pytest.mark.parametrize("part", WORDS)
def test_every_part_has_its_words(part):
    for expected, given in WORDS[part].items():
        asked = Architecture(**given).resolved((1, 28, 28), "binary")
        assert Spec((1, 28, 28), "binary", asked).in_words[part] == expected


def test_every_objective_has_its_words():
    said = {
        name: Training(objective=name, draws=6, groups=2).objective_in_words for name in OBJECTIVES
    }
    assert len(set(said.values())) == len(OBJECTIVES) and "2 groups" in said["miwae"]
    assert Training().objective_in_words == "ELBO"
    tightened = Training(draws=4, tighten=0.4, beta=2.0, free_bits=0.5).objective_in_words
    assert tightened == "ELBO; in the last 40 % L_4; beta 2; 0.5 free nats a dimension"
    assert Training(objective="iwae", draws=4, tighten=0.2).objective_in_words == (
        "L_4 with doubly reparameterised gradients; 4 draws; 1 draw before the last 20 %"
    )


def test_the_card_names_every_part(tmp_path):
    pixels = np.random.default_rng(0).integers(2, size=(90, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "bits.npz", x=pixels, y=np.arange(90) % 2)
    small = Architecture(hidden=(4, 8), latent=4, context=(3, 3), layers=2)
    given = Training(steps=2, batch_size=20, warmup=0.3)
    data = load(tmp_path / "bits.npz", label="y")
    train(data, architecture=small, training=given, folder=tmp_path / "a")
    card = (report.export(tmp_path / "a", tmp_path / "out", onnx=False) / "README.md").read_text()
    for line in (
        "- latent: 4 dimensions in 2 layers",
        "- prior: N(0, I) of the top layer",
        "- posterior: Gaussian with a diagonal covariance",
        "- likelihood: bernoulli; a pixel depends on 3 features of the pixels before it too",
        "- labels: 2, on which encoder and decoder depend",
        "- training: maximised the ELBO; beta from 0 to 1 in the first 30 %",
    ):
        assert line in card
