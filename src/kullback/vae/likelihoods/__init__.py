"""Likelihoods p(x|z): what the decoder's output means, for data of a given kind.

Which to use: `Bernoulli` for binary data; `DiscretisedLogistics` for 8-bit data (a probability for
each of 256 levels which knows that neighbouring levels are alike); `Categorical` for 8-bit data
with no such assumption (256 outputs a pixel); `BetaBinomial` for levels with two outputs a pixel;
`Gaussian`, in its forms also Laplace's and Student's law, and `ContinuousBernoulli` on [0, 1], for
continuous data only: a density on 8-bit data would have no finite maximum, and
`kullback.vae.architecture.choose`, which picks by the kind of data, refuses it; `Counts` for counts
(Poisson, negative binomial), with size factors or without.

Shapes: an event is `[C, *spatial]`, or a vector `[D]` which counts as one channel of D places. The
decoder gives `parameters`, `[*lead, channels, places]`, where `channels` is what the likelihood
asks for and `places` the product of the spatial sizes. Log-likelihoods are summed over the event.

`levels`: bits and levels; `logistics`: levels by a mixture of logistics; `neighbours` and
`context`: pixels that depend on those before them; `densities`: continuous values; `counts`:
counts; `sound_context`: what the samples before say.
`events`: where an event's numbers lie; `compiled`: `step.c`.
"""

from .compiled import SOURCE, in_threads, library
from .context import CausalFeatures, WithContext, weighted_bits
from .counts import COUNT_LAWS, Counts
from .densities import ContinuousBernoulli, Gaussian
from .events import Event, Likelihood
from .levels import (
    Bernoulli,
    BetaBinomial,
    Categorical,
    bernoulli_log_likelihood,
    bernoulli_total,
    bernoulli_value,
)
from .logistics import DiscretisedLogistics, log_mass
from .neighbours import OFFSETS, InRasterOrder, Neighbours
from .sound_context import PeriodEcho, SoundBlock, SoundContext

__all__ = [
    "COUNT_LAWS",
    "OFFSETS",
    "SOURCE",
    "Bernoulli",
    "BetaBinomial",
    "Categorical",
    "CausalFeatures",
    "ContinuousBernoulli",
    "Counts",
    "DiscretisedLogistics",
    "Event",
    "Gaussian",
    "InRasterOrder",
    "Likelihood",
    "Neighbours",
    "PeriodEcho",
    "SoundBlock",
    "SoundContext",
    "WithContext",
    "bernoulli_log_likelihood",
    "bernoulli_total",
    "bernoulli_value",
    "in_threads",
    "library",
    "log_mass",
    "weighted_bits",
]
