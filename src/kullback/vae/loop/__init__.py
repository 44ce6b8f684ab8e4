"""Training a VAE: one loop, and what watches it.

Which file answers which question:

- `steps`: the loop: how is a batch chosen, and what does a step do? `fit`, which you may copy out;
  `kullback.vae.run.train` wraps it in a run directory with checkpoints.
- `losses`: what is minimised, and what does that need of a model?
- `shared_step`: what do several processes tell each other in a step?
- `nonfinite`: where did a loss or a gradient stop being finite?
- `monitor`: what is logged, shown and warned of, and which weights are the best?
- `held_out`: which examples are kept from training to pick the best weights on?
"""

from .held_out import (
    BestLook,
    Validation,
    different_examples,
    digests_of_examples,
    hold_out,
    validation_of,
)
from .losses import balance_weights, loss_terms, require_parts_fit
from .monitor import Board, Monitor, Progress
from .nonfinite import Batch, NonFiniteError, diagnose
from .shared_step import SharedStep, require_equal_shares
from .steps import batches, fit

__all__ = [
    "Batch",
    "BestLook",
    "Board",
    "Monitor",
    "NonFiniteError",
    "Progress",
    "SharedStep",
    "Validation",
    "balance_weights",
    "batches",
    "diagnose",
    "different_examples",
    "digests_of_examples",
    "fit",
    "hold_out",
    "loss_terms",
    "require_equal_shares",
    "require_parts_fit",
    "validation_of",
]
