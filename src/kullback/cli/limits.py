"""Every threshold of the command line, with its source.

Sizes keep a mistyped number from taking all memory; the others decide when a message appears.
"""

__all__ = [
    "CLIPS_PER_BLOCK",
    "CLIP_REFIT_DRAWS",
    "CLIP_REFIT_STEPS",
    "CLOSING_ANNEALED",
    "CLOSING_ANNEALED_CLIPS",
    "CLOSING_CHAINS",
    "CLOSING_CLIP_CHAINS",
    "CLOSING_DRAWS",
    "CLOSING_NUMBERS",
    "CLOSING_SAMPLES",
    "CLOSING_TEMPERATURES",
    "COMPARISON_DRAWS",
    "EVALUATION_DRAWS",
    "FEWEST_DRAWS",
    "FEWEST_FIT_DRAWS",
    "IMAGES_PER_BLOCK",
    "MAX_BYTES",
    "MAX_DIMENSION",
    "MAX_DRAWS",
    "MAX_DRAWS_PER_IMAGE",
    "MAX_FIT_DRAWS",
    "MAX_IMAGES_OF_A_PICTURE",
    "MAX_LOG_PROBABILITY",
    "MAX_NUMBERS",
    "MAX_PIXELS_OF_A_PICTURE",
    "MAX_SAMPLED_IMAGES",
    "MIN_OBSERVATIONS",
    "NEAR_HUNDRED",
    "NEAR_ONE",
    "OUTPUTS_PER_BLOCK",
    "PILOT_DRAWS",
    "REPEATS",
    "SAME_STEPS",
    "SAMPLES_PER_BLOCK",
    "SANDWICH_CLIPS",
    "SANDWICH_FEWEST",
    "SANDWICH_FIRST",
    "SANDWICH_IMAGES",
    "SANDWICH_PILOTS",
    "SECONDS_BEFORE_BAR",
    "SECONDS_BETWEEN_LINES",
    "SECONDS_BETWEEN_LOOKS",
    "SECONDS_TO_FIRST_LINE",
    "SECONDS_WORTH_TELLING",
    "SOUNDS",
]

# sizes
FEWEST_DRAWS = 4  # a variance of each half, which `best` needs
MAX_DRAWS = 10_000_000  # 2 to 10 s and 1 GB; the error is then 1/3000 of one sample's
FEWEST_FIT_DRAWS = 100  # fewer leave too small a tail for Pareto k-hat (not benchmarked)
FEWEST_SBC_FITS = 20  # as kullback.variational.calibrate has it
MAX_FIT_DRAWS = 1_000_000  # the verdict's own limits do not improve beyond
MAX_NUMBERS = 200_000_000  # --dim times --draws: 1.6 GB an array
MAX_DIMENSION = MAX_NUMBERS // FEWEST_FIT_DRAWS
MAX_DRAWS_PER_IMAGE = 1_000_000
EVALUATION_DRAWS = 500  # K of `kullback evaluate`; of sound as in the evaluation that closes
CLOSING_DRAWS = (20, 50, 100, 200, 500)  # K of the evaluation that closes a training
CLOSING_NUMBERS = 80_000_000  # test images x dimensions x K: 20 s for small images on two cores
CLOSING_SAMPLES = 8_000_000  # the same of sound, of which each takes a microsecond: 10 s
COMPARISON_DRAWS = 100  # K of kullback compare: differences of bounds move little with K
CLOSING_ANNEALED = (8, 24_000)  # test images annealed then, and numbers in them: seconds of a core
CLOSING_CHAINS, CLOSING_TEMPERATURES = 8, 50  # of them: half of what --sandwich takes
CLOSING_ANNEALED_CLIPS = (4, 32_000)  # clips annealed then, and samples in them
CLOSING_CLIP_CHAINS = (4, 10, 2, 2)  # chains, temperatures, leapfrog steps, pilots: 2 CPU s a clip
SANDWICH_IMAGES = (20, 16, 100)  # items, chains and temperatures of --sandwich
SANDWICH_CLIPS = (4, 4, 20)  # the same of sound, whose clips have 8,000 places in a second
SANDWICH_FEWEST = 2  # items, for which there is an error
SANDWICH_FIRST = 10  # temperatures with which --sandwich-minutes begins; they are doubled
SANDWICH_PILOTS = 2  # of the model's own items, on which it looks whether the bounds meet
CLIP_REFIT_STEPS, CLIP_REFIT_DRAWS = 100, 2  # of q of each clip: a twelfth of the usual work
MAX_SAMPLED_IMAGES = 10**9  # in one .npy, written in blocks; the free disk is the nearer limit
MAX_IMAGES_OF_A_PICTURE = 100_000  # of one .png, which is made in memory
MAX_PIXELS_OF_A_PICTURE = 2**26  # of one .png: 8,192 x 8,192, or 85,000 images of 28x28
SAMPLES_PER_BLOCK = 1_000  # drawn at once; with fewer, samples are those of one call
OUTPUTS_PER_BLOCK = 2**25  # of the decoder at once: 128 MB, and a few times that in use
MAX_BYTES = 1 << 30  # of a file of numbers: a table of 40 million outcomes
CLIPS_PER_BLOCK = 64  # drawn at once, sample by sample
SOUNDS = 8  # clips drawn or reconstructed where no number is given: seconds of work
IMAGES_PER_BLOCK = 500  # encoded at once, so that memory does not grow with the data

SAME_STEPS = 0.03  # of the steps: twice as many gain about 2 % (SHORT_STEPS), so these under 0.1 %

# what numbers that are no table look like
MIN_OBSERVATIONS = 20  # unnamed numbers from which a list may well be of observations
REPEATS = 2  # whole numbers that occur so often each, on average, are observations
NEAR_ONE = 0.02  # of the sum: probabilities printed with two or three decimals
NEAR_HUNDRED = 1.0  # of the sum: percentages printed without decimals
MAX_LOG_PROBABILITY = 1e-6  # log 1 with the rounding of float32

# seconds
PILOT_DRAWS = 50_000  # are timed first, where more than twice as many are asked for
SECONDS_BEFORE_BAR = 2.0  # without a sign of work
SECONDS_WORTH_TELLING = 20.0  # before work begins: longer than one waits without asking
SECONDS_TO_FIRST_LINE = 4.0  # of a fit where there is no terminal
SECONDS_BETWEEN_LINES = 10.0  # Nielsen (1993): beyond 10 s users want to know how far it is
SECONDS_BETWEEN_LOOKS = 0.1  # whether an import is done; Nielsen (1993): 0.1 s is no delay
