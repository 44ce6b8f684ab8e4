"""Steps that are recorded on a GPU give what steps that are called give."""

from unittest import mock

import pytest
import torch

from kullback.data import load
from kullback.vae import Architecture, Training, build, run
from kullback.vae.elbo_step import CapturedSteps
from kullback.vae.loop import fit
from kullback.vae.state import State

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
MODELS = {
    "perceptron": Architecture(network="mlp", hidden=(16,), latent=3),
    "convolutions": Architecture(hidden=(8, 16), latent=3),
    "neighbours": Architecture(hidden=(8, 16), latent=3, neighbours=4),
    "context": Architecture(hidden=(8, 16), latent=3, context=(4, 4)),
    "flows": Architecture(hidden=(8, 16), latent=4, prior="flow", posterior="iaf"),
    "layers": Architecture(hidden=(8, 16), latent=4, layers=2),
    "mixture": Architecture(hidden=(8, 16), latent=4, prior="mixture", posterior="full"),
}


def test_on_a_cpu_a_step_is_called():
    seen = []

    def compute(x, noise):
        seen.append(x)
        return x.sum(), noise

    x, steps = torch.ones(2), CapturedSteps()
    assert steps("key", compute, x, torch.zeros(1))[0] == 2.0
    assert seen == [x] and not steps.recordings


def weights_after(data, architecture, settings):
    torch.manual_seed(0)
    model = build(data.event_shape, data.kind, architecture).to("cuda")
    state = State.start(model, settings)
    for _ in fit(model, data, settings, state):
        pass
    return state.flat.vector.clone()


@on_a_gpu
@pytest.mark.parametrize("binarize", ["dynamic", "none"])
@pytest.mark.parametrize("name", MODELS)
def test_on_a_gpu_recorded_steps_are_those_called(name, binarize):
    data = load(size=8, binarize=binarize).to("cuda")
    settings = Training(steps=12, batch_size=32, tighten=0.5, draws=2, precision="float32")
    given = (data, MODELS[name], settings)
    recorded = weights_after(*given)
    plain = mock.patch.object(CapturedSteps, "__call__", lambda self, key, f, x, noise: f(x, noise))
    with plain:
        called = weights_after(*given)
    # the same kernels; some of cuDNN's add in no fixed order
    assert (recorded - called).norm() <= 1e-4 * called.norm()


@on_a_gpu
def test_on_a_gpu_what_waits_for_it_is_called():
    steps = CapturedSteps()

    def compute(x, noise):
        return x.sum() * float(noise.sum()), noise

    x, noise = torch.ones(3, device="cuda"), torch.full((2,), 2.0, device="cuda")
    for factor in (1.0, 5.0):
        assert float(steps("key", compute, factor * x, noise)[0]) == 12.0 * factor
    assert list(steps.recordings.values()) == [None]
    assert float(torch.ones(2, device="cuda").sum()) == 2.0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices")
def test_on_a_gpu_that_is_not_the_current_one_steps_are_recorded():
    steps = CapturedSteps()
    x, noise = torch.ones(3, device="cuda:1"), torch.zeros(2, device="cuda:1")
    for factor in (1.0, 5.0, 7.0):
        found = steps("key", lambda x, noise: (x.sum(), noise + 1.0), factor * x, noise)[0]
        assert float(found) == 3.0 * factor


@on_a_gpu
def test_on_a_gpu_one_recording_is_kept():
    steps = CapturedSteps()
    x, noise = torch.ones(3, device="cuda"), torch.zeros(2, device="cuda")
    for key, factor in (("elbo", 1.0), ("elbo", 2.0), ("iwae", 3.0), ("iwae", 4.0)):
        found = steps(key, lambda x, noise: (x.sum(), noise + 1.0), factor * x, noise)[0]
        assert float(found) == 3.0 * factor
        assert [one for (one, *_) in steps.recordings] == [key]


@on_a_gpu
def test_on_a_gpu_a_run_ends(tmp_path):
    data = load(size=8)
    small = Architecture(hidden=(8, 16), latent=3)
    settings = Training(steps=30, batch_size=32, warmup=0.3, tighten=0.4, draws=2, validation=0.1)
    where = {"device": "cuda", "folder": tmp_path / "a"}
    out = run.train(data, architecture=small, training=settings, **where)
    assert out.model.sample(2).shape == (2, 1, 8, 8)
