"""Every threshold of diagnoses and verdicts, with what it guards and where it comes from.

`Limits` holds those that turn evidence into bounds and a level: `judge` takes them as an argument,
so that `benchmarks/verdicts.py --ablation` can drop each one and count again. The constants below
it say how the evidence is gathered. Values without a source were chosen on the list CHOOSING of
benchmarks/verdict_targets.py and are counted on the list COUNTING.
"""

from dataclasses import dataclass

__all__ = ["LIMITS", "Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Thresholds between evidence and verdict.

    good, fair: largest bound of "trust" and of "partly", in sd of the draws and in log sd.
    miss: chance that any normal error bar of one fit fails, two a function.
    light, heavy: where there are draws of q alone, Pareto k-hat of its weights from which the
    scores count, and count in full; at 1/2 the variance of the weights becomes infinite.
    misled: k-hat from which weights say nothing of what they have not met (Vehtari et al. 2024).
    unreached: share of p's mass where q has less than a hundredth of p's density.
    shape: residual of the scores and sd of log weights from which the shape of q is not p's, and
    near: ESS/n above which that does not matter. They guard draws of q, not its moments.
    """

    good: float = 0.2
    fair: float = 0.6
    miss: float = 0.01
    light: float = 0.2
    heavy: float = 0.5
    misled: float = 0.7
    unreached: float = 0.02
    shape: float = 1.0
    near: float = 0.9


LIMITS = Limits()

# Words of the verdict, which change no level.
ELSEWHERE = 0.02  # share of p on a missed peak from which the reasons name it
HEAVY = 0.7  # k-hat from which reweighted draws and tails are wrong (Vehtari et al. 2024)
EQUAL = 0.1  # sd of log weights (nats) below which their k-hat is of no importance
SAME = 0.01  # and below which q is p
SMALLER = 0.1  # log sd by which p must seem wider for the sentence to say so
FATTER = 1.7  # times q's mass that p has in a tail (or the inverse) for the tail to be named
NAMED = 3  # names that a sentence has room for

# Resampling by importance weights.
RESAMPLED = 100.0  # effective draws that it needs
LARGEST = 0.02  # share of all that one draw may have

# Evidence: draws of q.
FEWEST = 100  # draws of q
REPEATS = 50  # of the importance-weighted bound
TAIL = 0.01  # probability of a tail of q, at either end

# Evidence: defensive sampling (Hesterberg 1995; Owen and Zhou 2000).
FREEDOM = 5.0  # degrees of freedom of the t: any posterior with four moments has lighter tails
WIDE, WIDER = 2, 8  # its draws for each draw of q, at first and at a second look
MANY = 8  # dimensions above which the first may be too few
SEARCHED = 100  # dimensions up to which p is evaluated away from q's draws

TIMES = 100.0  # p/q from which q has no mass to speak of: of 4,000 draws, 0.8 meet 2 % of p there

# Evidence: nested Laplace approximations (Tierney and Kadane 1986; Rue, Martino and Chopin 2009).
FUNNEL = 0.15  # correlation of a coordinate with the log size of the other scores
FUNNELS = 3  # coordinates that are followed, those of the largest correlation
FOLLOWED = 64  # dimensions up to which a coordinate is followed: curvature costs 2 d gradients
NODES = 16  # steps of one standard deviation in either direction
FALL = 14.0  # nats below the highest node at which a path ends
KERNEL = 0.7  # sd of the draws about a node along the path, in steps
LIGHTER = 8  # degrees of freedom of the draws about a node
NEWTON, LEFT = 6, 0.02  # steps at a node, at most; nats still to be gained at which they end
DIFFERENCE = 1e-4  # width of differences of the gradient, in standard deviations of the draws

# Evidence: missed modes.
SCALES = (2.0, 4.0, 8.0, 16.0)  # of the starts, in standard deviations of the draws
STEPS, PACE = 120, 0.4  # of the ascent, in the same unit
BEYOND = 3.0  # a peak further out than sqrt(d) + 3 is not among the draws
LOCAL = 512  # draws that weigh a peak
PEAKS = 4  # that are weighed, the highest
STILL = 1.0  # standard deviations from a peak that a climb may end
CURVED = 64  # dimensions up to which the curvature of a peak is computed

# Is the target improper? (propriety.py)
LINES = 5  # parallel lines on each direction, from draws of q
RAYS = 128  # directions at most
DECADES = 10  # of distance, in standard deviations of the draws
SLOPES = 2  # last slopes of log p against log t that must be above -1
RAN_AWAY = 1e9  # on the unconstrained space: where a fit that has not converged has run away
LOOKED = 256  # draws of a start, whose spread directs the rays
DEEP = 700.0  # nats: a fall in which p underflows, so that what comes after it is of no importance
MARGIN = 0.01  # below -1: a tail of 1/t has no mass, one of t^-1.1 has
