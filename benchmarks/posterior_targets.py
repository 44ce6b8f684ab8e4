"""Log densities of posteriordb's posteriors in plain PyTorch, and synthetic shapes.

Each entry of `POSTERIORS` maps a folder's name to a function of its data that returns
`(log_density of one point, parameters, names of the reference's columns)`.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch.distributions import Gamma, HalfCauchy, Normal, constraints

DATA = Path(__file__).parents[2] / "shared" / "data" / "posteriordb"


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def normal(x, mean, sd):
    return Normal(mean, sd, validate_args=False).log_prob(x).sum()


def eight_schools_noncentered(data):
    y, sigma = tensor(data["y"]), tensor(data["sigma"])

    def log_density(theta_trans, mu, tau):
        theta = mu + tau * theta_trans
        prior = normal(theta_trans, 0.0, 1.0) + normal(mu, 0.0, 5.0)
        heavy = HalfCauchy(5.0, validate_args=False).log_prob(tau)
        return prior + heavy + normal(y, theta, sigma)

    def reference(values):
        theta = values["mu"][:, None] + values["tau"][:, None] * values["theta_trans"]
        return torch.cat([theta, values["mu"][:, None], values["tau"][:, None]], 1)

    return log_density, {"theta_trans": 8, "mu": (), "tau": constraints.positive}, reference


def eight_schools_centered(data):
    y, sigma = tensor(data["y"]), tensor(data["sigma"])

    def log_density(theta, mu, tau):
        prior = normal(theta, mu, tau) + normal(mu, 0.0, 5.0)
        heavy = HalfCauchy(5.0, validate_args=False).log_prob(tau)
        return prior + heavy + normal(y, theta, sigma)

    def reference(values):
        return torch.cat([values["theta"], values["mu"][:, None], values["tau"][:, None]], 1)

    return log_density, {"theta": 8, "mu": (), "tau": constraints.positive}, reference


def sblrc_blr(data):
    x, y = tensor(data["X"]), tensor(data["y"])

    def log_density(beta, sigma):
        prior = normal(beta, 0.0, 10.0) + normal(sigma, 0.0, 10.0)
        return prior + normal(y, x @ beta, sigma)

    def reference(values):
        return torch.cat([values["beta"], values["sigma"][:, None]], 1)

    return log_density, {"beta": x.shape[1], "sigma": constraints.positive}, reference


def wells_dist100ars(data):
    sign = 2 * tensor(data["switched"]) - 1
    x = torch.stack([torch.ones_like(sign), tensor(data["dist"]) / 100, tensor(data["arsenic"])], 1)

    def log_density(beta):
        return torch.nn.functional.logsigmoid(sign * (x @ beta)).sum()

    return log_density, {"beta": 3}, lambda values: values["beta"]


def gp_pois_regr(data):
    x, counts = tensor(data["x"]), tensor(data["k"])
    apart = (x[:, None] - x).square()

    def path(rho, alpha, f_tilde):
        alpha, rho = alpha[..., None, None], rho[..., None, None]
        kernel = alpha**2 * torch.exp(-0.5 * apart / rho**2) + 1e-10 * torch.eye(len(x)).double()
        return (torch.linalg.cholesky(kernel) @ f_tilde[..., None])[..., 0]

    def log_density(rho, alpha, f_tilde):
        f = path(rho, alpha, f_tilde)
        scale = Gamma(25.0, 4.0, validate_args=False).log_prob(rho) + normal(alpha, 0.0, 2.0)
        return scale + normal(f_tilde, 0.0, 1.0) + (counts * f - f.exp()).sum()

    def reference(values):
        first = [values["rho"][:, None], values["alpha"][:, None]]
        return torch.cat([*first, path(**values)], 1)

    parameters = {"rho": constraints.positive, "alpha": constraints.positive, "f_tilde": len(x)}
    return log_density, parameters, reference


POSTERIORS = {
    "eight_schools-eight_schools_noncentered": eight_schools_noncentered,
    "eight_schools-eight_schools_centered": eight_schools_centered,
    "sblrc-blr": sblrc_blr,
    "wells_data-wells_dist100ars_model": wells_dist100ars,
    "gp_pois_regr-gp_pois_regr": gp_pois_regr,
}


def posterior(name, folder=DATA):
    """Return log density, parameters, a map to the reference's columns, and its draws `[n, d]`."""
    data = json.loads((folder / name / "data.json").read_text())
    draws = np.load(folder / name / "reference_draws.npz")["draws"]
    return *POSTERIORS[name](data), torch.from_numpy(draws.reshape(-1, draws.shape[-1]))


def funnel(dim=10, spread=1.5):
    """Neal's funnel: z_1 ~ N(0, spread²), the others N(0, exp(z_1)); evidence 0."""

    def log_density(z):
        return normal(z[0], 0.0, spread) + normal(z[1:], 0.0, (z[0] / 2).exp())

    def draw(n, generator):
        e = torch.randn(n, dim, generator=generator, dtype=torch.float64)
        first = spread * e[:, :1]
        return torch.cat([first, (first / 2).exp() * e[:, 1:]], 1)

    return log_density, dim, draw


def banana(curve=1.0):
    """z_1 ~ N(0, 1) and z_2 | z_1 ~ N(curve · (z_1² − 1), 0.5²); evidence 0."""

    def log_density(z):
        return normal(z[0], 0.0, 1.0) + normal(z[1], curve * (z[0] ** 2 - 1), 0.5)

    def draw(n, generator):
        e = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return torch.stack([e[:, 0], curve * (e[:, 0] ** 2 - 1) + 0.5 * e[:, 1]], 1)

    return log_density, 2, draw
