"""Two peaks on a line: the target on which the two directions of KL part.

kullback fit examples/two_peaks.py --direction both --plot two_peaks.svg
"""

import math

import torch

parameters = 1  # z is one real number


def log_density(z):
    """0.65 N(-2, 0.6²) + 0.35 N(2, 0.9²), up to a constant, at one point z [1]."""
    left = math.log(0.65 / 0.6) - 0.5 * ((z[0] + 2) / 0.6) ** 2
    right = math.log(0.35 / 0.9) - 0.5 * ((z[0] - 2) / 0.9) ** 2
    return torch.logaddexp(left, right)


if __name__ == "__main__":
    from kullback.exact import quadrature
    from kullback.variational.optimise.grid import find_box, project

    def many(z):
        return torch.vmap(log_density)(z)

    lower, upper = find_box(many, 1)
    p = quadrature.posterior(many, lower=lower, upper=upper, nodes=400)
    for components in (1, 2):
        for direction in ("forward", "reverse"):
            q = project(p, direction, components=components)
            print(
                f"{components} Gaussian{'s' * (components > 1)}, {direction}: "
                f"KL(p||q) = {q.forward:z.4f}, KL(q||p) = {q.reverse:z.4f} nats"
            )
