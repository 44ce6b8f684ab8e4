"""Every threshold of this folder: where one formula takes over from another, and what is too long.

Of two formulas for one number the switch stands where both have the same error; the source of each
is named. The lengths were chosen by time and memory on one core.
"""

import torch

__all__ = [
    "BLOCK_ELEMENTS",
    "ENDS_ULPS",
    "FRACTION_STEPS",
    "FRACTION_TOLERANCE",
    "GAUSS_LEGENDRE_NODES",
    "MAX_BINOMIAL_TRIALS",
    "MAX_COMPARISONS",
    "MAX_DEVIANCE_SERIES",
    "MAX_LOG_RATIO_SERIES",
    "MAX_MEAN_LOG_SERIES",
    "MAX_PATH_KL",
    "MAX_REMAINDER",
    "MAX_STIRLING_STEP_SERIES",
    "MAX_TERMS",
    "MIN_BESSEL_SERIES",
    "MIN_EXPONENTIAL_TILT",
    "MIN_POSITIVE",
    "MIN_STIRLING_SERIES",
    "PATH_NODES",
    "STIRLING_SHIFT",
]

# --- Functions under the closed forms (bregman)

# Nodes of Gauss-Legendre: an error of 5.8^−24 while no pole is nearer than the interval is long
GAUSS_LEGENDRE_NODES = 12
# Stirling's series is used from x + 8 on, where nine terms leave less than 1e-17 (DLMF 5.11.1)
STIRLING_SHIFT = 8
# 1/(2x + 1) below which a step of Stirling's error is a series: 0.09^15 of it is left out
MAX_STIRLING_STEP_SERIES = 0.3
# Argument of log I₀ from which its asymptotic series of 14 terms is exact (DLMF 10.40.1)
MIN_BESSEL_SERIES = 30.0

# --- Closed forms (families)

MIN_POSITIVE = 1e-300  # stands for 0 where a logarithm or a quotient must be finite
# A KL between low-rank Gaussians below it has all eigenvalues of Σ_q⁻¹Σ_p within 0.25 of 1, where
# 8 Gauss-Legendre nodes along the path between them leave less than 1e-16 of the value
MAX_PATH_KL, PATH_NODES = 0.01, 8
MAX_BINOMIAL_TRIALS = 1_000_000  # trials of q to sum over: about a second
# η from which a continuous Bernoulli is close to the exponential that it cuts off
MIN_EXPONENTIAL_TILT = 4.0
# Half width over the middle below which E log x of a uniform is a series: 0.09^15 is left out
MAX_MEAN_LOG_SERIES = 0.3

# --- Sums over the integers (countable)

# |x − m|/(x + m) below which the deviance is a series; ten terms leave 1e-21 (Loader 2000)
MAX_DEVIANCE_SERIES = 0.1
MIN_STIRLING_SERIES = 16.0  # from it on six terms of Stirling's series are exact to 1e-17
MAX_TERMS = 1 << 21  # numbers held for one sum: about a tenth of a second
MAX_REMAINDER = 1e-13  # what may be left out, of the sum

# --- Supports and cdfs (supports)

# Steps of the continued fraction of the incomplete beta function, enough for parameters up to about
# 1e5, and the relative change at which it has converged (Abramowitz and Stegun 1964, 26.5.8)
FRACTION_STEPS, FRACTION_TOLERANCE = 400, 1e-16
ENDS_ULPS = 8.0  # ends found by arithmetic (transforms) within so many ulps of one another are one
MAX_COMPARISONS = 1 << 25  # of ends, components and batch: half a gigabyte

# --- Tables (table_sums)

BLOCK_ELEMENTS = 1 << 18  # elements of one block: a float32 array of that size is one megabyte
# |log q/p| below which a series of 4 terms is the more exact
MAX_LOG_RATIO_SERIES = {torch.float32: 0.05, torch.float64: 2e-3}
