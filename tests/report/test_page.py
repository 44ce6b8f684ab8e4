"""The page: complete, self-contained, small, the same each time, honest about what is missing."""

import base64
import json
import re
import shutil
import threading
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kullback.core import DataError, RunError
from kullback.data import describe_protocol, load
from kullback.report import write
from kullback.report.html import _environment, picture
from kullback.report.training_runs.run_page import Record, _lead, _whole_stretches, command
from kullback.vae import VAE, Architecture, Evaluation, Training, train

from .conftest import TINY, in_memory, noise

pytestmark = pytest.mark.usefixtures("fashion_once")

VOID = {"meta", "link", "img", "br", "rect", "path"}


class Page(HTMLParser):
    """Collects text, tags and attributes; every tag must close."""

    def __init__(self, source):
        super().__init__()
        self.open, self.text, self.attributes = [], "", []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_data(self, data):
        self.text += data


def written(run, **options):
    path = write(run, **options)
    assert path == run / "report.html"
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def whole(evaluated, tmp_path_factory):
    """The page of the run as it is, written once."""
    return written(shutil.copytree(evaluated, tmp_path_factory.mktemp("whole") / "grey"))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    if content.pop("file_sha256", None):  # as a run made before, without a hash
        content["format"] = 1
    path.write_text(json.dumps(content))


def headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def assert_self_contained(page):
    bare = re.sub(r'"data:image/(png|webp);base64,[A-Za-z0-9+/=]+"', '"data:"', page)
    for word in ("http", "//", "@import", "<script", "javascript", "<iframe", "srcset"):
        assert word not in bare, word
    for tag, name, value in Page(page).attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:", "#")), (tag, value[:40])
    assert set(re.findall(r"url\((.)", bare)) <= {"#"}


@pytest.mark.slow
def test_the_figures_are_those_of_the_evaluation(run, whole):
    text = Page(whole).text
    stored = json.loads((run / "evaluation.json").read_text())
    figures = Evaluation.from_dict(stored["evaluation"])
    for name in ("elbo", "log_likelihood", "gap", "rate", "distortion", "bits_per_dim"):
        estimate = getattr(figures, name)
        printed = str(estimate).split(f" {estimate.unit}")[0]
        assert printed in text, name
    assert f"{figures.active_units}/{figures.latent}" in text
    assert "L20" in text
    assert "± is one standard error" in text
    assert text.count(describe_protocol(stored["data"])) >= 4
    for digest in stored["data"]["sha256"].values():
        assert digest in text


def test_the_page_has_every_part_and_nothing_from_elsewhere(whole):
    page = whole
    assert headings(page) == [
        "The figures",
        "How it learned",
        "Samples",
        "Reconstructions",
        "A map of the latent space",
        "What each latent dimension costs",
        "How to read this",
        "The data",
        "The settings",
        "Again",
    ]
    assert page.count("<img") == 5
    assert page.count("<svg") == 4
    assert_self_contained(page)
    assert len(page.encode()) < 1_000_000
    assert "kullback train fashion --network mlp --hidden 8" in page


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes_and_touches_no_global_state(run):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    running = set(threading.enumerate())  # a library of another test may have left one
    first = written(run)
    assert written(run) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert set(threading.enumerate()) == running
    assert sorted(p.name for p in run.iterdir() if p.name.endswith((".html", ".tmp"))) == [
        "report.html"
    ]


def test_reconstructions_show_the_first_test_images_exactly(run, whole):
    section = whole[whole.index('id="reconstructions"') :]
    content = re.search(r'src="data:image/png;base64,([^"]+)"', section).group(1)
    (run / "shown.png").write_bytes(base64.b64decode(content))
    with Image.open(run / "shown.png") as image:
        pixels = np.asarray(image)  # grey and opacity
    test = load("fashion").test
    assert (pixels[:28, :28, 0] == test[0, 0].numpy()).all()
    assert (pixels[:28, 30:58, 0] == test[1, 0].numpy()).all()
    model = VAE.load(run)
    with torch.no_grad():
        rebuilt = model.decode(model.encode(test[:1].float())[0]).round()
    difference = pixels[30:58, :28, 0].astype(int) - rebuilt[0, 0].numpy()
    assert np.abs(difference).max() <= 1  # a level on the edge of rounding
    assert (pixels[28:30, :, 1] == 0).all()  # the gap is transparent


