"""Signal-to-noise of the gradient to q against K, on a linear-Gaussian model.

    python benchmarks/gradient_noise.py [--repeats 20000] [--svg docs/img/gradient_noise.svg]

z ~ N(θ, 1), x|z ~ N(z, 1), x = 1, θ = 0; q = N(0.8, e^-0.4), where the posterior is N(½, ½). Of
the importance-weighted bound L_K: its plain gradient to the mean of q (Burda et al. 2016), whose
ratio of mean to deviation sinks as 1/sqrt(K) (Rainforth et al. 2018, theorem 1), and the doubly
reparameterised one (Tucker et al. 2019), whose ratio rises as sqrt(K). Both have one expectation,
for which the mean of the second is taken, as it has less noise; at K = 1 it is the ELBO's, in
closed form 2 · (0.5 - 0.8) = -0.6. Then the bias of the gradient to θ, whose exact
value is (x - θ)/2. Errors are standard errors over repeats; slopes are between neighbouring K.
Prints JSON and writes it to benchmarks/results/gradient_noise.json.
"""

import argparse
import itertools
import math

import torch
from measuring import finish, machine

from kullback.variational import WeightedBound, with_path_gradient

DRAWS = (1, 4, 16, 64, 256, 1024)
MEAN, LOG_SD, X = 0.8, -0.2, 1.0
BLOCK = 2_000_000  # numbers at once


def gradients(bound, draws, n, generator):
    """Return gradients `[n]` of L_K to q's mean and to θ."""
    noise = torch.randn(draws, n, 1, generator=generator, dtype=torch.float64)
    mean = torch.full((n, 1), MEAN, dtype=torch.float64, requires_grad=True)
    theta = torch.zeros(n, 1, dtype=torch.float64, requires_grad=True)
    z = mean + math.exp(LOG_SD) * noise
    at = mean.detach() if bound.by_path else mean
    log_q = (-0.5 * ((z - at) / math.exp(LOG_SD)) ** 2 - LOG_SD).sum(-1)
    log_p = (-0.5 * (z - theta) ** 2 - 0.5 * (X - z) ** 2).sum(-1) - 0.5 * math.log(2 * math.pi)
    weights = log_p - log_q
    value = with_path_gradient(weights, z, bound) if bound.by_path else bound.value(weights)
    return [one[:, 0] for one in torch.autograd.grad(value.sum(), (mean, theta))]


def repeated(name, draws, repeats):
    """Return gradients of many repeats, `[repeats]` each."""
    generator, found, left = torch.Generator().manual_seed(draws), [], repeats
    while left:
        n = min(left, max(1, BLOCK // draws))
        found.append(gradients(WeightedBound(name), draws, n, generator))
        left -= n
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def rows_of(repeats):
    """Return a row for every K."""
    rows = []
    for draws in DRAWS:
        plain, _ = repeated("iwae_plain", draws, repeats)
        doubled, by_theta = repeated("iwae", draws, repeats)
        signal = abs(float(doubled.mean()))
        root = math.sqrt(repeats)
        rows.append(
            {
                "draws": draws,
                "gradient": float(doubled.mean()),
                "its_error": float(doubled.std()) / root,
                "plain_mean": float(plain.mean()),
                "error_of_that": float(plain.std()) / root,
                "plain": signal / float(plain.std()),
                "doubly_reparameterised": signal / float(doubled.std()),
                "bias_of_theta": float(by_theta.mean()) - 0.5,
                "error_of_the_bias": float(by_theta.std()) / root,
            }
        )
    return rows


def slopes(rows, name):
    """Return d log ratio / d log K between neighbouring K."""
    return [
        math.log(b[name] / a[name]) / math.log(b["draws"] / a["draws"])
        for a, b in itertools.pairwise(rows)
    ]


def draw(rows, path):
    """Draw both ratios and the bias against K."""
    from kullback.report.figures import card, save

    figure, (left, right) = card("signal-to-noise of q's gradient", "bias of the gradient to θ")
    draws = [row["draws"] for row in rows]
    for name, words in (
        ("doubly_reparameterised", "doubly reparameterised"),
        ("plain", "plain"),
    ):
        values = [row[name] for row in rows]
        left.loglog(draws, values, "o-", ms=4, label=words)
        power = 0.5 if name != "plain" else -0.5
        line = [values[-1] * (k / draws[-1]) ** power for k in draws]
        left.loglog(draws, line, ":", lw=1, color="#888888")
    left.set_xlabel("K; dotted: slopes ½ and -½", fontsize=9)
    left.legend(fontsize=8, frameon=False)
    bias = [row["bias_of_theta"] for row in rows]
    error = [2 * row["error_of_the_bias"] for row in rows]
    right.errorbar(draws, bias, yerr=error, fmt="o-", ms=4)
    right.set_xscale("log")
    right.set_yscale("log", nonpositive="clip")
    line = [bias[0] / k for k in draws]
    right.plot(draws, line, ":", lw=1, color="#888888")
    right.set_xlabel("K; dotted: slope -1", fontsize=9)
    save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20_000)
    parser.add_argument("--svg", help="draw it to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = rows_of(options.repeats)
    result = {
        "benchmark": "gradient_noise",
        "machine": machine(1),
        "repeats": options.repeats,
        "model": "z ~ N(0, 1), x|z ~ N(z, 1), x = 1; q = N(0.8, exp(-0.4))",
        "exact_gradient_at_one_draw": -2 * (MEAN - 0.5),
        "rows": rows,
        "slopes": {name: slopes(rows, name) for name in ("plain", "doubly_reparameterised")},
    }
    finish("gradient_noise", result, digits=5)
    if options.svg:
        draw(rows, options.svg)


if __name__ == "__main__":
    main()
