"""Eight schools with a way to simulate it: are fits of it calibrated?

    kullback fit examples/calibrated.py
    kullback fit examples/calibrated.py --sbc 200 --plot sbc.svg

`simulate` draws the parameters from the prior and the data from the model given them. It must state
the same model as `log_density`: a difference between the two shows as ranks that are not uniform.
"""

import torch
from torch.distributions import HalfNormal, Normal, constraints

observed = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)
error = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64)
parameters = {"mu": (), "tau": constraints.positive, "u": (8,)}


def log_density(mu, tau, u, data=observed):
    prior = Normal(0, 5).log_prob(mu) + HalfNormal(5).log_prob(tau) + Normal(0, 1).log_prob(u).sum()
    return prior + Normal(mu + tau * u, error).log_prob(data).sum()


def simulate(generator):
    noise = torch.randn(18, generator=generator, dtype=torch.float64)
    mu, tau, u = 5 * noise[0], 5 * noise[1].abs(), noise[2:10]
    return {"mu": mu, "tau": tau, "u": u}, mu + tau * u + error * noise[10:]
