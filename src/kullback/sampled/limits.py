"""Every threshold of this folder that decides on a warning, a refusal or a missing error bar.

Each stands here with its source, or with the settings of benchmarks/coverage.py that set it.
"""

__all__ = ["FEW", "REFUTED", "ROUND_BITS", "TEST_LEVEL", "UNSEEN_CHANCE", "UNSEEN_RATIO"]

FEW = 20  # draws below which no standard error is taken at its word

# Tests of an identity (identity.py)
TEST_LEVEL = 1e-5  # chance that a call refutes an identity that holds; split over its batch
UNSEEN_CHANCE = 1e-3  # an event is counted as possibly unseen where it is missed with this chance
UNSEEN_RATIO = 2.0  # and q/p there may be up to this. With both, a missing mass of 0.1 is refuted
# from 140 draws on; what is refused below is an estimate that the draws seen bias by that much
REFUTED = 1.0 / TEST_LEVEL  # Markov: a mean of q/p above it has a chance below TEST_LEVEL

# Rounding of the inputs
ROUND_BITS = 5  # a value of a bfloat16 grid (8 bits) has so few bits with a chance of 1/8
