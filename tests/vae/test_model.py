"""VAE as an object: what it refuses, and that a saved model comes back the same or not at all."""

import json

import pytest
import torch
from safetensors.torch import save_file

from kullback import KullbackError
from kullback.core import RunError
from kullback.vae import VAE, Architecture, build

CASES = [
    ((1, 6, 6), "binary", Architecture(hidden=(9, 7), latent=3)),
    ((3, 5, 7), "8-bit", Architecture(network="conv", hidden=(4, 4, 6), latent=3, components=2)),
    ((3, 6, 8), "8-bit", Architecture(network="patch", hidden=(4, 6), latent=2, components=2)),
    ((3, 5, 7), "8-bit", Architecture(network="patch", hidden=(4, 6), latent=2, components=2)),
    ((1, 8, 8), "binary", Architecture(network="patch", hidden=(4, 6), latent=2)),
    ((2, 3, 3), "8-bit", Architecture(hidden=(9,), latent=2, likelihood="categorical")),
    ((6,), "continuous", Architecture(hidden=(9,), latent=2, activation="tanh")),
]


def some(shape, kind, n=5):
    generator = torch.Generator().manual_seed(0)
    if kind == "continuous":
        return torch.randn(n, *shape, generator=generator)
    return torch.randint(2 if kind == "binary" else 256, (n, *shape), generator=generator)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[1]} {case[2].network}")
def case(request):
    return request.param


def test_saved_and_loaded_is_the_same_model(case, tmp_path):
    shape, kind, architecture = case
    model = build(shape, kind, architecture, mean=some(shape, kind).float().mean(0), scale=3.0)
    model.save(tmp_path / "m")
    again = VAE.load(tmp_path / "m")
    x = some(shape, kind)
    assert torch.equal(model.elbo(x, draws=3), again.elbo(x, draws=3))
    assert torch.equal(model.log_likelihood(x, draws=3), again.log_likelihood(x, draws=3))
    for ours, theirs in zip(model.encode(x.float()), again.encode(x.float()), strict=True):
        assert torch.equal(ours, theirs)
    drawn = again.sample(4, noise=True)
    assert torch.equal(drawn, model.sample(4, noise=True))
    assert drawn.shape == (4, *shape)
    assert again.decode(torch.zeros(2, architecture.latent)).shape == (2, *shape)


def test_the_decoder_starts_at_the_datas_mean():
    mean = torch.full((1, 4, 4), 0.2)
    model = build((1, 4, 4), "binary", Architecture(hidden=(8,), latent=2), mean=mean)
    with torch.no_grad():
        for weight in model.decoder.net.weights:
            weight.zero_()
    torch.testing.assert_close(model.decode(torch.zeros(1, 2))[0], mean)


def test_save_refuses_to_overwrite(tmp_path):
    model = build((4,), "binary", Architecture(hidden=(3,), latent=1))
    model.save(tmp_path)
    with pytest.raises(RunError, match="never overwritten"):
        model.save(tmp_path)


def damage_truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def damage_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def damage_shape(folder):
    save_file({"shift": torch.zeros(4)}, folder / "model.safetensors")


def damage_nan(folder):
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    tensors["decoder.net.biases.1"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def damage_dtype(folder):
    from safetensors.torch import load_file

    tensors = {k: v.double() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")


def damage_pickle(folder):
    torch.save({"a": 1}, folder / "model.safetensors")


def edit(**changes):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        config["model"]["architecture"] |= changes
        config["format"] = 1  # of runs made before: without a hash, which would differ here
        del config["file_sha256"]
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def write_config(text):
    return lambda folder: (folder / "config.json").write_text(text)


DAMAGE = {
    "truncated weights": (damage_truncate, "safetensors"),
    "broken header": (damage_header, "safetensors"),
    "other tensors": (damage_shape, "does not belong to this model"),
    "NaN weights": (damage_nan, "holds NaN"),
    "other dtype": (damage_dtype, "expected .* torch.float32; got"),
    "a pickle": (damage_pickle, "safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no such file"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "empty config": (write_config("{}"), "format 1"),
    "not JSON": (write_config("{nope"), "not valid JSON"),
    "a list": (write_config("[1]"), "format 1"),
    "no model": (write_config('{"format": 1, "model": 3}'), "not usable"),
    "wider network": (edit(hidden=[5]), "expected"),
    "huge network": (edit(hidden=[10**9]), "not usable"),
    "a network of a trillion weights": (edit(hidden=[10**6, 10**6]), "does not belong|expected"),
    "text for a number": (edit(latent="2; import os"), "not usable"),
    "unknown setting": (edit(surprise=1), "not usable"),
    "unknown likelihood": (edit(likelihood="poisson"), "not usable"),
    "unfit likelihood": (edit(likelihood="logistics"), "likelihood"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_give_the_packages_own_error(name, tmp_path):
    damage, text = DAMAGE[name]
    build((4,), "binary", Architecture(hidden=(3,), latent=2)).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(KullbackError, match=text):
        VAE.load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "x", "text"),
    [
        ("binary", torch.full((1, 4), 0.5), "x: expected 0 and 1 only; got values in"),
        ("binary", torch.zeros(1, 5), r"x: expected shape \[batch, 4\]; got float32 \[1, 5\]"),
        ("8-bit", torch.full((1, 4), 0.5), "integers 0 to 255"),
        ("8-bit", torch.full((1, 4), 256.0), "integers 0 to 255"),
        ("continuous", torch.full((1, 4), float("nan")), "finite values"),
    ],
)
def test_check_refuses(kind, x, text):
    model = build((4,), kind, Architecture(hidden=(3,), latent=1))
    with pytest.raises(ValueError, match=text):
        model.elbo(x)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"network": "transformer"}, "network: expected auto, mlp, conv, patch or sound"),
        ({"hidden": (0,)}, "hidden: expected"),
        ({"latent": 0}, "latent: expected"),
        ({"activation": "gelu"}, "activation: expected one of relu, silu, tanh"),
        ({"likelihood": "nope"}, "likelihood: expected"),
    ],
)
def test_architecture_refuses(settings, text):
    with pytest.raises(ValueError, match=text):
        Architecture(**settings)


def test_conv_refuses_vectors():
    with pytest.raises(ValueError, match=r"event_shape: expected .* for conv"):
        build((4,), "binary", Architecture(network="conv", latent=1))


@pytest.mark.parametrize(
    ("shape", "network"),
    [((1, 8, 8), "conv"), ((3, 8, 28), "conv"), ((1, 7, 28), "mlp"), ((1, 28, 7), "mlp")],
)
def test_images_of_a_side_below_eight_pixels_get_no_convolutions(shape, network):
    assert Architecture().resolved(shape, "binary").network == network
