"""Every threshold of this folder that decides on a warning, a refusal or a missing error bar.

Each stands here with its source, or with the settings of benchmarks/interval_coverage.py that set
it.
"""

__all__ = [
    "DRAWS_FOR_ROUNDING",
    "DRAWS_PER_BLOCK",
    "DRAWS_PER_CROSS_TERM",
    "DRAWS_PER_NEIGHBOUR",
    "EQUAL_COUNTS_CHANCE",
    "FEW_DRAWS_FOR_PARETO_K",
    "FILL_VALUE",
    "FINITE_MEAN_PARETO_K",
    "FINITE_VARIANCE_PARETO_K",
    "LAG_TEST_ERRORS",
    "MAX_ATOMS",
    "MAX_BIAS_IN_ERRORS",
    "MAX_BLOCKS",
    "MAX_DIMENSIONS_JS",
    "MAX_DIMENSIONS_KL",
    "MAX_DIMENSIONS_MI",
    "MAX_DRAWN_COUNT",
    "MAX_ERRORS_OUT_OF_RANGE",
    "MAX_EXTRAPOLATION_ERRORS",
    "MAX_GRID_TOLERANCE",
    "MAX_ISOLATED_SHARE",
    "MAX_LOG_PROB",
    "MAX_MEAN_BY_MARKOV",
    "MAX_MEAN_SQUARE_GAP",
    "MAX_NEIGHBOURS",
    "MAX_NEIGHBOUR_WIDTH",
    "MAX_NUMBERS_TOGETHER",
    "MAX_ORDERED_DRAWS",
    "MAX_PARETO_K",
    "MAX_SKEWNESS_FACTOR_RISE",
    "MAX_SKEWNESS_OF_INTERVAL",
    "MAX_SKEWNESS_OF_MEAN",
    "MAX_STANDARDISED_COORDINATE",
    "MAX_STANDARDISED_TERM",
    "MAX_TAIL_DRAWS",
    "MIN_CORRELATED_LOG_PROB",
    "MIN_DRAWS",
    "MIN_DRAWS_FOR_ERROR",
    "MIN_DRAWS_FOR_ISOLATED_SHARE",
    "MIN_DRAWS_FOR_ORDER",
    "MIN_DRAWS_FOR_PARETO_K",
    "MIN_DRAWS_FOR_RARE_EVENTS",
    "MIN_DRAWS_FOR_TAIL",
    "MIN_DRAWS_PER_CODE",
    "MIN_DRAWS_TWO_SAMPLE",
    "MIN_GRID_SHARE",
    "MIN_LOG_PROB",
    "MIN_NEIGHBOURS",
    "MIN_PAIRS_FOR_LAG",
    "MIN_RELATIVE_EIGENVALUE",
    "MIN_RELATIVE_VARIANCE",
    "MIN_SKEWNESS_FOR_NO_MEAN",
    "MIN_SKEWNESS_FOR_NO_MEAN_FEW_DRAWS",
    "MIN_SKEWNESS_FOR_TAIL",
    "MIN_SUBSAMPLES",
    "MIN_TAIL_LENGTH",
    "MIN_VARIANCE_FOR_LAG",
    "MIN_WORTH_OF_A_CHAIN",
    "MISSED_EVENT_CHANCE",
    "MISSED_EVENT_RATIO",
    "NEAR_DUPLICATE_DEVIATIONS",
    "NEAR_DUPLICATE_DISTANCES",
    "NEAR_DUPLICATE_EXTRA",
    "PARETO_K_ERRORS",
    "RELATIVE_ROUNDING",
    "RIDGE_PENALTIES",
    "ROUND_NUMBER_BITS",
    "SKEWNESS_FACTOR",
    "SKEWNESS_FACTOR_FROM_K",
    "SKEWNESS_FACTOR_SLOPE",
    "SUSPICIOUS_LOG_PROB",
    "TEST_LEVEL",
    "TIE_CHANCE_FACTOR",
    "TIE_STANDARD_DEVIATIONS",
    "UNSURE_LOG_PROB",
    "ZERO_TEST_LEVEL",
    "ZERO_TEST_PRIOR_TOKENS",
    "ZERO_TEST_TOKENS",
]

# --- Draws (distributions)

# Mean of a Poisson law (trials of a binomial) up to which torch's rejection, a difference of
# log-gamma values of about m log m, is within 0.003: 2^40 · 28 · 2^−53
MAX_DRAWN_COUNT = 2.0**40

# Draws of which the next number of their floating type is scored too, to see how coarse it is
DRAWS_FOR_ROUNDING = 1000

# --- Pareto k-hat (tails)

