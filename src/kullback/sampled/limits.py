"""Every threshold of this folder that decides on a warning, a refusal or a missing error bar.

Each stands here with its source, or with the settings of benchmarks/coverage.py that set it.
"""

__all__ = [
    "ABOVE_ZERO",
    "APART",
    "BIASED",
    "BLOCK_DRAWS",
    "DEALS",
    "DENSE_GRID",
    "DRAWS_PER_CODE",
    "DRAWS_PER_TERM",
    "FAR_BELOW",
    "FELT",
    "FELT_FEW",
    "FELT_SKEWED",
    "FEW",
    "FEWEST_DRAWS",
    "FEWEST_PAIRS",
    "FEW_DRAWS",
    "FEW_FOR_K",
    "FILL",
    "FLAT",
    "FURTHEST",
    "HEAVY",
    "IMPOSSIBLE",
    "JUDGED",
    "LAG_ERRORS",
    "LEAST_NEIGHBOURS",
    "LOWEST_CORRELATED",
    "MAX_PARETO_K",
    "MOST_ATOMS",
    "MOST_BLOCKS",
    "MOST_DIMENSIONS",
    "MOST_DIMENSIONS_JS",
    "MOST_DIMENSIONS_PAIRS",
    "MOST_NEIGHBOURS",
    "MOST_SKEWED",
    "NEAR",
    "NEAREST_ZERO",
    "NEAR_DRAWS",
    "NEAR_SDS",
    "NEIGHBOURS_SHARE",
    "NO_MEAN",
    "NO_SPREAD",
    "ODD",
    "OUT_OF_REACH",
    "PEAKED",
    "PENALTIES",
    "RARE",
    "REFUTED",
    "ROUNDING",
    "ROUND_BITS",
    "SAME_COUNTS",
    "SCATTERS",
    "SENTINEL",
    "SKEWED",
    "TEST_LEVEL",
    "TIE_SDS",
    "UNSEEN",
    "UNSEEN_CHANCE",
    "UNSEEN_RATIO",
    "UNSTABLE",
    "WIDE",
    "WIDER",
    "WIDER_BY_K",
    "WIDER_FROM",
    "WIDEST",
    "ZERO_LEVEL",
]

# Pareto k-hat from which importance weights mislead, smoothed or not (Vehtari et al. 2024, sec. 3)
MAX_PARETO_K = 0.7

FEW = 20  # draws below which no standard error is taken at its word
ROUNDING = 4e-16  # terms that differ by less than this, relatively, are one number
BIASED = 0.3  # standard errors of bias: a 95 % interval then covers 94 %

# Symmetric intervals (trust.about_terms)
SKEWED = 0.08  # skewness of the mean: several times stricter than Hall's 2 % at 0.28, since the
# skewness of draws that have not met the tail is too small
HEAVY, JUDGED = 0.5, 200  # k-hat, and the draws below which it is too noisy to act on
FELT = 0.01  # skewness of the mean below which a tail, however shaped, carries no weight

# Intervals that allow for skewness (trust.about_skewed_terms, trust.allowance). Chosen on the 28
# laws of CHOOSING in benchmarks/coverage.py, counted on the 20 of COUNTING
WIDER = 1.2  # times the skewness of the draws, which is low where the tail was not met
WIDER_BY_K, WIDER_FROM, WIDEST = 8.0, 0.35, 4.0  # and 8 (k-hat - 0.35) more, at most 4: with them
# intervals hold at infinite variance (Pareto k = 0.7: 96 % at 1,000 draws, 69 % by Student's t)
MOST_SKEWED = 0.8  # beyond it Hall's interval gets shorter again
NO_MEAN, SCATTERS = 1.0, 2.5  # k-hat plus so many of its own standard errors reaches 1: warned
FELT_SKEWED = 0.2  # and the skewness of the mean is above this: k-hat is 1.2 for weights of
# sd 0.026 (effective sample size 0.9994), where no tail is felt
FELT_FEW, FEW_FOR_K = 0.3, 150  # below so many draws k-hat says little: by the skewness alone

# Draws in which r − 1 cancels log r (parts)
UNSEEN = 500  # a mean of so few may have missed an event that moves it by more than its error

# Tests of an identity (identity.py)
TEST_LEVEL = 1e-5  # chance that a call refutes an identity that holds; split over its batch
UNSEEN_CHANCE = 1e-3  # an event is counted as possibly unseen where it is missed with this chance
UNSEEN_RATIO = 2.0  # and q/p there may be up to this. With both, a missing mass of 0.1 is refuted
# from 140 draws on; what is refused below is an estimate that the draws seen bias by that much
REFUTED = 1.0 / TEST_LEVEL  # Markov: a mean of q/p above it has a chance below TEST_LEVEL

# Rounding of the inputs
ROUND_BITS = 5  # a value of a bfloat16 grid (8 bits) has so few bits with a chance of 1/8

# Logged log-probabilities (log_probs.py; counted in tests/sampled/test_log_probs.py)

ABOVE_ZERO = 1e-4  # a log-probability this far above 0 is rounding
SENTINEL = -700.0  # e^x below it is no normal float64: not a probability
FILL = -100.0  # the fill value of some servers, and of losses for labels that do not count
NEAREST_ZERO = 300  # tokens of which a column is surest, but for its zeros: what zeros are held to
FAR_BELOW = -0.5  # where another model was not sure of them
RARE = 100  # so many tokens are added, one of them such: where few tell, a share of 0.01
ZERO_LEVEL = 1e-3  # of the test of zeros
ODD = -80.0  # a log-probability this low is looked at again
APART = 1.0  # of a column's variance, the mean square between two: less, and neither is late
FLAT = 1e-3  # a column of less variance does not tell
LOWEST_CORRELATED = -20.0  # single outliers must not decide a correlation
FEWEST_PAIRS = 50  # different pairs of neighbouring tokens that a test of lag needs
LAG_ERRORS = 4.5  # standard errors between the correlations at two lags

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
NO_SPREAD = 1e-10

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
# Standard errors outside the possible range from which a value is refused. The error from halves
# scatters itself: independent normals gave -4.6 of them once in 2,000 (its error half the usual).
IMPOSSIBLE = 8.0

# Classifier: ridge penalties tried, on standardised terms; cross terms where there are ten draws
# each; standardised coordinates are cut at 5, where a heavy tail would decide the fit.
PENALTIES = (1e4, 1e3, 1e2, 1e1, 1.0)
DRAWS_PER_TERM = 10
FURTHEST = 5.0
