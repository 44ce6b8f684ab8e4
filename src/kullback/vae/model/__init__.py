"""What a VAE is: an encoder, a decoder, a likelihood and a prior, composed; and how one is made.

- `vae`: `VAE`, its figures, samples and files, and `build`, which makes one for data.
- `composed`: the parts together, and the terms of every objective.
- `components`: which networks, likelihood, q(z|x) and prior an architecture means.
- `own_parts`: modules of a user's own in their place. `own_modules`: how these are called.
- `input_checks`: what is refused as x. `units`: mean and deviation of continuous data.

`build` makes a model from an `Architecture` and the data's shape and kind; `VAE(...)` takes any
parts you have written yourself; `VAE.load` reads a run directory. Figures come back per image:
`elbo` and `log_likelihood` are lower bounds, higher is better; `kullback.vae.evaluate` puts error
bars on their averages.
"""

from .components import Statistics
from .own_modules import OwnDecoder, OwnEncoder, names_own_parts
from .own_parts import Parts, evaluating, require_own, with_parts
from .units import location_and_spread, location_and_spread_of
from .vae import VAE, build

__all__ = [
    "VAE",
    "OwnDecoder",
    "OwnEncoder",
    "Parts",
    "Statistics",
    "build",
    "evaluating",
    "location_and_spread",
    "location_and_spread_of",
    "names_own_parts",
    "require_own",
    "with_parts",
]
