"""Training from disk, from objects in memory and from another run's weights."""

import itertools
import json
import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from kullback import report
from kullback.cli.main import main
from kullback.core import ArgumentValueError, DataError, RunError
from kullback.data import load
from kullback.vae import VAE, Architecture, Parts, Training, evaluate, resume, train

TINY = Architecture(network="mlp", hidden=(8,), latent=2)
QUICK = Training(steps=12, batch_size=20, precision="float32")
BYTES = np.random.default_rng(0).integers(0, 256, (120, 6), dtype=np.uint8)


def same_weights(one, other):
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shards").mkdir()
    for k, part in enumerate(np.array_split(BYTES, 3)):
        np.save(tmp_path / "shards" / f"{k}.npy", part)
    return tmp_path / "shards"


@pytest.mark.sweep(4)
@pytest.mark.parametrize("kind", ["8-bit", "continuous", "dynamic", "validation"])
def test_training_from_disk_is_training_from_memory_and_resumes(kind, folder, tmp_path):
    if kind == "continuous":
        for k in range(3):
            noise = np.random.default_rng(k).normal(size=(40, 3))
            np.save(folder / f"{k}.npy", noise * [1, 10, 1e-3] + 4)
    how = {"binarize": "dynamic"} if kind == "dynamic" else {}
    fresh = {"validation": 0.2} if kind == "validation" else {}
    training = Training(steps=12, batch_size=20, precision="float32", **fresh)
    memory, disk = (load(folder, storage=storage, **how) for storage in ("memory", "auto"))
    settings = {"architecture": TINY, "training": training}
    whole = train(memory, folder=tmp_path / "a", **settings)
    same_weights(whole, train(disk, folder=tmp_path / "b", **settings))
    count = itertools.count()
    stopped = {"folder": tmp_path / "c", "stop": lambda: next(count) == 5}
    train(disk, **settings, **stopped)
    found = resume(tmp_path / "c")
    same_weights(whole, found)
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in "abc"]
    assert logs[0] == logs[1] == logs[2]
    assert evaluate(found.model, memory.test) == evaluate(whole.model, disk.test)


def test_a_run_from_an_object_goes_on_with_the_same_one_alone(tmp_path):
    x, count = torch.from_numpy(BYTES), itertools.count()
    settings = {"architecture": TINY, "training": QUICK}
    train(x, folder=tmp_path / "a", stop=lambda: next(count) == 4, **settings)
    with pytest.raises(DataError, match=r"made in memory, .* Try: data="):
        resume(tmp_path / "a")
    with pytest.raises(DataError, match="the hashes differ"):
        resume(tmp_path / "a", data=255 - x)
    found = resume(tmp_path / "a", data=x)
    same_weights(found, train(x, folder=tmp_path / "b", **settings))


class Encoder(nn.Linear):
    def forward(self, x):
        return super().forward(x).chunk(2, -1)


def test_own_modules_read_labels_beside_z(tmp_path):
    pairs = [(row, k % 3) for k, row in enumerate(BYTES % 2)]
    data = load(pairs, label="y")
    torch.manual_seed(0)
    own = {"encoder": Encoder(6, 4), "decoder": nn.Linear(2 + 3, 6)}
    found = train(data, **own, training=QUICK, folder=tmp_path / "a")
    assert found.model.at("2").sample(2).shape == (2, 6)
    again = Parts(encoder=Encoder(6, 4), decoder=nn.Linear(5, 6))
    loaded = VAE.load(tmp_path / "a", parts=again)
    figures = [
        evaluate(m, data.test, draws=5, labels=data.test_labels) for m in (found.model, loaded)
    ]
    assert figures[0] == figures[1]
    assert {one.label for one in figures[0].per_label} == {"0", "1", "2"}
    with pytest.raises(ArgumentValueError, match=r"decoder: .* takes float32 \[2, 5\]; it fails"):
        own = {"encoder": Encoder(6, 4), "decoder": nn.Linear(2, 6)}
        train(data, **own, training=QUICK, folder=tmp_path / "b")