# k-hat from which importance weights mislead, smoothed or not (Vehtari et al. 2024, section 3)
MAX_PARETO_K = 0.7
# k of a generalised Pareto tail below which its variance, and its mean, is finite
FINITE_VARIANCE_PARETO_K, FINITE_MEAN_PARETO_K = 0.5, 1.0
# shortest tail that is fitted, and the draws that have it: a fifth of them is the tail
MIN_TAIL_LENGTH, MIN_DRAWS_FOR_TAIL = 5, 25
# numbers that fit a cache: a tail is then fitted in one call, seven times faster on one thread
MAX_NUMBERS_TOGETHER = 1 << 18
# draws kept at each end: a tail of 512 above one cutoff, whose k-hat is known to ±0.07
MAX_TAIL_DRAWS = 513
# draws below which k-hat is too noisy for a decision on the variance, and on the mean
MIN_DRAWS_FOR_PARETO_K, FEW_DRAWS_FOR_PARETO_K = 200, 150

# --- Error bars (error_bars, control_variates, estimators)

MIN_DRAWS = 4  # of a mean with an error, two halves of two draws each
MIN_DRAWS_FOR_ERROR = 20  # draws below which every standard error has a warning
RELATIVE_ROUNDING = 4e-16  # terms that differ by less than this, relatively, are one number
# variance below this part of the squared mean, which is rounding: a control is then a constant
MIN_RELATIVE_VARIANCE = 1e-24
MAX_BIAS_IN_ERRORS = 0.3  # standard errors of bias: a 95 % interval then covers 94 %
# Symmetric intervals. Skewness of the mean: several times stricter than Hall's 2 % at 0.28, since
# the skewness of draws without the extreme tail is too small
MAX_SKEWNESS_OF_MEAN = 0.08
MIN_SKEWNESS_FOR_TAIL = 0.01  # skewness of the mean below which no tail carries weight

# Draws of a chain: the correlation of neighbouring terms is tested at TEST_LEVEL from so many draws
# on, in the first 2^20 (10 ms), of terms cut at 3 interquartile ranges from their median, so that a
# heavy tail does not decide
MIN_DRAWS_FOR_ORDER, MAX_ORDERED_DRAWS, MAX_STANDARDISED_TERM = 50, 1 << 20, 3.0
# Independent draws that a chain must be worth for an error bar: with 50 the autocorrelation time
# of an AR(1) chain is 10 % too low in the median (12 to 29 for 19, in 90 of 100), with 500 2 %
MIN_WORTH_OF_A_CHAIN = 100.0

# Intervals that allow for skewness. Chosen on the 28 laws of CHOOSING in
# benchmarks/interval_coverage.py, counted on the 20 of COUNTING. The skewness of the draws, too low
# where the extreme tail was not drawn, is multiplied by 1.2 and by 8 (k-hat − 0.35) more, at most
# 4: with it intervals hold at infinite variance (Pareto k = 0.7: 96 % at 1,000 draws, 69 % by
# Student's t)
SKEWNESS_FACTOR = 1.2
SKEWNESS_FACTOR_SLOPE, SKEWNESS_FACTOR_FROM_K, MAX_SKEWNESS_FACTOR_RISE = 8.0, 0.35, 4.0
MAX_SKEWNESS_OF_INTERVAL = 0.8  # beyond it Hall's interval gets shorter again
PARETO_K_ERRORS = 2.5  # k-hat plus so many of its own standard errors reaches 1: warned
# Skewness of the mean above which a k-hat of 1 denies the mean: weights of sd 0.026 (effective
# sample size 0.9994) have k-hat 1.2, and no tail of any weight. Of few draws a larger one is asked
MIN_SKEWNESS_FOR_NO_MEAN, MIN_SKEWNESS_FOR_NO_MEAN_FEW_DRAWS = 0.2, 0.3
# Draws where r − 1 cancels log r: a mean of fewer may lack an event that moves it by an error bar
MIN_DRAWS_FOR_RARE_EVENTS = 500

# --- Tests of an identity (identity)

TEST_LEVEL = 1e-5  # chance that a call refutes an identity that holds; split over its batch
MAX_MEAN_BY_MARKOV = 1.0 / TEST_LEVEL  # a mean of q/p above it has a chance below TEST_LEVEL
# An event is counted as possibly missed where all draws miss it with this chance, and q/p there
# may be up to 2. With both, a missing mass of 0.1 is refuted from 140 draws on; what is refused
# below is an estimate that the draws bias by that much
MISSED_EVENT_CHANCE, MISSED_EVENT_RATIO = 1e-3, 2.0
ROUND_NUMBER_BITS = 5  # a value of a bfloat16 grid (8 bits) has so few bits with a chance of 1/8

# --- Logged log-probabilities (log_probs; counted in tests/sampled/test_log_probs.py)

