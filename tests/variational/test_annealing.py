"""The cooled fit and the widening of tails, on targets whose answers are known."""

import math

import pytest
import torch

from kullback.variational import Target, fit, limits
from kullback.variational.families import Flow, FullRank
from kullback.variational.families.family import Frame
from kullback.variational.families.flow import bent, straight
from kullback.variational.objectives import loss_of
from kullback.variational.optimise.stochastic import cosine_annealing, widen_tails

F64 = torch.float64


def seed(number):
    return torch.Generator().manual_seed(number)


def normal(z):
    """N((1, -1), [[1, 0.6], [0.6, 1]])."""
    u = z - torch.tensor([1.0, -1.0], dtype=F64)
    return -0.5 * (u[0] ** 2 + u[1] ** 2 - 1.2 * u[0] * u[1]) / 0.64


@pytest.mark.slow
def test_a_gaussian_is_found_to_its_optimum(monkeypatch):
    """The last 0.02 nats are about 0.1 sd; path gradients, noiseless there, go well below that."""
    monkeypatch.setattr(limits, "FIRST_ROUND_STEPS", 100)
    target = Target.of(normal, 2)
    near = torch.tensor([0.8, -0.8], dtype=F64)
    q = FullRank(Frame.dense(near, torch.eye(2, dtype=F64)))
    *_, last = cosine_annealing(q, loss_of(target, gradient="stl"), seed(0), draws=16)
    assert last.converged
    assert last.reason.startswith("converged: twice the steps raised the objective by 0.0")
    frame = last.family.absorb()
    torch.testing.assert_close(frame.shift, torch.tensor([1.0, -1.0], dtype=F64), rtol=0, atol=0.01)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=F64)
    torch.testing.assert_close(frame.factor @ frame.factor.mT, covariance, rtol=0, atol=0.01)


def test_what_is_never_finite_ends_the_fit():
    target = Target.of(lambda z: (-1 - z.square().sum()).log(), 2)
    steps = list(cosine_annealing(FullRank(Frame.identity(2)), loss_of(target), seed(0), draws=8))
    assert len(steps) == 1
    assert not steps[-1].converged
    assert "not finite" in steps[-1].reason


@pytest.mark.slow
def test_a_heavy_target_widens_the_base():
    """The base at h = 0.4 as the target of a flow that is N(0, I): it is found, exactly."""
    pytest.importorskip("zuko")
    target = Target.of(lambda z: bent(straight(z[None], 0.4), 0.4)[1][0], 2)
    flow = Flow(Frame.identity(2))
    assert widen_tails(flow, target, seed(1)) == limits.TAIL_WIDTHS[-1] == float(flow.bend)
    z = flow.sample(1000, seed(3))
    torch.testing.assert_close(flow.log_prob(z), target.log_density(z), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_flow_in_one_dimension(monkeypatch):
    pytest.importorskip("zuko")
    monkeypatch.setattr(limits, "FIRST_ROUND_STEPS", 100)
    found = fit(lambda z: -0.5 * ((z[0] - 2) / 3) ** 2, 1, family="flow", progress=False)
    assert found.converged
    z = found.sample(20_000, seed(2))
    assert abs(float(z.mean()) - 2) < 4.5 * 3 / math.sqrt(20_000)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_a_flow_fits_a_funnel_and_knows_it(number):
    """v ~ N(0, 1.5²), four others N(0, exp(v)): moments, evidence 0 and a light tail."""
    pytest.importorskip("zuko")

    def funnel(z):
        v = torch.distributions.Normal(0.0, 1.5).log_prob(z[0])
        return v + torch.distributions.Normal(0.0, (z[0] / 2).exp()).log_prob(z[1:]).sum()

    found = fit(funnel, 5, family="flow", generator=seed(number), progress=False)
    assert found.diagnosis.k_hat < 0.7
    assert found.diagnosis.level == "trust"
    assert -0.05 < found.elbo.value < 4.5 * found.elbo.standard_error
    z = found.sample(100_000, seed(9))
    sds = torch.tensor([1.5] + 4 * [math.exp(1.5**2 / 4)], dtype=F64)
    assert float((z.mean(0) / sds).abs().max()) < 0.1
    assert float((z.std(0) / sds).log().abs().max()) < 0.1
