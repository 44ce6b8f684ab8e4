"""The two directions and the identity against closed forms, without chance."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from kullback.exact import quadrature
from kullback.variational.optimise.grid import _starts, find_box, project


def two_peaks(z):
    left = math.log(0.65 / 0.6) - 0.5 * ((z[:, 0] + 2) / 0.6) ** 2
    right = math.log(0.35 / 0.9) - 0.5 * ((z[:, 0] - 2) / 0.9) ** 2
    return torch.logaddexp(left, right)


def on_grid(log_density, dim=1, nodes=400):
    lower, upper = find_box(log_density, dim)
    return quadrature.posterior(log_density, lower=lower, upper=upper, nodes=nodes)


def test_forward_matches_the_moments():
    found = project(on_grid(two_peaks), "forward")
    mean = 0.65 * -2 + 0.35 * 2
    variance = 0.65 * (0.36 + 4) + 0.35 * (0.81 + 4) - mean**2
    frame = found.family.frame
    assert float(frame.shift) == pytest.approx(mean, abs=1e-8)
    assert float(frame.scale) ** 2 == pytest.approx(variance, abs=1e-8)


@pytest.mark.slow
def test_reverse_picks_one_peak_and_forward_covers_both():
    p = on_grid(two_peaks)
    forward, reverse = project(p, "forward"), project(p, "reverse")
    assert reverse.reverse < forward.reverse
    assert forward.forward < reverse.forward
    assert float(reverse.family.frame.shift) == pytest.approx(-2, abs=0.03)
    assert reverse.reverse == pytest.approx(-math.log(0.65), abs=0.02)  # the mass left out


@pytest.mark.slow
def test_the_identity_holds_at_every_step():
    p = on_grid(two_peaks)
    for direction in ("forward", "reverse"):
        for components in (1, 2, 3):
            found = project(p, direction, components=components)
            assert len(found.steps) > 1
            for step in found.steps:
                assert step.elbo + step.reverse == pytest.approx(found.log_evidence, abs=1e-8)


def test_a_mixture_that_can_be_p_becomes_p():
    p = on_grid(two_peaks)
    for direction in ("forward", "reverse"):
        found = project(p, direction, components=2)
        assert max(found.forward, found.reverse) < 1e-12


@pytest.mark.slow
def test_a_gaussian_in_the_plane_is_found_exactly():
    law = MultivariateNormal(
        torch.tensor([1.0, -2.0]).double(), torch.tensor([[2.0, 0.9], [0.9, 0.7]]).double()
    )
    p = on_grid(lambda z: law.log_prob(z) + 1.5, dim=2, nodes=120)
    for direction in ("forward", "reverse"):
        found = project(p, direction)
        assert max(abs(found.forward), abs(found.reverse)) < 1e-9
        assert found.log_evidence == pytest.approx(1.5, abs=1e-9)
        frame = found.family.frame
        assert torch.allclose(frame.shift, law.mean, atol=1e-5)
        assert torch.allclose(frame.factor @ frame.factor.mT, law.covariance_matrix, atol=1e-5)


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (1000.0, 30.0), (-3.0, 0.4)])
def test_the_box_holds_what_counts(mean, sd):
    law = Normal(torch.tensor(mean).double(), torch.tensor(sd).double())
    lower, upper = find_box(lambda z: law.log_prob(z[:, 0]), 1)
    assert lower[0] < mean - 9 * sd
    assert upper[0] > mean + 9 * sd
    assert upper[0] - lower[0] < 60 * sd


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find_box(lambda z: 0 * z[:, 0], 1), "a density that falls off"),
        (lambda: find_box(two_peaks, 3), "dim: expected 1 or 2"),
        (lambda: find_box(lambda z: z[:, 0] - math.inf, 1), "some mass"),
        (lambda: project(on_grid(two_peaks), "sideways"), "forward or reverse; got 'sideways'"),
        (lambda: project(on_grid(two_peaks), "forward", components=0), "components: expected"),
    ],
)
def test_what_cannot_be_done_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_fits_begin_at_the_highest_peaks_and_at_least_three():
    centres, heights = torch.tensor([-8.0, -4.0, 0.0, 4.0, 8.0]), torch.tensor([0.0, 4, 1, 3, 2])

    def five_peaks(z):
        return (heights - 8 * (z[:, :1] - centres) ** 2).logsumexp(-1)

    p = quadrature.posterior(five_peaks, lower=-12.0, upper=12.0, nodes=400)
    starts = _starts(p, 1)
    found = [float(each.frame.shift) for each in starts[1:]]  # the first has p's own moments
    assert found == pytest.approx([-4.0, 4.0, 8.0], abs=0.06)
