"""Every threshold of judging a VAE, with its source."""

__all__ = [
    "ACTIVE_KL",
    "ACTIVE_VARIANCE",
    "CATEGORICAL",
    "COLLAPSED",
    "DRAWS_FOR_LOOSE",
    "LOOSE",
    "UNRESOLVED",
]

ACTIVE_VARIANCE = 0.01  # of E_q[z_d|x] over x: Burda, Grosse and Salakhutdinov (2016), section 5.2
ACTIVE_KL = 0.1  # nats of mean KL(q(z_d|x) ‖ p(z_d)): benchmarks/active_units.py, a sweep over β
COLLAPSED = 0.5  # nats of KL in all dimensions together, below which z says nothing worth having
LOOSE = 10.0  # effective draws below which an image's bound rests on a handful of draws
DRAWS_FOR_LOOSE = 20  # with fewer, all draws could count and an image still be called loose
CATEGORICAL = 1024  # outputs a place: beyond it a free probability for each level is a waste
UNRESOLVED = 1e-3  # of a deviation: float32 rounding coarser than this makes a column a staircase
