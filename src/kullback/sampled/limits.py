"""Every threshold of this folder, with its source or the benchmark that set it."""

__all__ = [
    "BLOCK_DRAWS",
    "DEALS",
    "DENSE_GRID",
    "DRAWS_PER_CODE",
    "DRAWS_PER_TERM",
    "FEWEST_DRAWS",
    "FEW_DRAWS",
    "FLAT",
    "FURTHEST",
    "IMPOSSIBLE",
    "LEAST_NEIGHBOURS",
    "MOST_ATOMS",
    "MOST_BLOCKS",
    "MOST_DIMENSIONS",
    "MOST_DIMENSIONS_JS",
    "MOST_DIMENSIONS_PAIRS",
    "MOST_NEIGHBOURS",
    "NEAR",
    "NEAR_DRAWS",
    "NEAR_SDS",
    "NEIGHBOURS_SHARE",
    "OUT_OF_REACH",
    "PEAKED",
    "PENALTIES",
    "SAME_COUNTS",
    "TIE_SDS",
    "UNSTABLE",
    "WIDE",
]

# --- Two samples: `two_sample`, `samples`, `grids`, `classifier`

# Draws of each sample, and draws a block for the error bar (Politis, Romano and Wolf 1999).
FEWEST_DRAWS, BLOCK_DRAWS, MOST_BLOCKS, DEALS = 80, 500, 10, 32

# Exact ties. Independent draws of any law share at most nm·√(Σp² Σq²) pairs (Cauchy-Schwarz); the
# counts are Poisson, so 6 of their standard deviations are allowed on top.
TIE_SDS = 6.0
# Chance that two rounded draws tie, over what a spread-out law gives: peaked laws tie more.
PEAKED = 10.0
# Chance of two discrete samples with equal counts below which they are one sample.
SAME_COUNTS = 1e-6
# A grid is dense when at least this share of its points between the ends was drawn.
DENSE_GRID = 0.05
# Values far from any grid are coded by rank when each was drawn ten times on average.
DRAWS_PER_CODE = 10
# More repeated values than this that fit no grid look like copied rows, not like a few atoms.
MOST_ATOMS = 20

# Near-duplicates. For independent draws the nearest distance is below c times the next with
# probability c^d (a Poisson process of points); 5 standard deviations and 6 draws on top.
NEAR = (1e-1, 1e-2, 1e-3)
NEAR_SDS, NEAR_DRAWS = 5.0, 6
# Relative eigenvalue of a correlation matrix below which a direction has no spread: 1e-5 of the
# spread of the others, above the rounding of float32 inputs (6e-8).
FLAT = 1e-10

# k-NN KL: k from 1 to n / 20, but 10 to 20, extrapolated to k = 0 (benchmarks/coverage.py).
LEAST_NEIGHBOURS, MOST_NEIGHBOURS, NEIGHBOURS_SHARE = 10, 20, 20
# Above this dimension the extrapolated bias rivals the error bar at any practical n.
MOST_DIMENSIONS = 3
# Standard errors that the extrapolation may move the estimate.
UNSTABLE = 2.5
# Share of x with hardly any y near. The ratio there is unknown; the bias was up to 1.6 times the
# share in nats (a normal of scale 1 against one of 0.6). Below 200 draws the share is too coarse.
OUT_OF_REACH, FEW_DRAWS = 0.05, 200
# Dimensions up to which neighbours' Jensen-Shannon divergence, and their information (of x and y
# together), have a bias within the error bar.
MOST_DIMENSIONS_JS = 2
MOST_DIMENSIONS_PAIRS = 2
# KSG's neighbours on a ridge of width e^-I: `(k e^I / n)^(1/d)` above which they are not near.
WIDE = 0.2
# Standard errors outside the possible range from which a value is refused.
IMPOSSIBLE = 4.5

# Classifier: ridge penalties tried, on standardised terms; cross terms where there are ten draws
# each; standardised coordinates are cut at 5, where a heavy tail would decide the fit.
PENALTIES = (1e4, 1e3, 1e2, 1e1, 1.0)
DRAWS_PER_TERM = 10
FURTHEST = 5.0
