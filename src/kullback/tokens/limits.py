"""Every threshold of this folder that was chosen, with its source."""

# Inputs of another kind

# by how much the masses of a list may exceed 1: services send 3 or 4 digits
MASS_SLACK = 1e-3
# a list whose masses sum to 1 is taken as whole where that is known to this: float32 and better
WHOLE_SLACK = 1e-5
# a stored list's masses may exceed 1 by this and k ulps: a float32 log-softmax over 200,000 tokens
STORED_SLACK = 1e-6
# rows of probabilities sum to 1 to this: tables are printed to 3 digits
PROBABILITY_SLACK = 1e-3

# Importance weights (tests/tokens/test_inputs.py counts false alarms and misses)

# a mean weight nearer to 1 biases a divergence by less than this share of it
MEAN_GAP = 1e-3
# a mean of q/p off 1 biases k3 by the gap itself, however small the divergence is: as far as
# float32 log-softmaxes of logits up to 100 are rounded, it is none
RATIO_GAP = 1e-5
# self-normalised standard errors; of clean softmaxes none of 20,000 calls is beyond
MEAN_ERRORS = 4.5
# standard deviation of log weights from which a mean below 1 is normal for heavy tails
HEAVY_LOGS = 1.0

# Rounding floors (tests/tokens/test_inputs.py)

# standard deviations of an error in a floor: at most 1 % is beyond in every setting of the test
ROUNDING_ERRORS = 3.0
# share of a value that rounding may be before a warning: more, and it has no second digit
ROUNDING_SHARE = 0.1

# log-ratios at which e^x is cut where only its rounding is computed
LARGEST_LOG = 300.0

# Log-ratios in the backends (MATH 5.7; tests/tokens/test_divergences.py: relative errors)

# e^l − 1 − l needs no care up to this: e^20 times a mass is within float32
FAR_LOG = 20.0
# logits over the temperature above which float32 rounds exponents, by 6e-8 of them, too much: such
# rows are summed in float64 (tests/tokens/test_native.py; LARGE in native.cpp, in powers of two);
# and up to which a log-normaliser in float64 is known to 1e-6: beyond, no distribution can be told
LARGE_LOGIT, LARGEST_LOGIT = 700.0, 5.9e9
# log-ratios end here, lest those of finite masks overflow float32
LARGEST_LOG_RATIO = 1e30
# of KL without a compiler, in float64: logarithms of sums of exponentials so far within their range
# that nothing which counts is lost, and the KL of which 1e-15 is a part in 10⁷
SAFE_LOG, SMALL_KL = 600.0, 1e-8
# below it the kernels take the series of e^l − 1 to l^6, whose remainder there is 5e-8 of it, and
# 4e-7 of e^l − 1 − l
SERIES_LOG = 0.25
# sums in float32 from a common offset of log q/p lose some 3e-7 of that offset: nothing that counts
# up to the first, 3e-4 of a KL where the offset is less than 1/CENTRED_SHARE of it
CENTRED, CENTRED_SHARE = 1e-6, 1e-3
# masses, counted from a logit, above which it is too far below the largest: e^14, whose exponent
# float32 rounds by 5e-7
HIGH_LOG = 1.2e6

# Auditing (tests/tokens/test_audit.py: no loss is misnamed)

# relative error below which a field is a divergence's gradient; float32 inside a loss costs 1e-6
EXACT_MATCH = 1e-5
# norm of an expected gradient, in sizes of single gradients, below which it is zero
ZERO_GRADIENT = 1e-6
# norm of a divergence's gradient below which it is constant in that world: rounding, 1e-16, over
# tables of some 30 logits leaves less
CONSTANT = 1e-12
# ‖J − Jᵀ‖/‖J + Jᵀ‖ above which a field is no gradient; central differences leave 1e-6
ASYMMETRY = 1e-4
# and how many times what twice the step changes it must be: of float64 and float32 it is 100 and
# more, of bfloat16, whose gradients jump, less than 3 (tests/tokens/test_audit.py)
RESOLVED = 10.0
# |log policy/ref| above which policy and reference differ at a token: rounding leaves 1e-15
DIFFERENT = 1e-9
# batches of a world above which it is left out: one call of the loss a batch
MOST_BATCHES = 1000
# search for a family's parameter, which is reported to 7 digits: its first step and last width;
# relative errors, summed over worlds, above which a first guess, or one known to 0.01, is no fit
PARAMETER_STEP, PARAMETER_WIDTH = 0.12, 1e-9
NO_GUESS, NO_FIT, FIT_WIDTH = 0.5, 0.1, 1e-2
# log policy/ref, in nats, up to which a token's push is looked at (e^24 is beyond float32's
# digits), how exactly its dead zones are found, and the narrowest that is reported
FURTHEST_PUSH, PUSH_WIDTH, DEAD_ZONE = 24, 0.01, 0.5
# shares printed in percent: above the first as a multiple, below the second with two digits
MOST_PERCENT, TWO_DIGITS = 9.995, 0.01

# Sizes of what is worked on together (benchmarks/tables.py)

# logits where PyTorch's own operations do it
BLOCK = 1 << 17
# of the chunked backend: logits that stay in a cache with their scratch, and on an accelerator,
# where it is launching kernels that costs
CACHED_BLOCK, ACCELERATOR_BLOCK = 1 << 16, 1 << 24
FLOAT64_BLOCK = 1 << 15  # the same of KL in float64
SHORT_ROW = 8192  # numbers of which OpenBLAS adds a scalar product up in one thread (10,000)
# logits from which "auto" compiles the native loop, which takes some five seconds once a machine;
# where it has been loaded already it takes all
COMPILED_FROM = 1 << 16
# hidden states: bytes of scratch by default; positions, enough for a matrix product to run at full
# speed; positions × tokens, whose scratch stays in a processor's cache; and tokens at least
MEMORY, POSITIONS, CELLS, FEWEST_TOKENS = 48 << 20, 1024, 1 << 20, 256
# positions that the warning about rounding looks at
ROUNDING_ROWS = 4
# tokens from which a policy loss is swept in C: fewer are not worth compiling for
FEWEST_SWEPT = 4096

__all__ = [name for name in dir() if name.isupper()]
