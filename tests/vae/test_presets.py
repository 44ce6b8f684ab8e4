"""Presets, and layers of unequal size, in the library and from the command line."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch

from kullback import vae
from kullback.cli.main import main
from kullback.core import ArgumentValueError
from kullback.data import load
from kullback.report.training_runs.run_page import command
from kullback.vae import PRESETS, VAE, Architecture, Preset, Training, build
from kullback.vae.architecture import Spec
from kullback.vae.loop import fit
from kullback.vae.run.new_model import fresh_model
from kullback.vae.state import State


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.fixture
def bits(tmp_path):
    """Rows of bits in a file."""
    rows = np.random.default_rng(0).integers(0, 2, (60, 4)).astype(np.uint8)
    np.save(tmp_path / "bits.npy", rows)
    return tmp_path / "bits.npy"


@pytest.fixture
def trained(bits, monkeypatch):
    """Train from the command line and return what the run's record says."""
    monkeypatch.setattr("kullback.cli.train.close", lambda outcome, **_: None)

    def train(*options):
        out = bits.parent / f"run{len(list(bits.parent.iterdir()))}"
        assert run("train", bits, "--steps", "2", "--out", out, *options) == 0
        assert VAE.load(out).sample(2).shape == (2, 4)
        return json.loads((out / "config.json").read_text()), out

    return train


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_nothing_but_values(name):
    """Every value is a field's, fits beside the others, and is not the default already."""
    one = PRESETS[name]
    assert one.name == name and len(one.reason) > 20
    assert one.architecture.keys() <= {f.name for f in fields(Architecture)}
    assert one.training.keys() <= {f.name for f in fields(Training)}
    assert not one.training.keys() & {"minutes", "epochs", "steps", "seed"}
    chosen = one.architecture_with(None), one.training_with(None)
    assert one.record(*chosen)["given_instead"] == {}
    usual = Architecture(), Training()
    assert one.record(*usual)["given_instead"].keys() == one.options.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_on_images(name):
    data = load("fashion", binarize="dynamic", size=14)
    preset = PRESETS[name]
    settings = preset.training_with(Training(steps=2, batch_size=8))
    model = fresh_model(data, preset.architecture_with(None), 0, None)
    state = State.start(model, settings, precision=torch.float32)
    assert sum(1 for _ in fit(model, data, settings, state)) == 2


def test_what_is_given_goes_first():
    tight = vae.preset("tight")
    assert tight.training_with(Training(steps=5, draws=9)).draws == 9
    assert tight.training_with(Training(steps=5, draws=9)).tighten == 0.4
    assert tight.training_with(None, "sound").batch_size == Training.usual("sound").batch_size
    vamp = vae.preset("vamp").architecture_with(Architecture(latent=7))
    assert (vamp.prior, vamp.latent) == ("vamp", 7)
    classic = vae.preset("classic").architecture_with(Architecture(latent=12, layers=(2, 10)))
    assert (classic.latent, classic.layers) == (12, (2, 10))
    own = Preset("mine", "of my own", {"latent": 5}, {"draws": 3})
    assert own.beside(Architecture(latent=32), Training(draws=3)).given == ("latent",)


def test_an_unknown_preset_lists_the_names(capsys, bits):
    with pytest.raises(ArgumentValueError, match=f"one of {', '.join(PRESETS)}; got 'vmap'"):
        vae.preset("vmap")
    with pytest.raises(ArgumentValueError, match="preset: expected one of default, classic"):
        vae.train(bits, preset="best")
    assert run("train", bits, "--preset", "ladderr") == 2
    assert "got 'ladderr'. Try: ladder" in capsys.readouterr().err


def test_the_library_records_preset_and_choice(bits, tmp_path):
    small = Architecture(hidden=(3,), latent=2)
    done = vae.train(
        bits, preset="iwae", architecture=small, training=Training(steps=2), folder=tmp_path / "r"
    )
    config = json.loads((done.folder / "config.json").read_text())
    assert config["preset"] == {
        "name": "iwae",
        "options": {"objective": "iwae", "draws": 8},
        "given_instead": {},
    }
    assert config["training"]["objective"] == "iwae" and config["training"]["draws"] == 8