def test_a_run_starts_from_another_runs_weights(folder, tmp_path):
    first = train(folder, architecture=TINY, training=QUICK, folder=tmp_path / "a")
    still = Training(steps=1, batch_size=20, learning_rate=1e-12, precision="float32")
    second = train(folder, start=tmp_path / "a", training=still, folder=tmp_path / "b")
    for name, value in first.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], value, rtol=0, atol=1e-9)
    start = json.loads((tmp_path / "b" / "config.json").read_text())["start"]
    assert start["run"] == str(tmp_path / "a") and start["same_data"] is True
    assert not second.warnings
    other = 255 - BYTES
    third = train(other, start=tmp_path / "b", training=still, folder=tmp_path / "c")
    assert "may have been among its training examples" in third.warnings[0]
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["start"]["start"]["run"] == str(tmp_path / "a")
    fourth = train(other, start=tmp_path / "c", training=still, folder=tmp_path / "d")
    assert "trained on the same data; that run started from" in fourth.warnings[0]
    assert "may have been among its training examples" in fourth.warnings[0]


@pytest.mark.slow
def test_without_data_a_run_goes_on_with_the_data_of_the_other_one(tmp_path, capsys):
    """Not with the embedded images; changed data, data in memory and typed options are refused."""
    np.save(tmp_path / "x.npy", BYTES)
    train(tmp_path / "x.npy", architecture=TINY, training=QUICK, folder=tmp_path / "a")
    second = train(start=tmp_path / "a", training=QUICK, folder=tmp_path / "b")
    assert second.data.protocol["source"] == str(tmp_path / "x.npy")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["start"]["same_data"] is True
    command("train", "--from", tmp_path / "a", "--steps", "2", "--out", tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["data"] == second.data.protocol
    assert f"the data of {tmp_path / 'a'}: " in capsys.readouterr().err
    train(BYTES, architecture=TINY, training=QUICK, folder=tmp_path / "memory")
    np.save(tmp_path / "x.npy", 255 - BYTES)
    with pytest.raises(DataError, match="hashes differ"):
        train(start=tmp_path / "a", training=QUICK, folder=tmp_path / "d")
    refused = {
        ("a",): "the hashes differ. Try: kullback train DATA --from",
        ("memory",): "its data were in memory and cannot be read again. Try: kullback train DATA",
        ("a", "--binarize", "static"): "DATA: expected the data that options of reading are for",
    }
    for (name, *more), words in refused.items():
        with pytest.raises(SystemExit):
            main(["train", "--from", str(tmp_path / name), *more, "--out", str(tmp_path / "d")])
        assert words in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


@pytest.mark.slow
@pytest.mark.parametrize("typed", [[], ["--binarize", "static"]])
def test_data_of_a_run_that_starts_from_another_are_read_as_its_were(typed, tmp_path, capsys):
    pixels, others = BYTES.reshape(-1, 1, 2, 3).repeat(4, 2).repeat(3, 3), 255 - BYTES
    labels = np.arange(len(pixels)) % 3
    np.savez(tmp_path / "a.npz", x=pixels, y=labels)
    data = load(tmp_path / "a.npz", size=(5, 4), binarize="dynamic", label="y", seed=3)
    train(data, architecture=TINY, training=QUICK, folder=tmp_path / "a")
    given = ["--from", tmp_path / "a", "--steps", "2", "--out", tmp_path / "b", *typed]
    np.savez(tmp_path / "b.npz", x=others.reshape(-1, 2, 3).repeat(9, 1).repeat(7, 2), y=labels)
    command("train", tmp_path / "b.npz", *given)
    said = capsys.readouterr().err
    assert f"read as {tmp_path / 'a'} was: --size 5x4 --channels grey" in said
    assert (" --binarize dynamic" in said) == (not typed)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["data"]["event_shape"] == [1, 5, 4]
    assert config["data"]["binarize"] == (typed or ["", "dynamic"])[-1]
    assert config["data"]["seed"] == 3 and config["data"]["labels"] == ["0", "1", "2"]
    again = train(tmp_path / "b.npz", start=tmp_path / "a", training=QUICK, folder=tmp_path / "c")
    assert again.data.protocol["binarize"] == "dynamic"


@pytest.mark.slow
def test_compare_tells_first_weights_apart_and_data_by_their_hashes(folder, tmp_path, capsys):
    train(folder, architecture=TINY, training=QUICK, folder=tmp_path / "a")
    shutil.copytree(folder, tmp_path / "copy")
    memory = load(tmp_path / "copy", storage="memory")
    train(memory, start=tmp_path / "a", training=QUICK, folder=tmp_path / "b")
    report.export(tmp_path / "b", tmp_path / "exported", onnx=False)
    for other in ("b", "exported"):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *(str(tmp_path / name) for name in ("a", other)), "--json"])
        assert stop.value.code == 0
        groups = json.loads(capsys.readouterr().out)["groups"]
        assert [len(one["runs"]) for one in groups] == [1, 1]
    with pytest.raises(RunError, match=r"an exported run, .* Try: kullback train DATA --from"):
        resume(tmp_path / "exported")
    pairs = [(row, k % 3) for k, row in enumerate(BYTES)]
    labels = {"y": np.array([y for _, y in pairs]), "z": np.array([(y + 1) % 3 for _, y in pairs])}
    for name, values in labels.items():
        np.savez(tmp_path / f"{name}.npz", x=BYTES, y=values)
        settings = {"architecture": TINY, "training": QUICK}
        train(load(tmp_path / f"{name}.npz", label="y"), **settings, folder=tmp_path / name)
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(tmp_path / "y"), str(tmp_path / "z"), "--draws", "5"])
    assert stop.value.code == 3 and "labels (sha256)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_of_few_steps_leaves_trained_weights(tmp_path):
    models = {}
    for steps in (1, 2, 9):
        few = Training(steps=steps, batch_size=20, precision="float32")
        folder = tmp_path / f"{steps}"
        models[steps] = train(BYTES, architecture=TINY, training=few, folder=folder).model
    weights = [one.decoder(torch.ones(1, 2)).detach() for one in models.values()]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


