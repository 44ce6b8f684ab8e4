"""What a user's part raises: whose it is, which batch it was given, and that the run can go on."""

import traceback

import pytest
import torch
from torch import nn

from kullback.data import Dataset
from kullback.vae import Parts, Training, evaluate, resume, train
from kullback.vae.latents import MixtureOfGaussians
from kullback.vae.likelihoods import Bernoulli

QUICK = Training(steps=8, batch_size=20)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 6)

    def forward(self, x):
        return self.net(x).chunk(2, -1)


def decoder():
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 6))


def bits():
    """60 examples for training, 30 for tests."""
    x = torch.randint(2, (90, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    names = tuple(map(str, range(90)))
    protocol = {"source": "bits", "sha256": {"train": "", "test": ""}, "notes": []}
    protocol |= {"skipped": {"count": 0, "files": []}, "event_shape": [6], "kind": "binary"}
    return Dataset(x[:60], x[60:], "binary", False, protocol, names[:60], names[60:])


class Failing(Encoder):
    """An encoder that raises an error of Python where `when` says so of its mode, x and calls."""

    def __init__(self, when):
        super().__init__()
        self.when, self.calls = when, 0

    def forward(self, x):
        self.calls += 1
        if self.when(self, x):
            return [x][5]
        return super().forward(x)


class FailingDecoder(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.net, self.rows = decoder(), rows

    def forward(self, z):
        if len(z) == self.rows:
            raise KeyError("a layer")
        return self.net(z)


class FailingBits(Bernoulli):
    def log_prob(self, parameters, x):
        if len(x) == 20:
            raise ZeroDivisionError("in a likelihood")
        return super().log_prob(parameters, x)

    mean, sample = Bernoulli.mean, Bernoulli.sample


class FailingDraws(Bernoulli):
    log_prob, mean = Bernoulli.log_prob, Bernoulli.mean

    def sample(self, parameters, generator):
        if len(parameters) == 5:
            raise OSError("in a draw")
        return super().sample(parameters, generator)


class FailingMixture(MixtureOfGaussians):
    def log_prob(self, z):
        if z.shape[-2] == 20:
            raise LookupError("in a prior")
        return super().log_prob(z)

    sample = MixtureOfGaussians.sample


def raised(kind, call):
    """Return the last line of the traceback of what a call raises."""
    with pytest.raises(kind) as found:
        call()
    return traceback.format_exception(found.value)[-1].strip().splitlines()[-1]


ERRORS = {
    "a trial": (
        lambda: {"encoder": Failing(lambda _, x: len(x) == 2)},
        IndexError,
        f"by the encoder, {__name__}.Failing, which was called with float32 [2, 6], in eval",
    ),
    "training": (
        lambda: {"encoder": Failing(lambda one, x: one.training and len(x) == 20)},
        IndexError,
        f"by the encoder, {__name__}.Failing, which was called with float32 [20, 6], in train",
    ),
    "evaluation": (
        lambda: {"encoder": Failing(lambda one, x: not one.training and len(x) == 30)},
        IndexError,
        f"by the encoder, {__name__}.Failing, which was called with float32 [30, 6], in eval",
    ),
    "a decoder": (
        lambda: {"decoder": FailingDecoder(20)},
        KeyError,
        f"by the decoder, {__name__}.FailingDecoder, which was called with float32 [20, 3]",
    ),
    "a likelihood": (
        lambda: {"likelihood": FailingBits((6,))},
        ZeroDivisionError,
        f"in log_prob of the likelihood, {__name__}.FailingBits, for float32 [20, 6]",
    ),
    "a prior": (
        lambda: {"prior": FailingMixture(3, 2)},
        LookupError,
        f"in log_prob of the prior, {__name__}.FailingMixture, for float32 [20, 6]",
    ),
}


@pytest.mark.parametrize("case", sorted(ERRORS))
def test_the_last_line_says_whose_it_is_and_what_it_was_given(case, tmp_path):
    make, kind, text = ERRORS[case]
    own = {"encoder": Encoder(), "decoder": decoder()} | make()
    line = raised(kind, lambda: train(bits(), **own, training=QUICK, folder=tmp_path / "a"))
    assert line.startswith("kullback: raised ") and text in line


def test_a_run_whose_encoder_failed_goes_on_as_if_it_had_not(tmp_path):
    def fresh(encoder):
        torch.manual_seed(0)
        return {"encoder": encoder(), "decoder": decoder()}

    whole = train(bits(), **fresh(Encoder), training=QUICK, folder=tmp_path / "a")
    own = fresh(lambda: Failing(lambda one, x: one.training and one.calls > 5))
    raised(IndexError, lambda: train(bits(), **own, training=QUICK, folder=tmp_path / "b"))
    found = resume(tmp_path / "b", data=bits(), parts=Parts(**fresh(Encoder)))
    assert found.finished
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name]), name
    rows = [(tmp_path / run / "metrics.jsonl").read_text() for run in "ab"]
    assert rows[0] == rows[1]


def test_samples_and_the_last_uneven_batch_say_it_too(tmp_path):
    own = {"encoder": Encoder(), "decoder": FailingDecoder(7), "likelihood": FailingDraws((6,))}
    model = train(bits(), **own, training=QUICK, folder=tmp_path / "a").model
    line = raised(OSError, lambda: model.sample(5))
    assert line.endswith(f"in sample of the likelihood, {__name__}.FailingDraws, for 5 samples")
    assert "float32 [7, 3], in evaluation mode" in raised(KeyError, lambda: model.sample(7))
    last = raised(KeyError, lambda: evaluate(model, bits().test[:7], draws=1))
    assert f"the decoder, {__name__}.FailingDecoder" in last
