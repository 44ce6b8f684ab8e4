"""Small runs to report on, each trained once: grey 8-bit, wide RGB noise, vectors."""

import json
import shutil

import pytest
import torch

from kullback.data import Dataset
from kullback.data.dataset import sha256_of
from kullback.vae import Architecture, Training, evaluate, train

TINY = Architecture(network="mlp", hidden=(8,), latent=3, components=1)


def in_memory(train_set, test_set, kind, **more):
    protocol = {
        "source": "memory",
        "split": "given",
        "counts": {"train": len(train_set), "test": len(test_set)},
        "event_shape": list(train_set.shape[1:]),
        "kind": kind,
        "size": None,
        "fit": "crop",
        "channels": "auto",
        "binarize": "none",
        "seed": 0,
        "test_fraction": 0.1,
        "sha256": {"train": sha256_of(train_set), "test": sha256_of(test_set)},
        "skipped": {"count": 0, "files": []},
        "notes": [],
    } | more
    names = tuple(str(i) for i in range(len(train_set)))
    return Dataset(train_set, test_set, kind, False, protocol, names, names[: len(test_set)])


def noise(n, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, *shape), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny models are slower on many threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory):
    """A run on the embedded images with its evaluation."""
    folder = tmp_path_factory.mktemp("runs") / "grey"
    outcome = train("fashion", architecture=TINY, training=Training(steps=80), folder=folder)
    from kullback.data import load

    data = load("fashion")
    figures = evaluate(outcome.model, data.test[:40], draws=20)
    stored = {"format": 1, "evaluation": figures.to_dict(), "data": data.protocol}
    (folder / "evaluation.json").write_text(json.dumps(stored))
    return folder


@pytest.fixture
def run(evaluated, tmp_path):
    """A copy of that run to write into and to damage."""
    return shutil.copytree(evaluated, tmp_path / "grey")