@pytest.mark.slow
def test_a_started_run_resumes_without_the_other_one(folder, tmp_path):
    train(folder, architecture=TINY, training=QUICK, folder=tmp_path / "a")
    settings = {"start": tmp_path / "a", "training": QUICK}
    whole = train(folder, **settings, folder=tmp_path / "b")
    for last in (0, 5):  # before the first step there is no checkpoint
        count = itertools.count()
        path = tmp_path / f"c{last}"
        train(folder, **settings, folder=path, stop=lambda at=last, n=count: next(n) == at)
        if last == 0:
            (path / "checkpoints" / "last.safetensors").unlink()
            for log in ("metrics.jsonl", "timing.jsonl"):
                (path / log).unlink(missing_ok=True)
    (tmp_path / "a").rename(tmp_path / "gone")
    for last in (0, 5):
        same_weights(whole, resume(tmp_path / f"c{last}"))


APART = {
    "another latent": (
        {"architecture": Architecture(network="mlp", hidden=(8,), latent=3)},
        6,
        "latent 2; got latent 3",
    ),
    "another width": (
        {"architecture": Architecture(network="mlp", hidden=(9,), latent=2)},
        6,
        r"hidden \(8,\); got hidden \(9,\)",
    ),
    "another shape": ({}, 5, r"shape \[6\]; got shape \[5\]"),
    "parts of one's own": ({"decoder": nn.Linear(2, 6)}, 6, "own parts"),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", APART)
def test_a_run_of_another_model_is_no_start(name, tmp_path):
    more, columns, text = APART[name]
    train(BYTES % 2, architecture=TINY, training=QUICK, folder=tmp_path / "a")
    with pytest.raises(ArgumentValueError, match=f"start: expected the model of .*{text}"):
        train(BYTES[:, :columns] % 2, start=tmp_path / "a", **more, folder=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_no_run_is_no_start(tmp_path):
    with pytest.raises(RunError, match="nothing"):
        train(BYTES, start=tmp_path / "nothing", folder=tmp_path / "b")


@pytest.mark.slow
def test_reports_say_where_weights_and_data_are_from(tmp_path):
    x = torch.from_numpy(BYTES)
    found = train(x, architecture=TINY, training=QUICK, folder=tmp_path / "a")
    assert "kullback.vae.train(" in report.write(tmp_path / "a", data=found.data).read_text()
    np.save(tmp_path / "x.npy", BYTES)
    train(tmp_path / "x.npy", start=tmp_path / "a", training=QUICK, folder=tmp_path / "b")
    page = report.write(tmp_path / "b").read_text()
    assert "started from the weights of" in page and "--from" in page


def command(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code in (0, None)


@pytest.mark.slow
def test_the_command_starts_from_a_run_and_exports_without_onnx(folder, tmp_path, capsys):
    small = ["--network", "mlp", "--hidden", "8", "--latent", "2", "--steps", "3", "--quiet"]
    command("train", folder, *small, "--out", tmp_path / "a")
    more = ["--from", tmp_path / "a", "--steps", "3", "--out", tmp_path / "b"]
    command("train", folder, "--storage", "disk", *more)
    command("export", tmp_path / "b", tmp_path / "card", "--without-onnx")
    assert capsys.readouterr().out.endswith("card\n")
    written = {path.name for path in (tmp_path / "card").iterdir()}
    wanted = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert written == wanted | {"evaluation.json"}
    card = (tmp_path / "card" / "README.md").read_text()
    evaluation = json.loads((tmp_path / "b" / "evaluation.json").read_text())["evaluation"]
    assert f"{evaluation['elbo']['value']:.1f}"[:4] in card and "started from the weights" in card
    texts = [path.read_text() for path in (tmp_path / "card").glob("*.[jm]*[nd]")]
    assert len(texts) == 4 and str(tmp_path) not in "".join(texts)
    assert re.search(r"^library_name: kullback$", card, re.MULTILINE) and "license:" in card
    x = torch.from_numpy(BYTES)
    models = [VAE.load(tmp_path / one) for one in ("b", "card")]
    assert torch.equal(models[0].elbo(x), models[1].elbo(x))


def test_the_command_line_names_the_option_that_differs(tmp_path, capsys):
    np.save(tmp_path / "x.npy", BYTES)
    train(tmp_path / "x.npy", architecture=TINY, training=QUICK, folder=tmp_path / "a")
    given = ["train", str(tmp_path / "x.npy"), "--from", str(tmp_path / "a"), "--latent", "3"]
    with pytest.raises(SystemExit) as stop:
        main([*given, "--network", "mlp", "--hidden", "8", "--out", str(tmp_path / "b")])
    assert stop.value.code == 2
    assert "kullback: --from: expected the model of" in capsys.readouterr().err


def test_the_command_that_goes_on_can_be_pasted(tmp_path):
    folder = tmp_path / "a b"
    train(BYTES, architecture=TINY, training=QUICK, folder=folder, stop=lambda: True)
    with pytest.raises(RunError, match=re.escape(f"kullback train --resume '{folder}'")):
        report.export(folder, tmp_path / "out", onnx=False)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("why", ["exists", "unfinished", "no run", "broken weights"])
def test_an_export_that_fails_leaves_nothing(why, tmp_path):
    count = itertools.count()
    early = {"stop": lambda: next(count) == 2} if why == "unfinished" else {}
    train(BYTES, architecture=TINY, training=QUICK, folder=tmp_path / "a", **early)
    run, text = tmp_path / "a", "expected a finished run"
    if why == "exists":
        (tmp_path / "out").mkdir()
        text = "exists already"
    elif why == "no run":
        run, text = tmp_path / "b", "No such file"
    elif why == "broken weights":
        content = bytearray((run / "model.safetensors").read_bytes())
        content[-3] ^= 1
        (run / "model.safetensors").write_bytes(content)
        text = "damaged"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RunError, match=text):
        report.export(run, tmp_path / "out", onnx=False)
    assert sorted(tmp_path.iterdir()) == before
