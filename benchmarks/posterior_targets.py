"""Log densities of posteriordb's posteriors in plain PyTorch, and synthetic shapes.

Each entry of `POSTERIORS` maps a folder's name to a function of its data that returns
`(log_density of one point, parameters, a map of values to the reference's columns)`. The models are
those of the public database of the same names. A folder of a user's own may bring its model: a file
`target.py` with a function `posterior(data)` that returns the same three.
"""

import itertools
import json
import math
import runpy
from pathlib import Path

import numpy as np
import torch
from torch.distributions import Gamma, HalfCauchy, Normal, constraints

from kullback.variational import Parameter, positive_ordered

DATA = Path(__file__).parents[2] / "shared" / "data" / "posteriordb"


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def known(folder=DATA):
    """Names of the folder's posteriors that have a log density, and of those that have none."""
    names = sorted(path.parent.name for path in folder.glob("*/reference_draws.npz"))
    has = [name in POSTERIORS or (folder / name / "target.py").exists() for name in names]
    named = [
        [n for n, yes in zip(names, has, strict=True) if yes is want] for want in (True, False)
    ]
    return named[0], named[1]


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


def flat(values):
    """All entries side by side, in the order of the parameters."""
    return torch.cat([value.reshape(len(value), -1) for value in values.values()], 1)


def half_cauchy(x, scale):
    return HalfCauchy(scale, validate_args=False).log_prob(x).sum()


def regression(design, outcome, *, scale=None):
    """A linear regression with flat priors: on beta, and on sigma without `scale`."""

    def make(data):
        x, y = design(data), tensor(outcome(data))

        def log_density(beta, sigma):
            prior = 0.0 if scale is None else half_cauchy(sigma, scale)
            return prior + normal(y, x @ beta, sigma)

        return log_density, {"beta": x.shape[1], "sigma": constraints.positive}, flat

    return make


def with_ones(*columns):
    return torch.stack([torch.ones_like(columns[0]), *columns], 1)


def earnings(data):
    height, male = tensor(data["height"]), tensor(data["male"])
    return with_ones(height, male, height * male)


def kidscore_centred(data):
    school, iq = (tensor(data[name]) for name in ("mom_hs", "mom_iq"))
    school, iq = school - school.mean(), iq - iq.mean()
    return with_ones(school, iq, school * iq)


def mesquite(data):
    first, second, height, total, density = (
        tensor(data[name])
        for name in ("diam1", "diam2", "canopy_height", "total_height", "density")
    )
    area = first * second
    logs = [x.log() for x in (area * height, area, first / second, total, density)]
    return with_ones(*logs, tensor(data["group"]))


def election(data):
    names = ("real_ideo", "race_adj", "educ1", "gender", "income")
    ideology, race, school, gender, income = (tensor(data[name]) for name in names)
    ages = [(tensor(data["age_discrete"]) == k).double() for k in (2, 3, 4)]
    return with_ones(ideology, race, *ages, school, gender, income)


def kilpisjarvi(data):
    x, y = tensor(data["x"]), tensor(data["y"])
    of_alpha, of_beta = [(data[f"pmu{k}"], data[f"ps{k}"]) for k in ("alpha", "beta")]

    def log_density(alpha, beta, sigma):
        prior = normal(alpha, *of_alpha) + normal(beta, *of_beta)
        return prior + normal(y, alpha + beta * x, sigma)

    return log_density, {"alpha": (), "beta": (), "sigma": constraints.positive}, flat


def recursion(factor, x):
    """The sequence s_t = x_t + factor s_{t-1}, in as many steps as its length has bits."""
    step = 1
    while step < len(x):
        x = x + factor**step * torch.nn.functional.pad(x[:-step], (step, 0))
        step *= 2
    return x


def arma11(data):
    y = tensor(data["y"])

    def log_density(mu, phi, theta, sigma):
        expected = torch.cat([(mu + phi * mu)[None], mu + phi * y[:-1]])
        errors = recursion(-theta, y - expected)
        prior = normal(mu, 0.0, 10.0) + normal(phi, 0.0, 2.0) + normal(theta, 0.0, 2.0)
        return prior + half_cauchy(sigma, 2.5) + normal(errors, 0.0, sigma)

    return log_density, {"mu": (), "phi": (), "theta": (), "sigma": constraints.positive}, flat


def garch11(data):
    y, first = tensor(data["y"]), tensor(data["sigma1"])

    def log_density(mu, alpha0, alpha1, beta1):
        new = alpha0 + alpha1 * (y[:-1] - mu).square()
        variances = recursion(beta1, torch.cat([first.square()[None] + 0 * mu, new]))
        return normal(y, mu, variances.sqrt())

    parameters = {
        "mu": (),
        "alpha0": constraints.positive,
        "alpha1": constraints.unit_interval,
        "beta1": lambda values: constraints.interval(0, 1 - values["alpha1"]),
    }
    return log_density, parameters, flat