@pytest.mark.slow
def test_without_an_evaluation(run):
    (run / "evaluation.json").unlink()
    page = written(run)
    assert "Not evaluated yet: kullback evaluate RUN" in page
    assert page.count("<img") == 5


@pytest.mark.slow
def test_without_the_data(run):
    edit(run / "config.json", lambda c: c["data"].update(source="/gone/<away>"))
    page = written(run)
    assert "The data could not be read again: /gone/&lt;away&gt;" in page
    assert page.count("<img") == 2
    assert "Reconstructions and the latent map" in page


@pytest.mark.slow
def test_with_changed_data(run):
    edit(run / "config.json", lambda c: c["data"]["sha256"].update(train="0" * 64))
    assert "The data have changed since the training" in written(run)


def test_with_data_of_another_run(run):
    other = in_memory(noise(4, 1, 28, 28), noise(4, 1, 28, 28), "8-bit")
    with pytest.raises(DataError, match="hashes differ"):
        write(run, data=other)


@pytest.mark.slow
def test_an_evaluation_on_other_data_says_so(run):
    edit(run / "evaluation.json", lambda c: c["data"]["sha256"].update(test="f" * 64))
    page = written(run)
    assert "for other data than those of the training" in page
    assert "test sha256 ffffffff" in page


@pytest.mark.slow
def test_a_model_in_memory_is_shown_as_the_stored_one(run):
    model, data = VAE.load(run), load("fashion")
    page = written(run)
    (run / "model.safetensors").unlink()
    assert written(run, model=model, data=data) == page
    assert written(run, model=model.train(), data=data) == page
    assert model.training  # as it was


@pytest.mark.slow
def test_before_the_training_has_finished(run):
    (run / "model.safetensors").unlink()
    page = written(run)
    assert "The training has not finished" in page
    assert "<svg" in page
    assert "<img" not in page


def test_without_readings(run):
    (run / "metrics.jsonl").unlink()
    (run / "timing.jsonl").unlink()
    assert "No readings yet" in written(run)


@pytest.mark.slow
def test_a_torn_last_line_is_left_out(run):
    before = written(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9000, "elb')
    assert written(run) == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics.jsonl", '{"step": 1}\nnot json\n', "line 2 is not a row"),
        ("metrics.jsonl", '{"step": 1, "elbo": "high"}\n', "line 1 is not a row"),
        ("timing.jsonl", "[]\n", "line 1 is not a row"),
        ("evaluation.json", '{"format": 1}', "not an evaluation"),
        ("evaluation.json", "[]", "not an evaluation"),
        ("config.json", "{}", "not the description of a run"),
        ("model.safetensors", "junk", "not a readable safetensors file"),
    ],
)
def test_damaged_files_are_named(run, name, content, words):
    (run / name).write_text(content)
    with pytest.raises(RunError, match=words) as error:
        write(run)
    assert name in str(error.value)
    assert not (run / "report.html").exists()


