"""Every threshold of this folder, grouped by the file that uses it, with its source.

`Limits` holds those that turn evidence into bounds and a level: `judge` takes them as an argument,
so that `benchmarks/verdicts.py --ablation` can drop each one and count again. The others are
constants, read as `limits.NAME`. Where a value names no source it was chosen on the targets of
benchmarks/posteriors.py (fits) or on the list CHOOSING of benchmarks/verdict_targets.py
(diagnostics, counted on the list COUNTING).
"""

import math
from dataclasses import dataclass

from kullback.sampled import MAX_PARETO_K

__all__ = ["LIMITS", "Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Thresholds between evidence and verdict.

    good, fair: largest bound of "trust" and of "partly", in sd of the draws and in log sd.
    miss: probability that any normal error bar of one fit fails, two a function.
    light, heavy: where there are draws of q alone, Pareto k-hat of its weights from which the
    scores count, and count in full; at 1/2 the variance of the weights becomes infinite.
    misled: k-hat from which weights say nothing of regions without draws (Vehtari et al. 2024).
    unreached: share of p's mass where q has less than a hundredth of p's density.
    shape: residual of the scores and sd of log weights from which the shape of q is not p's, and
    near, pooled_near: ESS/n above which that does not matter, of draws of q alone and where wider
    draws bear them out. They guard draws of q, not its moments.
    """

    good: float = 0.2
    fair: float = 0.6
    miss: float = 0.01
    light: float = 0.2
    heavy: float = 0.5
    misled: float = MAX_PARETO_K
    unreached: float = 0.02
    shape: float = 1.0
    near: float = 0.9
    pooled_near: float = 0.5  # a chi-square of 1; on TRYING 143 trusted for 133, none wrongly


LIMITS = Limits()

# All files: dimensions up to which d x d matrices are made (a full covariance, a Hessian, an order
# of coordinates); above, their d^3 operations would cost more than the log density.
MAX_DENSE_DIMENSIONS = 300

# families/flow
MIN_VARIANCE_LEFT = 1e-12  # share of a coordinate's variance: below, the others explain it all

# target/density, target/batches
MIN_PIECE, MAX_PIECE = 128, 4096  # points differentiated together,
CACHED_NUMBERS = 1 << 21  # so many that what is kept for the gradient, 16 MiB, stays in the cache,
SMALL_TENSOR = 1 << 13  # and that a tensor has so many numbers: calls cost more than fewer of them
MAX_KEPT_NUMBERS = 1 << 24  # (Lotka-Volterra, 4,096 gradients: 0.39 s in 735s, 0.14 s at once)
# target/programs: sizes that XLA compiles for, 64, 512, 4096; eight schools takes about a second
FEWEST_COMPILED, COMPILED_STEP = 64, 8  # for each, and 2 ms to evaluate 4,096 points
MAX_ROWS_TOGETHER = 8192  # rows of data evaluated together, by default
SHOWN_ENTRIES = 6  # of a vector, in an error message

# target/density: points that a density refuses by an exception before it has accepted one
MAX_FIRST_REFUSALS = 256  # half of z > 0 refuses so many by chance once in 2^256; a fault always

# target/density: NaN in the data of other programs
DATA_PROBES = 8  # points in (-2, 2)^d, as Stan's starts, at none of which log p is finite

# target/density: a gradient of a user's own against differences of log p along random directions
SLOPE_PROBES = 4  # standard normal points
SLOPE_STEPS = (1e-3, 0.03)  # of unconstrained z: contradicted by both, for the noise of a solver
SLOPE_TOLERANCE = 0.05  # of the terms' size, beside the change of slope within a step,
OWN_SLOPE_TOLERANCE = 0.005  # where PyTorch differentiates: rounding of float32 alone
SAME_TOLERANCE = 1e-3  # of 1 + |log p|, between two calls at one point: a GPU adds in another order
SLOPE_ROUNDING = 1e-6  # and rounding of log p, relative: ten units of float32

# engine: choice of family and method
MAX_MIXTURE_FULL_DIMENSIONS = 100  # up to which a mixture has full covariances: K d^2 a draw
MAX_LOW_RANK_FIXED_DIMENSIONS = 64  # up to which fixed draws fit a low-rank Gaussian
MAX_REFINED_DIMENSIONS = 50  # up to which a mixture is tried where a Gaussian falls short
MAX_REFINED_DRAWS = 1024  # fixed draws, where a mixture will be tried if they are too few
SAME_PEAK_SDS = 4.0  # sd (and sqrt(d) more) within which two starts lie on one peak
NEGLIGIBLE_PEAK = 15.0  # nats of the ELBO below the best start: a share of 3e-7 of the mass

# engine, fit, diagnostics: a density that is evaluated one point at a time
LOOPED_DRAWS = 128  # fixed draws of q
LOOPED_EVALUATION_DRAWS = 1000  # at the end, where their number is left open
LOOPED_CLIMBS = 8  # of the search for other peaks

# fit
COARSE_ROUNDING = 0.05  # sd: resolution of float32 from which it is said
BESIDE_BOUNDARIES = 5  # of MIN_DRAWS, that a move of 1e-10 of z takes to the next float32
MAX_FIT_SECONDS = 600.0  # by default: what no row of benchmarks/posteriors.py takes on one core
EVALUATION_SHARE = 0.1  # of it, left to evaluate draws of the fitted q

# engine: what the search elsewhere finds is fitted too
MIN_SHARE_ELSEWHERE = 0.005  # of p's mass on a peak that q has not, from which q is fitted again
MAX_SEARCHES = 8  # with 3, of eight equal peaks some were found and not fitted

# engine: moments matched by importance sampling (KL(p||q)) where those of KL(q||p) are off
CLOSE_DRAWS = 2000  # of q, at a first look: whether a wider law is asked, and more draws,
CLOSE_MISSED = 0.5  # which they are where they miss more than this share of LIMITS.unreached
MIN_MOMENT_SHIFT = 0.05  # sd, or log sd, by which weighted draws must move a moment
MOMENT_SHIFT_ERRORS = 2.5  # and standard errors
MIN_MATCHED_DRAWS = 400.0  # effective, of the weighted draws
MATCHED_DRAWS, MATCHED_ROUNDS = 8000, 2  # draws of q a round, twice as many of a wider law
RESAMPLED_DRAWS = 6000  # of them, in proportion to their weights, to which the mixture is fitted
MIN_MATCHED_GAIN = 0.7  # times the old shift that the new one may be
MATCHED_ITERATIONS = 60  # of L-BFGS a round
# optimise/moment_shift (chosen on the rows hinge, flat top, asymmetric of benchmarks/shapes.py)
MIN_MOVED = 0.015  # sd, or log sd, beyond errors, from which q is moved to weighted moments

# engine: a flow where a mixture still misses mass (chosen on gp_pois_regr and eight schools)
FITTED_STEPS, FITTED_BATCH, FITTED_RATE = 300, 256, 0.01  # of Adam by KL(p||q), to weighted draws
POLISH_STEPS, POLISH_DRAWS, POLISH_RATE = 300, 128, 3e-3  # and then by KL(q||p),
POLISH_ROUNDS = 3  # at most, until q misses no more than LIMITS.unreached
# sd, or log sd, by which weighted draws may move the moments of a flow that misses less than
REACHED_SHIFT = 0.1  # LIMITS.unreached: gp_pois_regr 0.06 to 0.1, Laplace in 20 dimensions 0.13
WHOLE_GAIN = 0.02  # of what q missed: gp_pois_regr 0.006 (kept), Laplace in 20 dimensions 0.2 (not)
MORE_COMPONENTS = 6  # of the mixture that is fitted to the draws without zuko

# engine: refinement of a Gaussian by a mixture
MIN_SD_LOG_WEIGHTS = 0.4  # nats: spread of log weights above which a Gaussian is refined
MAX_REFINED_GRADIENT = 0.1  # gradient of the Gaussian below which refining is worth it
EARLY_DRAWS_PER_DIMENSION = 16  # first draws that already show whether one Gaussian will do
CHECK_DRAWS = 1000  # draws that show it
MIXTURE_TOLERANCE = 5e-3  # sd: fresh draws move a mixture's optimum by ten times that

# optimise
PROGRESS_SECONDS = 0.1  # between two updates of the line on a terminal

# optimise/starts
PLAIN_WIDTHS = (1.0, 0.3, 0.1, 0.03, 0.01)  # sd of the Gaussians tried where the climb leads away
MAX_WIDTH_RATIO = 10.0  # of a start's variance to the one that its draws' scores ask for
MENDED_POINTS, MENDED_STEPS = 1024, 40  # gradients a step, and steps, that mend such a start
MAX_START_SLOPE = 3.0  # sd that they ask for it to be moved
MAX_START_DROP, START_DROP = 8.0, 0.5  # nats that log p falls one sd off: of a Gaussian 0.5
START_HALVINGS = 100  # of an sd, at most: from 1e12, where no curvature was seen, to 1e-18
MAX_LBFGS_STEPS, MAX_NEWTON_STEPS = 300, 100
JUDGED_EVERY = 10  # L-BFGS steps between two evaluations of the ELBO
MIN_START_GRADIENT = 1e-4  # norm at which the climb by L-BFGS ends
CURVATURE_PROBES = 32  # of Hutchinson's estimator
MAX_STEPS_WITHOUT_GAIN = 8  # Newton steps without a higher ELBO after which a path ends
MIN_NEWTON_GAIN = 1e-6  # nats that the quadratic promises, below which a path ends
MIN_ELBO_GAIN = 1e-2  # nats by which a Gaussian must be better than the path's best
NEAR_SDS = 10.0  # sd to the next stop, from which the Gaussian there is not evaluated

# optimise/deterministic
GRADIENT_TOLERANCE = 1e-3  # sd of the posterior
REFRAME_ITERATIONS = 20  # iterations before a Gaussian's coordinates are made anew
REFRAME_MOVE = 1.0  # sd by which its parameters may move before that
MAX_LOG_GROWTH = math.log(1e6)  # of an sd, or drift in sd, that no proper posterior should need
MAX_LOG_SHRINKAGE = math.log(1e16)  # at a kink the start sees no curvature, and is too wide
MAX_OBJECTIVE = 1e15  # nats: differences of one drown in the rounding of float64
MAX_INFINITE_STEPS = 20  # iterations with log p = -inf at a draw: beyond an edge there is no slope
KINK_GRADIENT = 10.0  # by which a kink at one of n draws changes the gradient is this over n; up
# to FRESH_DRAWS_AGREE is allowed whatever n is
STILL_STEPS, STILL_GAIN = 30, 1e-6  # iterations, and nats, without which no descent from a kink is
# left; where the objective is smooth a gradient of 0.03 promises 4e-4 nats
FRESH_DRAWS_AGREE = 0.03  # sd by which fresh draws may move an optimum that needs no more draws
FRESH_DRAWS_CONVERGED = 0.3  # sd by which they may move one that is called converged

# optimise/deterministic: L-BFGS (Nocedal and Wright 2006, sections 3.1 and 7.2)
SUFFICIENT_DECREASE, CURVATURE_CONDITION = 1e-4, 0.9  # c1 and c2 of the weak Wolfe conditions
MIN_CURVATURE = 1e-10  # cosine of step and change of gradient, below which a pair is not kept
MAX_LINE_SEARCH = 40  # evaluations
ENOUGH_LINE_SEARCH = 8  # evaluations after which a decrease alone will do

# optimise/stochastic: windows of iterates (Welandawe et al. 2022)
PARAMETER_WINDOW, LOSS_WINDOW = 200, 50  # iterations: several times the memory of what is watched
MAX_STEP_SIZES, MAX_WINDOWS = 8, 12  # halvings of the step size; windows at each
MAX_R_HAT = 1.2
AVERAGES_AGREE_SD, AVERAGES_AGREE_NATS = 0.05, 0.01  # between averages at two step sizes
DIVERGED_GRADIENT = 100.0  # times the first gradient: the step size was too large

# optimise/stochastic: cosine annealing, and the tails of a flow
FIRST_ROUND_STEPS, MAX_ROUNDS = 500, 3
FIRST_RATE = 0.01  # Adam's, at the start of the first round
MIN_ROUND_GAIN = 0.02  # nats that a round twice as long must gain to go on
ROUND_END = 0.2  # share of a round over which the objective is averaged
MAX_STEPS_NOT_FINITE = 20  # in a row
MAX_FLOW_K_HAT = 0.45  # of a flow's weights, below 1/2 by the error of the estimate
TAIL_WIDTHS = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)  # of the base, tried in this order
K_HAT_SETS, K_HAT_DRAWS = 4, 4000  # for each width

# optimise/batch_and_match
MAX_STILL_ITERATIONS = 3  # in a row below the tolerance

# optimise/natural_gradient (chosen on the rows hierarchy, ar1, laplace of benchmarks/shapes.py)
SMOOTHING_STEP = (
    0.1  # conditional sd over which the gradient is differenced: 0.2 % of an sd too wide
)
PATTERN_STEP, PATTERN_SPREAD = 0.3, 0.5  # sd: of a difference, and of the draws at which it is made
PATTERN_ROUNDING = 1e-11  # relative change of a gradient that is rounding
MAX_SPARSE_ENTRIES = 8  # and sqrt(d): others that depend on a coordinate that is not dense
NATURAL_POINTS = 4096  # gradients an iteration
FIRST_NATURAL_DRAWS, MAX_NATURAL_DRAWS = 32, 512  # of q an iteration: far from the optimum; near
MAX_NATURAL_DIMENSIONS = 1200  # up to which q is full rank by default: d^3 operations an iteration
MAX_NATURAL_STEPS = 60
MAX_NATURAL_MOVE = 3.0  # sd that a mean may move in a step
MIN_NATURAL_SHARE = 1e-3  # of a step, below which it is given up
MIN_NATURAL_PACE = 0.1  # share of a step, below which they are not
NATURAL_SLACK = 3.0  # standard errors by which the ELBO may fall in a step
NATURAL_ROUNDING = 1e-9  # of the ELBO, by which it may fall as well
NATURAL_AVERAGED = 0.5  # sd a step, from which noise may be all that moves q
NATURAL_TOLERANCE = 0.02  # sd that fresh draws may move q at the end

# optimise/hamiltonian (chosen on the row "hierarchy non-centred" of benchmarks/shapes.py)
MIN_SCORE_RESIDUAL = 0.3  # of the scores, from which a large Gaussian is held to a run
CHAINS = 128  # that move together
MANY_CHAINS = 1024  # where q's weights leave too few draws, for sds of exponential tails to 5 %
CHAIN_WARM_UP, CHAIN_KEPT = 40, 40  # iterations
CHAIN_SHORT, CHAIN_AGAIN = 10, 20  # kept for the frame of a second run; its warm-up
CHAIN_FIRST_STEP = 0.5  # in q's frame, times d^(-1/4)
CHAIN_LENGTH = 1.5  # mean of a trajectory: about a quarter of a turn in a round p
MAX_LEAPS = 64  # of a trajectory
CHAIN_ACCEPTANCE = 0.65  # mean (Hoffman et al. 2021)
CHAIN_ADAPTATION = 2.0  # of the log step, for an acceptance of 1 too many
CHAIN_JITTER = 0.2  # of a chain's own step, so that no trajectory is periodic
CHAIN_ERRORS = 4.0  # standard errors of a change between halves that are noise
MAX_CHAIN_ERROR = 0.06  # sd, of a mean; 0.09 where no chain moves
MAX_CHAIN_MOVING = 0.05  # sd that moments may still move between halves, beyond these

# optimise/edges
INTERIOR_POINTS, INTERIOR_WIDTHS = 8192, (0.1, 1.0, 4.0, 16.0, 100.0)  # half widths of the cubes
MIN_INTERIOR = 16  # points of finite log p with which a fit begins
EDGE_LINES, EDGE_REACH, BISECTIONS = 16, 1e4, 60  # in each coordinate; how far, in sizes of a point
EDGE_AGREES = 1e-7  # of that reach, within which lines meet one edge

# optimise/forward_kl
MOMENTS_AGREE = 0.05  # sd that moments may move between rounds
MOMENTS_RIDGE = 1e-9  # of the variances of weighted draws, few of which may have any weight

# optimise/grid
NEGLIGIBLE_DENSITY = 45.0  # nats below the peak: 3e-20 of it
MAX_GRID_STEPS = 300
GRID_ROUNDING = 1e-13  # nats: what sums over a grid in float64 cannot tell apart
MAX_BOX = 2e6  # width, beyond which p is improper or its tails too heavy for a grid
PEAKS_APART = 0.75  # sd of p
PEAK_DEPTH = 12.0  # nats below the highest node at which no peak is sought

# diagnostics/evidence, diagnostics/diagnose: draws of q
MIN_DRAWS = 100
BOUND_REPEATS = 50  # of the importance-weighted bound
TAIL_PROBABILITY = 0.01  # of a tail of q, at either end
COVARIANCE_RIDGE = 1e-12  # of the variances, so that the Cholesky factor of a covariance exists

# diagnostics/defensive_sampling (Hesterberg 1995; Owen and Zhou 2000)
WIDE_DEGREES = 5  # of freedom of the t: any posterior with four moments has lighter tails
WIDE_DRAWS, MORE_WIDE_DRAWS = 2, 8  # for each draw of q, at first and at a second look
MAX_FIRST_LOOK_DIMENSIONS = 8  # above which the first look may be too little
MAX_SEARCHED_DIMENSIONS = 100  # up to which p is evaluated away from q's draws
UNREACHED_RATIO = 100.0  # p/q from which q has next to no draws: of 4,000, 0.8 meet 2 % of p there

# diagnostics/defensive_sampling: nested Laplace approximations (Tierney and Kadane 1986; Rue et al.
# 2009)
MIN_FUNNEL_CORRELATION = 0.15  # of a coordinate with the log size of the other scores
MIN_BEND = 0.1  # third derivatives of log p in q's sd: 0.02 to 0.06 is noise of 4,000 draws
MAX_FUNNELS = 3  # coordinates that are followed, those of the largest correlation
MAX_FOLLOWED_DIMENSIONS = 64  # up to which a coordinate is followed: 2 d gradients a curvature
MAX_PATH_NODES = 16  # steps of one sd in either direction
PATH_DEPTH = 14.0  # nats below the highest node at which a path ends
PATH_KERNEL = 0.7  # sd of the draws about a node along the path, in steps
RIDGE_DEGREES = 8  # of freedom of the draws about a node
MAX_NODE_STEPS, NODE_TOLERANCE = 6, 0.02  # Newton steps at a node; nats still to be gained
HESSIAN_STEP = 1e-4  # of differences of the gradient, in sd of the draws

# diagnostics/heavy_tails (chosen on its docstring's examples; swept in tests/variational)
MAX_TAIL_INDEX = 4  # moments of order s exist up to it: above, the sample variance has an error bar
TAIL_PLACES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # sd along a way
TAIL_SLACK = 4.0  # log of the sd in units of p's middle, up to which no slow fall is overlooked
TAIL_CLIMB, TAIL_QUIET = 60, 3  # steps at a place; those in a row without a gain with which it ends
TAIL_STEPS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5)
MAX_TAIL_WAYS = 24  # on which an index is taken
FAR_PLACES = (1e3, 3e3, 1e4, 3e4)  # sd: beyond, p of a ridge is rounded
TAIL_AGREES = 0.02  # change of the power between them: a log-normal of scale 5 changes by 0.05
TAIL_DRAWS, TAIL_ROUNDS = 2048, 8  # by which what is beside a way is integrated: at kinks
MIN_TAIL_DRAWS, TAIL_POWERS = 100.0, (1.0, 0.5, 0.25, 0.1, 0.03)  # effective; of weights, until so
MAX_TAIL_INTEGRALS = 3  # ways that are integrated, the highest ones
TAIL_GROWTH = 0.01  # of the largest move, in sd, from which a coordinate has the tail

# diagnostics/missed_modes (chosen on tests/variational/test_missed_modes.py's table of peaks)
CLIMBS = 32  # from far outside the draws
START_SCALES = (2.0, 4.0, 8.0, 16.0)  # of the starts, in sd of the draws
SCANNED_POINTS, SCANNED_SHELLS = 4096, 16  # of random direction
SCAN_REACH = 100.0  # sd from the mean of q's draws, the furthest of them
RAY_FIRST, RAY_POINTS = 1.5, 28  # sd; points on a ray, each 1.17 times as far as the one before
RAY_KINKS = 3  # points of a ray, at most, from which a first step is taken
RAY_SEES = 0.1  # sd of q: a peak on a ray of at least this sd has one of these points
CLIMBERS = (512, 128, 64)  # points that go on after one step, two and three
HOME_SDS = 2.0  # from the mean of q's draws, within which no climb goes on
SHORTER_STEPS = (1.0, 0.3, 0.1, 0.01)  # times a step that leads down
CLIMB_STEPS, CLIMB_TOLERANCE = 30, 0.01  # of the ascent; sd below which a step is the last
PEAK_STEPS, PEAK_TOLERANCE = 8, 1e-4  # of Newton's method at a peak; squared sd still to go
APART_TOLERANCE, APART_POINTS, APART_DEPTH = 1e-3, 33, 1.0  # squared sd; on the line; nats
OUTSIDE_SDS = 3.0  # and sqrt(d) in radius, or 1 in one direction: q has next to no draws beyond
OWN_SHARE = 0.5  # of p's mass on a peak, from which q's draws there count as q's own peak
PEAK_DRAWS = 512  # that weigh a peak
MAX_PEAKS = 8  # that are weighed, the highest of every shell
SAME_ENDS = 1.0  # sd within which two climbs have ended on one peak
MAX_PEAK_DISTANCE = 1.0  # sd from a peak at which a climb may end
WIDTH_DISTANCES, WIDTH_BISECTIONS = (
    (5.0, 9.0, 20.0, 40.0),
    30,
)  # of the narrowest peak that is found

# diagnostics/propriety
MAX_FOLLOWED_FAR = 128  # dimensions: each has its ray, and 4 d^2 gradients are less than a fit
RAY_LINES = 5  # parallel lines on each direction, from draws of q
MAX_RAYS = 128  # directions
MIN_RAY_SD = 1e-6  # of the distance from 0, or of 1: no narrower is a direction's unit
RAY_DECADES = 10  # of distance, in sd of the draws
RAY_SLOPES = 2  # last slopes of log p against log t that must be above -1
SLOPE_MARGIN = 0.01  # below -1: a tail of 1/t has no mass, one of t^-1.1 has
UNDERFLOW_DEPTH = (
    600.0  # nats: a fall to p near the smallest float64, e^-708, where transforms clip
)
MAX_RESOLVED = 1e13  # nats: beyond, float64 does not tell a change of 0.002
MAX_COORDINATE = 1e9  # on the unconstrained space: a fit that has not converged has run away
END_REACH, END_PLACES = 1000.0, 201  # of z, within which exp and sigmoid come to an end,
END_RESOLVED = 1e4  # where values change by fewer spacings of float64 from place to place
END_LOOKS = 6  # at log p on the last half of the way there
FEWEST_BATCHED = 64  # draws of a reference, from which their error is that of 8 batches or more
SAME_TURN = 1e-9  # of 1 + |log p|: rounding, over a turn of an angle
TURN_DRAWS = 3  # at which log p has period 2 pi
# along scales (chosen on the tables of tests/variational/test_propriety.py)
SCALE_PLACES = (
    100.0,
    30.0,
    10.0,
)  # sd at which widths are compared: the first with finite ones
SCALE_WIDTHS = 1000.0  # factor by which they must change,
SCALE_GROWTH = 1.5  # and its log from half the distance on: 2 for an exponential, 1.2 for a power
SCALE_STEP = 0.01  # of differences of the gradient, in the width that the others have there
SCALE_TOLERANCES = (0.1, 1e-6)  # twice the nats of a mode: in old widths, in its own
MAX_SCALES = 4  # coordinates and ways that are followed, those on which most others depend
SCALE_ROUNDING = 1e-3  # of such a step: spacing of float64 at which a path ends
SCALE_NODES, SCALE_SHORTEST = 60, 0.1  # of a path; sd of the step at which none follows
SCALE_STARTS = (0.0, 10.0, 30.0)  # sd on the other way where a path may begin
SCALE_CHANGE = 3.0  # log of the width over the last half of a path
SCALE_FALL = 0.01  # nats over it: gamma(0.01, 0.01) on a scale falls by 0.06 to 0.1
SCALE_DECAY = 1.0  # nats over it, in a straight line, with which a path ends
# where effects of any law collapse (tables of tests/variational/test_collapsing_scales.py)
COLLAPSE_REACH, COLLAPSE_REACHES = 3200.0, 15  # sd from an effect, halved so often, at which
COLLAPSE_NEAREST = 10.0  # slopes along a scale are compared; sd within which its centre is sought
COLLAPSE_STEP = 0.25  # sd of the scale, of differences of the gradient along it
COLLAPSE_NOISE = 1e-10  # of the gradient: smaller changes are rounding
COLLAPSE_LOST = 1e-4  # of that, below which no sign is known
COLLAPSE_CENTRE, COLLAPSE_WIDTH = 2.0**-60, 2.0**-24  # of an interval, to which they are found
CHORD_MARGIN = 2.0**-10  # of an interval, on both sides of the zero of its chord
COLLAPSE_WIDTHS = (-80.0, 7.0)  # log width, in sd
COLLAPSE_EXCESS = 0.25  # of the slope along a log scale, an effect, at a width: u^2 of a normal
COLLAPSE_ROUNDING = 1e4  # spacings of float64 at the width at which a ray ends
COLLAPSE_LEAST = 1e-26  # width at which it ends where centres are 0
COLLAPSE_DEPTH = 12.0  # nats of width that the last half of a ray has, at least
COLLAPSE_FALL = 50.0  # nats over the first half, beyond which the rest is not looked at
COLLAPSE_PLACES = 12  # on the last half
PROPRIETY_SHARE = 0.25  # of the time that is left, which the question may take before a fit
RAY_DRAWS = 256  # of a start, whose spread directs the rays
SHOWN_COORDINATES = 5  # in a reason
MOVED_SHARE = 0.2  # of the largest move, in sd, from which a coordinate is named

# diagnostics/verdict: the sentence, which changes no level
NAMED_ELSEWHERE = 0.02  # share of p on a missed peak from which the reasons name it
EQUAL_WEIGHTS = 0.1  # sd of log weights (nats) below which their k-hat is of no importance
IDENTICAL_WEIGHTS = 0.01  # and below which q is p
NAMED_LOG_SD = 0.1  # log sd by which p must seem wider for the sentence to say so
NAMED_TAIL_RATIO = 1.7  # times q's mass that p has in a tail (or the inverse) for it to be named
MAX_NAMES = 3  # that a sentence has room for
FINE_ROUNDING = 0.1  # sd below which a bound is rounded to hundredths
MAX_LOG_SD_SHOWN = 2.0  # 640 %: above, "more than 600 %"
MAX_SD_RATIO_SHOWN = 10.0  # in the table: above, "unknown"

# diagnostics/verdict: resampling by importance weights
MIN_EFFECTIVE_DRAWS = 100.0
MAX_DRAW_SHARE = 0.02  # of all weight, on one draw

# calibration: ranks of simulated parameters
CALIBRATION_LEVEL = 0.05  # probability of a false alarm, over all quantities and tests
BAND_SHARE, SHIFT_SHARE, SD_SHARE = 0.5, 0.25, 0.25  # of it, for each of the three tests
CERTAIN_DEVIATION = 0.001  # p-value over all quantities, above which a second look is advised
DETECTED = 0.9  # probability with which a deviation is found that the verdict names
FEWEST_SIMULATIONS = 20  # with which a band is narrower than half the unit interval
BAND_POINTS = 100  # at which the distribution function is looked at, at most
BAND_BISECTIONS = 30  # of the log of a pointwise tail probability: to 1e-8 of it
TAIL_ROUNDING = 1e-9  # relative, of a tail probability summed from either side
NEGLIGIBLE_MASS = 1e-20  # of a Poisson count, left out of a convolution
RANK_BINS = 20  # of a histogram
RANKED_DRAWS = 1000  # that are resampled for each rank
RANK_EDGE = 1e-12  # of 0 and 1, so that normal scores are finite

# archive
FIT_FORMAT = 2  # of fit.json
CHECKED_DRAWS = 8  # stored draws at which a target given to `load` must agree
CHECK_TOLERANCE = 1e-6  # relative to the largest

# target/stan
STAN_COMPILE_SECONDS = 900  # eight schools takes 33 s of processor time, large models a few minutes
STAN_MESSAGE = 4096  # bytes kept of what Stan says

# fit
MOST_FIRST_POINTS = 64  # of draws given as init: more than any default of `starts`
