"""Every threshold of the command line, with its source.

Sizes keep a mistyped number from taking all memory; the others decide when a message appears.
"""

__all__ = [
    "CLIPS_PER_BLOCK",
    "FEWEST_DRAWS",
    "FEWEST_FIT_DRAWS",
    "IMAGES_PER_BLOCK",
    "MAX_BYTES",
    "MAX_DIMENSION",
    "MAX_DRAWS",
    "MAX_DRAWS_PER_IMAGE",
    "MAX_FIT_DRAWS",
    "MAX_LOG_PROBABILITY",
    "MAX_NUMBERS",
    "MAX_SAMPLED_IMAGES",
    "MIN_OBSERVATIONS",
    "NEAR_HUNDRED",
    "NEAR_ONE",
    "PILOT_DRAWS",
    "REPEATS",
    "SECONDS_BEFORE_BAR",
    "SECONDS_BETWEEN_LINES",
    "SECONDS_OF_EVALUATION",
    "SECONDS_TO_FIRST_LINE",
    "SOUNDS",
]

# sizes
FEWEST_DRAWS = 4  # a variance of each half, which `best` needs
MAX_DRAWS = 10_000_000  # 2 to 10 s and 1 GB; the error is then 1/3000 of one sample's
FEWEST_FIT_DRAWS = 100  # fewer leave too small a tail for Pareto k-hat (not benchmarked)
MAX_FIT_DRAWS = 1_000_000  # the verdict's own limits do not improve beyond
MAX_NUMBERS = 200_000_000  # --dim times --draws: 1.6 GB an array
MAX_DIMENSION = MAX_NUMBERS // FEWEST_FIT_DRAWS
MAX_DRAWS_PER_IMAGE = 1_000_000
MAX_SAMPLED_IMAGES = 100_000  # in one file
MAX_BYTES = 1 << 30  # of a file of numbers: a table of 40 million outcomes
CLIPS_PER_BLOCK = 64  # drawn at once, sample by sample
SOUNDS = (
    8  # clips drawn or reconstructed where no number is given: seconds of work, and of patience
)
IMAGES_PER_BLOCK = 500  # encoded at once, so that memory does not grow with the data

# what numbers that are no table look like
MIN_OBSERVATIONS = 20  # unnamed numbers from which a list may well be of observations
REPEATS = 2  # whole numbers that occur so often each, on average, are observations
NEAR_ONE = 0.02  # of the sum: probabilities printed with two or three decimals
NEAR_HUNDRED = 1.0  # of the sum: percentages printed without decimals
MAX_LOG_PROBABILITY = 1e-6  # log 1 with the rounding of float32

# seconds
PILOT_DRAWS = 50_000  # are timed first, where more than twice as many are asked for
SECONDS_BEFORE_BAR = 2.0  # without a sign of work
SECONDS_TO_FIRST_LINE = 4.0  # of a fit where there is no terminal
SECONDS_BETWEEN_LINES = 10.0  # Nielsen (1993): beyond 10 s users want to know how far it is
SECONDS_OF_EVALUATION = 20.0  # the evaluation that closes a training, about