def test_typed_options_go_first_also_with_their_default_value(trained, capsys):
    config, out = trained("--preset", "classic", "--latent", "32", "--hidden", "3")
    model = config["model"]["architecture"]
    assert (model["latent"], model["hidden"], model["activation"]) == (32, [3], "tanh")
    assert config["preset"]["given_instead"] == {"hidden": [3], "latent": 32}
    assert config["preset"]["options"]["latent"] == 50
    assert "typed instead: --hidden --latent" in capsys.readouterr().err
    assert "--latent" not in command(config) and "--activation tanh" in command(config)
    assert run("train", "--resume", out, "--preset", "classic") == 2


def test_typed_options_go_before_the_file_and_that_before_the_preset(trained, tmp_path):
    (tmp_path / "o.toml").write_text('preset = "iwae"\ndraws = 3\nlayers = [1, 2]\nhidden = [4]\n')
    config, _ = trained("--config", tmp_path / "o.toml", "--objective", "iwae_plain")
    training, model = config["training"], config["model"]["architecture"]
    assert (training["objective"], training["draws"]) == ("iwae_plain", 3)
    assert (model["layers"], model["latent"]) == ([1, 2], 3)
    assert config["preset"]["name"] == "iwae"


def test_layers_of_unequal_size(trained, capsys):
    config, out = trained("--layers", "1,2,4", "--hidden", "3", "--preset", "classic")
    assert config["model"]["architecture"]["layers"] == [1, 2, 4]
    assert config["model"]["architecture"]["latent"] == 7
    assert VAE.load(out).layer_sizes == (1, 2, 4)
    assert "--layers 1,2,4" in command(config) and "--latent 7" in command(config)
    config, _ = trained("--layers", "2", "--latent", "5", "--hidden", "3")
    assert config["model"]["architecture"]["layers"] == 2
    config, _ = trained("--hidden", "3")
    assert config["model"]["architecture"]["latent"] == 32


def test_sizes_make_the_groups_that_they_say():
    sizes = (3, 1, 2)
    model = build((5,), "binary", Architecture(hidden=(4,), latent=6, layers=sizes))
    assert model.layer_sizes == sizes
    even = build((5,), "binary", Architecture(hidden=(4,), latent=6, layers=3))
    assert even.layer_sizes == (2, 2, 2)
    spec = Spec((5,), "binary", Architecture(latent=6, layers=sizes, likelihood="bernoulli"))
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Architecture(latent=32, layers=(8, 20)), r"latent = 32; got 8,20, which is 28"),
        (lambda: Architecture(latent=3, layers=(3, 0)), "layers: expected 1 to 32 positive sizes"),
        (lambda: Architecture(latent=1, layers=()), "layers: expected 1 to 32 positive sizes"),
        (lambda: Architecture(latent=3, layers=(1, 2), prior="flow"), "got 2 with flow"),
        (lambda: Architecture(layers=(32,), prior="flow").layers, None),
    ],
)
def test_sizes_that_do_not_fit(make, text):
    if text is None:
        assert make() == (32,)
        return
    with pytest.raises(ArgumentValueError, match=text):
        make()


@pytest.mark.parametrize("typed", ["8,x", "", "-2", "8,,2", "2.5"])
def test_layers_that_are_no_numbers(typed, bits, capsys):
    assert run("train", bits, f"--layers={typed}") == 2
    assert "--layers: expected a number such as 2, or sizes such as 8,24" in capsys.readouterr().err


def test_the_name_of_the_gradient_is_told():
    with pytest.raises(ArgumentValueError, match="Try: iwae, whose gradient is doubly"):
        Training(objective="dreg", draws=4)
    assert Training(objective="iwae_plain", draws=4).bound_at(1.0) == "iwae_plain"
