"""Targets of ten kinds whose moments are known in closed form, in 1 to 25 dimensions."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributions as law

__all__ = ["Target", "targets"]


@dataclass
class Target:
    """A log density up to a constant, and the mean and sd of `values(z)`."""

    kind: str
    dims: int
    log_density: Callable[[Tensor], Tensor]
    mean: Tensor
    sd: Tensor
    values: Callable[[Tensor], Tensor] = lambda z: z


def random_mixing(dims, generator, spread):
    """A matrix that correlates and scales independent parts: condition about 10^(2·spread)."""
    first = torch.randn(dims, dims, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(first)[0]
    scales = 10 ** (spread * (torch.rand(dims, generator=generator, dtype=torch.float64) - 0.5))
    return turn * scales


def mixed(kind, dims, part, mean, variance, generator, spread=1.0):
    """Independent parts with log density `part(u)`, mixed linearly: moments in closed form."""
    a = random_mixing(dims, generator, spread) if dims > 1 else torch.ones(1, 1).double()
    shift = torch.randn(dims, generator=generator, dtype=torch.float64)
    inverse = torch.linalg.inv(a)
    centre = a @ torch.full((dims,), mean).double() + shift
    sd = (a.square().sum(1) * variance).sqrt()
    return Target(kind, dims, lambda z: part((z - shift) @ inverse.T).sum(-1), centre, sd)


def gaussian(dims, generator, spread):
    return mixed("gaussian", dims, lambda u: -0.5 * u**2, 0.0, 1.0, generator, spread)


def student(dims, generator, df):
    part = law.StudentT(torch.tensor(float(df)).double())
    return mixed(f"student-t {df}", dims, part.log_prob, 0.0, df / (df - 2), generator)


def log_gamma(dims, generator, shape):
    shape = torch.tensor(float(shape)).double()
    mean, variance = float(torch.digamma(shape)), float(torch.polygamma(1, shape))
    return mixed("skewed", dims, lambda u: shape * u - u.exp(), mean, variance, generator)


def logistic(dims, generator, _):
    def part(u):
        return -u - 2 * torch.nn.functional.softplus(-u)

    return mixed("logistic", dims, part, 0.0, math.pi**2 / 3, generator)


def two_humps(dims, generator, gap):
    """Independent coordinates, each two humps `2 gap` apart."""
    parts = law.Normal(torch.tensor([-gap, gap]).double(), 1.0)
    part = law.MixtureSameFamily(
        law.Categorical(torch.tensor([0.5, 0.5]).double()),
        law.Normal(parts.loc, torch.ones(2).double()),
    )
    return mixed("humps", dims, part.log_prob, 0.0, 1 + gap**2, generator, 0.3)


def peaks(dims, generator, gap):
    """Two Gaussians of unequal weight, `gap` sd apart along the first axis."""
    weight = float(0.2 + 0.3 * torch.rand((), generator=generator))
    place = torch.zeros(dims).double()
    place[0] = gap

    def log_density(z):
        near = -0.5 * z.square().sum(-1) + math.log(1 - weight)
        far = -0.5 * (z - place).square().sum(-1) + math.log(weight)
        return torch.logaddexp(near, far)

    sd = (1 + weight * (1 - weight) * place**2).sqrt()
    return Target("peaks", dims, log_density, weight * place, sd)


def banana(dims, generator, bend):
    """y = x₂ − bend (x₁² − 1), all else standard normal."""

    def log_density(z):
        second = z[:, 1] - bend * (z[:, 0] ** 2 - 1)
        rest = z[:, 2:].square().sum(-1)
        return -0.5 * (z[:, 0] ** 2 + second**2 + rest)

    sd = torch.ones(dims).double()
    sd[1] = math.sqrt(1 + 2 * bend**2)
    return Target("banana", dims, log_density, torch.zeros(dims).double(), sd)


def funnel(dims, generator, wide):
    """v ~ N(0, wide²), the others N(0, exp(v))."""

    def log_density(z):
        v, x = z[:, 0], z[:, 1:]
        inner = -0.5 * x.square().sum(-1) * (-v).exp() - 0.5 * (dims - 1) * v
        return inner - 0.5 * (v / wide) ** 2

    sd = torch.full((dims,), math.exp(wide**2 / 4)).double()
    sd[0] = wide
    return Target("funnel", dims, log_density, torch.zeros(dims).double(), sd)


def positive(dims, generator, shape):
    """Gamma variables, fitted as z = log x and judged as x."""
    rates = torch.rand(dims, generator=generator, dtype=torch.float64) + 0.5

    def log_density(z):
        return (shape * z - rates * z.exp()).sum(-1)

    return Target(
        "positive", dims, log_density, shape / rates, math.sqrt(shape) / rates, lambda z: z.exp()
    )


def interval(dims, generator, count):
    """Beta variables, fitted as z = logit x and judged as x."""
    a = count * (0.2 + 0.6 * torch.rand(dims, generator=generator, dtype=torch.float64))
    b = count - a
    spread = (a * b / (count**2 * (count + 1))).sqrt()

    def log_density(z):
        soft = torch.nn.functional.softplus
        return (-a * soft(-z) - b * soft(z)).sum(-1)

    return Target("interval", dims, log_density, a / count, spread, torch.sigmoid)


KINDS = {
    gaussian: ((1, 2, 5, 10, 25), (0.3, 1.0, 2.0, 3.0)),
    student: ((1, 3, 10), (3, 5, 10, 30)),
    log_gamma: ((1, 3, 10), (0.5, 2.0, 10.0, 50.0)),
    logistic: ((1, 5, 25), (0.0,)),
    two_humps: ((1, 3), (0.5, 0.8, 1.2, 2.0)),
    peaks: ((1, 2, 5), (1.0, 2.0, 4.0, 8.0)),
    banana: ((2, 5), (0.03, 0.1, 0.3, 1.0)),
    funnel: ((2, 5, 10), (0.1, 0.3, 1.0)),
    positive: ((1, 5, 10), (0.5, 2.0, 10.0, 100.0)),
    interval: ((1, 5, 10), (2.0, 10.0, 100.0)),
}


def targets(seed):
    """Every kind at every dimension and setting, drawn with one seed."""
    generator = torch.Generator().manual_seed(seed)
    return [
        make(dims, generator, setting)
        for make, (sizes, settings) in KINDS.items()
        for dims in sizes
        for setting in settings
    ]