def hidden_markov(log_emissions, theta1, theta2):
    """Log likelihood of two hidden states with equal weights at first, `[times, 2]`."""
    products = torch.stack([theta1, theta2]).log() + log_emissions[1:, None]
    while len(products) > 1:
        last = products[len(products) // 2 * 2 :]
        left, right = products[:-1:2], products[1::2]
        first, second = (left[:, :, k, None] + right[:, k, None] for k in (0, 1))
        products = torch.cat([torch.logaddexp(first, second), last])  # faster than logsumexp of 2
    return (log_emissions[0][:, None] + products[0]).logsumexp((0, 1))


SIMPLEX = Parameter((2,), constraints.simplex)


def hmm_example(data):
    y = tensor(data["y"])

    def log_density(theta1, theta2, mu):
        emissions = Normal(mu, 1.0, validate_args=False).log_prob(y[:, None])
        prior = normal(mu[0], 3.0, 1.0) + normal(mu[1], 10.0, 1.0)
        return prior + hidden_markov(emissions, theta1, theta2)

    ordered = Parameter((2,), positive_ordered)
    return log_density, {"theta1": SIMPLEX, "theta2": SIMPLEX, "mu": ordered}, flat


def hmm_drive(data):
    u, v, alpha = tensor(data["u"]), tensor(data["v"]), tensor(data["alpha"])

    def log_density(theta1, theta2, phi, lamda):
        emissions = phi.log() - phi * u[:, None] + lamda.log() - lamda * v[:, None]
        prior = sum(normal(x[k], 3.0 * k, 1.0) for x in (phi, lamda) for k in range(2))
        for k, theta in enumerate((theta1, theta2)):
            prior = prior + ((alpha[k] - 1) * theta.log()).sum()
        return prior + hidden_markov(emissions, theta1, theta2)

    ordered = Parameter((2,), positive_ordered)
    parameters = {"theta1": SIMPLEX, "theta2": SIMPLEX, "phi": ordered, "lamda": ordered}
    return log_density, parameters, flat


def runge_kutta(slope, state, times, steps):
    """States at `times[1:]` from that at `times[0]`, by `steps` steps of fourth order each."""
    states = []
    for begin, end in itertools.pairwise(times):
        h = (end - begin) / steps
        for k in range(steps):
            t = begin + k * h
            first = slope(t, state)
            second = slope(t + h / 2, state + h / 2 * first)
            third = slope(t + h / 2, state + h / 2 * second)
            fourth = slope(t + h, state + h * third)
            state = state + h / 6 * (first + 2 * second + 2 * third + fourth)
        states.append(state)
    return torch.stack(states)


def lotka_volterra(data):
    first, y = tensor(data["y_init"]), tensor(data["y"])
    times = [0.0, *data["ts"]]

    def log_density(theta, z_init, sigma):
        def slope(_, z):
            prey, hunters = z[0], z[1]
            return torch.stack(
                [
                    (theta[0] - theta[1] * hunters) * prey,
                    (theta[3] * prey - theta[2]) * hunters,
                ]
            )

        z = runge_kutta(slope, z_init, times, 4)
        prior = normal(theta[[0, 2]], 1.0, 0.5) + normal(theta[[1, 3]], 0.05, 0.05)
        prior = prior + normal(sigma.log(), -1.0, 1.0) - sigma.log().sum()
        prior = prior + normal(z_init.log(), math.log(10.0), 1.0) - z_init.log().sum()
        at_first = normal(first.log(), z_init.log(), sigma)
        return prior + at_first + normal(y.log(), z.log(), sigma)

    positive = {
        name: Parameter((size,), constraints.positive)
        for name, size in (("theta", 4), ("z_init", 2), ("sigma", 2))
    }
    return log_density, positive, flat


def one_comp(data):
    times, y = [data["t0"], *data["times"]], tensor(data["C_hat"])
    dose, volume = data["D"], data["V"]

    def log_density(k_a, K_m, V_m, sigma):
        def slope(t, c):
            return torch.exp(-k_a * t) * dose * k_a / volume - V_m / volume * c / (K_m + c)

        c = runge_kutta(slope, 0 * k_a, times, 6)
        prior = sum(half_cauchy(x, 1.0) for x in (k_a, K_m, V_m, sigma))
        return prior + normal(y.log(), c.log(), sigma)

    names = ("k_a", "K_m", "V_m", "sigma")
    return log_density, dict.fromkeys(names, constraints.positive), flat


POSTERIORS = {
    "eight_schools-eight_schools_noncentered": eight_schools_noncentered,
    "eight_schools-eight_schools_centered": eight_schools_centered,
    "sblrc-blr": sblrc_blr,
    "wells_data-wells_dist100ars_model": wells_dist100ars,
    "gp_pois_regr-gp_pois_regr": gp_pois_regr,
    "kidiq-kidscore_momiq": regression(
        lambda data: with_ones(tensor(data["mom_iq"])), lambda data: data["kid_score"], scale=2.5
    ),
    "kidiq_with_mom_work-kidscore_interaction_c": regression(
        kidscore_centred, lambda data: data["kid_score"]
    ),
    "mesquite-logmesquite_logvas": regression(mesquite, lambda data: np.log(data["weight"])),
    "earnings-logearn_interaction": regression(earnings, lambda data: np.log(data["earn"])),
    "nes1980-nes": regression(election, lambda data: data["partyid7"]),
    "nes2000-nes": regression(election, lambda data: data["partyid7"]),
    "kilpisjarvi_mod-kilpisjarvi": kilpisjarvi,
    "arma-arma11": arma11,
    "garch-garch11": garch11,
    "hmm_example-hmm_example": hmm_example,
    "bball_drive_event_0-hmm_drive_0": hmm_drive,
    "hudson_lynx_hare-lotka_volterra": lotka_volterra,
    "one_comp_mm_elim_abs-one_comp_mm_elim_abs": one_comp,
}


def posterior(name, folder=DATA):
    """Return log density, parameters, a map to the reference's columns, and its draws `[n, d]`."""
    data = json.loads((folder / name / "data.json").read_text())
    draws = np.load(folder / name / "reference_draws.npz")["draws"]
    own = folder / name / "target.py"
    model = runpy.run_path(str(own))["posterior"] if own.exists() else POSTERIORS[name]
    return *model(data), torch.from_numpy(draws.reshape(-1, draws.shape[-1]))


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
