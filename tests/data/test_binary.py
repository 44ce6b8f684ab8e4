"""Binarisation against the Bernoulli law: exactly, over every 16-bit draw, and over real draws."""

import math

import pytest
import torch

from kullback.core import KullbackError
from kullback.data import binarize
from kullback.data.dataset import _compare, _compiled, binarize_all

LEVELS = torch.arange(256, dtype=torch.uint8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_probability_of_every_level_by_enumeration(monkeypatch):
    """Over all 65,536 equally likely draws, level x gives exactly round(65536 x / 255) ones."""
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    words = every.repeat(8).view(torch.int64)

    def enumerated(self, low, high, *, generator):
        assert (low, high) == (-(2**63), None)
        return self.copy_(words)

    monkeypatch.setattr(torch.Tensor, "random_", enumerated)
    for group in LEVELS.view(32, 8):
        x = group.repeat_interleave(65536)
        ones = binarize(x, seeded()).view(8, 65536).sum(1, dtype=torch.int64)
        for level, count in zip(group.tolist(), ones.tolist(), strict=True):
            assert count == round(65536 * level / 255)
            assert abs(count / 65536 - level / 255) < 2**-17


def test_the_bits_of_a_draw_are_fair_and_independent():
    """All 64 bits of a word are used: each is fair, and each pair is uncorrelated (z ≤ 4.5)."""
    n = 200_000
    words = torch.empty(n, dtype=torch.int64).random_(-(2**63), None, generator=seeded())
    bits = ((words[:, None] >> torch.arange(64)) & 1).to(torch.float32)
    z = (bits.mean(0) - 0.5) * 2 * math.sqrt(n)
    assert z.abs().max() <= 4.5
    signs = 2 * bits - 1
    pairs = (signs.T @ signs / math.sqrt(n)).fill_diagonal_(0)
    assert pairs.abs().max() <= 4.5


def test_every_level_has_its_frequency():
    n = 40_000
    p = LEVELS.to(torch.float64) / 255
    counts = binarize(LEVELS.expand(n, 256), seeded(1)).sum(0, dtype=torch.int64)
    assert counts[0] == 0
    assert counts[255] == n
    z = (counts - n * p)[1:-1] / (n * p * (1 - p))[1:-1].sqrt()
    assert z.abs().max() <= 4.5
    assert abs((z**2).sum() - 254) / math.sqrt(2 * 254) <= 4.5


def test_neighbours_are_independent():
    """Pixels that share a 64-bit word agree half the time at p ≈ 1/2, and so do word and word."""
    x = torch.full((400_000,), 128, dtype=torch.uint8)
    signs = 2.0 * binarize(x, seeded(2)) - 1.0
    mean = signs.mean()
    for lag in range(1, 9):
        z = ((signs[lag:] - mean) * (signs[:-lag] - mean)).mean() * math.sqrt(len(x) - lag)
        assert abs(z) <= 4.5


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (5, 1, 28, 28), (70, 784)])
def test_shape_dtype_and_certain_pixels(shape):
    black = torch.zeros(shape, dtype=torch.uint8)
    bits = binarize(black, seeded())
    assert bits.shape == shape
    assert bits.dtype == torch.uint8
    assert not bits.any()
    assert binarize(black + 255, seeded()).all()


def test_the_same_state_gives_the_same_bits_and_the_state_resumes():
    x = torch.randint(0, 256, (3, 50, 50), dtype=torch.uint8, generator=seeded())
    generator = seeded(7)
    binarize(x, generator)
    state = generator.get_state()
    after = binarize(x, generator)
    generator.set_state(state)
    assert torch.equal(binarize(x, generator), after)
    assert not torch.equal(binarize(x, generator), after)


def test_long_inputs_are_the_short_ones_joined():
    """Work in pieces leaves no seam: the bits are those of one comparison over the whole."""
    x = torch.randint(0, 256, (100_001,), dtype=torch.uint8, generator=seeded())
    words = torch.empty(25_001, dtype=torch.int64).random_(-(2**63), None, generator=seeded(3))
    draws = words.view(torch.int16)[:100_001].to(torch.float64) + 32768
    whole = draws < (x.to(torch.float64) * 65536 / 255).round()
    assert torch.equal(binarize(x, seeded(3)), whole.to(torch.uint8))


def test_strided_input():
    x = torch.randint(0, 256, (40, 30), dtype=torch.uint8, generator=seeded())
    assert torch.equal(binarize(x.T, seeded(1)), binarize(x.T.contiguous(), seeded(1)))


@pytest.mark.parametrize(
    ("x", "generator"),
    [
        (torch.zeros(3), seeded()),
        (torch.zeros(3, dtype=torch.int64), seeded()),
        ([0, 255], seeded()),
        (torch.zeros(3, dtype=torch.uint8), 0),
        (torch.zeros(3, dtype=torch.uint8), None),
    ],
)
def test_wrong_arguments(x, generator):
    with pytest.raises(KullbackError, match=r"expected .*; got"):
        binarize(x, generator)


def test_binarize_all_depends_on_seed_and_label_only():
    x = torch.full((50, 40), 128, dtype=torch.uint8)
    once = binarize_all(x, seed=0, label="test")
    torch.manual_seed(5)
    assert torch.equal(once, binarize_all(x, seed=0, label="test"))
    for other in ({"seed": 1, "label": "test"}, {"seed": 0, "label": "train"}):
        different = (once != binarize_all(x, **other)).double().mean().item()
        assert abs(different - 0.5) <= 4.5 * 0.5 / math.sqrt(x.numel())


def test_the_comparison_in_c_is_the_one_in_torch():
    """Every level against every draw, bit for bit."""
    if (compiled := _compiled()) is None:
        pytest.skip("no C compiler here")
    draws = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).repeat(256)
    pixels = LEVELS.repeat_interleave(65536)
    ours, expected = torch.empty(2, len(pixels), dtype=torch.bool)
    compiled(pixels.data_ptr(), draws.data_ptr(), ours.data_ptr(), len(pixels))
    _compare(pixels, draws, expected)
    assert torch.equal(ours, expected)
