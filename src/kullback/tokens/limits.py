"""Every threshold of this folder that was chosen, with its source.

Which to use: none directly; the checks of inputs read them.
"""

__all__ = [
    "HEAVY_LOGS",
    "LARGEST_LOG",
    "MASS_SLACK",
    "MEAN_ERRORS",
    "MEAN_GAP",
    "PROBABILITY_SLACK",
    "RATIO_GAP",
    "ROUNDING_ERRORS",
    "ROUNDING_SHARE",
    "WHOLE_SLACK",
]

# Inputs of another kind

# by how much the masses of a list may exceed 1: services send 3 or 4 digits
MASS_SLACK = 1e-3
# a list whose masses sum to 1 is taken as whole where that is known to this: float32 and better
WHOLE_SLACK = 1e-5
# rows of probabilities sum to 1 to this: tables are printed to 3 digits
PROBABILITY_SLACK = 1e-3

# Importance weights (tests/tokens/test_importance_weights.py counts false alarms and misses)

# a mean weight nearer to 1 biases a divergence by less than this share of it
MEAN_GAP = 1e-3
# a mean of q/p off 1 biases k3 by the gap itself, however small the divergence is: as far as
# float32 log-softmaxes of logits up to 100 are rounded, it is none
RATIO_GAP = 1e-5
# self-normalised standard errors; of clean softmaxes none of 20,000 calls is beyond
MEAN_ERRORS = 4.5
# standard deviation of log weights from which a mean below 1 is no news
HEAVY_LOGS = 1.0

# Rounding floors (tests/tokens/test_precision.py)

# standard deviations of an error in a floor: at most 1 % is beyond in every setting of the test
ROUNDING_ERRORS = 3.0
# share of a value that rounding may be before a warning: more, and it has no second digit
ROUNDING_SHARE = 0.1

# log-ratios from which e^x is cut where only its rounding is asked for
LARGEST_LOG = 300.0
