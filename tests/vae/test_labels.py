"""Models conditional on a label: read, trained, resumed, evaluated label by label, and refused."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from kullback import report
from kullback.cli.main import main
from kullback.core import ArgumentValueError, DataError
from kullback.data import PADDING, load, reload
from kullback.vae import VAE, Architecture, Training, build, evaluate, image_bounds, resume, train
from kullback.vae.elbo_step import step_for
from kullback.vae.evaluation import Evaluation, bounds_given
from kullback.vae.evidence import bounds

TINY = Architecture(network="mlp", hidden=(8,), latent=2)


def conditional(shape=(3,), labels=("cat", "dog"), **more):
    """A model of bits whose labels matter: random weights everywhere."""
    torch.manual_seed(0)
    model = build(shape, "binary", Architecture(hidden=(4,), latent=1, **more), labels=labels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def every(bits):
    return torch.cartesian_prod(*[torch.arange(2.0)] * bits)


def by_quadrature(model, x, points=4001):
    """log p(x | y) by a sum over z, whatever the encoder is."""
    z = torch.linspace(-9, 9, points)
    terms = model.likelihood.log_prob(
        model.parameters_of(z[:, None, None].expand(-1, len(x), 1)), x
    )
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z)[:, None]
    return torch.logsumexp((terms + prior).double(), 0) + math.log(18 / (points - 1))


@torch.no_grad()
def test_probabilities_given_a_label_sum_to_one_and_bounds_lie_below():
    model, x = conditional(), every(3)
    truths = [by_quadrature(model.at(label), x) for label in ("cat", "dog")]
    for truth in truths:
        assert truth.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (truths[0] - truths[1]).abs().max() > 0.1
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    truth = torch.where(labels == 0, truths[0], truths[1])
    draws = 4000
    generator = torch.Generator().manual_seed(0)
    found = bounds_given(model, x, labels, draws=draws, generator=generator)
    error = ((draws / found.effective_draws.double() - 1) / draws).sqrt()
    assert ((found.importance_weighted - truth).abs() <= 4.5 * error + 1e-5).all()


def test_bounds_of_each_label_come_back_in_order():
    model, x, labels = conditional(), every(3), torch.tensor([1, 0, 0, 1, 0, 1, 1, 0])
    found = bounds_given(model, x, labels, draws=5, generator=torch.Generator().manual_seed(3))
    again = torch.Generator().manual_seed(3)
    for label in (0, 1):
        own = labels == label
        given = model.at(torch.tensor(label))
        truth = bounds(given, x[own], draws=5, generator=again)
        assert torch.equal(found.elbo[own], truth.elbo)
        assert torch.equal(found.mean[own], truth.mean)


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_a_batch_of_labels_is_each_label_by_itself(objective):
    model, x, labels = conditional(), every(3), torch.tensor([1, 0, 0, 1, 0, 1, 1, 0])
    noise = torch.randn(4, 8, 1, generator=torch.Generator().manual_seed(0))
    name = "elbo_terms" if objective == "elbo" else "tight_terms"
    together = getattr(model.at(labels), name)(x, noise)
    for label in (0, 1):
        own = labels == label
        alone = getattr(model.at(torch.tensor(label)), name)(x[own], noise[:, own])
        torch.testing.assert_close(together[0][:, own], alone[0])
        torch.testing.assert_close(together[-1][own], alone[-1])


def test_a_missing_or_unknown_label_is_refused():
    model, x = conditional(), every(3)
    for call in (model.sample, model.elbo, model.encode):
        with pytest.raises(ArgumentValueError, match=r"label: expected one of cat, dog: .* none"):
            call(3 if call == model.sample else x)
    with pytest.raises(ArgumentValueError, match="label: expected one of cat, dog; got 'cow'"):
        model.at("cow")
    with pytest.raises(ArgumentValueError, match="none: it has no labels; got 7"):
        build((3,), "binary").at(7)
    assert model.at("dog").sample(2).shape == (2, 3)
    with pytest.raises(ArgumentValueError, match=r"label: expected \[8\], one for each x"):
        model.at(torch.tensor([0, 1])).encode(x)
    assert step_for(build((3,), "binary", TINY, labels=("a", "b")), None, Training()) is None


@torch.no_grad()
def test_a_label_of_sound_changes_p_and_not_q():
    """Each p(x | z, y) is a distribution of the next sample: its probabilities sum to one."""
    torch.manual_seed(0)
    sound = {"rate": 8000, "step": 4096, "clip": 64}
    small = Architecture(latent=2, hidden=(6,))
    more = {"sound": sound, "levels": 16, "labels": ("a", "b")}
    model = build((1, 64), "sound", small, **more)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x = 4096 * torch.randint(-8, 8, (1, 1, 64), generator=torch.Generator().manual_seed(0))
    x[..., 4:] = PADDING
    every_last = x.repeat(16, 1, 1).float()
    every_last[:, 0, 3] = 4096.0 * torch.arange(-8, 8)
    one, two = model.at("a"), model.at("b")
    z = torch.randn(1, 1, 2).expand(1, 16, 2)
    logs = [m.likelihood.log_prob(m.parameters_of(z), every_last)[0].double() for m in (one, two)]
    totals = [torch.logsumexp(log, 0) for log in logs]
    shorter = every_last[:1].clone()
    shorter[..., 3:] = PADDING
    for given, total in zip((one, two), totals, strict=True):
        first = given.likelihood.log_prob(given.parameters_of(z[:, :1]), shorter)[0, 0]
        assert total.item() == pytest.approx(first.item(), abs=1e-4)
    assert (logs[0] - logs[1]).abs().max() > 1e-3
    assert torch.equal(one.encode(every_last)[0], two.encode(every_last)[0])


def digits(n=80, seed=0):
    """Pictures whose label is the place of a bright column, with copies on neither side."""
    g = np.random.default_rng(seed)
    y = g.integers(0, 3, n)
    x = g.integers(0, 60, (n, 8, 8)).astype(np.uint8)
    x[np.arange(n), :, 2 * y] += 150
    return x, y


def folder_of(path, x, y):
    for k, (pixels, label) in enumerate(zip(x, y, strict=True)):
        (path / f"no {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / f"no {label}" / f"{k}.png")


def test_labels_of_folders_arrays_and_columns_are_the_same(tmp_path):
    x, y = digits()
    folder_of(tmp_path / "pictures", x, y)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", x_train=x[:60], x_test=x[60:], y_train=y[:60], y_test=y[60:])
    text = [",".join(map(str, [*row, f"c{label}"])) for row, label in zip(x[:, 0], y, strict=True)]
    names = ",".join([*(f"v{k}" for k in range(8)), "kind"])
    (tmp_path / "c.csv").write_text("\n".join([names, *text]))
    for name, label, wanted in (
        ("pictures", "folder", ["no 0", "no 1", "no 2"]),
        ("a.npz", "y", ["0", "1", "2"]),
        ("b.npz", "y", ["0", "1", "2"]),
        ("c.csv", "kind", ["c0", "c1", "c2"]),
    ):
        data = load(tmp_path / name, label=label)
        assert data.protocol["labels"] == wanted
        for rows, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
            first = rows.reshape(len(rows), -1)[:, :8]
            assert torch.equal(first[:, ::2][:, :3].argmax(1), labels)
        again = reload(data.protocol)
        assert torch.equal(again.train_labels, data.train_labels)
        assert again.protocol["sha256"] == data.protocol["sha256"]


@pytest.mark.parametrize(
    ("label", "labels", "text"),
    [
        ("z", [0, 1] * 40, "expected an array of labels, or one for each of x; got none"),
        ("y", [0, 1], "expected 80 labels, integers or text, one a row; got"),
        ("y", [0.5] * 80, "expected 80 labels, integers or text"),
        ("y", [1] * 80, "expected 2 to 1,000 different labels; got 1"),
        ("folder", [0, 1] * 40, "label: expected the name of an array or a column"),
    ],
)
def test_wrong_labels_are_refused(label, labels, text, tmp_path):
    np.savez(tmp_path / "a.npz", x=digits()[0], **({} if label == "z" else {"y": np.array(labels)}))
    with pytest.raises((DataError, ArgumentValueError), match=text):
        load(tmp_path / "a.npz", label=label)


def test_pictures_without_a_folder_of_their_own_are_refused(tmp_path):
    x, y = digits(12)
    folder_of(tmp_path, x, y)
    Image.fromarray(x[0]).save(tmp_path / "loose.png")
    with pytest.raises(DataError, match=r"in a folder named by its label; got loose\.png"):
        load(tmp_path, label="folder")
    with pytest.raises(ArgumentValueError, match="label: expected folder for pictures"):
        load(tmp_path, label="y")


def test_a_label_without_training_examples_is_refused(tmp_path):
    x, y = digits(40)
    np.savez(tmp_path / "a.npz", x_train=x[:30], x_test=x[30:], y_train=y[:30] % 2, y_test=y[30:])
    with pytest.raises(DataError, match="training examples of every label; none of 2"):
        load(tmp_path / "a.npz", label="y")


@pytest.mark.slow
def test_conditional_figures_and_samples_of_a_trained_run(tmp_path):
    x, y = digits()
    np.savez(tmp_path / "a.npz", x=x, y=y)
    data = load(tmp_path / "a.npz", label="y")
    settings = {"architecture": TINY, "training": Training(steps=6, batch_size=20, validation=0.1)}
    found = train(data, **settings, folder=tmp_path / "run")
    model = VAE.load(tmp_path / "run")
    evaluation = evaluate(model, data.test, draws=5, labels=data.test_labels)
    assert evaluation == evaluate(found.model, data.test, draws=5, labels=data.test_labels)
    assert Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict()))) == evaluation
    assert sum(one.images for one in evaluation.per_label) == len(data.test)
    weighted = sum(o.images * o.log_likelihood.value for o in evaluation.per_label)
    assert weighted / len(data.test) == pytest.approx(evaluation.log_likelihood.value)
    assert evaluation.given == "the label of each item"
    text = report.evaluation_text.remarks(evaluation)
    assert any("L_5 by label, in nats/image" in one for one in text)
    page = report.write(tmp_path / "run").read_text()
    assert "--label y" in page


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "conv", "patch"])
@pytest.mark.parametrize("prior", ["normal", "vamp"])
def test_a_run_with_labels_is_resumed_bit_for_bit(network, prior, tmp_path):
    x, y = digits()
    folder_of(tmp_path / "pictures", x, y)
    data = load(tmp_path / "pictures", label="folder")
    hidden = (8,) if network == "mlp" else (8, 8, 16)
    likelihood = "categorical" if network == "conv" else "logistics"
    architecture = Architecture(
        network=network,
        hidden=hidden,
        latent=2,
        prior=prior,
        prior_components=3,
        likelihood=likelihood,
    )
    settings = {"architecture": architecture, "training": Training(steps=8, batch_size=20)}
    whole = train(data, **settings, folder=tmp_path / "whole")
    count = itertools.count()
    train(data, **settings, folder=tmp_path / "b", stop=lambda: next(count) == 3)
    again = resume(tmp_path / "b")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert whole.model.at("no 1").sample(2).shape == (2, 1, 8, 8)


@pytest.mark.slow
def test_labels_that_matter_gain_evidence(tmp_path):
    """The label is worth up to log 8 nats; the rate, which need not code it, is lower; paired."""
    g = np.random.default_rng(0)
    y = g.integers(0, 8, 4000)
    x = (g.random((4000, 16)) < np.where(g.random((8, 16)) < 0.5, 0.1, 0.9)[y]).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, y=y)
    found = {}
    for label in ("", "y"):
        data = load(tmp_path / "a.npz", label=label)
        run = train(
            data,
            architecture=Architecture(hidden=(32,), latent=3),
            training=Training(steps=800),
            folder=tmp_path / f"r{label}",
        )
        found[label] = image_bounds(run.model, data.test, draws=50, labels=data.test_labels)
    gain = found["y"].importance_weighted - found[""].importance_weighted
    assert gain.mean() > 4.5 * gain.std() / math.sqrt(len(gain))
    assert found["y"].rate.mean() < found[""].rate.mean()


@pytest.mark.slow
def test_the_command_asks_for_a_missing_label(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return stop.value.code

    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "photos", *digits())
    train = "train photos --label folder --network mlp --hidden 8 --latent 2 --steps 4 --out r"
    assert run(*train.split()) == 0
    assert "L_500 by label" in " ".join(capsys.readouterr().out.split())
    assert run("sample", "r") == 2
    said = capsys.readouterr().err
    assert "--label: expected one of no 0, no 1, no 2" in said and "Try: --label 'no 0'" in said
    assert run("sample", "r", "--label", "no 2", "--out", "x.npy", "-n", 3) == 0
    assert np.load("x.npy").shape == (3, 1, 8, 8)
    assert run("sample", "r", "--label", "7") == 2
    assert run("evaluate", "r", "--sandwich", "--draws", 5) == 2
    assert "--sandwich: expected one label at a time" in capsys.readouterr().err
    how = ("--items", 2, "--chains", 2, "--temperatures", 4, "--draws", 5)
    assert run("evaluate", "r", "--label", "no 1", "--sandwich", *how) == 0
    assert (
        json.loads((tmp_path / "r" / "evaluation.json").read_text())["evaluation"]["draws"] == 500
    )