def test_no_run_at_all(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        write(tmp_path)


def test_hostile_names_stay_text(run):
    evil = '<script>alert("1")</script>&\'<img src=x onerror=y>'

    def change(config):
        config["data"]["source"] = evil
        config["data"]["notes"] = [evil]
        config["data"]["skipped"] = {"count": 1, "files": [{"name": evil, "reason": evil}]}
        config["data"]["split"] = evil
        config["device"] = config["created"] = evil
        config["versions"] = {evil: evil}
        config["training"]["objective"] = evil

    edit(run / "config.json", change)
    edit(run / "evaluation.json", lambda c: c["data"].update(source=evil))
    odd = run.rename(run.with_name("<b>&'\""))
    page = written(odd)
    assert "<script" not in page
    assert "onerror=y>" not in page
    assert "<b>&'" not in page
    assert evil in Page(page).text
    tags = {tag for tag, _, _ in Page(page).attributes}
    assert not tags & {"script", "iframe", "object"}
    names = {name for _, name, _ in Page(page).attributes}
    assert not {name for name in names if name.startswith("on")}


@pytest.mark.slow
def test_names_that_are_not_utf8_are_written_as_escapes(run):
    edit(run / "config.json", lambda c: c["data"].update(notes=["caf\udce9"]))
    assert "caf\\udce9" in written(run)


@pytest.mark.slow
def test_wide_rgb_noise_stays_under_the_limit(tmp_path):
    data = in_memory(noise(300, 3, 64, 64), noise(700, 3, 64, 64, seed=1), "8-bit")
    training = Training(steps=2, batch_size=32)
    outcome = train(data, architecture=TINY, training=training, folder=tmp_path / "rgb")
    assert "The data could not be read again" in written(outcome.folder)
    page = written(outcome.folder, data=data)
    assert page.count("<img") == 5
    assert len(page.encode()) < 1_000_000
    assert_self_contained(page)


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize("latent", [1, 4])
def test_vectors_get_a_page_without_pictures(tmp_path, latent):
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    data = in_memory(x[:40], x[40:], "continuous")
    outcome = train(
        data,
        architecture=Architecture(hidden=(8,), latent=latent),
        training=Training(steps=2, batch_size=20),
        folder=tmp_path / "vectors",
    )
    page = written(outcome.folder, data=data)
    assert "<img" not in page
    assert "20 test vectors" in page
    assert "<title>codes</title>" in page  # the points on the plane
    assert_self_contained(page)


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize(("shape", "kind"), [((1, 6, 9), "continuous"), ((3, 5, 5), "binary")])
def test_other_kinds_of_images(tmp_path, shape, kind):
    x = noise(60, *shape)
    x = x.float() / 100 - 1 if kind == "continuous" else x // 128
    data = in_memory(x[:30], x[30:], kind)
    training = Training(steps=2, batch_size=10)
    outcome = train(data, architecture=TINY, training=training, folder=tmp_path / "run")
    page = written(outcome.folder, data=data)
    assert page.count("<img") == 5
    assert ("Black is" in page) == (kind == "continuous")


def test_a_picture_keeps_to_its_budget():
    image = Image.fromarray(noise(400, 300, 3).numpy())
    stored = picture(image, "<noise>", budget=20_000)
    assert len(stored.data) <= 20_000
    source = '{% from "parts.html" import image %}{{ image(stored) }}'
    markup = _environment().from_string(source).render(stored=stored)
    content = base64.b64decode(re.search(r"base64,([^\"]+)", markup).group(1))
    assert content == stored.data
    assert 'width="300" height="400"' in markup
    assert 'alt="&lt;noise&gt;"' in markup


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("8-bit", {"neighbours": 4}, "logistics likelihood (each pixel given the 4 before it)."),
        ("8-bit", {"neighbours": 0}, "logistics likelihood."),
        (
            "8-bit",
            {"context": (16, 8)},
            "(each pixel given learned features of those before it: 16, 8)",
        ),
        (
            "sound",
            {"context": (32,)},
            "(each sample given learned features of those before it: 32)",
        ),
    ],
)
def test_the_lead_says_what_a_likelihood_is_given_beside_z(kind, fields, said):
    architecture = {"network": "patch", "latent": 8, "likelihood": "logistics"} | fields
    config = {"model": {"architecture": architecture}, "data": {"kind": kind, "source": "x"}}
    record = Record(Path("x"), config, [], [], None, {}, None, None, {})
    assert said in _lead(record)


@pytest.mark.slow
def test_the_command_names_what_was_asked_for():
    architecture = Architecture(network="mlp", hidden=(16, 32), likelihood="bernoulli")
    config = {
        "model": {"architecture": asdict(architecture)},
        "training": Training.usual("binary", (1, 16, 16), epochs=3, seed=7, beta=2.0).to_dict(),
        "data": load("fashion", binarize="dynamic", size=16, seed=7).protocol,
    }
    assert command(config) == (
        "kullback train fashion --network mlp --hidden 16,32 --beta 2.0 --epochs 3 --seed 7 "
        "--size 16x16 --binarize dynamic"
    )
    few = config["data"] | {"counts": {"train": 300, "test": 100}}
    assert command(config | {"data": few}).count("--validation 0.0") == 1
    usual = Training.usual("binary", (1, 16, 16), examples=300, seed=7).to_dict()
    assert "--validation" not in command(config | {"data": few, "training": usual})


@pytest.mark.parametrize(
    ("steps", "kept"),
    [([100, 200, 215], 2), ([100, 200, 250], 3), ([100, 200, 300], 3), ([100, 110], 2), ([], 0)],
)
def test_a_last_reading_over_few_steps_is_no_point_of_a_curve(steps, kept):
    assert len(_whole_stretches([{"step": step} for step in steps])) == kept