MAX_LOG_PROB = 1e-4  # a log-probability this far above 0 is rounding
MIN_LOG_PROB = -700.0  # e^x below it is no normal float64: not a probability
FILL_VALUE = -100.0  # of some servers, and of losses for labels that do not count
SUSPICIOUS_LOG_PROB = -80.0  # a log-probability this low has the whole column checked
# Zeros for "not scored": another model is below −0.5 there, more often than at the 300 tokens
# where the column is nearest to 0 (and 100 more, one of them such: a share of 0.01 where few tell)
UNSURE_LOG_PROB, ZERO_TEST_TOKENS, ZERO_TEST_PRIOR_TOKENS, ZERO_TEST_LEVEL = -0.5, 300, 100, 1e-3
# Lag of a column: different pairs of neighbours that its test needs, standard errors between two
# correlations, and the values below which single outliers would decide a correlation
MIN_PAIRS_FOR_LAG, LAG_TEST_ERRORS, MIN_CORRELATED_LOG_PROB = 50, 4.5, -20.0
# The quick look: no lag where the mean square between two columns is below one variance of the
# first, or where that variance is so small that it does not tell
MAX_MEAN_SQUARE_GAP, MIN_VARIANCE_FOR_LAG = 1.0, 1e-3

# --- Two samples (two_sample, two_sample_checks)

# Draws of each sample; draws a block for the error bar, blocks, and subsamples of all deals
# (Politis, Romano and Wolf 1999)
MIN_DRAWS_TWO_SAMPLE, DRAWS_PER_BLOCK, MAX_BLOCKS, MIN_SUBSAMPLES = 80, 500, 10, 32

# Exact ties. Independent draws of any law share at most nm·√(Σp² Σq²) pairs (Cauchy-Schwarz); the
# counts are Poisson, so 6 of their standard deviations are allowed on top.
TIE_STANDARD_DEVIATIONS = 6.0
# Chance that two rounded draws tie, over what a spread-out law gives: peaked laws tie more.
TIE_CHANCE_FACTOR = 10.0
# Chance of two discrete samples with equal counts below which they are one sample.
EQUAL_COUNTS_CHANCE = 1e-6
# A grid is dense when at least this share of its points between the ends was drawn.
MIN_GRID_SHARE = 0.05
# Part of a step by which rounding may move values off a grid; beyond, anything is on a grid.
MAX_GRID_TOLERANCE = 0.1
# Values far from any grid are coded by rank when each was drawn ten times on average.
MIN_DRAWS_PER_CODE = 10
# More repeated values than this that fit no grid look like copied rows, not like a few atoms.
MAX_ATOMS = 20

# Near-duplicates. For independent draws the nearest distance is below c times the next with
# probability c^d (a Poisson process of points); 5 standard deviations and 6 draws on top.
NEAR_DUPLICATE_DISTANCES = (1e-1, 1e-2, 1e-3)
NEAR_DUPLICATE_DEVIATIONS, NEAR_DUPLICATE_EXTRA = 5.0, 6
# Relative eigenvalue of a correlation matrix below which a direction has no spread: 1e-5 of the
# spread of the others, above the rounding of float32 inputs (6e-8).
MIN_RELATIVE_EIGENVALUE = 1e-10

# k-NN KL: k from 1 to n / 20, but 10 to 20, extrapolated to k = 0
# (benchmarks/interval_coverage.py).
MIN_NEIGHBOURS, MAX_NEIGHBOURS, DRAWS_PER_NEIGHBOUR = 10, 20, 20
# Dimensions above which the extrapolated bias rivals the error bar at any practical n: of KL, of
# Jensen-Shannon, and of the information (of x and y together).
MAX_DIMENSIONS_KL, MAX_DIMENSIONS_JS, MAX_DIMENSIONS_MI = 3, 2, 2
# Standard errors that the extrapolation may move the estimate.
MAX_EXTRAPOLATION_ERRORS = 2.5
# Share of x with hardly any y near. The ratio there is unknown; the bias was up to 1.6 times the
# share in nats (a normal of scale 1 against one of 0.6). Below 200 draws the share is too coarse.
MAX_ISOLATED_SHARE, MIN_DRAWS_FOR_ISOLATED_SHARE = 0.05, 200
# KSG's neighbours on a ridge of width e^-I: `(k e^I / n)^(1/d)` above which they are not near.
MAX_NEIGHBOUR_WIDTH = 0.2
# Standard errors outside the possible range from which a value is refused. The error from halves
# scatters itself: independent normals gave -4.6 of them once in 2,000 (its error half the usual).
MAX_ERRORS_OUT_OF_RANGE = 8.0

# Classifier: ridge penalties tried, on standardised terms; cross terms where there are ten draws
# each; standardised coordinates are cut at 5, where a heavy tail would decide the fit.
RIDGE_PENALTIES = (1e4, 1e3, 1e2, 1e1, 1.0)
DRAWS_PER_CROSS_TERM = 10
MAX_STANDARDISED_COORDINATE = 5.0
