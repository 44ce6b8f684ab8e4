"""Every threshold of this folder, with its source or the benchmark that set it."""

__all__ = [
    "ANSWERS_FLOOR",
    "BATCH_TOKENS",
    "BISECTIONS",
    "BLOCKS",
    "CERTAIN",
    "CLIP",
    "CONFIDENCE",
    "CONSTANT",
    "CONTEXT",
    "DOMINANT_CLUSTER",
    "FLOAT32_EPS",
    "FLOOR_ROWS",
    "FLOOR_TOKENS",
    "KLD_FLOOR",
    "LOGITS_BYTES",
    "MANY_CLUSTERS",
    "MAX_COPIES",
    "MAX_EXACT_QUANTILES",
    "MAX_EXCESS_MASS",
    "MAX_GROUPS",
    "MIN_BLOCK_TOKENS",
    "MIN_CLUSTERS",
    "MIN_COPIED_TOKENS",
    "MIN_CROSS_FIT",
    "MIN_DISTINCT",
    "MIN_DOUBLED_SHARE",
    "MIN_PADDED",
    "MIN_PADDED_SHARE",
    "MIN_PARETO_K",
    "MIN_RUN",
    "MIN_TIES",
    "NEGATED",
    "PADDING_SHARE",
    "PADDING_TOKENS",
    "PROBE_ERROR",
    "PROBE_TOKENS",
    "RARE",
    "REACH",
    "ROUNDING",
    "SAME_BASE",
    "SAMPLE_SEQUENCES",
    "SAMPLE_TOKENS",
    "SERIES_BELOW",
    "SHOWN_VERSIONS",
    "SNIFFED_BYTES",
    "SPREAD_CODES",
    "TAIL_KEPT",
]

# --- Errors by clusters (clusters.py; coverage counted in tests/lm/test_clusters.py)

# Clusters below which their scatter says too little, and contiguous blocks of tokens are taken
# instead: from ten on, 95 % intervals covered 94 to 96 % at lengths of log-sd up to 1.2.
MIN_CLUSTERS = 10
MIN_BLOCK_TOKENS = 50  # of a block: neighbouring tokens of text are correlated over some ten
BLOCKS = 40  # blocks that a table of fewer clusters is cut into: t is then within 3 % of normal
ROUNDING = 4e-16  # a residual smaller than this share of its sum is rounding (two ulps of float64)
MANY_CLUSTERS = 1000  # effective ones, of which CR2's own error is below 5 %
BISECTIONS = 40  # of an interval that holds the variance between clusters: to 1e-12 of it
CONSTANT = 1e-12  # variance over mean square below which terms are one number: rounding of sums
DOMINANT_CLUSTER = 0.5  # share of all tokens in one cluster from which the error bar is warned of
CONFIDENCE = 0.95  # of the gate's one-sided limits

# --- Estimates (logprob_estimates.py)

MIN_CROSS_FIT = 4  # clusters: two in each half, or λ of one half is that of a single cluster
MIN_PARETO_K = 25  # sequences: the fewest that sampled.pareto_k takes
# Deviations of log q/p beyond its mean under q that draws from p must reach for a mean of q/p:
# about exp(D + 2σ) draws (Chatterjee and Diaconis 2018, theorem 1.1, with t = 2σ)
REACH = 2.0
SERIES_BELOW = 0.01  # |log r| below which r − 1 − log r is summed as a series, as in sampled
TAIL_KEPT = 513  # largest ratios read back a group: a tail of 512 gives k-hat to ±0.07
CLIP = 0.2  # PPO's ratio is clipped outside 1 ± 0.2 (Schulman et al. 2017, section 6.1)
MAX_GROUPS = 10_000  # groups of --by: more are identifiers, not groups
# Codes of rows are numbered through a table of their range, where it is at most so many times
# longer than the rows, and by a sort else, which takes about as long then
SPREAD_CODES = 8
MAX_EXACT_QUANTILES = 20_000_000  # rows of which exact quantiles are taken: 8 bytes of memory each

# --- Checks (logprob_checks.py; counted by benchmarks/logprob_checks.py)
RARE = 1e-3  # chance of a mean of q/p that is named as rare; refuted at TEST_LEVEL of sampled

# Tokens, in whole sequences, that are read back to look for a lag, zeros and a half-precision grid:
# with them a lag is found where neighbours correlate by 0.02 less.
SAMPLE_TOKENS = 20_000
SAMPLE_SEQUENCES = 2_000
SHOWN_VERSIONS = 6  # policy versions whose mean log-ratio is shown
MIN_COPIED_TOKENS = 8  # shorter sequences have the same log-probabilities by chance
MIN_DOUBLED_SHARE = 0.5  # of sequences whose tokens all repeat: a text in a loop may, a file not
MAX_COPIES = 0.05  # share of copies that makes an error bar too short by 2.5 %
# A lowest value that repeats: how many share it, and the part of the others that differ
MIN_TIES, MIN_DISTINCT = 5, 0.5
CERTAIN = 1e-3  # log-probabilities above minus this repeat lawfully: few float32 numbers are there
FLOAT32_EPS = 6e-8  # half a unit in the last place of float32, relatively
NEGATED = 0.5  # share of positive values that makes a column another quantity, and not damaged
SAME_BASE = 0.05  # of ln 2 or ln 10: sampling leaves the ratio of 20,000 tokens within 2 %
# Padding: sequences that show it, the length of a run of zeros, and the share of sequences with one
MIN_PADDED, MIN_RUN, MIN_PADDED_SHARE = 4, 8, 0.5

# --- Readers (logprob_tables.py)

SNIFFED_BYTES = 1 << 24  # of the first record of a file of JSON lines, to tell its format

# --- Models (models.py, drift.py)

PROBE_TOKENS = 8  # on which a checkpoint's own logits are compared with hidden states and head
PROBE_ERROR = 1e-4  # of the largest logit, in float32: matrix products agree to 1e-6 there
FLOOR_ROWS = 1 << 13  # of the head in float64 at a time: 256 MB at a width of 4,096
FLOOR_TOKENS = 32  # on which the KL of one rounding is measured: its mean is then within a tenth

# --- Drift (token_table.py, stored.py)

LOGITS_BYTES = 256 << 20  # of logits held at a time, both sides and what is worked in
BATCH_TOKENS = 4096  # given to a model at a time
# Padding that windows read in one call may need: as a share of their tokens (in tokens, for the
# shortest, where a call itself costs more). Without it a batch of scenes of 512 and some 250 tokens
# took 28 % more (benchmarks/drift.py).
PADDING_SHARE, PADDING_TOKENS = 0.05, 64
CONTEXT = 2048  # tokens of context by default, where the models could read more
# KL that the 16-bit codes of llama.cpp's file make of equal models, in nats a token: 6e-7 to 6e-6
# for logits of standard deviation 3 and 6 (tests/lm/test_stored.py)
KLD_FLOOR = 6e-6
# KL that float32 log-probabilities of a service make of equal models, in nats a token: an error of
# 1e-6 of each in a sum of 1 (tests/lm/test_stored.py)
ANSWERS_FLOOR = 1e-6
MAX_EXCESS_MASS = 1e-3  # by which listed probabilities may exceed 1: half precision, summed
